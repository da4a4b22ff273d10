"""The report: a table for people, JSON for everything else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.figure import Better, Figure, Measurement

# Below this the rest of the machine is idle, but for housekeeping.
_CALM_CORES = 0.1


def print_report(console: Console, measurements: Sequence[Measurement], machine: Mapping[str, Any]) -> None:
    """A row a figure, then what was seen besides."""
    table = Table(title="Eddy: speed", title_justify="left")
    for name, justify in (("figure", "left"), ("value", "right"), ("bar", "right"), ("", "left")):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("min", justify="right", no_wrap=True)
    table.add_column("max", justify="right", no_wrap=True)
    table.add_column("what it is")
    for measurement in measurements:
        for figure in measurement.figures:
            table.add_row(*_cells(figure))
    console.print(table)
    for measurement in measurements:
        for note in measurement.notes:
            console.print(f"[bold]{note.name}[/]: {note.text}", highlight=False)
        if measurement.other_cores > _CALM_CORES:
            names = ", ".join(figure.definition.name for figure in measurement.figures)
            console.print(f"[red]{names}: other programs used {measurement.other_cores:.1f} cores meanwhile[/]")
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()), style="dim", highlight=False)


def _cells(figure: Figure) -> tuple[str, ...]:
    definition = figure.definition

    def show(value: float) -> str:
        return f"{value:,.{definition.digits}f}"

    bar, verdict = "", ""
    if definition.bar is not None:
        sign = ">=" if definition.better is Better.HIGHER else "<="
        bar = f"{sign} {definition.bar:g}"
        verdict = "[green]met[/]" if figure.is_met else "[red]not met[/]"
    low, high = show(min(figure.values)), show(max(figure.values))
    return definition.name, show(figure.value), bar, verdict, low, high, definition.text


def write_json(path: Path, measurements: Sequence[Measurement], machine: Mapping[str, Any]) -> None:
    """`{"figures": {NAME: {"value", "bar", "min", "max"}}, "notes": {NAME: text}, "machine": {...}}`."""
    figures = {
        figure.definition.name: {
            "value": figure.value,
            "bar": figure.definition.bar,
            "min": min(figure.values),
            "max": max(figure.values),
        }
        for measurement in measurements
        for figure in measurement.figures
    }
    notes = {note.name: note.text for measurement in measurements for note in measurement.notes}
    busiest = max((measurement.other_cores for measurement in measurements), default=0.0)
    document = {"figures": figures, "notes": notes, "machine": dict(machine) | {"other_cores": round(busiest, 2)}}
    path.write_text(json.dumps(document, indent=2) + "\n")
