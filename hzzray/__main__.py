"""``python -m hzzray`` is ``hzzray``."""

from hzzray.cli import main

main()
