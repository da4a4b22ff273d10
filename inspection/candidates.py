"""Candidates: what the axes of a graph's inputs and states may be, the likeliest first.

Owns what declared sizes and names are worth, and habits of those who export. Must not know how candidates are tried.

Dimension key: B batch, T steps.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from eddy.inspection.declared import Declared, Dim
from eddy.inspection.layout import BATCH, TIME, Axes

# So many layouts are tried.
MAX_TRIES = 300
_MAX_SIZES = 24
_BATCH_NAMES = ("batch", "bs", "n", "b", "num_seq", "nbatch")
_TIME_NAMES = ("time", "seq", "step", "len", "frame", "t", "l", "s", "token", "word", "sample")


@dataclass(frozen=True, slots=True)
class Ports:
    """What is laid out: data inputs, states, and the outputs.

    Attributes:
        nexts: state input -> output; known: the batch axes of states that are known.
        limits: integer inputs -> the values that they may have; sizes: sizes that the graph's weights have.
    """

    inputs: tuple[Declared, ...]
    states: tuple[Declared, ...]
    outputs: tuple[Declared, ...]
    nexts: Mapping[str, str]
    known: Mapping[str, int]
    limits: Mapping[str, tuple[int, int]]
    sizes: tuple[int, ...]
    wanted: Mapping[str, Axes]


def combinations(
    ports: Ports, *, has_batch: bool, is_grouped: bool
) -> Iterator[tuple[dict[str, Axes], dict[str, Axes]]]:
    """Axes of all inputs and states, the likeliest first.

    Args:
        is_grouped: what is declared alike is laid out alike.
    """
    groups: dict[object, list[str]] = {}
    choices: dict[object, list[tuple[float, Axes]]] = {}
    shared = _shared_names(ports)
    for port in ports.inputs:
        own = None if is_grouped else port.name
        key: object = (own, True, port.dims, port.dtype.kind == "f", ports.wanted.get(port.name))
        groups.setdefault(key, []).append(port.name)
        choices[key] = [
            (cost, axes)
            for cost, axes in _input_choices(port, ports, shared)
            # Rows may share an input, as a last resort.
            if has_batch or BATCH not in axes
        ]
    for port in ports.states:
        own = None if is_grouped else port.name
        key = (own, False, port.dims, ports.known.get(port.name), ports.wanted.get(port.name))
        groups.setdefault(key, []).append(port.name)
        choices[key] = [choice for choice in _state_choices(port, ports, shared) if (BATCH in choice[1]) == has_batch]
    given = {port.name for port in ports.inputs}
    keys = list(groups)
    if not all(choices[key] for key in keys):
        return
    heap: list[tuple[float, tuple[int, ...]]] = [(sum(choices[key][0][0] for key in keys), (0,) * len(keys))]
    seen = {heap[0][1]}
    while heap:
        _, indices = heapq.heappop(heap)
        chosen = {
            name: choices[key][index][1] for key, index in zip(keys, indices, strict=True) for name in groups[key]
        }
        yield (
            {name: axes for name, axes in chosen.items() if name in given},
            {name: axes for name, axes in chosen.items() if name not in given},
        )
        for place, key in enumerate(keys):
            following = (*indices[:place], indices[place] + 1, *indices[place + 1 :])
            if following[place] < len(choices[key]) and following not in seen and len(seen) < 4 * MAX_TRIES:
                seen.add(following)
                cost = sum(choices[key][index][0] for key, index in zip(keys, following, strict=True))
                heapq.heappush(heap, (cost, following))


def _shared_names(ports: Ports) -> frozenset[str]:
    """Names of free sizes that inputs and states have in common: those of the batch."""
    of_inputs = {dim for port in ports.inputs for dim in port.dims or () if isinstance(dim, str)}
    of_states = {dim for port in ports.states for dim in port.dims or () if isinstance(dim, str)}
    return frozenset(of_inputs & of_states)


def _is_called(dim: Dim, words: Sequence[str]) -> bool:
    if not isinstance(dim, str):
        return False
    name = dim.lower()
    return any(name == word or (len(word) > 2 and word in name) for word in words)


def _batch_cost(dim: Dim, shared: frozenset[str]) -> float:
    """How unlikely it is that a declared axis is the batch."""
    if isinstance(dim, int):
        return 2.0 if dim == 1 else 30.0
    cost = 1.0 if dim is None else 0.5
    if dim in shared or _is_called(dim, _BATCH_NAMES):
        cost -= 4.0
    elif _is_called(dim, _TIME_NAMES):
        cost += 6.0
    return cost


def _time_cost(dim: Dim, axis: int, port: Declared, shared: frozenset[str]) -> float:
    """How unlikely it is that a declared axis is time."""
    assert port.dims is not None, "the ranks of inputs are known"
    if isinstance(dim, int):
        # A file of a traced example says its length; what is as wide as it says is more often a row of features.
        is_inner = axis + 1 < len(port.dims) or port.dtype.kind != "f"
        return 3.0 if dim == 1 else 12.0 if is_inner else 60.0
    cost = 1.0 if dim is None else 0.5
    if dim in shared or _is_called(dim, _BATCH_NAMES):
        cost += 6.0
    elif _is_called(dim, _TIME_NAMES):
        cost -= 4.0
    return cost


_NO_BATCH = 65.0
_NO_TIME = 15.0


def _input_choices(port: Declared, ports: Ports, shared: frozenset[str]) -> list[tuple[float, Axes]]:
    if port.name in ports.wanted:
        return [(0.0, ports.wanted[port.name])]
    assert port.dims is not None, "the ranks of inputs are known"
    rank = len(port.dims)
    found: list[tuple[float, Axes]] = []
    for batch in (*range(rank), None):
        for time in (*range(rank), None):
            if batch is not None and batch == time:
                continue
            cost = _NO_BATCH if batch is None else _batch_cost(port.dims[batch], shared) + 0.3 * batch
            cost += _NO_TIME if time is None else _time_cost(port.dims[time], time, port, shared) + 0.2 * time
            roles = {batch: BATCH, time: TIME}
            roles.pop(None, None)
            found += _filled(port.dims, {axis: role for axis, role in roles.items() if axis is not None}, cost, ports)
    return sorted(found, key=lambda choice: choice[0])[:64]


def _state_choices(port: Declared, ports: Ports, shared: frozenset[str]) -> list[tuple[float, Axes]]:
    if port.name in ports.wanted:
        return [(0.0, ports.wanted[port.name])]
    assert port.dims is not None, "the ranks of inputs are known"
    if port.name in ports.known:
        place = ports.known[port.name]
        alone = (*port.dims[:place], 1, *port.dims[place + 1 :])
        return _filled(port.dims, {place: BATCH}, 0.0, ports) + _filled(alone, {}, _NO_BATCH / 2, ports)
    found = _filled(port.dims, {}, _NO_BATCH / 2, ports)
    for axis, dim in enumerate(port.dims):
        # A recurrent node's states are [L * D, B, H].
        habit = 0.0 if axis == (1 if len(port.dims) == 3 else 0) else 0.3 + 0.1 * axis
        found += _filled(port.dims, {axis: BATCH}, _batch_cost(dim, shared) + habit, ports)
    return sorted(found, key=lambda choice: choice[0])[:64]


def _filled(dims: tuple[Dim, ...], roles: Mapping[int, str], cost: float, ports: Ports) -> list[tuple[float, Axes]]:
    """Axes without a role get the declared size; where there is none, sizes that the weights have are tried."""
    free = [axis for axis, dim in enumerate(dims) if axis not in roles and not isinstance(dim, int)]
    if len(free) > 1:
        return []
    found: list[tuple[float, Axes]] = []
    for index, size in enumerate(ports.sizes[:_MAX_SIZES] if free else (0,)):
        axes: list[str | int] = []
        for axis, dim in enumerate(dims):
            role = roles.get(axis)
            axes.append(role if role is not None else dim if isinstance(dim, int) else size)
        found.append((cost + (8.0 + 0.1 * index if free else 0.0), tuple(axes)))
    return found
