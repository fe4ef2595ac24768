"""Loads what worker processes need before they have anything to do: Ray imports this in those that it starts."""

from contextlib import suppress
from importlib import import_module

for _name in ("hzzray.engine.reducer", "hzzray.engine.hot", "hzzray.physics.filler"):
    # One that can't be imported is told where it is used, in one line; here it would end every worker process.
    with suppress(Exception):
        import_module(_name)
