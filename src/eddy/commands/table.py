"""Tables for the terminal; whole lines where the output is a file or a pipe."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

_PIPE_COLUMNS = 400


def show(table: Table) -> None:
    """Prints a table."""
    Console(width=None if sys.stdout.isatty() else _PIPE_COLUMNS).print(table)
