"""How generations end, and what they are asked to tell: limits, held back text, cancelling at once.

Through a real server on shipped models.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopback import Loopback, column, configure, serve, tensor, until

from eddy.v1 import generation_pb2, inference_pb2

MODELS = Path(__file__).resolve().parent.parent.parent / "models"
MODEL = "text-lstm"
PROMPT = b"The class "
METHOD = "eddy.v1.GenerationService/Generate"
SAMPLING = generation_pb2.Sampling(seed=5, temperature=0.7)
Reason = generation_pb2.GenerationFinished


@asynccontextmanager
async def server(**limits: Any) -> AsyncIterator[Loopback]:
    """A server for the shipped models."""
    async with serve(configure(MODELS, model=limits)) as running:
        yield running


def call(running: Loopback, **fields: Any) -> Any:
    """Starts a call with a new session of `MODEL`, or an existing one."""
    if "existing" not in fields:
        fields["open"] = generation_pb2.NewSession(model=MODEL)
    method = running.channel.unary_stream(f"/{METHOD}", None, generation_pb2.GenerateResponse.FromString)
    return method(generation_pb2.GenerateRequest(sampling=SAMPLING, **fields).SerializeToString())


async def generate(running: Loopback, **fields: Any) -> list[generation_pb2.GenerateResponse]:
    """The events of a whole call."""
    return [response async for response in call(running, **fields)]


def tokens_of(events: list[generation_pb2.GenerateResponse]) -> list[generation_pb2.GeneratedToken]:
    """The tokens of a call's events."""
    return [token for event in events for token in event.tokens.tokens]


def text_of(events: list[generation_pb2.GenerateResponse]) -> str:
    """The text of a call's events."""
    return "".join(event.tokens.text for event in events)


def test_without_max_tokens_the_servers_limit_holds() -> None:
    """0 is the limit, which may be asked for in words, too; fewer are as many as asked for."""

    async def check() -> None:
        async with server(max_generated_tokens=30) as running:
            for asked, expected in ((0, 30), (30, 30), (29, 29), (1, 1)):
                events = await generate(running, text=PROMPT, max_tokens=asked)
                finished = events[-1].finished
                assert (finished.reason, finished.num_tokens) == (Reason.REASON_MAX_TOKENS, expected)
                assert len(tokens_of(events)) == len(text_of(events)) == expected

    asyncio.run(check())


def test_text_that_was_held_back_is_not_lost() -> None:
    """A stop string that has only begun when the tokens are at an end: its beginning is text, for this call's reader.

    While more could come it is held back.
    """

    async def check() -> None:
        async with server() as running:
            free = text_of(await generate(running, text=PROMPT, max_tokens=60))
            for length in (1, 5, 40):
                stop = free[60 - length :] + "\0"
                events = await generate(running, text=PROMPT, max_tokens=60, stop=[stop])
                assert text_of(events) == free
                finished = events[-1].finished
                assert (finished.reason, finished.stop) == (Reason.REASON_MAX_TOKENS, "")

    asyncio.run(check())


def test_of_several_stop_strings_the_earliest_ends_it() -> None:
    """Whatever their order in the request."""

    async def check() -> None:
        async with server() as running:
            free = text_of(await generate(running, text=PROMPT, max_tokens=200))
            late, early = free[80:86], free[30:37]
            # The last one ends with `early`, and begins later.
            for stops in ([late, early], [early, late], ["\0", late, early], [early[2:], early]):
                events = await generate(running, text=PROMPT, max_tokens=200, stop=stops)
                assert text_of(events) == free[: free.index(early)]
                assert events[-1].finished.stop == early

    asyncio.run(check())


@pytest.mark.parametrize(("wants_logs", "num_alternatives"), [(False, 0), (True, 0), (False, 2), (True, 2)])
def test_log_probabilities_come_on_request_only(wants_logs: bool, num_alternatives: int) -> None:
    """Each token has what was asked for and nothing else, and the tokens are the same."""

    async def check() -> None:
        async with server() as running:
            plain = [token.id for token in tokens_of(await generate(running, text=PROMPT, max_tokens=20))]
            asked: Any = {"log_probabilities": wants_logs, "num_alternatives": num_alternatives}
            told = tokens_of(await generate(running, text=PROMPT, max_tokens=20, **asked))
            assert [token.id for token in told] == plain
            assert {token.HasField("log_probability") for token in told} == {wants_logs}
            assert {len(token.alternatives) for token in told} == {num_alternatives}
            for token in told:
                logs = [each.log_probability for each in token.alternatives]
                if wants_logs:
                    logs.append(token.log_probability)
                assert all(log <= 0.0 for log in logs)

    asyncio.run(check())


def test_tokens_come_while_it_writes() -> None:
    """The first ones are with the reader long before the last is drawn, prompt and all."""

    async def check() -> None:
        async with server() as running:
            calling = call(running, text=PROMPT, max_tokens=60_000)
            started = (await calling.read()).started
            first = await calling.read()
            row = running.host.table.row_of_id(started.session_id)
            assert first.tokens.tokens
            assert running.host.table.next_position[row] < 10_000
            calling.cancel()

    asyncio.run(check())


# What may still be stepped after a client's `cancel`: what was drawn before the server has heard of it, both being on
# one event loop here. Going on to the end would be 60,000 tokens, or a prompt of 200,000.
AT_ONCE_STEPS = 2_000


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("reads", ["the prompt", "tokens"])
def test_cancelling_stops_the_model_at_once(reads: str, keeps: bool) -> None:
    """In the middle of a prompt or of tokens, whether the session is kept or not: hardly a step is taken any more.

    A kept session stays and can go on; another one is gone.
    """

    async def check() -> None:
        async with server() as running:
            host = running.host
            scheduler = host.catalog.ready(MODEL, "").scheduler
            prompt = PROMPT if reads == "tokens" else b"x" * 200_000
            calling = call(running, text=prompt, max_tokens=60_000, keep_session=keeps)
            started = (await calling.read()).started
            if reads == "tokens":
                assert (await calling.read()).tokens.tokens
            calling.cancel()
            before = scheduler.num_row_steps
            await until(lambda: host.calls.finished.get((METHOD, "CANCELLED")) and host.is_idle)
            assert scheduler.num_row_steps - before < AT_ONCE_STEPS
            assert host.table.num_sessions == int(keeps)
            if keeps:
                existing = generation_pb2.ExistingSession(session_id=started.session_id, epoch=started.epoch)
                events = await generate(running, existing=existing, text=b"a", max_tokens=3)
                assert len(tokens_of(events)) == 3

    asyncio.run(check())


def test_a_prompt_takes_turns_with_sessions_of_its_model() -> None:
    """However long a prompt is: between two answers to another session no more of it is read than a few chunks."""
    max_steps = 512

    async def check() -> None:
        async with server(max_steps=max_steps) as running, running.stream() as stream:
            [handle] = await stream.handles(MODEL)
            calling = call(running, text=b"abcdefghij" * 10_000, max_tokens=1)
            started = (await calling.read()).started
            table = running.host.table
            row = table.row_of_id(started.session_id)
            seen = int(table.next_position[row])
            for position in range(20):
                step = inference_pb2.StepChunk(
                    handles=column([handle]),
                    positions=column([position]),
                    num_steps=1,
                    inputs=[tensor("tokens", np.array([[1]]))],
                )
                assert not (await stream.send(step=step)).step.errors
                now = int(table.next_position[row])
                assert now - seen <= 4 * max_steps
                seen = now
            assert seen < 100_000
            calling.cancel()

    asyncio.run(check())
