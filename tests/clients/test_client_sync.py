"""The synchronous client has what the asyncio one has."""

import asyncio
import inspect
from pathlib import Path

import numpy as np
import pytest
from loopback import configure, serve
from wire import run

from eddy import Client, Generation, Session, SessionBatch, SyncClient
from eddy.clients.blocking import SyncBatch, SyncGeneration, SyncSession
from eddy.clients.errors import Disconnected, SessionEnded
from eddy.clients.group import Steppable
from eddy.clients.link import Resumable
from eddy.clients.room import Keeper
from eddy.clients.unary import ClientOptions, CommonOptions

# What the client's own parts ask of a session, and no caller.
INNER = {name for protocol in (Steppable, Resumable, Keeper) for name in dir(protocol)} | {
    *Steppable.__annotations__,
    *("began_anew", "check", "end", "ended", "hand_over", "lend", "let_go", "recover", "retake", "settle_anew"),
    *("settled", "take_back", "begin"),
}
PAIRS = [(Client, SyncClient), (Session, SyncSession), (SessionBatch, SyncBatch), (Generation, SyncGeneration)]


def _public(kind: type) -> dict[str, object]:
    return {
        name: value
        for name, value in inspect.getmembers(kind)
        if not name.startswith("_") and name not in INNER and (inspect.isfunction(value) or isinstance(value, property))
    }


def _parameters(function: object) -> list[tuple[str, object, object]]:
    """Names, kinds and defaults: annotations may differ."""
    assert callable(function)
    return [(each.name, each.kind, each.default) for each in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize(("kind", "blocking"), PAIRS, ids=lambda kind: kind.__name__)
def test_every_call_exists_in_both(kind: type, blocking: type) -> None:
    """By the same name, with the same arguments and defaults; a `with` block goes where an `async with` does."""
    found, wanted = _public(blocking), _public(kind)
    assert wanted.keys() <= found.keys()
    for name, value in wanted.items():
        if isinstance(value, property):
            assert isinstance(found[name], property), name
        else:
            assert _parameters(found[name]) == _parameters(value), name
    assert hasattr(blocking, "__enter__") == hasattr(kind, "__aenter__")
    assert hasattr(blocking, "__iter__") == hasattr(kind, "__aiter__")
    assert hasattr(blocking, "__len__") == hasattr(kind, "__len__")


def test_attributes_and_options_exist_in_both(repository: Path) -> None:
    """What a session or a batch has beside its calls, and what a client may be told but for a channel."""
    assert ClientOptions.__annotations__.keys() - CommonOptions.__annotations__.keys() <= {"channel"}

    def work(port: int) -> None:
        with SyncClient(f"127.0.0.1:{port}", reconnect_seconds=5.0, max_replay_bytes=1 << 20) as client:
            session, batch = client.open("history", max_in_flight=2), client.open_batch("history", 3, max_in_flight=2)
            for blocking, plain in ((session, session.session), (batch, batch.batch)):
                names = {name for name in vars(plain) if not name.startswith("_")} - INNER
                assert names | {"model", "version"} <= set(dir(blocking))
            assert session.step(1) == 1
            assert (session.position, session.max_in_flight, session.is_open) == (1, 2, True)
            with client.attach(session.id, session.resume_token) as taken:
                assert taken.step(2) == 12
            with pytest.raises(SessionEnded):
                taken.step(3)
            with batch:
                np.testing.assert_array_equal(batch.step([1, 2, 3]), [1, 2, 3])
                assert batch.positions.tolist() == [1, 1, 1]
            client.close()
            with pytest.raises(Disconnected):
                client.models()

    async def scenario() -> None:
        async with serve(configure(repository)) as loopback:
            await asyncio.to_thread(work, loopback.server.port)

    run(scenario())
