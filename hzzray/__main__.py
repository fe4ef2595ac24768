"""The program: ``hzzray``, or ``python -m hzzray``."""

import gc
import os
import signal

# Imports make some 200 000 objects that stay: to look through them time and again was a seventh of what they take.
gc.set_threshold(10_000, 10, 10)


def _end(*_: object) -> None:
    """End at once, as ``main`` does later on: raised between imports, an interrupt would show importlib's frames."""
    os.write(2, b"hzzray: interrupted\n")
    os._exit(130)


_before = signal.getsignal(signal.SIGINT)
if _before is signal.default_int_handler:  # a shell lets what it starts in the background ignore interrupts
    signal.signal(signal.SIGINT, _end)

from hzzray.cli import main  # noqa: E402

signal.signal(signal.SIGINT, _before)

__all__ = ["main"]

if __name__ == "__main__":
    main()
