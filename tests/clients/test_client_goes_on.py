"""A generation that is cut off goes on by itself: its caller sees the tokens and the text of one without a cut."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from bad_network import BadNetwork
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import Loopback, configure, serve, until
from test_client_returns import impatient
from wire import run

from eddy import Client, errors
from eddy.clients.generation import Completion
from eddy.clients.pieces import FinishReason, KeptSession
from examples.server import MODELS

MODEL = "text-lstm"
PROMPT = "The class "

# Bytes after which a connection is cut: handshakes take some hundred, a token about twenty.
CUTS = st.lists(st.integers(300, 6000), max_size=8)


@asynccontextmanager
async def far(**options: Any) -> AsyncIterator[tuple[Loopback, BadNetwork, Client]]:
    """A server of the shipped models, a bad network before it, and a client of that."""
    async with (
        serve(configure(MODELS)) as loopback,
        BadNetwork(loopback.server.port).serve() as network,
        Client(f"127.0.0.1:{network.port}", patience=impatient(**options)) as client,
    ):
        yield loopback, network, client


async def _same_when_cut(drive: Callable[[Client], Awaitable[list[Any]]], cuts: list[int]) -> None:
    """What `drive` sees does not change when its connections are cut after so many bytes."""
    async with far() as (_, network, client):
        wanted = await drive(client)
        network.plan(cuts)
        assert await drive(client) == wanted


def told(completion: Completion) -> tuple[Any, ...]:
    """All that a caller sees of a generation, but for its session's id."""
    started, finished = completion.started, completion.finished
    return (
        completion.text,
        completion.tokens,
        {name: values.tobytes() for name, values in completion.outputs.items()},
        (started.model, started.version, started.seed, started.num_prompt_tokens, started.position),
        (finished.reason, finished.stop, finished.num_tokens, finished.next_position, finished.session_kept),
    )


OPTIONS = st.fixed_dictionaries(
    {
        "max_tokens": st.integers(1, 150),
        "seed": st.integers(0, 3),
        "temperature": st.sampled_from([0.0, 0.5, 1.0]),
        "log_probabilities": st.booleans(),
        "num_alternatives": st.sampled_from([0, 3]),
        "stop": st.sampled_from([(), (". ",), ("the ", "ing "), ("e t",)]),
        "outputs": st.sampled_from([(), ("logits",)]),
    }
)


@settings(max_examples=8)
@given(cuts=CUTS, options=OPTIONS, prompt=st.sampled_from([PROMPT, [5, 6, 7]]))
def test_random_cuts_of_new_sessions(cuts: list[int], options: dict[str, Any], prompt: Any) -> None:
    """Tokens, text, log-probabilities, alternatives, outputs and the end are those without a cut; no session stays."""

    async def scenario() -> None:
        async with far() as (loopback, network, client):
            wanted = await client.complete(MODEL, prompt, **options)
            network.plan(cuts)
            assert told(await client.complete(MODEL, prompt, **options)) == told(wanted)
            await until(lambda: loopback.host.table.num_sessions == 0)

    run(scenario())


@settings(max_examples=8)
@given(cuts=CUTS, options=OPTIONS, max_in_flight=st.integers(1, 3))
def test_random_cuts_within_an_open_session(cuts: list[int], options: dict[str, Any], max_in_flight: int) -> None:
    """Steps, two generations, steps: all is as without a cut, and so is where the session stands after each."""

    async def drive(client: Client) -> list[Any]:
        seen: list[Any] = []
        async with client.session(MODEL, max_in_flight=max_in_flight) as session:
            for prompt in (PROMPT, None):
                seen.append((await session.step([3, 4, 5])).tobytes())
                completion = await client.complete(session=session, prompt=prompt, **options)
                assert completion.session is session
                seen += [told(completion), session.position]
            seen.append((await session.step([6, 7])).tobytes())
        return seen

    run(_same_when_cut(drive, cuts))


@settings(max_examples=8)
@given(cuts=CUTS, options=OPTIONS)
def test_random_cuts_of_kept_sessions(cuts: list[int], options: dict[str, Any]) -> None:
    """Turns over a session that is kept, and over one that is known by id and token only, are as without a cut."""

    async def drive(client: Client) -> list[Any]:
        first = await client.complete(MODEL, PROMPT, keep_session=True, **options)
        second = await client.complete(session=first.session, prompt="is ", **options)
        kept = second.session
        assert isinstance(kept, KeptSession)
        plain = KeptSession(kept.id, kept.epoch, kept.position, kept.model, kept.version, kept.resume_token)
        third = await client.complete(session=plain, **options)
        session = await client.attach(kept.id, kept.resume_token)
        assert session.position == third.finished.next_position
        last = await session.step([6, 7])
        await session.close()
        return [told(first), told(second), told(third), last.tobytes()]

    run(_same_when_cut(drive, cuts))


def test_the_server_is_further_than_what_came() -> None:
    """What the server has drawn and nobody has got comes all the same; the session stands behind it, once."""

    async def scenario() -> None:
        async with far() as (loopback, network, client), client.session(MODEL) as session:
            await session.step([3, 4])
            options: Any = {"prompt": PROMPT, "max_tokens": 60, "seed": 4, "log_probabilities": True}
            async with client.session(MODEL) as other:
                await other.step([3, 4])
                wanted = await client.complete(session=other, **options)
                following = await other.step([5])
            async with client.generate(session=session, **options) as generation:
                first = await anext(generation)
                network.may_answer.clear()
                row = loopback.host.table.row_of_id(session.id)
                await until(lambda: loopback.host.table.next_position[row] == wanted.finished.next_position)
                network.cut()
                rest = await generation.read()
            assert first.tokens + rest.tokens == wanted.tokens
            assert first.text + rest.text == wanted.text
            assert session.position == wanted.finished.next_position
            np.testing.assert_array_equal(await session.step([5]), following)
            await until(lambda: loopback.host.table.num_sessions == 1)

    run(scenario())


def test_beams_begin_again() -> None:
    """A search that is cut off before its end is made again, and gives the same beams."""

    async def scenario() -> None:
        async with far() as (loopback, network, client):
            options: Any = {"source": "Open the file", "num_beams": 4}
            wanted = await client.complete("translate-en-fr", **options)
            network.may_answer.clear()
            async with asyncio.TaskGroup() as group:
                task = group.create_task(client.complete("translate-en-fr", **options))
                await until(lambda: loopback.host.table.num_sessions > 0)
                network.cut()
            assert told(task.result())[:3] == told(wanted)[:3]
            assert task.result().hypotheses == wanted.hypotheses

    run(scenario())


def test_a_server_that_drains_hands_over() -> None:
    """A generation that a draining server breaks off goes on at the next address, or waits for the next server."""

    async def scenario() -> None:
        async with (
            serve(configure(MODELS)) as old,
            serve(configure(MODELS)) as new,
            Client(f"127.0.0.1:{old.server.port},127.0.0.1:{new.server.port}", patience=impatient()) as client,
        ):
            options: Any = {"max_tokens": 200, "seed": 1, "stop": "\0"}
            wanted = await client.complete(MODEL, PROMPT, **options)
            async with client.generate(MODEL, PROMPT, **options) as generation:
                first = await anext(generation)
                old.host.gate.is_draining = True
                rest = await generation.read()
            old.host.gate.is_draining = False
            assert first.text + rest.text == wanted.text
            assert rest.finished == wanted.finished

    run(scenario())


def test_another_client_that_took_the_session_keeps_it() -> None:
    """While the client was away somebody else took the session: the generation ends with `Fenced`."""

    async def scenario() -> None:
        async with far() as (loopback, network, client), Client(channel=loopback.channel) as thief:
            for is_kept in (False, True):
                session = await client.open(MODEL)
                source: Any = session
                if is_kept:
                    source = (await client.complete(MODEL, PROMPT, max_tokens=3, keep_session=True)).session
                async with client.generate(session=source, prompt=PROMPT) as generation:
                    await anext(generation)
                    network.refuses = True
                    network.cut()
                    taken = await thief.attach(source.id, source.resume_token)
                    network.refuses = False
                    with pytest.raises(errors.Fenced):
                        await generation.read()
                await taken.step(3)

    run(scenario())


def test_what_cannot_go_on() -> None:
    """Of a session by its id alone nothing is known, and a client that never comes back does not: `Disconnected`."""

    async def scenario() -> None:
        async with far() as (_, network, client):
            kept = (await client.complete(MODEL, PROMPT, max_tokens=3, keep_session=True)).session
            assert kept is not None
            async with client.generate(session=kept.id) as generation:
                await anext(generation)
                network.cut()
                with pytest.raises(errors.Disconnected):
                    await generation.read()
            async with (
                Client(f"127.0.0.1:{network.port}", reconnect_seconds=0) as plain,
                plain.generate(MODEL, PROMPT) as generation,
            ):
                await anext(generation)
                network.cut()
                with pytest.raises(errors.Disconnected):
                    await generation.read()

    run(scenario())


def test_cancelling_while_the_server_is_away() -> None:
    """Nobody waits for the server then: the iteration ends, and the session stands where it is known to."""

    async def scenario() -> None:
        async with far() as (_, network, client), client.session(MODEL) as session:
            taken: list[int] = []
            async with client.generate(session=session, prompt=PROMPT, seed=2) as generation:
                async for piece in generation:
                    taken += piece.ids
                    if len(taken) > 20 and not network.refuses:
                        network.refuses = True
                        network.cut()
                        asyncio.get_running_loop().call_later(0.05, generation.cancel)
                assert generation.finished is None
                network.refuses = False
            assert session.position >= len(PROMPT) + len(taken) - 1
            await session.step(3)

    run(scenario())


def test_the_reason_of_a_server_that_never_returns() -> None:
    """When patience is over the draining server's own end is what the caller gets."""

    async def scenario() -> None:
        async with far(reconnect_seconds=0.2) as (loopback, _, client):
            async with client.generate(MODEL, PROMPT, keep_session=True) as generation:
                await anext(generation)
                loopback.host.gate.is_draining = True
                completion = await generation.read()
            assert completion.finished.reason == FinishReason.DRAINING
            loopback.host.gate.is_draining = False

    run(scenario())
