"""Generate, through a real server on shipped models: text, seeds, continuation, stopping, limits, bad requests."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime as ort
import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import Loopback, configure, detail_of, serve, until

from eddy.service.engine import Engine
from eddy.service.sampling import Sampling, draw, log_probabilities
from eddy.v1 import contract_pb2, errors_pb2, generation_pb2, inference_pb2, sessions_pb2

MODELS = Path(__file__).resolve().parent.parent.parent / "models"
PROMPT = b"The class "
SAMPLING = generation_pb2.Sampling(seed=5, temperature=0.7)
Reason = generation_pb2.GenerationFinished


@dataclass
class Written:
    """Everything that one call sent."""

    started: generation_pb2.GenerationStarted = field(default_factory=generation_pb2.GenerationStarted)
    tokens: list[generation_pb2.GeneratedToken] = field(default_factory=list)
    text: str = ""
    finished: generation_pb2.GenerationFinished | None = None

    @property
    def ids(self) -> list[int]:
        """The tokens."""
        return [token.id for token in self.tokens]

    def add(self, response: generation_pb2.GenerateResponse) -> None:
        """Takes one event."""
        kind = response.WhichOneof("event")
        assert self.finished is None, "an event after the last"
        if kind == "started":
            self.started = response.started
        elif kind == "tokens":
            self.tokens += response.tokens.tokens
            self.text += response.tokens.text
        else:
            self.finished = response.finished


def call(running: Loopback, **fields: Any) -> Any:
    """Starts a call; a new session of text-lstm unless told otherwise."""
    if "existing" not in fields:
        fields.setdefault("open", generation_pb2.NewSession(model="text-lstm"))
    method = running.channel.unary_stream(
        "/eddy.v1.GenerationService/Generate", None, generation_pb2.GenerateResponse.FromString
    )
    return method(generation_pb2.GenerateRequest(**fields).SerializeToString())


async def generate(running: Loopback, **fields: Any) -> Written:
    """One whole call."""
    written = Written()
    async for response in call(running, **fields):
        written.add(response)
    assert written.finished is not None
    return written


async def refusal(running: Loopback, **fields: Any) -> errors_pb2.ErrorDetail:
    """The error of a call that must be refused."""
    try:
        written = await generate(running, **fields)
    except grpc.aio.AioRpcError as error:
        return detail_of(error)
    raise AssertionError(f"it was carried out: {written}")


async def broken(calling: Any, written: Written) -> errors_pb2.ErrorDetail:
    """The error that a call ends with, after what it sends before."""
    try:
        while (response := await calling.read()) is not grpc.aio.EOF:
            written.add(response)
    except grpc.aio.AioRpcError as error:
        return detail_of(error)
    raise AssertionError("the call ended well")


def existing(written: Written) -> generation_pb2.ExistingSession:
    """The kept session of a call."""
    return generation_pb2.ExistingSession(session_id=written.started.session_id, epoch=written.started.epoch)


@asynccontextmanager
async def server(**limits: Any) -> AsyncIterator[Loopback]:
    """A server for the shipped models."""
    async with serve(configure(MODELS, model=limits)) as running:
        yield running


class Reference:
    """The model stepped by ONNX Runtime directly, two equal rows at a time as the server's smallest tick."""

    def __init__(self, name: str = "text-lstm") -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(
            str(MODELS / name / "1" / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        contract = contract_pb2.ModelContract()
        json_format.Parse(self._session.get_modelmeta().custom_metadata_map["eddy.contract"], contract)
        self.vocabulary = contract.vocabulary
        self._states = {state.name: np.zeros((2, *state.shape), np.float32) for state in contract.states}
        self._next = [state.next_name for state in contract.states]

    def encode(self, text: str) -> list[int]:
        """Ids, unknown characters as the unknown token."""
        symbols = list(self.vocabulary.symbols)
        return [symbols.index(each) if each in symbols else self.vocabulary.unknown_id for each in text]

    def step(self, token: int) -> np.ndarray:
        """Scores after one more token, [V]."""
        feed = {"tokens": np.full((2, 1), token, np.int64), **self._states}
        logits, *states = self._session.run(["logits", *self._next], feed)
        self._states = dict(zip(self._states, states, strict=True))
        return np.asarray(logits)[0, 0]

    def write(self, prompt: str, count: int, sampling: Sampling) -> tuple[list[int], list[np.ndarray]]:
        """Tokens and the scores that each was drawn from."""
        position = 0
        for token in self.encode(prompt):
            scores = self.step(token)
            position += 1
        ids, seen = [], []
        for _ in range(count):
            token = draw(scores, sampling, position, (self.vocabulary.unknown_id,))
            assert token is not None
            ids.append(token)
            seen.append(scores)
            scores = self.step(token)
            position += 1
        return ids, seen


@pytest.mark.parametrize("model", ["text-lstm", "text-gru", "text-rnn", "text-lstm-2layer", "text-lstm-2layer-int8"])
def test_text_is_what_stepping_by_hand_gives(model: str) -> None:
    """Tokens, text and log-probabilities are those of ONNX Runtime stepped directly with the same draws."""
    ids, scores = Reference(model).write("The class ", 80, Sampling(5, 0.7, 20, 0.95))

    async def check() -> None:
        async with server() as running:
            written = await generate(
                running,
                open=generation_pb2.NewSession(model=model),
                text=PROMPT,
                max_tokens=80,
                sampling=generation_pb2.Sampling(seed=5, temperature=0.7, top_k=20, top_p=0.95),
                log_probabilities=True,
                num_alternatives=3,
            )
        assert written.ids == ids
        assert written.text == "".join(Reference(model).vocabulary.symbols[each] for each in ids)
        for token, row in zip(written.tokens, scores, strict=True):
            logs = log_probabilities(row)
            # Text models differ between cuttings of the prompt by less than this (docs/training.md).
            assert token.log_probability == pytest.approx(logs[token.id], abs=1e-4)
            best = np.argsort(-logs, kind="stable")[:3].tolist()
            assert [each.id for each in token.alternatives] == best
            assert token.alternatives[0].log_probability == pytest.approx(logs[best[0]], abs=1e-4)
        finished = written.finished
        assert finished is not None
        assert (finished.reason, finished.num_tokens) == (Reason.REASON_MAX_TOKENS, 80)
        assert (finished.next_position, finished.session_kept) == (len(PROMPT) + 80, False)

    asyncio.run(check())


def test_the_same_seed_gives_the_same_text_whatever_else_is_served() -> None:
    """Alone, among other generations and steps, with the prompt sliced: one text; another seed gives another."""

    async def check() -> None:
        async with server() as running:
            alone = await generate(running, text=PROMPT, max_tokens=120, sampling=SAMPLING)
            others = [generate(running, text=b"x" * (1 + 37 * number), max_tokens=40 + number) for number in range(16)]
            crowd = await asyncio.gather(
                *(generate(running, text=PROMPT, max_tokens=120, sampling=SAMPLING) for _ in range(3)), *others
            )
            assert [each.ids for each in crowd[:3]] == [alone.ids] * 3
            other = await generate(
                running, text=PROMPT, max_tokens=120, sampling=generation_pb2.Sampling(seed=6, temperature=0.7)
            )
            assert other.ids != alone.ids
            chosen = await generate(running, text=PROMPT, max_tokens=120)
            again = await generate(
                running, text=PROMPT, max_tokens=120, sampling=generation_pb2.Sampling(seed=chosen.started.seed)
            )
            assert chosen.ids == again.ids
            assert running.host.table.num_sessions == 0

    asyncio.run(check())


@settings(max_examples=12, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    seed=st.integers(0, (1 << 64) - 1),
    chunk_steps=st.sampled_from([1, 3, 512]),
)
def test_a_continued_generation_is_an_uninterrupted_one(cuts: list[int], seed: int, chunk_steps: int) -> None:
    """However it is cut into calls, and however the prompt is cut into chunks."""
    sampling = generation_pb2.Sampling(seed=seed, temperature=0.9)

    async def check() -> None:
        async with server() as running:
            whole = await generate(running, text=PROMPT, max_tokens=sum(cuts), sampling=sampling)
        async with server(max_steps=chunk_steps) as running:
            part = await generate(running, text=PROMPT, max_tokens=cuts[0], sampling=sampling, keep_session=True)
            ids = part.ids
            for count in cuts[1:]:
                more = await generate(running, existing=existing(part), max_tokens=count, sampling=sampling)
                assert more.started.position == len(PROMPT) + len(ids)
                assert more.finished is not None
                assert more.finished.session_kept
                ids += more.ids
            assert ids == whole.ids
            assert running.host.table.num_sessions == 1

    asyncio.run(check())


def test_a_turn_is_followed_by_the_next() -> None:
    """A kept session takes a new prompt: it goes on as if all had been one prompt."""

    async def check() -> None:
        async with server() as running:
            first = await generate(running, text=PROMPT, max_tokens=10, sampling=SAMPLING, keep_session=True)
            second = await generate(
                running, existing=existing(first), text=b" and then ", max_tokens=30, sampling=SAMPLING
            )
            everything = PROMPT.decode() + first.text + " and then "
            whole = await generate(running, text=everything.encode(), max_tokens=30, sampling=SAMPLING)
            assert second.ids == whole.ids
            assert second.started.num_prompt_tokens == len(" and then ")

    asyncio.run(check())


def test_a_cancelled_generation_goes_on_where_it_stands() -> None:
    """Broken off in the middle with its session kept: tokens by their position are those without a break."""

    async def check() -> None:
        async with server() as running:
            whole = await generate(running, text=PROMPT, max_tokens=4000, sampling=SAMPLING)
            broken, calling = (
                Written(),
                call(running, text=PROMPT, max_tokens=60_000, sampling=SAMPLING, keep_session=True),
            )
            async for response in calling:
                broken.add(response)
                if len(broken.tokens) > 50:
                    calling.cancel()
                    break
            # At once: a step of the cancelled call may still be under way.
            rest = await generate(running, existing=existing(broken), max_tokens=400, sampling=SAMPLING)
            assert rest.started.position >= len(PROMPT) + len(broken.ids) - 1
            begin = rest.started.position - len(PROMPT)
            assert begin < 3600, "the cancelled call ran far ahead of its reader"
            assert rest.ids == whole.ids[begin : begin + 400]
            assert broken.ids == whole.ids[: len(broken.ids)]

    asyncio.run(check())


def test_cancelling_stops_at_once_and_closes_the_session() -> None:
    """Nothing is stepped for a caller that has gone."""

    async def check() -> None:
        async with server() as running:
            calling = call(running, text=PROMPT, max_tokens=60_000, sampling=SAMPLING)
            async for response in calling:
                if response.WhichOneof("event") == "tokens":
                    break
            calling.cancel()
            await until(lambda: running.host.table.num_sessions == 0)
            assert running.host.is_idle
            scheduler = running.host.catalog.ready("text-lstm", "").scheduler
            assert scheduler.num_row_steps < 60_000

    asyncio.run(check())


def test_a_reader_that_stops_reading_stops_the_model() -> None:
    """Tokens are not drawn ahead without limit; when the reader goes on, nothing is missing."""
    # A client that lets little be under way, so that not much must be written before it counts as slow.
    options = [("grpc.http2.lookahead_bytes", 16_384), ("grpc.http2.bdp_probe", 0)]

    async def check() -> None:
        async with (
            server() as running,
            grpc.aio.insecure_channel(f"127.0.0.1:{running.server.port}", options=options) as channel,
        ):
            fields: dict[str, Any] = {"text": PROMPT, "max_tokens": 5_000, "sampling": SAMPLING}
            slow = Loopback(running.host, running.server, channel)
            calling = call(slow, **fields, num_alternatives=20)
            written = Written()
            written.add(await calling.read())
            row = running.host.table.row_of_id(written.started.session_id)
            scheduler = running.host.catalog.ready("text-lstm", "").scheduler
            await until(lambda: scheduler.queue.is_idle and running.host.table.next_position[row] > 100)
            assert running.host.table.next_position[row] < 5_000
            while (response := await calling.read()) is not grpc.aio.EOF:
                written.add(response)
            quick = await generate(running, **fields)
            assert written.ids == quick.ids

    asyncio.run(check())


def test_stop_strings() -> None:
    """The text ends before the first of them; its tokens are part of the state."""

    async def check() -> None:
        async with server() as running:
            free = await generate(running, text=PROMPT, max_tokens=400, sampling=SAMPLING)
            stop = free.text[100:104]
            cut = await generate(
                running, text=PROMPT, max_tokens=400, sampling=SAMPLING, stop=["\0never", stop], keep_session=True
            )
            place = free.text.index(stop)
            assert cut.text == free.text[:place]
            assert cut.ids == free.ids[: place + len(stop)]
            finished = cut.finished
            assert finished is not None
            assert (finished.reason, finished.stop) == (Reason.REASON_STOP, stop)
            assert finished.next_position == len(PROMPT) + place + len(stop)
            rest = await generate(running, existing=existing(cut), max_tokens=50, sampling=SAMPLING)
            assert rest.ids == free.ids[place + len(stop) :][:50]

    asyncio.run(check())


def test_unknown_characters_become_the_unknown_token_and_are_never_written() -> None:
    """As the contract of the shipped models says."""

    async def check() -> None:
        async with server() as running:
            snow = await generate(running, text="☃ and ☂".encode(), max_tokens=300, sampling=SAMPLING)
            unknown = Reference().vocabulary.unknown_id
            ids = generation_pb2.TokenIds(ids=Reference().encode("☃ and ☂"))
            assert ids.ids[0] == unknown
            assert (await generate(running, tokens=ids, max_tokens=300, sampling=SAMPLING)).ids == snow.ids
            assert unknown not in snow.ids

    asyncio.run(check())


def test_a_draining_server_finishes_generations() -> None:
    """The call ends with the reason, and what it sent is whole."""

    async def check() -> None:
        async with server() as running:
            whole = await generate(running, text=PROMPT, max_tokens=3000, sampling=SAMPLING)
            written, calling = Written(), call(running, text=PROMPT, max_tokens=60_000, sampling=SAMPLING)
            draining: asyncio.Task[None] | None = None
            async for response in calling:
                written.add(response)
                if draining is None and len(written.tokens) > 20:
                    draining = asyncio.create_task(running.server.drain())
            assert draining is not None
            await draining
            assert written.finished is not None
            assert written.finished.reason == Reason.REASON_DRAINING
            assert written.finished.num_tokens == len(written.ids)
            shared = min(3000, len(written.ids))
            assert written.ids[:shared] == whole.ids[:shared]

    asyncio.run(check())


def test_a_second_writer_is_told_apart() -> None:
    """A step from elsewhere in the middle of a generation: one of the two is refused, and nothing is mixed."""

    async def check() -> None:
        async with server() as running:
            written = Written()
            calling = call(running, text=PROMPT, max_tokens=60_000, sampling=SAMPLING, keep_session=True)
            written.add(await calling.read())
            table = running.host.table
            row = table.row_of_id(written.started.session_id)
            await until(lambda: table.next_position[row] > 30)
            async with running.stream() as stream:
                attach = inference_pb2.AttachSession(
                    session_id=written.started.session_id, resume_token=written.started.resume_token
                )
                attached = (await stream.send(attach=attach)).attached
                assert (await broken(calling, written)).reason == errors_pb2.ERROR_REASON_FENCED
                assert attached.next_position >= len(PROMPT) + len(written.ids) - 1

    asyncio.run(check())


def test_a_long_prompt_does_not_stall_others() -> None:
    """While a prompt of 100,000 characters is read, another session's steps are answered."""

    async def check() -> None:
        async with server() as running, running.stream() as stream:
            handle = await stream.handles("text-gru")
            calling = call(running, text=b"abcdefghij" * 10_000, max_tokens=1, sampling=SAMPLING)
            await calling.read()
            row = running.host.table.open_rows()[-1]
            tokens = inference_pb2.Tensor(
                name="tokens", dtype=contract_pb2.DATA_TYPE_INT64, shape=[1, 1], data=(1).to_bytes(8, "little")
            )
            for position in range(20):
                step = inference_pb2.StepChunk(
                    handles=np.array(handle, "<u8").tobytes(),
                    positions=position.to_bytes(8, "little"),
                    num_steps=1,
                    inputs=[tokens],
                )
                assert (await stream.send(step=step)).WhichOneof("event") == "step"
            assert running.host.table.next_position[row] < 100_000, "the prompt was through before 20 steps"
            calling.cancel()

    asyncio.run(check())


NEW = generation_pb2.NewSession(model="text-lstm")
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("MISSING_FIELD", {"text": PROMPT, "existing": None}, "session"),
    ("MISSING_FIELD", {"open": NEW}, "prompt"),
    ("MISSING_FIELD", {"open": NEW, "text": b""}, "prompt"),
    ("MISSING_FIELD", {"open": NEW, "tokens": generation_pb2.TokenIds()}, "prompt"),
    ("UNKNOWN_MODEL", {"open": generation_pb2.NewSession(model="nobody"), "text": PROMPT}, "model"),
    ("UNKNOWN_VERSION", {"open": generation_pb2.NewSession(model="text-lstm", version="9"), "text": PROMPT}, "version"),
    ("WRONG_TASK", {"open": generation_pb2.NewSession(model="forecast-gru"), "text": PROMPT}, "model"),
    ("INVALID_TEXT", {"open": NEW, "text": b"a\xff"}, "text"),
    ("OUT_OF_RANGE", {"open": NEW, "tokens": generation_pb2.TokenIds(ids=[1, 101])}, "tokens"),
    ("OUT_OF_RANGE", {"open": NEW, "text": PROMPT, "max_tokens": 65_537}, "max_tokens"),
    ("OUT_OF_RANGE", {"open": NEW, "text": PROMPT, "num_alternatives": 21}, "num_alternatives"),
    ("OUT_OF_RANGE", {"open": NEW, "text": PROMPT, "stop": [""]}, "stop"),
    ("OUT_OF_RANGE", {"open": NEW, "text": PROMPT, "stop": ["a"] * 17}, "stop"),
    ("OUT_OF_RANGE", {"open": NEW, "text": PROMPT, "stop": ["a" * 257]}, "stop"),
    (
        "OUT_OF_RANGE",
        {"open": NEW, "text": PROMPT, "sampling": generation_pb2.Sampling(temperature=-1)},
        "sampling.temperature",
    ),
    (
        "OUT_OF_RANGE",
        {"open": NEW, "text": PROMPT, "sampling": generation_pb2.Sampling(top_p=0)},
        "sampling.top_p",
    ),
    (
        "OUT_OF_RANGE",
        {"open": generation_pb2.NewSession(model="text-lstm", idle_timeout_seconds=-1), "text": PROMPT},
        "idle_timeout_seconds",
    ),
    (
        "INVALID_BYTE_LENGTH",
        {"existing": generation_pb2.ExistingSession(session_id=b"short"), "text": PROMPT},
        "existing.session_id",
    ),
    (
        "UNKNOWN_SESSION",
        {"existing": generation_pb2.ExistingSession(session_id=bytes(16)), "text": PROMPT},
        "session_id",
    ),
]


def test_every_bad_request_is_refused_with_its_reason() -> None:
    """The reason, the field, and no session stays."""

    async def check() -> None:
        async with server() as running:
            for reason, fields, where in BAD:
                detail = await refusal(running, **fields)
                name = errors_pb2.ErrorReason.Name(detail.reason).removeprefix("ERROR_REASON_")
                assert (name, detail.field) == (reason, where), detail
                assert running.host.table.num_sessions == 0
            garbage = running.channel.unary_stream("/eddy.v1.GenerationService/Generate")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await garbage(b"\xff\xff\xff").read()
            assert detail_of(caught.value).reason == errors_pb2.ERROR_REASON_MALFORMED_MESSAGE

    asyncio.run(check())


def test_existing_sessions_are_checked() -> None:
    """Epoch, position, and scores to go on from."""

    async def check() -> None:
        async with server() as running:
            response = await running.unary(
                "SessionService/OpenSession",
                sessions_pb2.OpenSessionRequest(model="text-lstm"),
                sessions_pb2.OpenSessionResponse,
            )
            fresh = generation_pb2.ExistingSession(session_id=response.session.session_id, epoch=response.session.epoch)
            assert (await refusal(running, existing=fresh)).reason == errors_pb2.ERROR_REASON_MISSING_FIELD
            fenced = generation_pb2.ExistingSession(session_id=fresh.session_id, epoch=fresh.epoch + 1)
            detail = await refusal(running, existing=fenced, text=PROMPT)
            assert (detail.reason, detail.epoch) == (errors_pb2.ERROR_REASON_FENCED, fresh.epoch)
            written = await generate(running, existing=fresh, text=PROMPT, max_tokens=5, sampling=SAMPLING)
            assert written.finished is not None
            stands = written.finished.next_position
            for position, reason in (
                (stands - 1, errors_pb2.ERROR_REASON_POSITION_BEHIND),
                (stands + 1, errors_pb2.ERROR_REASON_POSITION_AHEAD),
            ):
                there = generation_pb2.ExistingSession(
                    session_id=fresh.session_id, epoch=fresh.epoch, position=position
                )
                detail = await refusal(running, existing=there)
                assert (detail.reason, detail.next_position) == (reason, stands)
            model = running.host.catalog.ready("text-lstm", "")
            row = running.host.table.row_of_id(fresh.session_id)
            model.replies.clear_rings(model._table.ring_start[[row]], model._table.ring_size[[row]])  # noqa: SLF001
            detail = await refusal(running, existing=fresh)
            assert (detail.reason, detail.next_position) == (errors_pb2.ERROR_REASON_REPLY_NOT_KEPT, stands)

    asyncio.run(check())


class Overflowing(Engine):
    """An engine whose graph runs into infinity after a while."""

    num_left = 5

    def run(self, *arguments: Any) -> list[bytes]:
        """As `Engine.run`, then infinite scores."""
        blocks = super().run(*arguments)
        self.num_left -= 1
        return (
            blocks if self.num_left > 0 else [np.full(len(each) // 4, np.inf, np.float32).tobytes() for each in blocks]
        )


def test_scores_that_are_no_numbers_fail_the_call() -> None:
    """A typed error after the tokens that could be drawn, and the session is closed."""

    async def check() -> None:
        async with server() as running:
            running.host.catalog.ready("text-lstm", "").engine.__class__ = Overflowing
            written = Written()
            calling = call(running, text=b"T", max_tokens=50)
            error = await broken(calling, written)
            assert error.reason == errors_pb2.ERROR_REASON_QUARANTINED
            assert len(written.tokens) == 4
            await until(lambda: running.host.table.num_sessions == 0)

    asyncio.run(check())
