"""The commands that copy sessions and take them elsewhere: `eddy client fork`, `snapshot`, `restore` and `reset`.

Owns what they read and write: sessions' ids, files of snapshots and of states. Must not know calls.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eddy.clients.display import write_json
from eddy.clients.source import SourceError
from eddy.clients.writer import session_id

if TYPE_CHECKING:
    from eddy.clients.moves import Moved
    from eddy.clients.sync import SyncClient


def fork(options: argparse.Namespace, client: SyncClient) -> int:
    """Says id and token of a new session that stands where another stands."""
    _tell(options, client.fork_session(session_id(options.session)))
    return 0


def snapshot(options: argparse.Namespace, client: SyncClient) -> int:
    """Writes a session's snapshot to standard output."""
    if sys.stdout.isatty():
        raise SourceError("a snapshot is not for a terminal: send it to a file, `> FILE`")
    sys.stdout.buffer.write(client.snapshot_session(session_id(options.session)))
    sys.stdout.buffer.flush()
    return 0


def restore(options: argparse.Namespace, client: SyncClient) -> int:
    """Says id and token of a new session made of a snapshot."""
    data = sys.stdin.buffer.read() if options.file == "-" else _read(options.file)
    moved = client.restore_session(data, options.model, options.version)
    _tell(options, moved)
    return 0


def reset(options: argparse.Namespace, client: SyncClient) -> int:
    """Sets a session back to position 0."""
    states = None
    if options.states:
        try:
            with np.load(options.states, allow_pickle=False) as file:
                states = {name: file[name] for name in file.files}
        except (OSError, ValueError, AttributeError) as error:
            raise SourceError(f"{options.states}: no file of states (numpy's .npz): {error}") from error
    client.reset_session(session_id(options.session), states)
    return 0


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from error


def _tell(options: argparse.Namespace, moved: Moved) -> None:
    """On standard output the id and the token, what a program needs; the rest for people beside it."""
    if options.json:
        write_json(
            {
                "session": moved.session_id.hex(),
                "resume_token": moved.resume_token.hex(),
                "model": moved.model,
                "version": moved.version,
                "position": moved.position,
                "notes": list(moved.notes),
            }
        )
        return
    print(moved.session_id.hex(), moved.resume_token.hex())
    for note in moved.notes:
        print(f"eddy client {options.client_command}: {note}", file=sys.stderr)
