"""Decoding: greedy and beam search over a model file, and what beams keep."""

from pathlib import Path

import numpy as np
import pytest

from eddy.training.decoding import Beams, Translator
from eddy.training.errors import ContractError, DataError
from eddy.training.export import write_benchmark_model, write_example
from eddy.training.pieces import END_ID, SPECIAL, START_ID, Pieces
from eddy.training.runtime import Runtime

PIECES = Pieces((*SPECIAL, *"abcdefghijklmn"))
TEXTS = ["abc", "n", "dcbaabcd", "gh", "mlk"]


@pytest.fixture(scope="module", params=["translation-gru", "translation-lstm", "translation-no-attention"])
def translator(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Translator:
    """An untrained model of 17 symbols and at most 9 source symbols."""
    folder = tmp_path_factory.mktemp("translator")
    return Translator(
        folder / "model.onnx", write_example(request.param, folder, seed=7, is_verified=False), PIECES, PIECES
    )


def score(translator: Translator, text: str, tokens: tuple[int, ...]) -> float:
    """Mean log-probability of a target's symbols and its end, by feeding all of them at once."""
    runtime: Runtime = translator._runtime  # noqa: SLF001  the same model, driven another way
    source = PIECES.encode(text)
    given = {
        "source": np.stack([source, source]),
        "source_length": np.array([len(source)] * 2),
        "tokens": np.array([[START_ID, *tokens]] * 2),
    }
    logits = runtime.run(given, 100)["logits"][0].astype(np.float64)
    chances = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return float(np.mean([chances[i, token] for i, token in enumerate((*tokens, END_ID))]))


def test_rows_do_not_see_each_other(translator: Translator) -> None:
    """Texts together or one by one, in any order: the same symbols, greedily and by beams."""
    for beams in (1, 3):
        together = translator.translate(TEXTS, beams=beams, max_steps=12)
        for text, found in zip(TEXTS, together, strict=True):
            (alone,) = translator.translate([text], beams=beams, max_steps=12)
            assert alone.tokens == found.tokens
            assert alone.score == found.score
        assert [t.tokens for t in translator.translate(TEXTS[::-1], beams=beams, max_steps=12)] == [
            found.tokens for found in reversed(together)
        ]


def test_greedy_takes_the_likeliest_symbol(translator: Translator) -> None:
    """Each symbol is the likeliest of those that are text, or the end, by feeding them again."""
    (found,) = translator.translate(["abc"], max_steps=6)
    runtime: Runtime = translator._runtime  # noqa: SLF001  the same model, driven another way
    given = {
        "source": np.stack([PIECES.encode("abc")] * 2),
        "source_length": np.array([3, 3]),
        "tokens": np.array([[START_ID, *found.tokens]] * 2),
    }
    best = (2 + runtime.run(given, 100)["logits"][0][:, 2:].argmax(-1)).tolist()
    assert tuple(best[: len(found.tokens)]) == found.tokens
    assert len(found.tokens) == 6 or best[-1] == END_ID


def test_attention_is_over_the_source(translator: Translator) -> None:
    """One row a symbol, as wide as the source; a model without attention has none."""
    found = translator.translate(TEXTS, max_steps=6)
    for text, translation in zip(TEXTS, found, strict=True):
        if translation.attention is None:
            assert len(translator._runtime.start(1)) == 1  # noqa: SLF001  only the decoder's state
        else:
            assert translation.attention.shape == (len(translation.tokens), len(text))
            np.testing.assert_allclose(translation.attention.sum(-1), 1.0, atol=1e-5)


def test_wide_beams_find_the_best_of_all(translator: Translator) -> None:
    """With room for all that begin with a symbol and go on, the search of two steps is the exhaustive one."""
    every = [(), *((token,) for token in range(3, 17))]
    (found,) = translator.translate(["abc"], beams=140, max_steps=2)
    scores = {tokens: score(translator, "abc", tokens) for tokens in every}
    best = max(scores, key=lambda tokens: scores[tokens])
    assert found.tokens == best
    assert found.score == pytest.approx(scores[best], abs=1e-5)


def test_beams_hold_what_is_likeliest_together() -> None:
    """A start that looks worse wins where what follows is better; who ends is compared by the mean."""
    beams = Beams(2)
    far = -9.0
    assert beams.last == [START_ID, START_ID]
    # Symbols: unknown, start, end, a, b.
    first = np.array([[far, far, far, -0.5, -0.9], [0.0, 0.0, 0.0, 0.0, 0.0]])
    assert beams.extend(first) == [0, 0]
    assert beams.last == [3, 4]
    second = np.array([[far, far, far, -1.5, -1.6], [far, far, -0.1, far, far]])
    assert beams.extend(second) == [0, 0]
    assert not beams.is_finished
    assert beams.best() == ((4,), pytest.approx(-0.5))
    third = np.array([[far, far, -0.1, far, far], [far, far, far, far, -0.1]])
    beams.extend(third)
    assert beams.is_finished
    assert beams.best() == ((4,), pytest.approx(-0.5))
    assert beams.extend(third) == [0, 1]


@pytest.mark.parametrize(("penalty", "expected"), [(1.0, (3,)), (2.0, (3, 3))])
def test_a_length_penalty_favours_longer_ones(penalty: float, expected: tuple[int, ...]) -> None:
    """Two targets: one symbol with -1.0 in all, two with -2.1."""
    beams = Beams(2, penalty)
    far = -30.0
    # Symbols: unknown, start, end, and some others.
    for first in ((-40.0, -0.5), (-0.5, -0.6), (-1.0, far)):
        beams.extend(np.array([[far, far, *first, far, far], [far] * 6]))
    assert beams.best()[0] == expected


def test_a_search_that_is_cut_gives_what_it_has() -> None:
    """Without an end so far, the best open target is the answer."""
    beams = Beams(1)
    beams.extend(np.array([[-9.0, -9.0, -9.0, -0.5]]))
    assert beams.best() == ((3,), pytest.approx(-0.5))


def test_texts_that_cannot_be_read_are_refused(translator: Translator, tmp_path: Path) -> None:
    """Empty, longer than the memory; a model that translates nothing."""
    with pytest.raises(DataError, match="got 0 symbols, expected 1 to 9"):
        translator.translate([""])
    with pytest.raises(DataError, match="got 10 symbols, expected 1 to 9"):
        translator.translate(["abc", "abcabcabca"])
    contract = write_benchmark_model(tmp_path / "model.onnx", features=2, hidden=3, outputs=1)
    with pytest.raises(ContractError, match=r"graphs.prime: got none"):
        Translator(tmp_path / "model.onnx", contract, PIECES, PIECES)
