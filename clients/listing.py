"""The command that lists: `eddy client sessions`.

Owns its table: drawn on a terminal, lines with tabs elsewhere, JSON when asked for.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from eddy.clients.display import write_json
from eddy.clients.sync import SyncClient
from eddy.v1 import sessions_pb2

_COLUMNS = ("fingerprint", "model", "version", "position", "epoch", "idle seconds", "idle timeout", "attached", "tier")


def show_sessions(options: argparse.Namespace, client: SyncClient) -> int:
    """Every open session."""
    rows = [
        {
            "fingerprint": session.fingerprint,
            "model": session.model,
            "version": session.version,
            "position": session.next_position,
            "epoch": session.epoch,
            "idle seconds": round(session.idle_seconds, 1),
            "idle timeout": round(session.idle_timeout_seconds, 1),
            "attached": session.attached,
            "tier": sessions_pb2.Tier.Name(session.tier).removeprefix("TIER_").lower(),
        }
        for session in client.sessions(options.model, page_size=1000)
    ]
    _show(options, rows, _COLUMNS)
    return 0


def _show(options: argparse.Namespace, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    if options.json:
        for row in rows:
            write_json({name.replace(" ", "_"): value for name, value in row.items()})
        return
    lines = [[_cell(row[name]) for name in columns] for row in rows]
    console = Console(highlight=False)
    if not console.is_terminal:
        for cells in (columns, *lines):
            print(*cells, sep="\t")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in columns:
        is_number = bool(rows) and isinstance(rows[0][name], int | float) and not isinstance(rows[0][name], bool)
        table.add_column(name, justify="right" if is_number else "left", no_wrap=True)
    for cells in lines:
        table.add_row(*cells)
    console.print(table if rows else "none")


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
