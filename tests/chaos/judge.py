"""Whether what clients saw is what an uninterrupted run gives, bit for bit.

Owns the reference: a model's plain graph, run by ONNX Runtime over all inputs of a session at once, with no server, no
store and no connection. Must not know how a run was disturbed.

Dimension key: B sessions of a batch, T steps, E outputs emitted.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from graphs import Family, PlainGraph
from journal import Entry, read
from workload import Call, Kind, Workload, call_of, model_family, workloads

# Calls before a difference that are tried as its cause.
_LOOK_BACK = 64


@dataclass(frozen=True)
class Difference:
    """The first output of a session that is not what it must be.

    Attributes:
        verdict: "lost", "doubled" or "different"; where: client, workload, life and row; position: of the call.
    """

    verdict: str
    where: str
    position: int
    expected: str
    got: str

    def __str__(self) -> str:
        return f"{self.verdict}: {self.where}, position {self.position}: expected {self.expected}, got {self.got}"


@dataclass
class Judgement:
    """What was compared, and what was wrong."""

    num_sessions: int = 0
    num_steps: int = 0
    num_outputs: int = 0
    differences: list[Difference] | None = None

    def count(self, verdict: str) -> int:
        """Sessions with that verdict."""
        return sum(each.verdict == verdict for each in self.differences or ())


class Reference:
    """One model, run without a service."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._graph = PlainGraph.load(family.graph())

    def outputs(self, calls: Sequence[Call], num_rows: int) -> list[np.ndarray]:
        """What B sessions answer to `calls`, [B, E, ...] each output: all calls up to an end are one run."""
        family = self._family
        rows = max(2, num_rows)
        states = {state.name: state.initial_rows(rows) for state in family.states}
        parts: list[list[np.ndarray]] = [[] for _ in family.outputs]
        for stream, is_end in _streams(calls):
            inputs = [np.concatenate(values, 1) for values in zip(*(call.inputs for call in stream), strict=True)]
            if not inputs:  # An end at once.
                inputs = [np.zeros((num_rows, 0, *port.shape), port.dtype) for port in family.inputs]
            outputs, states = self._run(inputs, rows, states, is_end=is_end)
            for part, output in zip(parts, outputs, strict=True):
                part.append(output[:num_rows])
        return [np.concatenate(part, 1) for part in parts]

    def _run(
        self, inputs: list[np.ndarray], rows: int, states: dict[str, np.ndarray], *, is_end: bool
    ) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
        family, ends = self._family, self._family.ends
        num_steps = inputs[0].shape[1]
        padded = [np.concatenate([each] * (rows if len(each) == 1 else 1))[:rows] for each in inputs]
        if ends is not None and num_steps == 0:  # Graphs take one step at least; none of it is valid.
            padded = [
                np.full((rows, 1, *port.shape), max(0, (port.values or (0, 0))[0]), port.dtype)
                for port in family.inputs
            ]
        feed: dict[str, Any] = {port.name: each for port, each in zip(family.inputs, padded, strict=True)}
        names = [port.name for port in family.outputs] + [state.next_name for state in family.states if state.next_name]
        if ends is not None:
            feed |= {ends.length: np.full(rows, num_steps), ends.flush: np.full(rows, is_end)}
            names.append(ends.emitted)
        got = dict(zip(names, self._graph.run(names, feed | states), strict=True))
        outputs = [got[port.name] for port in family.outputs]
        if ends is not None:
            emitted = int(got[ends.emitted][0])
            outputs = [output[:, :emitted] for output in outputs]
        return outputs, states | {state.name: got[state.next_name] for state in family.states if state.next_name}


def _streams(calls: Sequence[Call]) -> Iterable[tuple[list[Call], bool]]:
    stream: list[Call] = []
    for call in calls:
        if call.is_end:
            yield stream, True
            stream = []
        else:
            stream.append(call)
    if stream:
        yield stream, False


def judge(seed: int, journals: Sequence[Path], texts: dict[tuple[int, int], list[int]], *, is_small: bool) -> Judgement:
    """Compares everything in `journals`, a file of each client.

    Args:
        texts: tokens of an uninterrupted run, by client and life.
    """
    judgement = Judgement(differences=[])
    references: dict[str, Reference] = {}
    for client, path in enumerate(journals):
        plans = {workload.number: workload for workload in workloads(client, is_small=is_small)}
        lives: dict[tuple[int, int], list[Entry]] = defaultdict(list)
        for entry in read(path):
            lives[entry.workload, entry.life].append(entry)
        for (number, life), entries in sorted(lives.items()):
            workload = plans[number]
            judgement.num_sessions += workload.rows
            if workload.kind is Kind.TEXT:
                _judge_text(judgement, f"client {client}, text {life}", entries, texts[client, life])
                continue
            reference = references.get(workload.model) or Reference(model_family(workload.model))
            references[workload.model] = reference
            _judge_life(judgement, reference, (seed, client, workload, life), entries)
    return judgement


def _judge_text(judgement: Judgement, where: str, entries: list[Entry], expected: list[int]) -> None:
    got = [int(token) for entry in entries for token in entry.outputs[0][0]]
    judgement.num_steps += len(got)
    judgement.num_outputs += len(got)
    if got != expected and judgement.differences is not None:
        judgement.differences.append(Difference("different", where, 0, str(expected), str(got)))


def _judge_life(
    judgement: Judgement, reference: Reference, place: tuple[int, int, Workload, int], entries: list[Entry]
) -> None:
    """Every answer of a life against its part of the whole run; gaps are allowed only to rivals.

    What was answered to one writer may be answered to the other again.
    """
    seed, client, workload, life = place
    model = model_family(workload.model)
    last = max(entry.call for entry in entries)
    calls = [call_of(model, seed, client, workload, life, number) for number in range(last + 1)]
    whole = reference.outputs(calls, workload.rows)
    starts = list(itertools.accumulate((call.num_positions for call in calls), initial=0))
    emitted = _emitted(model, calls)
    where = f"client {client}, {workload.kind} {workload.model} {workload.number}, life {life}"
    seen = [entry.call for entry in entries]
    if workload.kind is not Kind.RIVALS and seen != list(range(last + 1)):
        judgement.differences.append(Difference("lost", where, 0, f"calls 0 to {last}", str(seen)))  # type: ignore[union-attr]
    judgement.num_steps += workload.rows * starts[-1]
    for entry in entries:
        begin, end = emitted[entry.call], emitted[entry.call + 1]
        if entry.position != starts[entry.call]:
            judgement.differences.append(  # type: ignore[union-attr]
                Difference("different", where, entry.position, f"position {starts[entry.call]}", str(entry.position))
            )
            return
        for output, (expected, rows) in enumerate(zip(whole, entry.outputs, strict=True)):
            for row, got in enumerate(rows):
                judgement.num_outputs += got.size
                wanted = expected[row, begin:end]
                if got.shape != wanted.shape or got.tobytes() != wanted.tobytes():
                    verdict = _verdict(reference, calls, entry, workload.rows, got, output, row)
                    named = f"{where}, row {row}"
                    judgement.differences.append(  # type: ignore[union-attr]
                        Difference(verdict, named, entry.position, _short(wanted), _short(got))
                    )
                    return


def _emitted(model: Family, calls: Sequence[Call]) -> list[int]:
    """Where each call's outputs begin in those of the whole run; of a model that looks ahead, by what it holds back."""
    if model.ends is None:
        return list(itertools.accumulate((call.num_positions for call in calls), initial=0))
    places, before, steps, base = [0], 0, 0, 0
    block, ahead = model.ends.block_steps, model.ends.look_ahead_steps
    for call in calls:
        if call.is_end:
            base, steps, before = base + steps, 0, 0
        else:
            steps += call.num_positions
            before = max(0, (steps - ahead) // block * block)
        places.append(base + before)
    return places


def _verdict(
    reference: Reference, calls: list[Call], entry: Entry, rows: int, got: np.ndarray, output: int, row: int
) -> str:
    """Whether one of the last calls applied twice, or left out, would explain `got`."""
    if any(call.is_end for call in calls):
        return "different"
    last = entry.call + 1
    for number in range(max(0, last - _LOOK_BACK), last):
        doubled, lost = [*calls[: number + 1], *calls[number:last]], [*calls[:number], *calls[number + 1 : last]]
        for verdict, changed in (("doubled", doubled), ("lost", lost)):
            if not changed or (verdict == "lost" and number == entry.call):
                continue
            outputs = reference.outputs(changed, rows)[output][row]
            if outputs[len(outputs) - len(got) :].tobytes() == got.tobytes():
                return verdict
    return "different"


def _short(values: np.ndarray) -> str:
    text = np.array2string(values, threshold=8, edgeitems=2).replace("\n", "")
    return f"{list(values.shape)} {text}"
