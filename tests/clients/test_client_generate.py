"""Generations through the client: text, continued sessions, every way out, refusals."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from loopback import Loopback, configure, serve, until
from wire import Proxy, Recorder, channel_to, run

from eddy import Client, Session, SyncClient, errors
from eddy.clients.pieces import FinishReason, KeptSession
from examples.server import MODELS, ServerProcess

MODEL = "text-lstm"
PROMPT = "The class "
# Log-probabilities are computed in another order of additions here.
LOG_TOLERANCE = 1e-4


@asynccontextmanager
async def connected(**sections: Any) -> AsyncIterator[tuple[Loopback, Client]]:
    """A server of the shipped models and a client."""
    async with serve(configure(MODELS, **sections)) as loopback, Client(channel=loopback.channel) as client:
        yield loopback, client


async def by_hand(session: Session, ids: list[int], num_tokens: int, unknown: int) -> tuple[list[int], list[float]]:
    """The most likely tokens after `ids`, each stepped with; and their log-probabilities."""
    tokens, logs = [], []
    scores = (await session.step(ids))[-1].astype(np.float64)
    for _ in range(num_tokens):
        allowed = scores.copy()
        allowed[unknown] = -np.inf
        token = int(allowed.argmax())
        tokens.append(token)
        logs.append(float(scores[token] - scores.max() - np.log(np.exp(scores - scores.max()).sum())))
        scores = (await session.step(token)).astype(np.float64)
    return tokens, logs


async def attached(client: Client, session_id: bytes, resume_token: bytes) -> Session:
    """A session taken over, however many streams begin on the connection before gRPC has seen that it is cut."""
    while True:
        try:
            return await client.attach(session_id, resume_token)
        except errors.Disconnected:
            await asyncio.sleep(0)


def test_pieces_are_what_stepping_gives() -> None:
    """Ids, text, log-probabilities and alternatives of a generation are those of steps by hand; no session stays."""

    async def scenario() -> None:
        async with connected() as (loopback, client):
            vocabulary = (await client.contract(MODEL)).vocabulary
            symbols = list(vocabulary.symbols)
            ids = [symbols.index(character) for character in PROMPT]
            async with client.session(MODEL) as session:
                tokens, logs = await by_hand(session, ids, 40, vocabulary.unknown_id)
            options: Any = {"max_tokens": 40, "temperature": 0.0, "log_probabilities": True, "num_alternatives": 3}
            for prompt in (PROMPT, PROMPT.encode(), ids, np.array(ids)):
                async with client.generate(MODEL, prompt, **options) as generation:
                    started = generation.started
                    assert generation.finished is None
                    pieces = [piece async for piece in generation]
                assert [token for piece in pieces for token in piece.ids] == tokens
                assert "".join(piece.text for piece in pieces) == "".join(symbols[token] for token in tokens)
                generated = [token for piece in pieces for token in piece.tokens]
                found = [token.log_probability for token in generated]
                assert np.allclose(np.array(found, np.float64), logs, atol=LOG_TOLERANCE)
                for token in generated:
                    assert token.alternatives[0].id == token.id
                    levels = [other.log_probability for other in token.alternatives]
                    assert levels == sorted(levels, reverse=True)
                    assert len(levels) == 3
                assert (started.model, started.version) == (MODEL, "1")
                assert (started.num_prompt_tokens, started.position) == (len(ids), 0)
                finished = generation.finished
                assert finished is not None
                assert (finished.reason, finished.stop, finished.num_tokens) == (FinishReason.MAX_TOKENS, "", 40)
                assert (finished.next_position, finished.session_kept) == (len(ids) + 40, False)
                with pytest.raises(errors.SessionEnded, match="keep_session"):
                    _ = generation.session
            await until(lambda: loopback.host.table.num_sessions == 0)

    run(scenario())


def test_complete_stop_strings_and_seeds() -> None:
    """One call for the whole text; it ends before a stop string; the told seed gives the same text again."""

    async def scenario() -> None:
        async with connected() as (_, client):
            first = await client.complete(MODEL, PROMPT, max_tokens=80)
            again = await client.complete(MODEL, PROMPT, max_tokens=80, seed=first.started.seed)
            assert str(first) == first.text == again.text
            assert len(first.text) == len(first.tokens) == 80
            assert first.session is None
            stop = first.text[20:23]
            for stops in (stop, [stop, "\0 never"]):
                cut = await client.complete(MODEL, PROMPT, max_tokens=80, seed=first.started.seed, stop=stops)
                assert cut.text == first.text[: first.text.index(stop)]
                assert (cut.finished.reason, cut.finished.stop) == (FinishReason.STOP, stop)
            other = await client.complete(
                MODEL, PROMPT, max_tokens=80, seed=first.started.seed + 1, top_k=50, top_p=0.99
            )
            assert other.text != first.text

    run(scenario())


def test_a_kept_session_goes_on() -> None:
    """Turns over one session, by its `session` or its id, are one uninterrupted generation; then it can be stepped."""

    async def scenario() -> None:
        async with connected() as (loopback, client):
            whole = await client.complete(MODEL, PROMPT, max_tokens=60, seed=3)
            first = await client.complete(MODEL, PROMPT, max_tokens=20, seed=3, keep_session=True)
            kept = first.session
            assert isinstance(kept, KeptSession)
            assert (kept.position, kept.model) == (len(PROMPT) + 20, MODEL)
            second = await client.complete(session=kept, max_tokens=20, seed=3)
            third = await client.complete(session=kept.id, max_tokens=20, seed=3)
            assert first.text + second.text + third.text == whole.text
            # The first turn's session is behind by now.
            with pytest.raises(errors.OutOfOrder) as caught:
                await client.complete(session=kept)
            assert caught.value.next_position == len(PROMPT) + 60
            found = await client.find_session(kept.id)
            assert (found.next_position, found.model) == (len(PROMPT) + 60, MODEL)
            taken = await client.attach(kept.id, kept.resume_token)
            assert (await taken.step([5, 6])).shape[0] == 2
            with pytest.raises(errors.Fenced):
                await client.complete(session=third.session, prompt="x")
            await client.close_session(kept.id)
            with pytest.raises(errors.SessionEnded):
                await client.close_session(kept.id)
            with pytest.raises(errors.SessionEnded):
                await client.complete(session=kept.id, prompt="x")
            await until(lambda: loopback.host.table.num_sessions == 0)

    run(scenario())


@pytest.mark.parametrize("max_in_flight", [1, 4])
def test_generating_within_an_open_session(max_in_flight: int) -> None:
    """Steps before, a generation, steps after: the outputs are those of a session stepped by all those tokens."""

    async def scenario() -> None:
        async with connected() as (_, client), client.session(MODEL, max_in_flight=max_in_flight) as session:
            before = [asyncio.create_task(session.step(token)) for token in (3, 4, 5, 6, 7)]
            await asyncio.sleep(0)
            completion = await client.complete(session=session, prompt=[8, 9], max_tokens=15, seed=1)
            assert all(task.done() for task in before)
            assert completion.session is session
            assert completion.started.position == 5
            assert session.position == completion.finished.next_position == 5 + 2 + 15
            after = await session.step([10, 11])
            ids = [token.id for token in completion.tokens]
            async with client.session(MODEL) as other:
                expected = await other.step([3, 4, 5, 6, 7, 8, 9, *ids, 10, 11])
            assert after.tobytes() == expected[-2:].tobytes()

    run(scenario())


def test_leaving_the_block_stops_at_once() -> None:
    """A new session is closed. An open one is taken over anew: at the server's position, and steps go on from there."""

    async def scenario() -> None:
        async with connected() as (loopback, client):
            async with client.generate(MODEL, PROMPT) as generation:
                async for _ in generation:
                    break
            assert generation.finished is None
            await until(lambda: loopback.host.table.num_sessions == 0)
            with pytest.raises(errors.Disconnected):
                await anext(generation)
            async with client.session(MODEL) as session:
                epoch = session.epoch
                taken: list[int] = []
                async with client.generate(session=session, prompt=PROMPT, seed=2) as generation:
                    async for piece in generation:
                        taken += piece.ids
                        if len(taken) > 30:
                            break
                    with pytest.raises(errors.OutOfOrder) as caught:
                        await session.step(3)
                    assert caught.value.reason == "GENERATING"
                    with pytest.raises(errors.OutOfOrder):
                        await session.reset()
                    with pytest.raises(errors.OutOfOrder):
                        await client.complete(session=session, prompt="x")
                assert session.epoch > epoch
                row = loopback.host.table.row_of_id(session.id)
                assert session.position == loopback.host.table.next_position[row] >= len(PROMPT) + 30
                await session.step(3)
                whole = await client.complete(MODEL, PROMPT, max_tokens=200, seed=2)
                assert [token.id for token in whole.tokens][: len(taken)] == taken

    run(scenario())


def test_a_generation_that_was_cut_off_goes_on() -> None:
    """However often it is left in the middle, the next one continues the text without loss: the session is kept."""

    async def scenario() -> None:
        async with connected() as (loopback, client):
            source: Any = None
            for _ in range(30):
                new = (MODEL, PROMPT) if source is None else ()
                async with client.generate(*new, session=source, keep_session=source is None) as generation:
                    await anext(generation)
                source = generation.session
            done = await client.complete(session=source, max_tokens=5)
            assert done.finished.next_position == done.started.position + 5 > len(PROMPT) + 30
            assert loopback.host.table.num_sessions == 1

    run(scenario())


def test_cancelling_from_elsewhere() -> None:
    """`cancel` ends the iteration quietly; a cancelled task is cancelled; either way the session is gone."""

    async def scenario() -> None:
        async with connected() as (loopback, client):
            count = 0
            async with client.generate(MODEL, PROMPT) as generation:
                async for piece in generation:
                    count += len(piece.ids)
                    if count > 10:
                        asyncio.get_running_loop().call_soon(generation.cancel)
                assert generation.finished is None
                with pytest.raises(errors.Disconnected, match="cancelled"):
                    await generation.read()
            await until(lambda: loopback.host.table.num_sessions == 0)

            async def drive() -> None:
                await client.complete(MODEL, PROMPT)

            task = asyncio.create_task(drive())
            await until(lambda: loopback.host.table.num_sessions == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: loopback.host.table.num_sessions == 0)

    run(scenario())


def test_closing_while_nobody_knows_where_the_session_stands() -> None:
    """A task that is cancelled while its session is taken over closes the session all the same."""

    async def scenario() -> None:
        async with serve(configure(MODELS)) as loopback:
            recorder = Recorder(loopback.channel)

            async def drive(client: Client) -> None:
                async with client.session(MODEL) as session, client.generate(session=session, prompt="x") as generation:
                    await anext(generation)
                    recorder.may_receive.clear()

            async with Client(channel=recorder) as client:
                task = asyncio.create_task(drive(client))
                await until(lambda: "attach" in recorder.actions)
                task.cancel()
                await until(lambda: "close" in recorder.actions)
                recorder.may_receive.set()
                await asyncio.gather(task, return_exceptions=True)
                assert task.cancelled()
                await until(lambda: loopback.host.table.num_sessions == 0)

    run(scenario())


def test_a_session_that_another_client_takes() -> None:
    """The generation fails with `Fenced`, and so does the session, which is not taken back."""

    async def scenario() -> None:
        async with connected() as (loopback, client), Client(channel=loopback.channel) as thief:
            session = await client.open(MODEL)
            async with client.generate(session=session, prompt=PROMPT) as generation:
                await anext(generation)
                taken = await thief.attach(session.id, session.resume_token)
                for _ in range(2):
                    with pytest.raises(errors.Fenced):
                        await generation.read()
            with pytest.raises(errors.Fenced):
                await session.step(3)
            await taken.step(3)

    run(scenario())


@pytest.mark.parametrize(
    ("arguments", "options", "reason"),
    [
        ((), {"prompt": "x"}, "MISSING_FIELD"),
        ((MODEL, "x"), {"session": bytes(16)}, "MISSING_FIELD"),
        ((MODEL,), {}, "MISSING_FIELD"),
        ((MODEL, ""), {}, "MISSING_FIELD"),
        ((MODEL, []), {}, "MISSING_FIELD"),
        ((MODEL, "\ud800"), {}, "INVALID_TEXT"),
        ((MODEL, b"\xff"), {}, "INVALID_TEXT"),
        ((MODEL, [0.5]), {}, "INVALID_SHAPE"),
        ((MODEL, [[1, 2]]), {}, "INVALID_SHAPE"),
        ((MODEL, [[1], [2, 3]]), {}, "INVALID_SHAPE"),
        ((MODEL, [-1]), {}, "OUT_OF_RANGE"),
        ((MODEL, [1 << 32]), {}, "OUT_OF_RANGE"),
        ((MODEL, [101]), {}, "OUT_OF_RANGE"),
        ((MODEL, "x"), {"max_tokens": -1}, "OUT_OF_RANGE"),
        ((MODEL, "x"), {"max_tokens": 1 << 31}, "OUT_OF_RANGE"),
        ((MODEL, "x"), {"seed": "dice"}, "OUT_OF_RANGE"),
        ((MODEL, "x"), {"temperature": -0.5}, "OUT_OF_RANGE"),
        ((MODEL, "x"), {"top_p": 1.5}, "OUT_OF_RANGE"),
        ((MODEL, "x"), {"num_alternatives": 1000}, "OUT_OF_RANGE"),
        ((MODEL, "x"), {"stop": ""}, "OUT_OF_RANGE"),
        ((), {"session": bytes(16), "version": "1"}, "WRONG_TASK"),
        (("forecast-gru", "x"), {}, "WRONG_TASK"),
    ],
)
def test_mistakes_in_a_generation(arguments: Any, options: Any, reason: str) -> None:
    """Refused with the reason and the field, here or by the server; no session is opened."""

    async def scenario() -> None:
        async with connected() as (loopback, client):
            with pytest.raises(errors.InvalidInput) as caught:
                await client.complete(*arguments, **options)
            assert caught.value.reason == reason
            assert caught.value.field
            assert loopback.host.table.num_sessions == 0

    run(scenario())


def test_a_refusal_leaves_an_open_session_alone() -> None:
    """The session is where it was, in the same epoch; an option that there is not is a TypeError."""

    async def scenario() -> None:
        async with connected() as (_, client), client.session(MODEL) as session:
            await session.step([3, 4])
            epoch = session.epoch
            with pytest.raises(errors.InvalidInput):
                await client.complete(session=session, prompt="x", temperature=-1.0)
            assert (session.position, session.epoch) == (2, epoch)
            await session.step(5)
            with pytest.raises(TypeError, match="temprature"):
                await client.complete(MODEL, "x", temprature=1)  # type: ignore[call-arg]
            await session.close()
            with pytest.raises(errors.SessionEnded):
                await client.complete(session=session, prompt="x")
            with pytest.raises(errors.NotFound):
                await client.complete("no-such-model", "x")
            unused = client.generate(MODEL, "x")
            with pytest.raises(errors.Disconnected, match="async with"):
                _ = unused.started
            with pytest.raises(errors.Disconnected, match="async with"):
                await anext(unused)

    run(scenario())


def test_a_generation_that_takes_too_long() -> None:
    """The timeout is `ServerBusy` with DEADLINE_EXCEEDED; the new session is gone, an open one is found again."""

    async def scenario() -> None:
        async with connected() as (loopback, client), client.session(MODEL) as session:
            for options in ({"session": session}, {"model": MODEL}):
                with pytest.raises(errors.ServerBusy) as caught:
                    await client.complete(prompt=PROMPT, timeout_seconds=0.05, **options)
                assert caught.value.reason == "DEADLINE_EXCEEDED"
            row = loopback.host.table.row_of_id(session.id)
            assert session.position == loopback.host.table.next_position[row]
            await session.step(3)
            await until(lambda: loopback.host.table.num_sessions == 1)

    run(scenario())


def test_a_server_that_goes_while_it_writes() -> None:
    """To a client that does not come back a draining server ends with DRAINING; a cut is `Disconnected`."""

    async def scenario() -> None:
        async with (
            connected() as (loopback, _),
            Client(channel=loopback.channel, reconnect_seconds=0) as client,
        ):
            async with client.generate(MODEL, PROMPT, keep_session=True) as generation:
                await anext(generation)
                loopback.host.gate.is_draining = True
                completion = await generation.read()
            assert completion.finished.reason == FinishReason.DRAINING
            assert completion.finished.session_kept
            loopback.host.gate.is_draining = False
            async with (
                Proxy(loopback.server.port).serve() as proxy,
                channel_to(proxy.port) as channel,
                Client(channel=channel, reconnect_seconds=0) as far,
            ):
                session = await far.open(MODEL)
                async with far.generate(session=session, prompt=PROMPT) as generation:
                    await anext(generation)
                    proxy.cut()
                    with pytest.raises(errors.Disconnected):
                        await generation.read()
                with pytest.raises(errors.Disconnected):
                    await session.step(3)
                again = await attached(far, session.id, session.resume_token)
                await again.step(3)
                assert (await far.complete(session=again, prompt="x", max_tokens=3)).finished.num_tokens == 3

    run(scenario())


def test_a_server_without_the_call() -> None:
    """Code and words say that the server does not know it."""

    async def scenario() -> None:
        async with connected() as (loopback, _):

            class Elsewhere:
                """A channel whose calls go to a service that is not there."""

                def unary_stream(self, method: str) -> Any:
                    return loopback.channel.unary_stream(method.replace("Generation", "Telepathy"))

            async with Client(channel=Elsewhere()) as client:
                with pytest.raises(errors.EddyError, match="does not have this call") as caught:
                    await client.complete(MODEL, "x")
                assert caught.value.reason == "UNIMPLEMENTED"

    run(scenario())


def test_blocking_calls() -> None:
    """The same without an event loop: pieces, a kept session, an open session, cancelling, infer, listings."""
    with ServerProcess() as server, SyncClient(server.target) as client:
        with client.generate(MODEL, PROMPT, max_tokens=30, seed=1, keep_session=True) as generation:
            text = "".join(piece.text for piece in generation)
        assert generation.started.seed == 1
        assert generation.finished is not None
        more = client.complete(session=generation.session, max_tokens=10, seed=1)
        assert text + more.text == client.complete(MODEL, PROMPT, max_tokens=40, seed=1).text
        kept = generation.session
        assert [session.next_position for session in client.sessions(MODEL)] == [len(PROMPT) + 40]
        assert client.find_session(kept.id).next_position == len(PROMPT) + 40
        client.close_session(kept.id)
        with client.session(MODEL) as session:
            session.step(3)
            assert client.complete(session=session, prompt="a", max_tokens=5).finished.next_position == 7
            with client.generate(session=session) as generation:
                for _ in generation:
                    generation.cancel()
                assert generation.finished is None
            session.step(3)
        with client.generate(MODEL, PROMPT, max_tokens=5) as generation:
            assert len(generation.read().tokens) == 5
        assert client.infer("forecast-gru", [[[100.0]], [[100.0], [110.0]]])[1].shape == (2, 5, 3)
        assert client.infer_outputs("forecast-gru", [[[100.0]]])["quantiles"][0].shape == (1, 5, 3)
        assert client.sessions() == []
