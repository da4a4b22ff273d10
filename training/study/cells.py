"""Which cell? RNN, GRU and LSTM at equal width and at equal parameters: speed, size, memory and quality.

Owns: the runs of this question, its tables, pictures and claims. Must not know torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eddy.training.chart import Chart, Level
from eddy.training.study.job import Job, Probe, Size
from eddy.training.study.result import Results
from eddy.training.study.section import Claim, Shown, bands_of, compare, embed, picture, table
from eddy.training.study.spread import Spread, all_hold, is_higher, is_lower

LABELS = {"rnn_tanh": "RNN (tanh)", "gru": "GRU", "lstm": "LSTM"}
NATS_TO_BITS = 1.4426950408889634


@dataclass(frozen=True, slots=True)
class Field:
    """One task that the cells are compared on. equal: by cell, the width that gives as many parameters as the LSTM's.

    figure: the test figure that counts, lower is better; baselines: what stands beside it, by the figures' names.
    """

    name: str
    label: str
    unit: str
    figure: str
    baselines: Mapping[str, str]
    data: Mapping[str, Any]
    model: Mapping[str, Any]
    training: Mapping[str, Any]
    width: int
    equal: Mapping[str, int]


TEXT = Field(
    name="text",
    label="text",
    unit="bits per character",
    figure="bits_per_character",
    baselines={"bits_per_character_4gram": "4-grams", "bits_per_character_bigram": "pairs"},
    data={"kind": "text", "source": "pydoc_data.topics", "licence": "PSF-2.0"},
    model={"embedding": 32, "dropout": 0.1},
    training={"epochs": 6, "streams": 32, "steps": 64, "learning_rate": 0.004},
    width=128,
    equal={"rnn_tanh": 249, "gru": 148},
)
FORECAST = Field(
    name="forecast",
    label="forecast",
    unit="pinball loss, mg/dL",
    figure="pinball_loss",
    baselines={"pinball_loss_last_value": "last value", "pinball_loss_linear": "linear"},
    data={
        "kind": "series",
        "source": "bokeh_sampledata:CGM.csv.gz",
        "licence": "BSD-3-Clause",
        "columns": ["glucose"],
        "target": "glucose",
        "time": "datetime",
        "unit": "mg/dL",
        "meaning": "sensor glucose of one person",
        "step_seconds": 300,
        "season_steps": 288,
        "horizons": [1, 3, 6, 9, 12],
    },
    model={},
    training={"epochs": 30, "streams": 32, "steps": 96, "learning_rate": 0.005, "weight_decay": 0.1},
    width=64,
    equal={"rnn_tanh": 126, "gru": 74},
)
FIELDS = (TEXT, FORECAST)


class CellsSection:
    """See the module's docstring, and `Section` for the methods."""

    name = "cells"
    title = "Which cell: RNN, GRU or LSTM?"

    def jobs(self, size: Size) -> tuple[Job, ...]:
        """Every shape on both tasks, trained and, apart from that, timed."""
        return tuple(
            Job(self.name, f"{field.name}-{cell}-{width}", seed, probe, _tables(field, cell, width, size))
            for probe in (Probe.TRAIN, Probe.SPEED)
            for field in FIELDS
            for cell, width in shapes(field)
            for seed in size.seeds_for(probe)
        )

    def show(self, results: Results, size: Size) -> Shown:
        """A table of everything for each task, and the losses by epoch."""
        body = [_about(size)]
        pictures: dict[str, str] = {}
        for field in FIELDS:
            name = f"cells-{field.name}.svg"
            pictures |= picture(name, _chart(field, results))
            body += [
                f"**{field.label.capitalize()}** ({_baselines(field, results)}):",
                _table(field, results),
                *embed(pictures, name, f"{field.label}: validation loss by epoch"),
            ]
        return Shown("\n\n".join(body), pictures, tuple(_claims(results)))


def shapes(field: Field) -> tuple[tuple[str, int], ...]:
    """Cells and widths: all at one width, then those that have as many parameters as the LSTM of it."""
    return (*((cell, field.width) for cell in LABELS), *field.equal.items())


def _tables(field: Field, cell: str, width: int, size: Size) -> Mapping[str, Mapping[str, Any]]:
    training = dict(field.training)
    training["epochs"] = size.epochs(training["epochs"])
    return {"data": field.data, "model": {"cell": cell, "hidden": width, **field.model}, "training": training}


def _about(size: Size) -> str:
    return (
        f"Text: the next character of Python's own reference (465,048 characters), {size.epochs(6)} epochs of about "
        f"182 updates. Forecast: one person's glucose 5 to 60 minutes ahead, {size.epochs(30)} epochs of about 14 "
        "updates. One layer each. Equal width means as many units as the LSTM; equal parameters, as many weights. "
        "Steps per second: ONNX Runtime on one core, one step a call, states handed back in by Python; fresh weights, "
        "the quickest of 600 bursts. State: what a session holds between two steps. Training: core time of one update "
        "in PyTorch."
    )


def _baselines(field: Field, results: Results) -> str:
    shown = [
        f"{label} {Spread.over(results.values(f'{field.name}-lstm-{field.width}', name)).median:.3f}"
        for name, label in field.baselines.items()
    ]
    return f"{field.unit}, lower is better; beside it: {', '.join(shown)}"


def _table(field: Field, results: Results) -> str:
    rows = []
    for cell, width in shapes(field):
        variant = f"{field.name}-{cell}-{width}"

        def of(name: str, form: str, variant: str = variant, factor: float = 1.0, *, alone: bool = False) -> str:
            values = results.values(variant, name, alone=alone)
            return Spread.over([value * factor for value in values]).show(form)

        rows.append(
            (
                f"{LABELS[cell]}, {width} units",
                of("parameters", ",.0f").partition(" ")[0],
                of("state_bytes", ",.0f").partition(" ")[0],
                of(field.figure, ".3f"),
                of("steps_per_second_1", ",.0f", alone=True),
                of("steps_per_second_64", ",.0f", alone=True),
                of("seconds_per_update", ".1f", factor=1e3),
            )
        )
    head = ("shape", "parameters", "state, bytes", field.unit, "steps/s, batch 1", "steps/s, batch 64", "training, ms")
    return table(head, rows)


def _chart(field: Field, results: Results) -> Chart:
    factor = NATS_TO_BITS if field is TEXT else 1.0
    found = {}
    for cell, width in shapes(field):
        rows = results.series(f"{field.name}-{cell}-{width}", "validation_loss")
        epochs = min(map(len, rows), default=0)
        found[f"{LABELS[cell]} {width}"] = [Spread.over([row[i] * factor for row in rows]) for i in range(epochs)]
    longest = max(map(len, found.values()))
    found = {name: spreads for name, spreads in found.items() if len(spreads) == longest and longest}
    lines, bands = bands_of(found, tuple(float(i + 1) for i in range(longest)))
    levels = [
        Level(f"{label}, test part", spread.median)
        for name, label in field.baselines.items()
        if field is TEXT and (spread := Spread.over(results.values(f"text-lstm-{TEXT.width}", name))).count
    ]
    return Chart(
        title=f"{field.label.capitalize()}: validation loss by epoch",
        x_label="epoch; line: median, band: all seeds",
        y_label="bits per character" if field is TEXT else "pinball loss, deviations",
        lines=lines,
        bands=bands,
        levels=tuple(levels),
        is_x_whole=True,
    )


def _claims(results: Results) -> list[Claim]:
    def spread(field: Field, cell: str, width: int, name: str, *, alone: bool = False) -> Spread:
        return Spread.over(results.values(f"{field.name}-{cell}-{width}", name, alone=alone))

    def at_width(field: Field, name: str, *, alone: bool = False) -> dict[str, Spread]:
        return {LABELS[c]: spread(field, c, field.width, name, alone=alone) for c in LABELS}

    def at_parameters(field: Field, name: str, *, alone: bool = False) -> dict[str, Spread]:
        widths = dict(field.equal) | {"lstm": field.width}
        return {LABELS[c]: spread(field, c, widths[c], name, alone=alone) for c in LABELS}

    rnn, gru, lstm = LABELS.values()
    text, forecast = at_width(TEXT, TEXT.figure), at_width(FORECAST, FORECAST.figure)
    equal = at_parameters(TEXT, TEXT.figure)
    speed_1, speed_64 = (at_width(TEXT, f"steps_per_second_{batch}", alone=True) for batch in (1, 64))
    update = at_width(TEXT, "seconds_per_update")
    milliseconds = {name: s.moved(1e3) for name, s in update.items()}
    gram = spread(TEXT, "lstm", TEXT.width, "bits_per_character_4gram")
    last = spread(FORECAST, "lstm", FORECAST.width, "pinball_loss_last_value")
    return [
        Claim(
            "Gated cells predict text better than a plain RNN of their width.",
            compare(text),
            all_hold([is_lower(text[gru], text[rnn]), is_lower(text[lstm], text[rnn])]),
        ),
        Claim(
            "Gated cells predict text better than a plain RNN of as many parameters.",
            compare(equal),
            all_hold([is_lower(equal[gru], equal[rnn]), is_lower(equal[lstm], equal[rnn])]),
        ),
        Claim(
            "At equal width an LSTM predicts text better than a GRU.", compare(text), is_lower(text[lstm], text[gru])
        ),
        Claim(
            "At equal parameters a GRU predicts text better than an LSTM.",
            compare(equal),
            is_lower(equal[gru], equal[lstm]),
        ),
        Claim(
            "Gated cells forecast better than a plain RNN of their width.",
            compare(forecast),
            all_hold([is_lower(forecast[gru], forecast[rnn]), is_lower(forecast[lstm], forecast[rnn])]),
        ),
        Claim(
            "All cells beat counting 4-grams, and the last value.",
            f"4-grams {gram.show('.3f')}; {compare(text)}; last value {last.show('.3f')}; {compare(forecast)}",
            all_hold([is_lower(s, gram) for s in text.values()] + [is_lower(s, last) for s in forecast.values()]),
        ),
        Claim(
            "A GRU of the same width answers more steps per second than an LSTM, at batch 64.",
            compare(speed_64, ",.0f"),
            is_higher(speed_64[gru], speed_64[lstm]),
        ),
        Claim(
            "A plain RNN of the same width, with a quarter of the weights, is three times as fast at batch 64.",
            compare(speed_64, ",.0f"),
            is_higher(speed_64[rnn], speed_64[lstm], factor=3.0),
        ),
        Claim(
            "A plain RNN of the same width is three times as fast as an LSTM at batch 1.",
            compare(speed_1, ",.0f"),
            is_higher(speed_1[rnn], speed_1[lstm], factor=3.0),
        ),
        Claim(
            "A GRU trains faster than an LSTM of the same width (ms of an update in PyTorch).",
            compare(milliseconds, ".1f"),
            is_lower(update[gru], update[lstm]),
        ),
    ]
