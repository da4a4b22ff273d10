"""`python -m eddy.training`: the training commands alone, for where the whole `eddy` command is not wanted."""

import argparse
import sys
from collections.abc import Sequence

from eddy.training.commands import add_parsers


def main(argv: Sequence[str] | None = None) -> int:
    """Parse arguments and run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m eddy.training", description="Train, export and verify models.")
    add_parsers(parser.add_subparsers(dest="command", required=True))
    arguments = parser.parse_args(argv)
    code = arguments.func(arguments)
    assert isinstance(code, int)
    return code


if __name__ == "__main__":
    sys.exit(main())
