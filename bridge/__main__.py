"""``python -m bridge`` is ``hzzray bridge``."""

import sys

from hzzray.__main__ import main

sys.argv.insert(1, "bridge")
main()
