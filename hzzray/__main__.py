"""The program: ``hzzray``, or ``python -m hzzray``."""

import gc

# Imports make some 200 000 objects that stay: to look through them time and again was a seventh of what they take.
gc.set_threshold(10_000, 10, 10)

from hzzray.cli import main  # noqa: E402

__all__ = ["main"]

if __name__ == "__main__":
    main()
