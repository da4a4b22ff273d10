"""`eddy snapshot`: what a snapshot is, from its file alone.

Owns the telling. Needs no server, and believes nothing that the checksum does not cover.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eddy.commands.parser import Commands
    from eddy.service.record import Record

_EXIT_REFUSED, _EXIT_INPUT = 1, 2


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "snapshot",
        help="show what a snapshot of a session is",
        description="Shows of which model a snapshot is, where its session stood, and where it was taken.",
        epilog="examples:\n  eddy snapshot session.eddy\n  eddy snapshot --json session.eddy",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", help="- for stdin")
    parser.add_argument("--json", action="store_true", help="one JSON object, for programs")
    parser.set_defaults(func=_show)


def _show(options: argparse.Namespace) -> int:
    from eddy.service.errors import EddyError
    from eddy.service.record import decode

    try:
        data = sys.stdin.buffer.read() if options.file == "-" else Path(options.file).read_bytes()
    except OSError as error:
        print(f"eddy snapshot: {options.file}: {error.strerror}", file=sys.stderr)
        return _EXIT_INPUT
    try:
        told = _told(decode(data, options.file))
    except EddyError as error:
        print(f"eddy snapshot: {error.message} ({error.reason.name})", file=sys.stderr)
        return _EXIT_REFUSED
    if options.json:
        print(json.dumps(told, ensure_ascii=False))
        return 0
    for name, value in told.items():
        print(name.replace("_", " "), ", ".join(value) if isinstance(value, list) else value, sep="\t")
    return 0


def _told(record: Record) -> dict[str, Any]:
    model = record.model
    written = datetime.fromtimestamp(record.written_at, UTC) if 0 <= record.written_at < 1e11 else None
    return {
        "model": model.name,
        "version": model.version,
        "digest": model.digest,
        "position": record.next_position,
        "states": [f"{layout.name} {layout.dtype.name} {list(layout.shape)}" for layout in model.states],
        "has_initial_states": record.is_initial,
        "began_with_own_states": record.has_own_start,
        "kept_replies": len(record.replies),
        "max_in_flight": record.max_in_flight,
        "idle_timeout_seconds": record.idle_timeout_seconds,
        "taken_at": written.isoformat(timespec="seconds") if written else "unknown",
        "taken_with": f"ONNX Runtime {model.runtime}",
        "taken_on": model.instruction_set,
        "checksum": "right",
    }
