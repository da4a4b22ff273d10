"""Translation through the client: sources, the end symbol, attention, beams, refusals."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopback import configure, serve
from toys import START, TRANSLATED, TRANSLATION_END, UNKNOWN
from wire import run

from eddy import Client, Session, SyncClient
from eddy.clients.errors import EddyError, InvalidInput
from eddy.clients.pieces import FinishReason
from examples.server import ServerProcess

MODEL = "translator"
SOURCES = ("a", "abcdef", "ab cd ef", "fed cba", "abc c", "x")
MAX_TOKENS = 12
# Log-probabilities are computed in another order of additions here.
LOG_TOLERANCE = 1e-4


@asynccontextmanager
async def connected(repository: Path) -> AsyncIterator[Client]:
    """A client of a server."""
    async with serve(configure(repository)) as loopback, Client(channel=loopback.channel) as client:
        yield client
        assert loopback.host.table.num_sessions == 0


def logs_of(scores: np.ndarray) -> np.ndarray:
    """Natural log-probabilities, [V]."""
    scores = scores.astype(np.float64) - scores.max()
    return np.asarray(scores - np.log(np.exp(scores).sum()))


async def by_hand(session: Session) -> tuple[list[int], list[np.ndarray]]:
    """The most likely symbols until the end, and where each looked."""
    ids: list[int] = []
    looks: list[np.ndarray] = []
    token = START
    while len(ids) < MAX_TOKENS:
        outputs = await session.step_outputs(token)
        scores = outputs["logits"].copy()
        scores[[UNKNOWN, START]] = -np.inf
        token = int(scores.argmax())
        if token == TRANSLATION_END:
            break
        ids.append(token)
        looks.append(outputs["attention"])
    return ids, looks


def written(ids: Sequence[int]) -> str:
    """The text of symbols."""
    return "".join(TRANSLATED[each] for each in ids).replace("\u2581", " ")


def test_translation_is_what_stepping_gives(translator: Path) -> None:
    """Symbols, text and attention are those of steps after the same source; it ends by itself or at the limit."""

    async def scenario() -> None:
        async with connected(translator) as client:
            reasons = set()
            for source in SOURCES:
                async with client.session(MODEL, prime=source) as session:
                    ids, looks = await by_hand(session)
                options: Any = {"temperature": 0, "max_tokens": MAX_TOKENS, "outputs": "attention"}
                async with client.generate(MODEL, source=source, **options) as generation:
                    assert generation.started.num_prompt_tokens == 1
                    pieces = [piece async for piece in generation]
                assert [token for piece in pieces for token in piece.ids] == ids
                assert "".join(piece.text for piece in pieces) == written(ids)
                for piece in pieces:
                    assert list(piece.outputs) == (["attention"] if piece.tokens else [])
                tokens = [token for piece in pieces for token in piece.tokens]
                for token, look in zip(tokens, looks, strict=True):
                    np.testing.assert_array_equal(token.outputs["attention"], look)
                assert generation.finished is not None
                assert generation.finished.hypotheses == ()
                is_full = len(ids) == MAX_TOKENS
                assert generation.finished.reason == (FinishReason.MAX_TOKENS if is_full else FinishReason.END)
                reasons.add(generation.finished.reason)
                whole = await client.complete(MODEL, source=source, **options)
                assert whole.text == written(ids)
                if ids:
                    np.testing.assert_array_equal(whole.outputs["attention"], np.stack(looks))
            assert FinishReason.END in reasons

    run(scenario())


def test_every_way_to_say_a_source(translator: Path) -> None:
    """`source`, the same text as `prime`, and its ids; a prompt goes on behind a beginning of the translation."""

    async def scenario() -> None:
        async with connected(translator) as client:
            ids = [TRANSLATED.index(symbol) for symbol in ("ab", "\u2581c", "d")]
            options: Any = {"max_tokens": 6, "seed": 3}
            first = await client.complete(MODEL, source="ab cd", **options)
            for prime in ("ab cd", ids, np.array(ids), {"source": ids}):
                again = await client.complete(MODEL, prime=prime, **options)
                assert (again.text, again.tokens) == (first.text, first.tokens)
            begun = await client.complete(MODEL, [START, TRANSLATED.index("a")], source="ab cd", max_tokens=3)
            assert begun.started.num_prompt_tokens == 2

    run(scenario())


def test_states_of_its_own(translator: Path) -> None:
    """A translation may begin with a state of the client's, beside a source."""

    async def scenario() -> None:
        async with connected(translator) as client:
            shape = next(state.shape for state in (await client.contract(MODEL)).states if state.name == "h")
            states = {"h": np.full(shape, 0.5, np.float32)}
            async with client.session(MODEL, prime="abc", initial_states=states) as session:
                ids, _ = await by_hand(session)
            for source in ({"source": "abc"}, {"prime": "abc"}):
                options: Any = {"temperature": 0, "max_tokens": MAX_TOKENS, "initial_states": states, **source}
                assert [token.id for token in (await client.complete(MODEL, **options)).tokens] == ids

    run(scenario())


def test_beams(translator: Path) -> None:
    """The best beam is the text; all are told with their log-probabilities, best first by the length penalty."""

    async def scenario() -> None:
        async with connected(translator) as client:
            for source in SOURCES[:3]:
                options: Any = {"num_beams": 3, "max_tokens": MAX_TOKENS, "outputs": ["attention"]}
                for penalty in (0.0, 1.0):
                    found = await client.complete(MODEL, source=source, length_penalty=penalty, **options)
                    best = found.hypotheses[0]
                    assert (found.text, [token.id for token in found.tokens]) == (best.text, list(best.ids))
                    assert found.outputs.get("attention", np.empty(0)).shape[0] == len(best.ids)
                    assert found.session is None
                    scores = [each.log_probability / (len(each.ids) + 1) ** penalty for each in found.hypotheses]
                    if found.finished.reason == FinishReason.END:
                        assert scores == sorted(scores, reverse=True)
                    for each in found.hypotheses:
                        assert each.text == written(each.ids)
                        total = await probability(client, source, each.ids)
                        ended, cut = total
                        assert min(abs(each.log_probability - ended), abs(each.log_probability - cut)) < LOG_TOLERANCE

    run(scenario())


async def probability(client: Client, source: str, ids: Sequence[int]) -> tuple[float, float]:
    """Log-probability of `ids` with the end behind them, and without."""
    async with client.session(MODEL, prime=source) as session:
        scores = (await session.step_outputs([START, *ids]))["logits"]
    total = sum(float(logs_of(row)[token]) for row, token in zip(scores, ids, strict=False))
    return total + float(logs_of(scores[-1])[TRANSLATION_END]), total


@pytest.mark.parametrize(
    ("options", "reason", "field"),
    [
        ({"source": "a", "prime": [4]}, "MISSING_FIELD", "source, prime"),
        ({"source": 5}, "INVALID_TEXT", "source"),
        ({"source": "\ud800"}, "INVALID_TEXT", "source"),
        ({"source": ""}, "OUT_OF_RANGE", "open.source_text"),
        ({"prime": ""}, "ZERO_STEPS", "prime"),
        ({"prime": [[4]]}, "INVALID_SHAPE", "prime"),
        ({"prime": [4], "initial_states": {"k": 1}}, "UNKNOWN_INPUT", "initial_states"),
        ({"source": "a", "outputs": "attentions"}, "OUT_OF_RANGE", "outputs"),
        ({"source": "a", "outputs": [5]}, "OUT_OF_RANGE", "outputs"),
        ({"source": "a", "num_beams": -1}, "OUT_OF_RANGE", "num_beams"),
        ({"source": "a", "num_beams": 2.5}, "OUT_OF_RANGE", "num_beams"),
        ({"source": "a", "length_penalty": "much"}, "OUT_OF_RANGE", "length_penalty"),
        ({"source": "a", "num_beams": 2, "seed": 1}, "OUT_OF_RANGE", "sampling"),
    ],
)
def test_refusals(translator: Path, options: dict[str, Any], reason: str, field: str) -> None:
    """What is wrong is said by its name, here or by the server, and no session stays."""

    async def scenario() -> None:
        async with connected(translator) as client:
            with pytest.raises(EddyError) as error:
                await client.complete(MODEL, max_tokens=3, **options)
            assert isinstance(error.value, InvalidInput)
            assert (error.value.reason, error.value.field) == (reason, field)

    run(scenario())


def test_sources_are_for_new_sessions_and_translators(translator: Path) -> None:
    """A session that is open has read its source; another model reads none."""

    async def scenario() -> None:
        async with connected(translator) as client:
            session = await client.open(MODEL, prime="abc")
            for options in ({"source": "a"}, {"prime": "a"}, {"initial_states": {}}):
                with pytest.raises(InvalidInput) as error:
                    client.generate(session=session, **options)  # type: ignore[arg-type]  # One type for three.
                assert error.value.reason == "WRONG_TASK"
            first = await client.complete(session=session, prompt=[START], max_tokens=3, temperature=0)
            assert first.tokens
            await session.close()
            for options in ({"source": "a"}, {"prime": [1]}):
                with pytest.raises(InvalidInput):
                    await client.complete("token-gru", [1], **options)  # type: ignore[arg-type]

    run(scenario())


def test_the_synchronous_face(translator: Path) -> None:
    """Blocking code translates likewise, symbol by symbol or at once."""
    options: Any = {"temperature": 0, "max_tokens": MAX_TOKENS}
    with ServerProcess(translator) as server, SyncClient(server.target) as client:
        whole = client.complete(MODEL, source="abc c", **options)
        with client.generate(MODEL, prime="abc c", outputs=["attention"], **options) as generation:
            pieces = list(generation)
        assert "".join(piece.text for piece in pieces) == str(whole)
        beams = client.complete(MODEL, source="abc c", num_beams=2, max_tokens=MAX_TOKENS)
        assert beams.hypotheses == beams.finished.hypotheses
        assert beams.hypotheses[0].text == beams.text
