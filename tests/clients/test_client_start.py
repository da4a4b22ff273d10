"""What sessions begin with: sources that a model reads first, as text or numbers, and states of their own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopback import configure
from toys import MAX_PRIME_STEPS, PIECES, spelled_source
from wire import connected, run, spelled

from eddy import SyncClient
from eddy.clients.errors import InvalidInput, NotFound
from eddy.clients.vocabulary import Encoder
from eddy.v1 import contract_pb2
from examples.server import ServerProcess

# By the ids of `PIECES`.
_ENCODED = [
    ("12 1234", [PIECES.index("12"), PIECES.index("\u25811234")]),
    ("1 12", [PIECES.index("1"), PIECES.index("\u25811"), PIECES.index("2")]),
    ("x34\n", [0, PIECES.index("34"), 0]),
    (" ", [PIECES.index("\u2581")]),
    ("\u2402\u2403?", [0, 0, 0]),
]


@pytest.mark.parametrize(("text", "ids"), _ENCODED)
def test_text_as_a_source(primed: Path, text: str, ids: list[int]) -> None:
    """Text is cut into the longest pieces; a space is a symbol, and what is none is the unknown token."""

    async def scenario() -> None:
        async with connected(configure(primed)) as (_, client, recorder):
            async with client.session("primed", prime=text) as session:
                assert await session.step(7) == spelled_source(ids) * 10 + 7
            (tensor,) = recorder.requests[0].open.prime.inputs
            assert np.frombuffer(tensor.data, "<i8").tolist() == ids

    run(scenario())


@pytest.mark.parametrize(
    "source", [[1, 2, 3], np.array([1, 2, 3], np.int32), {"source": [1, 2, 3]}, {"source": np.array([1, 2, 3])}]
)
def test_numbers_as_a_source(primed: Path, source: Any) -> None:
    """The one prime input's values, or a mapping by its name; steps begin at position 0 after it."""

    async def scenario() -> None:
        async with connected(configure(primed)) as (_, client, _):
            session = await client.open("primed", prime=source)
            assert session.position == 0
            assert (await session.step([4, 5])).tolist() == [1234, 12345]

    run(scenario())


def test_sources_of_any_lengths(primed: Path) -> None:
    """A batch sends them in one message, padded with values that the input takes; padding changes nothing."""

    async def scenario() -> None:
        async with connected(configure(primed)) as (_, client, recorder):
            sources = [[1], [2, 3, 4, 5], "34", np.array([6, 7])]
            async with client.batch("primed", 4, prime=sources) as batch:
                begun = [1, 2345, PIECES.index("34"), 67]
                assert (await batch.step([9] * 4)).tolist() == [10 * each + 9 for each in begun]
            prime = recorder.requests[0].open.prime
            assert np.frombuffer(prime.lengths, "<u4").tolist() == [1, 4, 1, 2]
            assert list(prime.inputs[0].shape) == [4, 4]
            named = {"source": [[1, 2], [3]]}
            assert (await (await client.open_batch("primed", 2, prime=named)).step([0, 0])).tolist() == [120, 30]
            # The unknown token has no place here: zeros would be refused.
            batch = await client.open_batch("primed-characters", 2, prime=["123", "4"])
            first, second = (await batch.step([0, 0])).tolist()
            assert (first, second) == (spelled_source([4, 5, 6]) * 10, 70)

    run(scenario())


def test_whole_sequences_with_sources(primed: Path) -> None:
    """Each sequence has its own source, also where they go in several messages."""

    async def scenario() -> None:
        async with connected(configure(primed, model={"max_rows": 4})) as (_, client, _):
            sources = [[1 + number % 9] * (1 + number % MAX_PRIME_STEPS) for number in range(10)]
            sequences = [[number % 10] * (1 + number % 3) for number in range(10)]
            answers = await client.infer("primed", sequences, prime=sources)
            for source, digits, answer in zip(sources, sequences, answers, strict=True):
                assert answer.tolist() == spelled([*source, *digits])[len(source) :]
            named = await client.infer_outputs("primed", [[5]], prime=["12"], initial_states=None)
            assert named["y"][0].tolist() == [10 * PIECES.index("12") + 5]

    run(scenario())


def test_states_of_their_own(primed: Path) -> None:
    """States given at the opening replace the model's, in sessions, batches and whole sequences."""

    async def scenario() -> None:
        async with connected(configure(primed)) as (_, client, _):
            session = await client.open("history", initial_states={"history": 12})
            assert await session.step(3) == 123
            batch = await client.open_batch("history", 3, initial_states={"history": np.array([1, 2, 3])})
            assert (await batch.step([7, 8, 9])).tolist() == [17, 28, 39]
            answers = await client.infer("history", [[1], [2, 3]], initial_states={"history": [5, 6]})
            assert [answer.tolist() for answer in answers] == [[51], [62, 623]]
            # Both: the state given goes before the one that the source wrote.
            session = await client.open("primed", prime=[1, 2], initial_states={"history": 9})
            assert await session.step(0) == 90

    run(scenario())


def test_such_sessions_cannot_be_reset(primed: Path) -> None:
    """What they began with is not kept by the server: a reset is refused, and they go on."""

    async def scenario() -> None:
        async with connected(configure(primed)) as (_, client, _):
            for session in (
                await client.open("primed", prime=[1]),
                await client.open("history", initial_states={"history": 1}),
            ):
                await session.step(2)
                with pytest.raises(InvalidInput) as error:
                    await session.reset()
                assert error.value.reason == "OWN_START"
                assert await session.step(3) == 123

    run(scenario())


_REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("history", {"prime": [1]}, "UNKNOWN_INPUT", "prime"),
    ("primed", {"initial_states": {"history": 1}}, "MISSING_FIELD", "prime"),
    ("primed", {"prime": []}, "ZERO_STEPS", "prime"),
    ("primed", {"prime": ""}, "ZERO_STEPS", "prime"),
    ("primed", {"prime": np.zeros(0, np.int64)}, "ZERO_STEPS", "prime"),
    ("primed", {"prime": [1] * (MAX_PRIME_STEPS + 1)}, "TOO_MANY_STEPS", "prime"),
    ("primed", {"prime": 5}, "INVALID_SHAPE", "prime"),
    ("primed", {"prime": [[1, 2]]}, "INVALID_SHAPE", "prime"),
    ("primed", {"prime": [[1, 2], [3]]}, "INVALID_SHAPE", "prime"),
    ("primed", {"prime": [0.5]}, "INVALID_DTYPE", "prime"),
    ("primed", {"prime": {"target": [1]}}, "UNKNOWN_INPUT", "prime"),
    ("primed-characters", {"prime": "1x"}, "UNKNOWN_SYMBOL", "prime"),
    ("history", {"initial_states": {"h": 1}}, "UNKNOWN_INPUT", "initial_states"),
    ("history", {"initial_states": {"history": [1]}}, "INVALID_SHAPE", "initial_states[history]"),
    ("history", {"initial_states": {"history": 0.5}}, "INVALID_DTYPE", "initial_states[history]"),
    ("history", {"initial_states": {"history": [[1], [2, 3]]}}, "INVALID_SHAPE", "initial_states[history]"),
]


@pytest.mark.parametrize(("model", "options", "reason", "field"), _REFUSED)
def test_what_does_not_fit_is_refused_here(
    primed: Path, model: str, options: dict[str, Any], reason: str, field: str
) -> None:
    """A mistake in a source or a state is told where it was made; nothing is opened."""

    async def scenario() -> None:
        async with connected(configure(primed)) as (_, client, recorder):
            with pytest.raises(InvalidInput) as error:
                await client.open(model, **options)
            assert (error.value.reason, error.value.field) == (reason, field)
            assert not recorder.requests

    run(scenario())


@pytest.mark.parametrize(
    ("options", "reason", "field"),
    [
        ({"prime": "12"}, "INVALID_SHAPE", "prime"),
        ({"prime": 5}, "INVALID_SHAPE", "prime"),
        ({"prime": [[1]]}, "INVALID_SHAPE", "prime"),
        ({"prime": {"source": [[1]]}}, "INVALID_SHAPE", "prime"),
        ({"prime": [[1], [0.5]]}, "INVALID_DTYPE", "prime[1]"),
        ({"prime": [[1], []]}, "ZERO_STEPS", "prime[1]"),
        ({"prime": [[1], [2]], "initial_states": {"history": [1]}}, "INVALID_SHAPE", "initial_states[history]"),
    ],
)
def test_what_does_not_fit_many(primed: Path, options: dict[str, Any], reason: str, field: str) -> None:
    """Batches and whole sequences need one source and one state each, and say which one is wrong."""

    async def scenario() -> None:
        async with connected(configure(primed)) as (_, client, _):
            calls: Sequence[Any] = (
                lambda: client.open_batch("primed", 2, **options),
                lambda: client.infer("primed", [[1], [2]], **options),
            )
            for call in calls:
                with pytest.raises(InvalidInput) as error:
                    await call()
                assert (error.value.reason, error.value.field) == (reason, field)

    run(scenario())


def test_a_source_without_which_nothing_is_opened(primed: Path) -> None:
    """A model that reads first is not opened, nor inferred, without a source; an unknown one is not found."""

    async def scenario() -> None:
        async with connected(configure(primed)) as (_, client, _):
            for call in (client.open("primed"), client.infer("primed", [[1]])):
                with pytest.raises(InvalidInput) as error:
                    await call
                assert error.value.reason == "MISSING_FIELD"
            with pytest.raises(NotFound):
                await client.open("missing", prime=[1])

    run(scenario())


def test_what_no_message_can_hold(primed: Path) -> None:
    """States larger than a message are refused here: the server would end the stream, and everybody's sessions."""

    async def scenario() -> None:
        config = configure(primed, server={"max_message_bytes": 1 << 16}, model={"max_slots": 1 << 14})
        async with connected(config) as (_, client, _):
            session = await client.open("history")
            with pytest.raises(InvalidInput) as error:
                await client.open_batch("history", 1 << 13, initial_states={"history": np.zeros(1 << 13, np.int64)})
            assert error.value.reason == "MESSAGE_TOO_LARGE"
            assert await session.step(1) == 1

    run(scenario())


@pytest.mark.parametrize(
    ("unit", "symbols", "text", "ids"),
    [
        ("character", ["a", "b"], "abx", [0, 1, 2]),
        ("piece", ["\u2581", "\u2581a", "\u2581ab", "a", "b"], " abb a", [2, 4, 1]),
    ],
)
def test_units_of_text(unit: str, symbols: list[str], text: str, ids: list[int]) -> None:
    """Characters, and pieces, the longest first; what is neither is the unknown token."""
    vocabulary = contract_pb2.Vocabulary(symbols=[*symbols, "?"], unit=unit, unknown_id=len(symbols))
    assert Encoder(vocabulary, "text").encode(text) == ids


@pytest.mark.parametrize("vocabulary", [contract_pb2.Vocabulary(), contract_pb2.Vocabulary(symbols=["a"], unit="word")])
def test_models_that_read_no_text(vocabulary: contract_pb2.Vocabulary) -> None:
    """Without symbols, or with a unit not known here, text is refused."""
    with pytest.raises(InvalidInput) as error:
        Encoder(vocabulary, "prime")
    assert (error.value.reason, error.value.field) == ("WRONG_TASK", "prime")


def test_the_synchronous_face(primed: Path) -> None:
    """Blocking code opens and infers with sources and states likewise."""
    with ServerProcess(primed) as server, SyncClient(server.target) as client:
        with client.session("primed", prime="12") as session:
            assert session.step(3) == 10 * PIECES.index("12") + 3
        with client.batch("primed", 2, prime=[[1], [2, 3]]) as batch:
            assert batch.step([4, 4]).tolist() == [14, 234]
        with client.session("history", initial_states={"history": 4}) as session:
            assert session.step(2) == 42
        assert client.infer("primed", [[5]], prime=[[4]])[0].tolist() == [45]
        assert client.infer_outputs("history", [[5]], initial_states={"history": [1]})["y"][0].tolist() == [15]
