"""A stand-in for kubectl: writes down how it is called, answers from a folder, and forwards ports by itself.

The folder has ``calls`` (a line of JSON each call), ``answers.json`` (by a command's first three words) and
``ports.json`` (where ``service/NAME:PORT`` leads to: a port of this machine).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

SCRIPT = f"""\
#!{sys.executable} -SE
import json, os, pathlib, socket, sys, threading
folder = pathlib.Path(os.environ["KUBECTL_STAND_IN"])
words = sys.argv[1:]
with (folder / "calls").open("a") as calls:
    calls.write(json.dumps(words) + "\\n")
while words and words[0].startswith("--"):
    words = words[1:] if "=" in words[0] else words[2:]
if words[0] != "port-forward":
    answer = json.loads((folder / "answers.json").read_text()).get(" ".join(words[:3]))
    if answer is None:
        sys.exit("error: the stand-in has no answer to " + " ".join(words))
    print(json.dumps(answer))
    sys.exit(0)
address, service, route = words[2:5]
local, port = route.split(":")
target = json.loads((folder / "ports.json").read_text()).get(service + ":" + port)
if target is None:
    sys.exit("Error from server (NotFound): " + service + " not found")

def pump(a, b):
    try:
        while data := a.recv(65536):
            b.sendall(data)
        b.shutdown(socket.SHUT_WR)
    except OSError:
        pass

server = socket.create_server((address, int(local)))
while True:
    here, _ = server.accept()
    there = socket.create_connection(("127.0.0.1", target))
    for pair in ((here, there), (there, here)):
        threading.Thread(target=pump, args=pair, daemon=True).start()
"""


class KubectlStandIn:
    """The stand-in in a folder of its own; ``env`` puts it before the real one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        script = folder / "kubectl"
        script.write_text(SCRIPT)
        script.chmod(0o755)
        self.answer({})
        self.lead({})
        self.env = {"KUBECTL_STAND_IN": str(folder), "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}

    def answer(self, answers: dict[str, object]) -> None:
        """Say what to answer to commands, by their first three words."""
        (self.folder / "answers.json").write_text(json.dumps(answers))

    def lead(self, ports: dict[str, int]) -> None:
        """Say where forwarded ports lead to."""
        (self.folder / "ports.json").write_text(json.dumps(ports))

    def calls(self) -> list[list[str]]:
        """List the calls so far, each as its arguments."""
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
