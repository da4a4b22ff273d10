"""The commands that play files through a model: `eddy client stream` and `eddy client infer`.

Owns the pace, and the way from a file to answers. Must not know how answers are drawn.

Dimension key: T steps, F features.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, TypeVar

import numpy as np

from eddy.clients.display import Display, make_display, write_json
from eddy.clients.reading import Forecasts, Reading, Record, Restorations, Surprises, is_restoring, read_contract
from eddy.clients.source import STANDARD_INPUT, Alphabet, SourceError, opened, read_characters, read_numbers
from eddy.clients.sync import SyncClient
from eddy.clients.tensors import Outputs
from eddy.v1 import contract_pb2

_T = TypeVar("_T")

# Fast enough to stream, slow enough to watch.
_WATCHED_RATE = 20.0


def stream(options: argparse.Namespace, client: SyncClient) -> int:
    """One session, one step a value; shows each answer as it comes.

    A model that looks ahead answers a value some steps later, the last ones at the end of the input.
    """
    contract = client.contract(options.model, options.version)
    reading = read_contract(contract)
    display = make_display(reading, options.model, is_json=options.json)
    is_watched = options.file != STANDARD_INPUT and sys.stdout.isatty() and not options.json
    rate = options.rate if options.rate is not None else _WATCHED_RATE if is_watched else 0.0
    with opened(options.file) as file:
        if file.isatty():
            print("reading what you type; Ctrl-D ends", file=sys.stderr)
        values = _values(file, options, contract)
        with client.session(options.model, options.version) as session, display:
            answers = Answers(contract, reading, display)
            for value in _paced(values, rate):
                answers.read(value)
                answers.take(session.step_outputs(_value(reading, value)))
            if contract.ports.flush:
                answers.take(session.flush_outputs())
    return 0


class Answers:
    """Which answer belongs to which value."""

    def __init__(self, contract: contract_pb2.ModelContract, reading: Reading, display: Display) -> None:
        self._is_ahead = bool(contract.ports.emitted)
        self._reading = reading
        self._display = display
        # Values that have no answer yet.
        self._waiting: deque[Any] = deque()
        self._num_answered = 0

    def read(self, value: Any) -> None:
        """A value was sent."""
        self._waiting.append(value)
        self._display.read(value)

    def take(self, outputs: Outputs) -> None:
        """Shows what came for the values that have waited longest."""
        if not self._is_ahead:
            if self._waiting:  # The end of a stream answers nothing.
                self._show(outputs)
            return
        for step in range(len(next(iter(outputs.values())))):
            self._show({name: array[step] for name, array in outputs.items()})

    def _show(self, outputs: Outputs) -> None:
        record = self._reading.record(self._num_answered, self._waiting.popleft(), outputs)
        if self._is_ahead:
            record["delay"] = len(self._waiting)
        self._display.show(record)
        self._num_answered += 1


def _value(reading: Reading, given: Any) -> Any:
    """What to step with."""
    return reading.value(given) if isinstance(reading, Restorations) else given


def infer(options: argparse.Namespace, client: SyncClient) -> int:
    """All files in one call; each file's answers."""
    contract = client.contract(options.model, options.version)
    reading = read_contract(contract)
    sequences = []
    for name in options.files:
        with opened(name) as file:
            values = list(_values(file, options, contract, name))
        if not values:
            raise SourceError(f"{name}: there is nothing in it")
        sequences.append(values)
    arrays = [np.array([_value(reading, value) for value in values]) for values in sequences]
    outputs = client.infer_outputs(options.model, arrays, options.version, timeout_seconds=options.timeout)
    records = [
        _records(contract, sequence, {name: arrays[number] for name, arrays in outputs.items()})
        for number, sequence in enumerate(sequences)
    ]
    if isinstance(reading, Surprises):
        _tell_bits(options, records)
    elif isinstance(reading, Restorations):
        _tell_restored(options, records)
    elif options.json:
        for name, steps in zip(options.files, records, strict=True):
            for record in steps:
                write_json({"file": name, **record})
    else:
        _write_csv(options.files, reading, records)
    return 0


def _records(contract: contract_pb2.ModelContract, sequence: Sequence[Any], outputs: Outputs) -> list[Record]:
    """A sequence's steps; by a reading of its own, since what a character was worth depends on those before."""
    reading = read_contract(contract)
    return [
        reading.record(step, value, {name: array[step] for name, array in outputs.items()})
        for step, value in enumerate(sequence)
    ]


def _tell_bits(options: argparse.Namespace, records: list[list[Record]]) -> None:
    if not options.json:
        print("file", "characters", "bits a character", sep="\t")
    for name, steps in zip(options.files, records, strict=True):
        bits = [record["bits"] for record in steps if record["bits"] is not None]
        mean = float(np.mean(bits)) if bits else None
        if options.json:
            write_json({"file": name, "characters": len(steps), "bits_per_character": mean})
        else:
            print(name, len(steps), "-" if mean is None else f"{mean:.3f}", sep="\t")


def _tell_restored(options: argparse.Namespace, records: list[list[Record]]) -> None:
    for name, steps in zip(options.files, records, strict=True):
        text = "".join(record["restored"] for record in steps)
        if options.json:
            write_json({"file": name, "text": text})
        else:
            print(text, end="" if text.endswith("\n") else "\n")


def _write_csv(files: list[str], reading: Reading, records: list[list[Record]]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    if isinstance(reading, Forecasts):
        names = [f"+{horizon} q{level:g}" for horizon in reading.horizons for level in reading.quantiles]
        writer.writerow(["file", "position", *names])
    else:
        writer.writerow(["file", *reading.columns])
    for name, steps in zip(files, records, strict=True):
        for record in steps:
            if isinstance(reading, Forecasts):
                cells = [f"{value:g}" for levels in record["forecast"].values() for value in levels.values()]
                writer.writerow([name, record["position"], *cells])
            else:
                writer.writerow([name, *reading.cells(record)])


def _values(
    file: IO[str], options: argparse.Namespace, contract: contract_pb2.ModelContract, name: str = ""
) -> Iterator[Any]:
    """What to read: token ids for a text model, characters for one that rewrites them, else numbers."""
    shown = name or options.file
    shown = "stdin" if shown == STANDARD_INPUT else shown
    if len(contract.inputs) != 1:
        names = ", ".join(spec.name for spec in contract.inputs)
        raise SourceError(f"the model has the inputs {names}: send them from code (docs/client.md)")
    is_restored = is_restoring(contract)
    if is_restored or (contract.task == contract_pb2.TASK_NEXT_TOKEN and contract.vocabulary.symbols):
        if options.column:
            raise SourceError("--column: the model reads text")
        if is_restored:
            return read_characters(file, shown)
        alphabet = Alphabet(contract.vocabulary)
        return (alphabet.encode(character) for character in read_characters(file, shown))
    return read_numbers(file, shown, contract.inputs[0], options.column)


def _paced(values: Iterable[_T], rate: float) -> Iterator[_T]:
    """The values, no more than `rate` a second; 0: as they come."""
    due = time.monotonic()
    for value in values:
        if rate > 0.0:
            time.sleep(max(0.0, due - time.monotonic()))
            due = max(due + 1.0 / rate, time.monotonic())
        yield value
