"""What is the future worth? Accents restored with no look-ahead, some, and all: errors against delay.

Owns: the runs of this question, its tables, pictures and claims. Must not know torch.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from eddy.training.chart import Chart, Level
from eddy.training.study.job import Job, Probe, Size
from eddy.training.study.result import Results
from eddy.training.study.section import FRENCH, Claim, Shown, bands_of, compare, embed, picture, table
from eddy.training.study.spread import Spread, all_hold, is_below, is_lower, ratio

LOOK_AHEADS = (0, 2, 4, 8, 16)
# Streams answer this many steps at a time; the last of them waits for the look-ahead alone, the first for one more.
BLOCK = 2
EPOCHS = 15
# Widths that give both about as many parameters.
WIDE, NARROW = 104, 64
FIGURE = "accent_errors"
ONE, BOTH = "unidirectional", "bidirectional"


class LookAheadSection:
    """See the module's docstring, and `Section` for the methods."""

    name = "look-ahead"
    title = "What is the future worth?"

    def jobs(self, size: Size) -> tuple[Job, ...]:
        """One model that reads forwards, one that reads both ways; look-aheads are chosen after training."""
        models = {
            ONE: {"cell": "lstm", "hidden": WIDE, "dropout": 0.2},
            BOTH: {"family": "bidirectional", "cell": "lstm", "hidden": NARROW, "dropout": 0.2, "block_steps": BLOCK},
        }
        return tuple(
            Job(self.name, variant, seed, Probe.TRAIN, _tables(model, size))
            for variant, model in models.items()
            for seed in size.seeds
        )

    def show(self, results: Results, size: Size) -> Shown:
        """Errors by delay, beside the most frequent form."""
        pictures = picture("look-ahead.svg", _chart(results))
        body = [_about(size), _table(results), *embed(pictures, "look-ahead.svg", "errors against delay")]
        return Shown("\n\n".join(body), pictures, tuple(_claims(results)))


def _tables(model: Mapping[str, Any], size: Size) -> Mapping[str, Mapping[str, Any]]:
    return {
        "data": {"kind": "accents", **FRENCH, "max_characters": 120},
        "model": model,
        "training": {"epochs": size.epochs(EPOCHS), "batch": 32, "learning_rate": 0.004},
    }


def _about(size: Size) -> str:
    return (
        "French sentences of message catalogues were stripped of their accents, which the model gives back, character "
        f"by character. One LSTM layer: {WIDE} units forwards, or {NARROW} in each direction, which is about as many "
        f"parameters; {size.epochs(EPOCHS)} epochs. Look-aheads are chosen after training: the same bidirectional "
        "weights stream on a fixed grid, where every block of "
        f"{BLOCK} characters is answered once so many characters behind it are known. The delay is the mean number of "
        "characters that must have come after the one that is answered. Errors are shares of the characters that may "
        "carry an accent."
    )


def _errors(results: Results, look_ahead: int) -> Spread:
    return Spread.over(results.values(BOTH, f"{FIGURE}_look_ahead_{look_ahead}"))


def delay(look_ahead: int) -> float:
    """Mean characters that must follow the one that is answered."""
    return look_ahead + (BLOCK - 1) / 2


def _table(results: Results) -> str:
    def shown(values: tuple[float, ...]) -> str:
        return Spread.over([100 * value for value in values]).show(".2f")

    names = (FIGURE, "word_errors")
    rows = [("unidirectional", "0", *(shown(results.values(ONE, name)) for name in names))]
    rows += [
        (f"look-ahead {r}", f"{delay(r):.1f}", *(shown(results.values(BOTH, f"{n}_look_ahead_{r}")) for n in names))
        for r in LOOK_AHEADS
    ]
    rows.append(("whole sentence", "all", *(shown(results.values(BOTH, name)) for name in names)))
    for end, label in (("most_frequent", "most frequent form of each word"), ("copy", "no accents at all")):
        rows.append(
            (
                label,
                "a word" if end == "most_frequent" else "0",
                *(shown(results.values(BOTH, f"{n}_{end}")) for n in names),
            )
        )
    return table(("model", "delay, characters", "errors, %", "words with an error, %"), rows)


def _chart(results: Results) -> Chart:
    found = {"bidirectional, streamed": [_errors(results, r) for r in LOOK_AHEADS]}
    lines, bands = bands_of(found, tuple(delay(r) for r in LOOK_AHEADS))
    levels = {
        "unidirectional, no delay": Spread.over(results.values(ONE, FIGURE)),
        "whole sentence": Spread.over(results.values(BOTH, FIGURE)),
        "most frequent form": Spread.over(results.values(BOTH, f"{FIGURE}_most_frequent")),
    }
    return Chart(
        title="Accents: errors against delay",
        x_label="delay in characters; line: median, band: all seeds",
        y_label="share of wrong characters",
        lines=lines,
        bands=bands,
        levels=tuple(Level(name, spread.median) for name, spread in levels.items() if spread.count),
    )


def _claims(results: Results) -> list[Claim]:
    one, whole = (Spread.over(results.values(variant, FIGURE)) for variant in (ONE, BOTH))
    gram = Spread.over(results.values(BOTH, f"{FIGURE}_most_frequent"))
    by = {steps: results.values(BOTH, f"{FIGURE}_look_ahead_{steps}") for steps in LOOK_AHEADS}
    steps = {f"{after} to {before}": ratio(by[after], by[before]) for before, after in pairwise(LOOK_AHEADS)}
    last = ratio(by[LOOK_AHEADS[-1]], results.values(BOTH, FIGURE))
    blind = Spread.over(by[0])
    return [
        Claim(
            "A bidirectional model makes fewer errors than a unidirectional one of as many parameters.",
            compare({"unidirectional": one, "bidirectional": whole}, ".4f"),
            is_lower(whole, one),
        ),
        Claim(
            "Every doubling of look-ahead pays, up to 16 (errors relative to the one before, by seed).",
            compare(steps),
            all_hold([is_below(spread, 1.0) for spread in steps.values()]),
        ),
        Claim(
            "With 16 characters of look-ahead a stream is within 5 % of the whole sentence's errors (by seed).",
            last.show(),
            is_below(last, 1.05),
        ),
        Claim(
            "Without look-ahead, bidirectional weights are worse than unidirectional ones: they learnt to lean on it.",
            compare({"look-ahead 0": blind, "unidirectional": one}, ".4f"),
            is_lower(one, blind),
        ),
        Claim(
            "The model beats writing each word in its most frequent form.",
            compare({"most frequent form": gram, "whole sentence": whole}, ".4f"),
            is_lower(whole, gram),
        ),
    ]
