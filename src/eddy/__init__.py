"""Eddy: streaming inference for recurrent models.

The client's names are here: `Client` (asyncio), `SyncClient` (blocking), `Tls`, and the errors in `eddy.errors`; and
`export`, which needs torch. They are loaded on first use, so that importing a part of the package imports neither gRPC
nor torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eddy.clients import errors
    from eddy.clients.batch import SessionBatch
    from eddy.clients.client import Client
    from eddy.clients.generation import Completion, Generation
    from eddy.clients.session import Session
    from eddy.clients.sync import SyncClient
    from eddy.clients.tls import Tls
    from eddy.training.foreign import export

__all__ = ["Client", "Completion", "Generation", "Session", "SessionBatch", "SyncClient", "Tls", "errors", "export"]

_HOMES = {
    "Client": "eddy.clients.client",
    "Completion": "eddy.clients.generation",
    "Generation": "eddy.clients.generation",
    "Session": "eddy.clients.session",
    "SessionBatch": "eddy.clients.batch",
    "SyncClient": "eddy.clients.sync",
    "Tls": "eddy.clients.tls",
    "export": "eddy.training.foreign",
}


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("eddy.clients.errors")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'eddy' has no attribute {name!r}")
