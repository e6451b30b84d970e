"""Make the example workflows and all pictures, or some."""

from __future__ import annotations

import argparse

from .browser import frontend
from .make import make_all, make_others
from .templates import TEMPLATES


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser("python -m roundsmith.tests.pictures", description=__doc__)
    parser.add_argument("names", nargs="*", help="templates; all, and the other nodes, by default")
    parser.add_argument("--no-run", action="store_true", help="only write the workflows")
    arguments = parser.parse_args()
    chosen = [t for t in TEMPLATES if not arguments.names or t.name in arguments.names]
    with frontend() as opened:
        opened.open()
        shown = make_all(opened, chosen, not arguments.no_run)
        if not arguments.names and not arguments.no_run:
            make_others(opened, shown)


if __name__ == "__main__":
    main()
