"""How far back do cells remember, and what reaches them from there? Recall over distances, and gradients by lag.

Owns: the runs of this question, its tables, pictures and claims. Must not know torch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from eddy.training.chart import Band, Chart, Level, Line
from eddy.training.study.job import Job, Probe, Size
from eddy.training.study.result import Results
from eddy.training.study.section import Claim, Shown, bands_of, compare, embed, picture, table
from eddy.training.study.spread import Spread, all_hold, is_above, is_below, is_higher

CELLS = {"rnn_tanh": "RNN (tanh)", "gru": "GRU", "lstm": "LSTM"}
HIDDEN, EMBEDDING, SYMBOLS = 48, 16, 4
# Trained on all of them at once.
MIXED = (5, 10, 25, 50, 100, 200, 400)
# Trained on one alone: without shorter ones that lead the way.
ALONE = (5, 10, 20, 40)
BATCH = 16
UPDATES = 1500
EPOCHS = 25
# The lag at which gradients are compared in words.
FAR = 100
# Share of right answers from which a distance counts as learnt; guessing has 1 / SYMBOLS.
LEARNT = 0.9
# Smaller ones are not drawn: they would squash the others.
LEAST = 1e-30
GRADIENT_CAPTION = (
    "Norm of the gradient of the last step's loss in the embedded input so many steps before, relative to the norm one "
    "step before (0: below 1e-57):"
)


class RecallSection:
    """See the module's docstring, and `Section` for the methods."""

    name = "recall"
    title = "How far back do cells remember, and what reaches them from there?"

    def jobs(self, size: Size) -> tuple[Job, ...]:
        """Every cell on the mixture, then on single distances."""
        alone = ALONE if size.is_full else ALONE[:1]
        distances = {"mixed": MIXED} | {f"{distance}": (distance,) for distance in alone}
        return tuple(
            Job(
                self.name,
                f"{cell}-{name}",
                seed,
                Probe.GRADIENT if name == "mixed" else Probe.TRAIN,
                _tables(cell, chosen, size),
            )
            for name, chosen in distances.items()
            for cell in CELLS
            for seed in size.seeds
        )

    def show(self, results: Results, size: Size) -> Shown:
        """Accuracy by distance, gradients by lag."""
        mixed = {
            label: [Spread.over(results.values(f"{cell}-mixed", f"accuracy_{d}")) for d in MIXED]
            for cell, label in CELLS.items()
        }
        alone = {
            label: [Spread.over(results.values(f"{cell}-{d}", "accuracy")) for d in ALONE]
            for cell, label in CELLS.items()
        }
        pictures = picture("recall-accuracy.svg", _chart_accuracy(mixed, MIXED, "all distances trained together"))
        pictures |= picture("recall-alone.svg", _chart_accuracy(alone, ALONE, "each distance trained alone"))
        for name, words in (("fresh", "before training"), ("trained", "after training on all distances")):
            pictures |= picture(f"recall-gradient-{name}.svg", _chart_gradient(results, name, words))
        body = "\n\n".join(
            [
                _about(size),
                "Trained on all distances together, share of right answers (guessing: 0.25):",
                _table_accuracy(mixed, MIXED),
                *embed(pictures, "recall-accuracy.svg", "accuracy against distance"),
                "Trained on one distance alone:",
                _table_accuracy(alone, ALONE),
                *embed(pictures, "recall-alone.svg", "accuracy against distance, each trained alone"),
                GRADIENT_CAPTION,
                _table_gradient(results),
                *embed(pictures, "recall-gradient-fresh.svg", "gradient against lag, fresh weights"),
                *embed(pictures, "recall-gradient-trained.svg", "gradient against lag, trained weights"),
            ]
        )
        return Shown(body, pictures, tuple(_claims(results, mixed, alone)))


def _tables(cell: str, distances: Sequence[int], size: Size) -> Mapping[str, Mapping[str, Any]]:
    sequences = BATCH * UPDATES // EPOCHS // len(distances)
    return {
        "data": {
            "kind": "recall",
            "distances": list(distances),
            "symbols": SYMBOLS,
            "train_sequences": sequences,
            "test_sequences": 100 if len(distances) == 1 else 50,
        },
        "model": {"cell": cell, "hidden": HIDDEN, "embedding": EMBEDDING},
        "training": {"epochs": size.epochs(EPOCHS), "batch": BATCH, "learning_rate": 0.003},
    }


def _about(size: Size) -> str:
    return (
        f"Task: a sequence begins with one of {SYMBOLS} letters, then come d random digits, then a question mark, "
        f"where the letter must be named. One layer of {HIDDEN} units, AdamW, {size.epochs(EPOCHS)} epochs of about "
        f"{UPDATES // EPOCHS} updates with {BATCH} sequences each, all drawn anew."
    )


def _table_accuracy(found: Mapping[str, Sequence[Spread]], distances: Sequence[int]) -> str:
    return table(
        ("cell", *(f"d = {distance}" for distance in distances)),
        [(label, *(spread.show(".2f") for spread in spreads)) for label, spreads in found.items()],
    )


def _chart_accuracy(found: Mapping[str, Sequence[Spread]], distances: Sequence[int], words: str) -> Chart:
    lines, bands = bands_of(found, distances)
    return Chart(
        title=f"Recall: right answers by distance, {words}",
        x_label="symbols between the letter and the question; line: median, band: all seeds",
        y_label="share of right answers",
        lines=lines,
        bands=bands,
        levels=(Level("guessing", 1 / SYMBOLS),),
        is_x_log=True,
    )


def relative_gradient(results: Results, cell: str, name: str) -> tuple[tuple[float, ...], list[Spread]]:
    """Lags, and at each the gradient's norm relative to that at lag 1, over the seeds."""
    rows = results.series(f"{cell}-mixed", f"gradient_{name}")
    if not rows:
        return (), []
    (lags, *_) = results.series(f"{cell}-mixed", "lags")
    return lags, [Spread.over([row[i] / row[0] for row in rows]) for i in range(len(lags))]


def _at(results: Results, cell: str, name: str, lag: float) -> Spread:
    """The relative gradient at the lag nearest to this one."""
    lags, spreads = relative_gradient(results, cell, name)
    if not lags:
        return Spread.over(())
    return spreads[min(range(len(lags)), key=lambda i: abs(lags[i] - lag))]


def _table_gradient(results: Results) -> str:
    lags = (10, 25, 50, 100, 200, 400)
    rows = [
        (f"{label}, {name}", *(_at(results, cell, name, lag).show(".1e") for lag in lags))
        for name in ("fresh", "trained")
        for cell, label in CELLS.items()
    ]
    return table(("cell", *(f"lag {lag}" for lag in lags)), rows)


def _chart_gradient(results: Results, name: str, words: str) -> Chart:
    lines, bands = [], []
    for cell, label in CELLS.items():
        lags, spreads = relative_gradient(results, cell, name)
        seen = [i for i, spread in enumerate(spreads) if spread.median >= LEAST]
        lags, spreads = tuple(lags[i] for i in seen), [spreads[i] for i in seen]
        lines.append(Line(label, lags, tuple(s.median for s in spreads)))
        bands.append(
            Band(label, lags, tuple(max(s.low, LEAST) for s in spreads), tuple(s.high for s in spreads), of=label)
        )
    return Chart(
        title=f"Gradient that reaches back, {words}",
        x_label=f"steps before the loss; line: median, band: all seeds; down to {LEAST:g}",
        y_label="norm, relative to one step before",
        lines=tuple(lines),
        bands=tuple(bands),
        is_x_log=True,
        is_y_log=True,
    )


def _claims(
    results: Results, mixed: Mapping[str, Sequence[Spread]], alone: Mapping[str, Sequence[Spread]]
) -> list[Claim]:
    fresh = {label: _at(results, cell, "fresh", FAR) for cell, label in CELLS.items()}
    trained = {label: _at(results, cell, "trained", FAR) for cell, label in CELLS.items()}
    rnn, gru, lstm = CELLS.values()
    last = {label: spreads[-1] for label, spreads in mixed.items()}
    far = {label: spreads[-1] for label, spreads in alone.items()}
    return [
        Claim(
            f"Gradients vanish in a plain RNN: before training less than a thousandth is left {FAR} steps back.",
            f"{rnn} {fresh[rnn].show('.1e')}",
            is_below(fresh[rnn], 1e-3),
        ),
        Claim(
            "Gates keep gradients alive: before training GRU and LSTM pass on more than the RNN.",
            compare(fresh, ".1e"),
            all_hold([is_higher(fresh[gru], fresh[rnn]), is_higher(fresh[lstm], fresh[rnn])]),
        ),
        Claim(
            f"Gated cells are free of it: before training more than a thousandth is left {FAR} steps back.",
            compare({gru: fresh[gru], lstm: fresh[lstm]}, ".1e"),
            all_hold([is_above(fresh[gru], 1e-3), is_above(fresh[lstm], 1e-3)]),
        ),
        Claim(
            "After training, GRU and LSTM pass on more than the RNN.",
            compare(trained, ".1e"),
            all_hold([is_higher(trained[gru], trained[rnn]), is_higher(trained[lstm], trained[rnn])]),
        ),
        Claim(
            f"GRU and LSTM remember over {MIXED[-1]} steps what a plain RNN forgets (all distances together).",
            compare(last, ".2f"),
            all_hold([is_higher(last[gru], last[rnn]), is_higher(last[lstm], last[rnn])]),
        ),
        Claim(
            f"GRU and LSTM learn to remember {ALONE[-1]} steps from such sequences alone: {LEARNT:.0%} right and more.",
            compare(far, ".2f"),
            all_hold([is_above(far[gru], LEARNT), is_above(far[lstm], LEARNT)]),
        ),
    ]
