"""``python -m bridge`` is ``hzzray bridge``."""

import sys

from hzzray.cli import main

sys.argv.insert(1, "bridge")
main()
