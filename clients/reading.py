"""What a model's answers mean, by its task: a forecast, how surprising a character was, what it should be, or numbers.

Owns the reading of outputs through the contract. Must not know servers, files or terminals: it is given a step's
inputs and outputs and makes a record of them, which is one line of `--json`, or of plain text.

Dimension key: K horizons, Q quantiles, V vocabulary.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from eddy.clients.source import Alphabet
from eddy.clients.tensors import Outputs
from eddy.v1 import contract_pb2

_NUM_GUESSES = 3
# Seconds in the units of time; the largest that divides a step counts.
_STEP_UNITS = {604800: "weeks", 86400: "d", 3600: "h", 60: "min", 1: "s"}
_STEP = re.compile(r"steps of (\d+) s")

# One line of `--json`.
Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Forecasts:
    """A forecaster's steps.

    Attributes:
        horizons: steps ahead, int [K]; quantiles: float [Q].
        target: the input that is forecast; contracts do not say which, the first one is taken.
        step_size, step_unit: what one step is: 5 and "min".
    """

    columns: list[str]
    horizons: tuple[int, ...]
    quantiles: tuple[float, ...]
    target: int
    output: str
    meaning: str
    unit: str
    step_size: int
    step_unit: str

    def ahead(self, num_steps: int) -> str:
        """So many steps, in the unit of time."""
        return f"{num_steps * self.step_size} {self.step_unit}"

    @property
    def middle(self) -> int:
        """The column of the median, or what comes nearest."""
        return int(np.abs(np.array(self.quantiles) - 0.5).argmin())

    def record(self, position: int, given: Any, outputs: Outputs) -> Record:
        """The quantiles at every horizon."""
        made = outputs[self.output]
        forecast = {
            str(horizon): {f"{level:g}": _plain(value) for level, value in zip(self.quantiles, row, strict=True)}
            for horizon, row in zip(self.horizons, made, strict=True)
        }
        return {"position": position, "values": np.atleast_1d(given).tolist(), "forecast": forecast}

    def cells(self, record: Record) -> list[str]:
        """The values, and the median at every horizon."""
        values = ",".join(f"{value:g}" for value in record["values"])
        medians = [list(levels.values())[self.middle] for levels in record["forecast"].values()]
        return [str(record["position"]), values, *(f"{value:.4g}" for value in medians)]


class Surprises:
    """A character model's steps: how many bits each character was worth, and what it expects next."""

    def __init__(self, alphabet: Alphabet, output: str) -> None:
        self.columns = ["position", "character", "bits", "expected next"]
        self._symbols = alphabet.symbols
        self._output = output
        # Changed only by `record`. Log-probabilities of the next character, natural, [V].
        self._logs: np.ndarray | None = None

    def record(self, position: int, given: Any, outputs: Outputs) -> Record:
        """The character's bits by what was expected of it (None for the first), and the best guesses for the next."""
        token = int(given)
        bits = None if self._logs is None else _plain(-self._logs[token] / np.log(2.0))
        scores = outputs[self._output].astype(np.float64)
        scores -= scores.max()
        self._logs = scores - np.log(np.exp(scores).sum())
        best = np.argsort(-self._logs, kind="stable")[:_NUM_GUESSES]
        guesses = [{"symbol": self._symbols[each], "probability": _plain(np.exp(self._logs[each]))} for each in best]
        return {"position": position, "symbol": self._symbols[token], "bits": bits, "expected": guesses}

    def cells(self, record: Record) -> list[str]:
        """One line a character."""
        bits = "-" if record["bits"] is None else f"{record['bits']:.2f}"
        guesses = ", ".join(f"{guess['symbol']!r} {guess['probability']:.2f}" for guess in record["expected"])
        return [str(record["position"]), repr(record["symbol"]), bits, guesses]


class Restorations:
    """A model's steps that rewrites text character by character, such as one that restores accents.

    Where it says the unknown symbol, or does not know the character, that stays as it is.
    """

    def __init__(self, alphabet: Alphabet, output: str) -> None:
        self.columns = ["position", "character", "restored", "delay"]
        self._alphabet = alphabet
        self._output = output

    def value(self, given: str) -> int:
        """What to step with for a character."""
        return self._alphabet.encode(given)

    def record(self, position: int, given: Any, outputs: Outputs) -> Record:
        """The character and what it should be."""
        best = int(outputs[self._output].argmax())
        is_known = self._alphabet.knows(given) and best != self._alphabet.unknown
        restored = self._alphabet.symbols[best] if is_known else given
        return {"position": position, "symbol": given, "restored": restored}

    def cells(self, record: Record) -> list[str]:
        """One line a character."""
        symbols = [repr(record[name]) for name in ("symbol", "restored")]
        return [str(record["position"]), *symbols, str(record.get("delay", 0))]


class Numbers:
    """Any other model's steps: its outputs as they are."""

    def __init__(self, contract: contract_pb2.ModelContract) -> None:
        self.columns = ["position", "values", *(spec.name for spec in contract.outputs)]

    def record(self, position: int, given: Any, outputs: Outputs) -> Record:
        """Every output by its name."""
        told = {name: np.asarray(values, np.float64).tolist() for name, values in outputs.items()}
        return {"position": position, "values": np.atleast_1d(given).tolist(), "outputs": told}

    def cells(self, record: Record) -> list[str]:
        """Every output's numbers, by commas."""
        groups = [record["values"], *record["outputs"].values()]
        return [str(record["position"]), *(",".join(f"{value:.6g}" for value in np.ravel(group)) for group in groups)]


# How one model's steps are told: `record` is what is known after a step, `cells` a record as a plain line, whose
# cells are named by `columns`.
Reading = Forecasts | Surprises | Restorations | Numbers


def is_restoring(contract: contract_pb2.ModelContract) -> bool:
    """The model takes characters, and answers each with scores of what it should be."""
    vocabulary = contract.vocabulary
    if contract.task != contract_pb2.TASK_TAGGING or not vocabulary.symbols or vocabulary.unit != "character":
        return False
    return not contract.inputs[0].shape and list(contract.outputs[0].shape) == [len(vocabulary.symbols)]


def read_contract(contract: contract_pb2.ModelContract) -> Reading:
    """How to tell this model's steps.

    Raises:
        SourceError: it reads text of other symbols than characters.
    """
    output = contract.outputs[0]
    if contract.task == contract_pb2.TASK_NEXT_TOKEN and contract.vocabulary.symbols:
        return Surprises(Alphabet(contract.vocabulary), output.name)
    if is_restoring(contract):
        return Restorations(Alphabet(contract.vocabulary), output.name)
    labels = {axis.name: list(axis.labels) for axis in output.axes}
    if contract.task != contract_pb2.TASK_FORECAST or labels.keys() != {"horizons", "quantiles"}:
        return Numbers(contract)
    found = _STEP.search(output.meaning)
    seconds = int(found[1]) if found else 0
    unit_seconds = next((size for size in _STEP_UNITS if seconds and seconds % size == 0), 0)
    step_size, step_unit = (seconds // unit_seconds, _STEP_UNITS[unit_seconds]) if unit_seconds else (1, "steps")
    horizons = tuple(int(label) for label in labels["horizons"])
    name = contract.inputs[0].meaning.partition(":")[0].strip() or contract.inputs[0].name
    return Forecasts(
        columns=["position", name, *(f"+{horizon * step_size} {step_unit}" for horizon in horizons)],
        horizons=horizons,
        quantiles=tuple(float(label) for label in labels["quantiles"]),
        target=0,
        output=output.name,
        meaning=re.sub(r"^quantiles of |, a number of steps.*$", "", output.meaning),
        unit=output.unit,
        step_size=step_size,
        step_unit=step_unit,
    )


def _plain(value: Any) -> float:
    """A number for JSON, without digits that float32 does not have."""
    return float(f"{float(value):.7g}")
