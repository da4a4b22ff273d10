"""How deep? One, two and four layers on a short text: training and validation loss, and time per step.

Owns: the runs of this question, its tables, pictures and claims. Must not know torch.
"""

from collections.abc import Mapping
from typing import Any

from eddy.training.chart import Chart, Level
from eddy.training.study.job import Job, Probe, Size
from eddy.training.study.result import Results
from eddy.training.study.section import Claim, Shown, bands_of, compare, embed, picture, table
from eddy.training.study.spread import Spread, all_hold, is_higher, is_lower

BITS = 1.4426950408889634
HIDDEN = 96
CHARACTERS = 40_000
EPOCHS = 60
VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "1": ("1 layer", {"layers": 1}),
    "2": ("2 layers", {"layers": 2}),
    "4": ("4 layers", {"layers": 4}),
    "4-residual": ("4 layers, residual", {"layers": 4, "residual": True}),
    "2-dropout": ("2 layers, dropout 0.4", {"layers": 2, "dropout": 0.4}),
}


class DepthSection:
    """See the module's docstring, and `Section` for the methods."""

    name = "depth"
    title = "How deep: 1, 2 or 4 layers?"

    def jobs(self, size: Size) -> tuple[Job, ...]:
        """Every depth, trained and, apart from that, timed."""
        return tuple(
            Job(self.name, variant, seed, probe, _tables(shape, size))
            for probe in (Probe.TRAIN, Probe.SPEED)
            for variant, (_, shape) in VARIANTS.items()
            for seed in size.seeds_for(probe)
        )

    def show(self, results: Results, size: Size) -> Shown:
        """Losses by epoch, of training and of validation, and a table."""
        pictures: dict[str, str] = {}
        for kind in ("train", "validation"):
            pictures |= picture(f"depth-{kind}.svg", _chart(results, kind))
        body = [
            _about(size),
            _table(results),
            *embed(pictures, "depth-train.svg", "training loss by epoch"),
            *embed(pictures, "depth-validation.svg", "validation loss by epoch"),
        ]
        return Shown("\n\n".join(body), pictures, tuple(_claims(results)))


def _tables(shape: Mapping[str, Any], size: Size) -> Mapping[str, Mapping[str, Any]]:
    data = {"kind": "text", "source": "pydoc_data.topics", "licence": "PSF-2.0", "max_characters": CHARACTERS}
    return {
        "data": data,
        "model": {"cell": "lstm", "hidden": HIDDEN, "embedding": 32, **shape},
        "training": {"epochs": size.epochs(EPOCHS), "streams": 16, "steps": 40, "learning_rate": 0.004},
    }


def _about(size: Size) -> str:
    return (
        f"LSTM layers of {HIDDEN} units read the first {CHARACTERS:,} characters of Python's own reference, of which "
        f"four fifths are trained on: little enough to be learnt by heart in {size.epochs(EPOCHS)} epochs. Bits per "
        "character. Training loss is the mean over an epoch while its weights still change (and with dropout where "
        "there is some). The gap is validation minus training loss after the last epoch; best is the lowest validation "
        "loss of all epochs, which early stopping would keep."
    )


def _bits(results: Results, variant: str, name: str) -> Spread:
    return Spread.over([value * BITS for value in results.values(variant, name)])


def _gap(results: Results, variant: str) -> Spread:
    pairs = zip(
        results.values(variant, "final_validation_loss"), results.values(variant, "final_train_loss"), strict=True
    )
    return Spread.over([(validation - train) * BITS for validation, train in pairs])


def _table(results: Results) -> str:
    rows = [
        (
            label,
            Spread.over(results.values(variant, "parameters")).show(",.0f").partition(" ")[0],
            _bits(results, variant, "final_train_loss").show(".2f"),
            _bits(results, variant, "final_validation_loss").show(".2f"),
            _gap(results, variant).show(".2f"),
            _bits(results, variant, "validation_loss").show(".3f"),
            Spread.over(results.values(variant, "best_epoch")).show(".0f"),
            Spread.over(results.values(variant, "microseconds_1", alone=True)).show(".0f"),
            Spread.over(results.values(variant, "microseconds_64", alone=True)).show(".0f"),
        )
        for variant, (label, _) in VARIANTS.items()
    ]
    gram = Spread.over(results.values("1", "bits_per_character_4gram")).show(".3f").partition(" ")[0]
    tests = "; ".join(
        f"{label} {Spread.over(results.values(variant, 'bits_per_character')).show('.3f')}"
        for variant, (label, _) in VARIANTS.items()
    )
    head = ("shape", "parameters", "training", "validation", "gap", "best", "in epoch", "µs a step", "µs, batch 64")
    return f"{table(head, rows)}\n\nOn the test part, by the best weights: {tests}; 4-grams {gram}."


def _chart(results: Results, kind: str) -> Chart:
    found = {}
    for variant, (label, _) in VARIANTS.items():
        rows = results.series(variant, f"{kind}_loss")
        if rows:
            found[label] = [Spread.over([row[i] * BITS for row in rows]) for i in range(min(map(len, rows)))]
    longest = max(map(len, found.values()), default=0)
    lines, bands = bands_of(found, tuple(float(i + 1) for i in range(longest)))
    gram = Spread.over(results.values("1", "bits_per_character_4gram"))
    return Chart(
        title=f"Depth: {kind} loss by epoch",
        x_label="epoch; line: median, band: all seeds",
        y_label="bits per character",
        lines=lines,
        bands=bands,
        levels=(Level("4-grams, test part", gram.median),) if gram.count and kind == "validation" else (),
        is_x_whole=True,
    )


def _claims(results: Results) -> list[Claim]:
    labels = {variant: label for variant, (label, _) in VARIANTS.items()}
    best = {labels[v]: _bits(results, v, "validation_loss") for v in VARIANTS}
    train = {labels[v]: _bits(results, v, "final_train_loss") for v in VARIANTS}
    gap = {labels[v]: _gap(results, v) for v in VARIANTS}
    epoch = {labels[v]: Spread.over(results.values(v, "best_epoch")) for v in VARIANTS}
    test = {labels[v]: Spread.over(results.values(v, "bits_per_character")) for v in VARIANTS}
    time = {labels[v]: Spread.over(results.values(v, "microseconds_64", alone=True)) for v in VARIANTS}
    one, two, four, residual, dropout = labels.values()
    return [
        Claim(
            "Deeper stacks fit the training text better.",
            compare({n: train[n] for n in (one, two, four)}, ".2f"),
            all_hold([is_lower(train[two], train[one]), is_lower(train[four], train[two])]),
        ),
        Claim(
            "Deeper stacks over-fit more: the gap grows with depth.",
            compare({n: gap[n] for n in (one, two, four)}, ".2f"),
            all_hold([is_higher(gap[two], gap[one]), is_higher(gap[four], gap[two])]),
        ),
        Claim(
            "At its best epoch two layers beat one.",
            compare({n: best[n] for n in (one, two)}),
            is_lower(best[two], best[one]),
        ),
        Claim(
            "Residual connections let four layers train better.",
            compare({n: train[n] for n in (four, residual)}, ".2f"),
            is_lower(train[residual], train[four]),
        ),
        Claim(
            "With them, four layers over-fit more than one: a wider gap, and the best epoch comes earlier.",
            f"gap: {compare({n: gap[n] for n in (one, residual)}, '.2f')}; best epoch: "
            f"{compare({n: epoch[n] for n in (one, residual)}, '.0f')}",
            all_hold([is_higher(gap[residual], gap[one]), is_lower(epoch[residual], epoch[one])]),
        ),
        Claim(
            "Dropout narrows the gap and lowers the best validation loss.",
            f"gap: {compare({n: gap[n] for n in (two, dropout)}, '.2f')}; best: "
            f"{compare({n: best[n] for n in (two, dropout)})}",
            all_hold([is_lower(gap[dropout], gap[two]), is_lower(best[dropout], best[two])]),
        ),
        Claim(
            "Dropout helps on the test part (bits per character).",
            compare({n: test[n] for n in (two, dropout)}),
            is_lower(test[dropout], test[two]),
        ),
        Claim(
            "Time per step grows with the layers: four take more than three times one's, at batch 64 (µs).",
            compare({n: time[n] for n in (one, two, four)}, ".0f"),
            is_higher(time[four], time[one], factor=3.0),
        ),
    ]
