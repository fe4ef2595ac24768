"""Messages of tasks, damaged in every way that a seed comes upon."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pika

from bridge.topology import Topology
from bridge.wire import Letter, TaskMessage, task_letter
from hzzray.messages import Task

#: What no field of a task may be, though some are of the right type.
_VALUES: tuple[Any, ...] = (
    None, True, -1, 2**31, 2**63 - 1, 2**63, 2**64, 10**400, 10**4200, 0.5, 1e308, float("nan"), float("inf"), "", " ",
    "\0", "a\0b", "\x1b[31mred\x07", "two\nlines\r", "\u202egnp", "\ud800", "x" * 300, "x" * 5_000, "/" * 20_000,
    "://" * 15_000, "../../../etc/passwd", "/etc/passwd", "/files/../etc/passwd", "/files/x\0", "\0/files/Zee.root",
    "file:///etc/passwd", "https://user:secret@evil.example/a?token=1", "root://evil//x", "/proc/self/root/etc/passwd",
    [], {}, [[]], {"version": 1}, ["x"] * 1000,
)  # fmt: skip

_SHORT: tuple[Any, ...] = ("", "x", "task ", "TASK", "order", "text/plain", b"\xff\xfe", "\0", "\x1b[2J", "x" * 255)

_COUNTS: tuple[Any, ...] = (
    -1, 1_000_001, 2**31, 2**63 - 1, -(2**63), True, "often", "1", b"\xff", None, Decimal("1.5"), [1],
    {"a": {"b": [None]}},
    datetime(1970, 1, 2, tzinfo=UTC), "\0", "x" * 5_000,
)  # fmt: skip

#: Does no harm to a task: whatever else is in a header, and when it was published.
_NOISE: tuple[Callable[[random.Random], dict[str, Any]], ...] = (
    lambda _: {},
    lambda _: {"timestamp": 0},
    lambda _: {"timestamp": 2**63},
    lambda _: {"timestamp": 2**64 - 1},
    lambda chance: {"headers": {"replay": chance.choice(_COUNTS)}},
    lambda chance: {"headers": {"\0": chance.choice(_COUNTS), "ü": {"ü": ["ü"]}}},
    lambda chance: {"reply_to": chance.choice(_SHORT), "app_id": chance.choice(_SHORT)},
    lambda chance: {"correlation_id": chance.choice(_SHORT), "priority": chance.randrange(10)},
)


class Raw(pika.BasicProperties):
    """Properties whose headers are bytes of our own: what pika would not write."""

    def __init__(self, table: bytes, **given: Any) -> None:
        super().__init__(**given)
        self._table = table

    def encode(self) -> list[bytes]:
        flags, *others = super().encode()
        assert self.content_type, "headers come behind it"
        length = len(self.content_type) + 1
        rest = b"".join(others)
        (bits,) = struct.unpack(">H", flags)
        return [
            struct.pack(">H", bits | self.FLAG_HEADERS), rest[:length], struct.pack(">I", len(self._table)),
            self._table, rest[length:],
        ]  # fmt: skip


def _nested(depth: int) -> bytes:
    value = b"V"
    for _ in range(depth):
        value = b"A" + struct.pack(">I", len(value)) + value
    return value


#: What pika can't read, in two forms that RabbitMQ lets through.
UNREADABLE = (
    b"\1xT" + struct.pack(">Q", 2**63),
    b"\1x" + _nested(2_000),
)


def _json(chance: random.Random, depth: int = 0) -> Any:
    """JSON of any shape and type."""
    kind = chance.randrange(8 if depth < 5 else 6)
    if kind == 6:
        return [_json(chance, depth + 1) for _ in range(chance.randrange(4))]
    if kind == 7:
        names = ("version", "run_id", "spec", "sample", "file", "uuid", "tree", "start", "stop", "x")
        return {chance.choice(names): _json(chance, depth + 1) for _ in range(chance.randrange(12))}
    return chance.choice((chance.choice(_VALUES), chance.random(), chance.getrandbits(chance.choice((8, 64, 900)))))


def _written(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _bits(chance: random.Random, body: bytes, _: dict[str, Any]) -> bytes:
    flipped = bytearray(body)
    for _ in range(chance.randrange(1, 6)):
        flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
    return bytes(flipped)


def _field(chance: random.Random, _: bytes, task: dict[str, Any]) -> bytes:
    return json.dumps(task | {chance.choice(sorted(task)): chance.choice(_VALUES)}).encode()


def _fields(chance: random.Random, _: bytes, task: dict[str, Any]) -> bytes:
    left = {name: task[name] for name in chance.sample(sorted(task), chance.randrange(len(task)))}
    return _written(left | {chance.choice(("x", "\0", "\x1b[2J", "a\nb")): _json(chance)})


_BODIES: tuple[Callable[[random.Random, bytes, dict[str, Any]], bytes], ...] = (
    _bits,
    _field,
    _field,
    _fields,
    lambda chance, body, _: body[: chance.randrange(len(body))],
    lambda chance, body, _: body[chance.randrange(1, len(body)) :],
    lambda chance, _, __: _written(_json(chance)),
    lambda chance, _, __: chance.choice((b"[", b'{"x":', b"[{")) * chance.choice((1, 10, 300, 9_000)),
    lambda chance, _, __: chance.randbytes(chance.randrange(300)),
    lambda chance, body, _: body + b" " * chance.choice((64 * 1024 - len(body) + 1, 70_000)),
)


def damaged(tasks: list[Task], seed: int, number: int, topology: Topology) -> Iterator[Letter]:
    """Damage so many messages of some tasks; of none it can be said that it was meant so."""
    chance = random.Random(seed)
    while number:
        task = chance.choice(tasks)
        letter = task_letter(topology, TaskMessage(task, unknown=6))  # a run that is unknown is waited for no longer
        given = {name: getattr(letter.properties, name) for name in ("content_type", "type", "message_id", "headers")}
        noise = chance.choice(_NOISE)(chance)
        given |= {**noise, "headers": given["headers"] | noise.get("headers", {})}
        body = letter.body
        match chance.randrange(8):
            case 0:
                given[chance.choice(("content_type", "type", "message_id"))] = chance.choice(_SHORT)
            case 1:
                given["content_encoding"] = chance.choice(_SHORT)
            case 2:
                given["headers"] = given["headers"] | {
                    chance.choice(("attempt", "unknown", "x-delivery-count")): chance.choice(_COUNTS)
                }
            case 3:
                given["headers"] = None
                properties = Raw(chance.choice(UNREADABLE), **given, delivery_mode=2)
                number -= 1
                yield Letter(letter.exchange, letter.key, body, properties)
                continue
            case _:
                body = chance.choice(_BODIES)(chance, body, json.loads(body))
                if _is_harmless(body, task):
                    continue
        number -= 1
        yield Letter(letter.exchange, letter.key, body, pika.BasicProperties(**given, delivery_mode=2))


def _is_harmless(body: bytes, task: Task) -> bool:
    """Whether a body still says the same, but for a path beside the file's."""
    try:
        read = json.loads(body)
    except (ValueError, RecursionError):
        return False
    same = json.loads(task.canonical())
    folder = task.file.rpartition("/")[0] + "/"
    if isinstance(read, dict) and isinstance(file := read.get("file"), str) and "\0" not in file and ".." not in file:
        same["file"] = file if file.startswith(folder) else same["file"]
    return bool(read == same)
