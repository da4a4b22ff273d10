"""The picture of an inspection's report: tables for a terminal, whole lines where the output is a file or a pipe.

Owns the layout. Must not know how a report comes about.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from eddy.inspection.report import Report

_PIPE_COLUMNS = 400


def show_report(report: Report, path: Path, note: str, console: Console | None = None) -> None:
    """Prints a report of the model file `path`; `note` says where its settings come from."""
    if console is None:
        console = Console(width=None if sys.stdout.isatty() else _PIPE_COLUMNS, highlight=False, markup=False)
    for part in _parts(report, path, note):
        console.print(part)


def _parts(report: Report, path: Path, note: str) -> Iterator[RenderableType]:
    yield Text.assemble((printable(path.name), "bold"), (f"  {path.stat().st_size:,} bytes", "dim"))
    verdict = ("streams", "bold green") if report.streamable else ("Infer only", "bold yellow")
    yield Text.assemble(verdict, ": ", printable(report.reason))
    yield _ports(report)
    if report.states:
        yield _states(report)
        yield from (_bullet("· ", "dim", f"{state.input}: {state.how}") for state in report.states)
    yield _probes(report)
    if report.costs:
        yield _costs(report)
    yield from (_bullet("! ", "yellow", line) for line in report.warnings)
    yield from (_bullet("· ", "dim", line) for line in report.notes)
    yield Text(printable(note), "dim")


def _ports(report: Report) -> Table:
    table = _table("", "name", "type", "shape")
    for role, ports in (("input", report.inputs), ("output", report.outputs)):
        for port in ports:
            table.add_row(role, printable(port.name), port.dtype, _shape(port.shape))
    return table


def _shape(shape: Sequence[str | int]) -> str:
    return " \N{MULTIPLICATION SIGN} ".join(map(str, shape)) or "one value"


def _states(report: Report) -> Table:
    table = _table("state", "becomes", "type", "a row", "batch axis", "origin")
    for state in report.states:
        axis = "none" if state.batch_axis is None else str(state.batch_axis)
        names = (printable(state.input), printable(state.output))
        table.add_row(*names, state.dtype, _shape(state.shape), axis, state.origin.value)
    return table


def _probes(report: Report) -> Table:
    table = _table("probe", "worst difference")
    table.add_row("whole sequence against chunks", _difference(report.probes.chunk_max_difference))
    table.add_row("batch against row by row", _difference(report.probes.batch_max_difference))
    table.add_row("most rows of a run", "any number" if report.max_batch is None else f"{report.max_batch:,}")
    return table


def _difference(value: float | None) -> str:
    if value is None:
        return "not tried"
    return "none, bit for bit" if value == 0 else f"{value:.3g}"


def _costs(report: Report) -> Table:
    table = _table("rows of a step", "takes", "a row")
    for column in table.columns:
        column.justify = "right"
    for cost in report.costs:
        table.add_row(f"{cost.rows:,}", _duration(cost.seconds), _duration(cost.seconds / cost.rows))
    return table


def _duration(seconds: float) -> str:
    return f"{seconds * 1e6:,.1f} µs" if seconds < 1e-3 else f"{seconds * 1e3:,.2f} ms"


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in columns:
        # A long name goes on below: cut off, it could not be copied.
        table.add_column(column, overflow="fold")
    return table


def _bullet(mark: str, style: str, line: str) -> Table:
    # Two columns: the lines of a long text stand under its first.
    grid = Table.grid()
    grid.add_column()
    grid.add_column(overflow="fold")
    grid.add_row(Text(mark, style), Text(printable(line)))
    return grid


def printable(text: str) -> str:
    """`text` without what would steer a terminal: names in a file are anybody's."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)
