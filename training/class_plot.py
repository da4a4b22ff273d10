"""Class plot: what a model of classes holds likely while it reads a sequence, as a chart.

Owns: which sequence of a file is shown, and which classes. Must not know how charts are drawn.
"""

import csv
from pathlib import Path

import numpy as np

from eddy.training.chart import Chart, Line, tuples
from eddy.training.contract import read_contract
from eddy.training.data import Array, Floats
from eddy.training.errors import ContractError, DataError, OptionError
from eddy.training.runtime import Runtime
from eddy.v1 import contract_pb2 as pb

# Classes that are drawn: those that were ever likeliest, and no more than can be told apart.
MAX_CLASSES = 5
# Columns that number the sequences of a file.
NUMBERS = ("sequence", "clip")


def chart_classes(path: Path, data: Path, output: str | None = None, start: int = 0) -> Chart:
    """Shares of classes step by step.

    data: CSV as the sample beside a model: the input's values row by row, in front of them perhaps the sequence's
    number, behind them the answers. output: the answer that is shown, None for the first. start: the sequence, from 0.
    Raises ContractError, DataError, OptionError.
    """
    contract = read_contract(path)
    if contract.task != pb.TASK_CLASSIFICATION or contract.inputs[0].dtype != pb.DATA_TYPE_FLOAT32:
        raise ContractError(f"{path}: task: got {pb.Task.Name(contract.task)}, expected classes of values")
    ports = {port.name: port for port in contract.outputs if port.axes}
    name = next(iter(ports)) if output is None else output
    if name not in ports:
        raise OptionError(f"target: got {name!r}, expected one of {', '.join(ports)}")
    values, truth = _read_sequence(data, contract, name, start)
    found = Runtime(path, contract).run({contract.inputs[0].name: values[None]}, len(values))[name][0]
    shares = _shares(found)
    labels = ports[name].axes[0].labels
    shown = _shown(shares)
    x = tuples(range(1, len(values) + 1))
    return Chart(
        title=f"{contract.name}: {name}, in truth {truth}",
        x_label="steps read",
        y_label="share",
        lines=tuple(Line(labels[i], x, tuples(shares[:, i])) for i in shown),
        is_x_whole=True,
    )


def _shown(shares: Floats) -> list[int]:
    """The classes that were likeliest most often."""
    counts = np.bincount(shares.argmax(axis=1), minlength=shares.shape[1])
    order = sorted(range(len(counts)), key=lambda i: -counts[i])
    return [i for i in order if counts[i]][:MAX_CLASSES]


def _shares(logits: Array) -> Floats:
    """Softmax over the last axis."""
    wide = logits.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=-1, keepdims=True))
    found: Floats = (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)
    return found


def _read_sequence(data: Path, contract: pb.ModelContract, output: str, start: int) -> tuple[Floats, str]:
    """One sequence of a file, [T, ...] as the model reads it, and its last answer. Raises DataError, OptionError."""
    try:
        with data.open(newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, ValueError, csv.Error) as error:
        raise DataError(f"{data}: not readable as CSV: {error}") from error
    first = 1 if header[:1] and header[0] in NUMBERS else 0
    numbers = [row[0] for row in rows] if first else ["0"] * len(rows)
    names = list(dict.fromkeys(numbers))
    if not 0 <= start < len(names):
        raise OptionError(f"start: got {start}, expected a sequence from 0 to {len(names) - 1}")
    shape = tuple(contract.inputs[0].shape)
    width = int(np.prod(shape))
    picked = [row for row, number in zip(rows, numbers, strict=True) if number == names[start]]
    try:
        values = np.array([[float(cell) for cell in row[first : first + width]] for row in picked], np.float32)
        found: Floats = values.reshape(len(picked), *shape)
    except ValueError as error:
        raise DataError(f"{data}: expected {width} numbers a line, as the model reads: {error}") from error
    place = header.index(output) if output in header[first + width :] else None
    return found, "unknown" if place is None else picked[-1][place]
