"""Kept replies against a dictionary that keeps everything: never a wrong reply, and never much over the budget."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from eddy.service.ports import Port
from eddy.service.replies import ReplyStore


def _ports(*sizes: int) -> tuple[Port, ...]:
    return tuple(Port(f"port-{size}", np.dtype("u1"), 6, (size,), size) for size in sizes)


INPUT_BYTES, OUTPUT_BYTES = (4,), (8, 2)
INPUTS, OUTPUTS = _ports(*INPUT_BYTES), _ports(*OUTPUT_BYTES)


@dataclass
class Ring:
    """What a session's ring ought to hold: position -> (T, inputs, outputs), the newest last."""

    start: int
    size: int
    next_entry: int = 0
    position: int = 0
    kept: dict[int, tuple[int, tuple[bytes, ...], tuple[bytes, ...]]] = field(default_factory=dict)


def _parts(generator: np.random.Generator, rows: int, steps: int) -> tuple[bytes, ...]:
    return tuple(generator.bytes(rows * steps * size) for size in (*INPUT_BYTES, *OUTPUT_BYTES))


def _row(parts: tuple[bytes, ...], row: int, steps: int) -> tuple[bytes, ...]:
    sizes = (*INPUT_BYTES, *OUTPUT_BYTES)
    return tuple(part[row * steps * size : (row + 1) * steps * size] for part, size in zip(parts, sizes, strict=True))


_ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("open"), st.integers(1, 4), st.integers(1, 3)),
        st.tuples(
            st.just("keep"), st.lists(st.integers(0, 30), min_size=1, max_size=8, unique=True), st.integers(1, 5)
        ),
        st.tuples(
            st.just("keep"), st.lists(st.integers(0, 30), min_size=1, max_size=8, unique=True), st.integers(1, 5)
        ),
        st.tuples(
            st.sampled_from(["close", "clear", "copy"]),
            st.lists(st.integers(0, 30), min_size=1, max_size=3, unique=True),
        ),
    ),
    max_size=60,
)


@settings(max_examples=150)
@given(actions=_ACTIONS, budget=st.sampled_from([1, 100, 400, 2000, 1 << 30]))
def test_never_a_wrong_reply(actions: list[tuple[Any, ...]], budget: int) -> None:
    """What is found is what was kept last for that position, or is said to be forgotten; the budget holds."""
    generator = np.random.default_rng(0)
    store = ReplyStore(INPUTS, OUTPUTS, budget)
    rings: list[Ring] = []
    for name, *arguments in actions:
        if name == "open":
            count, size = arguments
            rings += [Ring(start, size) for start in store.open_rings(count, size).tolist()]
            continue
        chosen = [rings[pick % len(rings)] for pick in arguments[0]] if rings else []
        chosen = list({ring.start: ring for ring in chosen}.values())
        if not chosen:
            continue
        starts = np.array([ring.start for ring in chosen], np.int32)
        if name == "keep":
            steps = arguments[1]
            parts = _parts(generator, len(chosen), steps)
            entries = np.array([ring.start + ring.next_entry for ring in chosen], np.int32)
            store.keep(entries, np.array([ring.position for ring in chosen]), parts, steps)
            for row, ring in enumerate(chosen):
                values = _row(parts, row, steps)
                ring.kept[ring.position] = (steps, values[: len(INPUT_BYTES)], values[len(INPUT_BYTES) :])
                ring.kept = dict(list(ring.kept.items())[-ring.size :])
                ring.position += steps
                ring.next_entry = (ring.next_entry + 1) % ring.size
            assert store.held_bytes <= budget
        elif name == "copy":
            rings += [_copied(store, ring) for ring in chosen]
        else:
            sizes = np.array([ring.size for ring in chosen], np.int32)
            if name == "close":
                store.close_rings(starts, sizes)
                rings = [ring for ring in rings if ring not in chosen]
            else:
                store.clear_rings(starts, sizes)
                for ring in chosen:
                    ring.kept.clear()
        _compare(store, rings, is_generous=budget == 1 << 30)
    store.close_rings(
        np.array([ring.start for ring in rings], np.int32), np.array([ring.size for ring in rings], np.int32)
    )
    assert store.held_bytes == 0


def _copied(store: ReplyStore, ring: Ring) -> Ring:
    copies = store.open_rings(1, ring.size)
    store.copy_rings(np.array([ring.start], np.int32), copies, ring.size)
    return Ring(int(copies[0]), ring.size, ring.next_entry, ring.position, dict(ring.kept))


def _compare(store: ReplyStore, rings: list[Ring], *, is_generous: bool) -> None:
    for ring in rings:
        for position in range(ring.position + 1):
            found = store.find(ring.start, ring.size, position)
            expected = ring.kept.get(position)
            if expected is None:
                assert found is None
                continue
            assert found is not None, "a chunk that the ring remembers was not found"
            assert found.num_steps == expected[0]
            if found.is_forgotten:
                assert not is_generous, "forgotten within the budget"
            else:
                assert (found.inputs, found.outputs) == expected[1:]


def test_rings_do_not_overlap() -> None:
    """Rings of all sizes, opened and closed in any order, never share an entry."""
    store = ReplyStore(INPUTS, OUTPUTS, 1 << 20)
    first = store.open_rings(600, 1)
    wide = store.open_rings(300, 4)
    store.close_rings(first[::2], np.ones(300, np.int32))
    again = store.open_rings(400, 1)
    spans = [(start, 1) for start in (*first[1::2].tolist(), *again.tolist())] + [(s, 4) for s in wide.tolist()]
    used = [entry for start, size in spans for entry in range(start, start + size)]
    assert len(used) == len(set(used))


def test_one_long_lived_row_does_not_keep_its_block() -> None:
    """A block of which one row is still wanted is cut down to that row when the budget is exceeded."""
    rows, steps = 100, 4
    row_bytes = steps * sum((*INPUT_BYTES, *OUTPUT_BYTES))
    store = ReplyStore(INPUTS, OUTPUTS, 3 * rows * row_bytes)
    generator = np.random.default_rng(2)
    starts = store.open_rings(rows + 1, 1)
    kept = _parts(generator, rows, steps)
    store.keep(starts[:rows], np.zeros(rows, np.int64), kept, steps)
    # Row 0 never answers again; everybody else goes on.
    for turn in range(1, 6):
        positions = np.full(rows - 1, turn * steps)
        store.keep(starts[1:rows], positions, _parts(generator, rows - 1, steps), steps)
    found = store.find(int(starts[0]), 1, 0)
    assert found is not None
    assert found.outputs == _row(kept, 0, steps)[1:]
    assert store.held_bytes <= 3 * rows * row_bytes


def test_over_the_budget_the_oldest_are_forgotten_first() -> None:
    """Live replies over the budget are forgotten oldest first, counted, and still known by position and T."""
    row_bytes = sum((*INPUT_BYTES, *OUTPUT_BYTES))
    store = ReplyStore(INPUTS, OUTPUTS, 10 * row_bytes)
    generator = np.random.default_rng(3)
    starts = store.open_rings(20, 1)
    for start in starts.tolist():
        store.keep(np.array([start]), np.array([5]), _parts(generator, 1, 1), 1)
        assert store.held_bytes <= 10 * row_bytes
    states = [store.find(start, 1, 5) for start in starts.tolist()]
    assert all(state is not None and state.num_steps == 1 for state in states)
    forgotten = [state.is_forgotten for state in states if state is not None]
    assert forgotten == sorted(forgotten, reverse=True), "a newer reply was forgotten before an older one"
    assert store.num_forgotten == sum(forgotten)
    assert not forgotten[-1]


def test_sessions_that_come_and_go_with_every_ring_size_do_not_grow_the_store() -> None:
    """Rings of sixty-four sizes, opened and closed in turns: entries are used again, and no two rings share one."""
    store = ReplyStore(INPUTS, OUTPUTS, 1 << 20)
    generator = np.random.default_rng(4)
    most = 64 * 256
    for _ in range(4):
        for size in generator.permutation(np.arange(1, 65)).tolist():
            starts = store.open_rings(256, size)
            entries = (starts[:, None] + np.arange(size)).reshape(-1)
            assert len(np.unique(entries)) == 256 * size
            assert entries.min() >= 0
            store.close_rings(starts, np.full(256, size))
    # As much as the widest rings need, doubled by growth and by what does not fit.
    assert len(store._position) <= 4 * most  # noqa: SLF001  memory is what this is about


@given(turns=st.lists(st.tuples(st.integers(1, 300), st.integers(1, 9), st.integers(0, 100)), min_size=1, max_size=60))
def test_rings_never_overlap(turns: list[tuple[int, int, int]]) -> None:
    """However rings of several sizes are opened and closed: those that are open are apart."""
    store = ReplyStore(INPUTS, OUTPUTS, 1 << 20)
    rings: list[tuple[int, int]] = []
    for count, size, num_closed in turns:
        rings += [(start, size) for start in store.open_rings(count, size).tolist()]
        entries = np.concatenate([np.arange(start, start + width) for start, width in rings])
        assert len(np.unique(entries)) == len(entries)
        closed, rings = rings[::2][:num_closed], rings[1::2] + rings[::2][num_closed:]
        if closed:
            starts, sizes = (np.array(column, np.int32) for column in zip(*closed, strict=True))
            store.close_rings(starts, sizes)
