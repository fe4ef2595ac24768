"""The app as a service of a deployment: ``python -m app OPTIONS`` is ``streamlit run app/main.py OPTIONS``.

From its start on, viewers or not, it leaves word in the folder of runs of what its container uses.
"""

from __future__ import annotations

import sys
from pathlib import Path

from streamlit.web import cli

from app.settings import read_settings
from hzzray.engine.service_usage import report_usage


def main() -> None:
    """Serve."""
    report_usage(read_settings().runs)
    sys.argv = ["streamlit", "run", str(Path(__file__).with_name("main.py")), *sys.argv[1:]]
    cli.main()


if __name__ == "__main__":
    main()
