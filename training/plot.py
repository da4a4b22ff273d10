"""Plot: what a model does on data that it has not seen, as a chart.

Owns: which chart belongs to which kind of model, and the runs of the model behind it. Must not know how charts are
drawn. Forecasters: quantiles beside what came. Character models: the surprise by place in a session.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from eddy.training.chart import Band, Chart, Level, Line, tuples
from eddy.training.contract import read_contract, sample_path
from eddy.training.data import Floats
from eddy.training.errors import ContractError, DataError, OptionError
from eddy.training.generation import OnnxStream
from eddy.training.runtime import Runtime
from eddy.training.table import read_columns, read_header
from eddy.training.tasks.text import TextTask, read_text, token_nats
from eddy.v1 import contract_pb2 as pb

# Steps of a forecaster's chart: enough to see a day of five-minute steps, few enough to tell lines apart.
FORECAST_STEPS = 288
# Characters of a session that the text chart follows, and the most sessions that it is the mean of. They begin one
# character apart, so that every place is judged by nearly the same characters.
SESSION_CHARACTERS = 100
MAX_SESSIONS = 2000
# Characters whose surprise is shown in colour.
SHOWN_CHARACTERS = 800


@dataclass(frozen=True, slots=True)
class Surprise:
    """One character and the bits that it cost the model, given all before it."""

    character: str
    bits: float


@dataclass(frozen=True, slots=True)
class Window:
    """Which steps a forecast chart shows.

    target: the column that is forecast, None where there is one only. horizon: steps ahead, None the longest. start:
    within the test part.
    """

    target: str | None = None
    horizon: int | None = None
    start: int = 0
    steps: int = FORECAST_STEPS


def find_data(path: Path, given: Path | None) -> Path:
    """The unseen data of a model file: what is given, or the sample beside it. Raises DataError."""
    found = given or sample_path(path, read_contract(path))
    if not found.is_file():
        raise DataError(f"{found}: no such file, expected data that the model has not seen; give it by --data FILE")
    return found


def chart_forecast(path: Path, data: Path, window: Window, *, whole: bool) -> Chart:
    """Quantiles of one horizon beside the truth, and what the last value would have said.

    data: CSV with the model's columns in its order. whole: all of it is unseen; otherwise only its second half is, the
    first one is read to warm up the state. Raises ContractError, DataError, OptionError.
    """
    # 1. What the model forecasts, and which horizon is shown.
    contract = read_contract(path)
    if contract.task != pb.TASK_FORECAST:
        raise ContractError(f"{path}: task: got {pb.Task.Name(contract.task)}, expected a forecaster or a text model")
    horizons, levels = ([float(label) for label in axis.labels] for axis in contract.outputs[0].axes)
    horizon = int(horizons[-1]) if window.horizon is None else window.horizon
    if horizon not in horizons:
        raise OptionError(f"horizon: got {horizon}, expected one of {', '.join(f'{h:.0f}' for h in horizons)}")
    # 2. Its forecasts over all of the data.
    columns = read_header(str(data))
    width = contract.inputs[0].shape[0]
    if len(columns) != width:
        raise DataError(f"{data}: got the columns {', '.join(columns)}, expected {width} as the model reads")
    values = read_columns(str(data), columns)
    found = Runtime(path, contract).run({contract.inputs[0].name: values[None]}, len(values))
    quantiles = found[contract.outputs[0].name][0][:, horizons.index(horizon)].astype(np.float32)
    # 3. The window, in steps of the test part, by the time that a forecast is for.
    first = (0 if whole else len(values) // 2) + window.start
    last = min(len(values), first + window.steps)
    if window.start < 0 or last - first < 2:
        raise OptionError(
            f"start: got {window.start} and {window.steps} steps, expected at least 2 of "
            f"{len(values) if whole else len(values) - len(values) // 2} steps"
        )
    truth = values[:, _target(columns, window.target)]
    shown = range(max(first, horizon), last)
    return _draw_forecast(contract, truth, quantiles, levels, horizon, shown, shown.start - first + window.start)


def _target(columns: list[str], wanted: str | None) -> int:
    """The index of the column that is forecast; with several a person must say which."""
    if wanted is None and len(columns) > 1:
        raise OptionError(f"target: got none, expected one of {', '.join(columns)}")
    if wanted is not None and wanted not in columns:
        raise OptionError(f"target: got {wanted!r}, expected one of {', '.join(columns)}")
    return 0 if wanted is None else columns.index(wanted)


def _draw_forecast(
    contract: pb.ModelContract,
    truth: Floats,
    quantiles: Floats,
    levels: list[float],
    horizon: int,
    times: range,
    start: int,
) -> Chart:
    """The chart of the rows `times`; the first of them is step `start` of the unseen data."""
    rows = np.array(times)
    x = tuples(rows - rows[0] + start)
    ahead = quantiles[rows - horizon]
    unit = contract.outputs[0].unit
    share = f"{levels[-1] - levels[0]:.0%}"
    middle = len(levels) // 2
    name = "median" if levels[middle] == 0.5 else f"quantile {levels[middle]:g}"
    inside = float(((ahead[:, 0] <= truth[rows]) & (truth[rows] <= ahead[:, -1])).mean())
    error = float(np.abs(ahead[:, middle] - truth[rows]).mean())
    naive = float(np.abs(truth[rows - horizon] - truth[rows]).mean())
    return Chart(
        title=f"{contract.name}: {horizon} steps ahead, mean absolute error {error:.3g}, last value {naive:.3g} {unit}",
        x_label="step of the unseen data",
        y_label=f"{contract.inputs[0].meaning.rpartition(': ')[2].removesuffix(', now')}, {unit}",
        lines=(
            Line("what came", x, tuples(truth[rows])),
            Line(f"{name}, forecast {horizon} steps before", x, tuples(ahead[:, middle])),
            Line("last value", x, tuples(truth[rows - horizon]), is_dashed=True),
        ),
        bands=(Band(f"{share} interval (holds {inside:.0%})", x, tuples(ahead[:, 0]), tuples(ahead[:, -1])),)
        if len(levels) > 1
        else (),
        is_x_whole=True,
    )


def chart_text(path: Path, data: Path) -> Chart:
    """Mean bits of a character by its place in a session: what a growing state is worth, and when it stops to gain."""
    stream = OnnxStream(path)
    tokens = stream.vocabulary.encode(read_text(str(data)))
    length = SESSION_CHARACTERS + 1
    if len(tokens) < 2 * length:
        raise DataError(f"{data}: got {len(tokens)} characters, expected at least {2 * length}")
    rows = np.lib.stride_tricks.sliding_window_view(tokens, length)[:MAX_SESSIONS]
    runtime = Runtime(path, stream.contract)
    found = runtime.run({stream.contract.inputs[0].name: rows[:, :-1]}, SESSION_CHARACTERS)
    bits = token_nats(found[stream.contract.outputs[0].name], rows[:, 1:]) / np.log(2)
    by_place: npt.NDArray[np.float64] = bits.reshape(len(rows), -1).mean(axis=0)
    values = {figure.name: figure.value for figure in stream.contract.training.figures}
    levels = [
        Level(f"{label}, test part", values[f"bits_per_character_{name}"])
        for name, label in TextTask.baselines.items()
        if f"bits_per_character_{name}" in values
    ]
    if "bits_per_character" in values:
        levels.append(Level("this model, test part", values["bits_per_character"]))
    return Chart(
        title=f"{stream.contract.name}: surprise by place in a session",
        x_label=f"characters read before; mean of {len(rows)} sessions",
        y_label="bits per character",
        lines=(Line("this model", tuples(range(1, length)), tuples(by_place)),),
        levels=tuple(levels),
        is_x_whole=True,
    )


def read_surprise(path: Path, data: Path) -> list[Surprise]:
    """The first characters of a text, each with the bits that it cost; the very first has no price and is left out."""
    stream = OnnxStream(path)
    text = read_text(str(data))[: SHOWN_CHARACTERS + 1]
    tokens = stream.vocabulary.encode(text)
    logits = stream.read(tokens[:-1])
    bits = token_nats(logits, tokens[1:]) / np.log(2)
    return [Surprise(character, float(cost)) for character, cost in zip(text[1:], bits, strict=True)]
