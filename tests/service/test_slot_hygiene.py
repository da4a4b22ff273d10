"""Nothing of a session is left for whoever gets its slot: large finite markers, compared bit for bit.

NaN would be no marker: ONNX Runtime swallows it in places. So sessions are given states of 1e30, and everybody else
adds ones and twos, in the exact arithmetic of float32: what is left of a marker shows in every answer after it.
Few slots, so that each is somebody else's at once; ticks of few rows and steps, so that long chunks go through working
slots.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from graphs import family
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation import STREAM, Rig

from eddy.service import start as service
from eddy.service.arena import NUM_RESERVED_SLOTS
from eddy.service.chunk import ChunkResult
from eddy.service.errors import CapacityError, EddyError, Reason
from eddy.service.sessions import NOWHERE

SUM = family("two-inputs")
MARKER = np.float32(1e30)
HUGE = np.float32(3e38)
_INITIAL = np.float32(0.25)
_OPERATIONS = ("open", "mark", "step", "step", "long", "fork", "close", "reset", "expire", "fail", "quarantine")
_ACTIONS = st.lists(st.tuples(st.sampled_from(_OPERATIONS), st.integers(0, 7)), min_size=5, max_size=60)


@dataclass
class Adder:
    """A session and what its state must be."""

    row: int
    total: np.ndarray = field(default_factory=lambda: np.full(2, _INITIAL, np.float32))
    is_marked: bool = False


class Churn:
    """Sessions that come and go on a model of four slots."""

    def __init__(self) -> None:
        self.rig = Rig(SUM, row_steps_budget=8, max_slots=4, max_rows=4)
        self.adders: list[Adder] = []
        self.num_compared = 0

    def act(self, operation: str, number: int) -> None:
        """Carries out one operation on one of the sessions."""
        if operation in ("open", "mark"):
            self.open(is_marked=operation == "mark")
        elif self.adders:
            getattr(self, operation)(self.adders[number % len(self.adders)], number)

    def open(self, *, is_marked: bool) -> None:
        """Opens a session, with states of its own where it `is_marked`."""
        try:
            [row] = self.rig.open().tolist()
        except CapacityError:
            return
        adder = Adder(row, is_marked=is_marked)
        if is_marked:
            adder.total = np.full(2, MARKER, np.float32)
            rows = np.array([row])
            states = {"sum": adder.total[None], "ever": np.ones(1, np.bool_)}

            def begun(outcome: list[bytes] | EddyError) -> None:
                assert not isinstance(outcome, EddyError), outcome
                self.rig.table.begin_at(rows, self.rig.table.slot[rows])

            self.rig.model.begin_sessions(rows, service.Start(states=states), begun)
            self.rig.run_all()
        self.adders.append(adder)

    def step(self, adder: Adder, number: int) -> None:
        """One step, of this session and the next one, compared."""
        after = self.adders[(self.adders.index(adder) + 1) % len(self.adders)]
        self.add([adder] if after is adder else [adder, after], 1 + number % 2)

    def long(self, adder: Adder, number: int) -> None:
        """A chunk that takes several ticks."""
        self.add([adder], 9 + number)

    def fork(self, adder: Adder, number: int) -> None:
        """A beam: another session goes on from this one's state, in one chunk with it."""
        other = self.adders[(self.adders.index(adder) + 1) % len(self.adders)]
        if other is not adder:
            self.rig.table.fork(np.array([other.row]), np.array([adder.row]))
            other.total = adder.total.copy()
            self.add([adder, other], 1)

    def add(self, adders: list[Adder], num_steps: int) -> None:
        """Steps of some sessions, as one chunk, compared."""
        positions = [int(self.rig.table.next_position[adder.row]) for adder in adders]
        values = np.ones((len(adders), num_steps, 2), np.float32) * np.arange(1, len(adders) + 1)[:, None, None]
        result = self._submit(adders, positions, values.astype(np.float32))
        assert not result.errors
        found = self.rig.outputs(result, len(adders), num_steps)[0]
        for adder, outputs, steps in zip(adders, found, values.astype(np.float32), strict=True):
            for output, value in zip(outputs, steps, strict=True):
                adder.total = adder.total + value
                assert output.tobytes() == adder.total.tobytes()
                self.num_compared += 1

    def _submit(self, adders: list[Adder], positions: list[int], values: np.ndarray) -> ChunkResult:
        rows = np.array([adder.row for adder in adders])
        return self.rig.step(rows, positions, [values, np.zeros(values.shape[:2], np.bool_)])

    def close(self, adder: Adder, number: int) -> None:
        """Its client closes it."""
        self.adders.remove(adder)
        self.rig.model.close_sessions(np.array([adder.row]))

    def reset(self, adder: Adder, number: int) -> None:
        """Back to the initial state, unless it began with states of its own."""
        if not adder.is_marked:
            self.rig.model.reset_sessions(np.array([adder.row]))
            adder.total = np.full(2, _INITIAL, np.float32)

    def expire(self, adder: Adder, number: int) -> None:
        """Nobody has used it."""
        self.adders.remove(adder)
        self.rig.model.expire_sessions(np.array([adder.row]))

    def fail(self, adder: Adder, number: int) -> None:
        """The engine fails its tick, and has scribbled over its slot."""
        position = int(self.rig.table.next_position[adder.row])
        values = np.full((1, 1, 2), MARKER, np.float32)
        self.rig.submit(np.array([adder.row]), [position], [values, np.zeros((1, 1), np.bool_)])
        assert self.rig.fail_tick()
        self.adders.remove(adder)

    def quarantine(self, adder: Adder, number: int) -> None:
        """Its outputs are not finite; by one step, or in a chunk of several ticks."""
        position = int(self.rig.table.next_position[adder.row])
        values = np.full((1, 2 + 8 * (number % 2), 2), HUGE, np.float32)
        result = self._submit([adder], [position], values)
        assert result.errors[0].reason is Reason.QUARANTINED
        self.adders.remove(adder)
        slot = int(self.rig.table.slot[adder.row])
        [total, ever] = self.rig.model.engine.read_states(np.array([slot]))
        assert total.tobytes() == np.full(2, _INITIAL, np.float32).tobytes()
        assert not ever.any()


@given(actions=_ACTIONS)
@settings(deadline=None, max_examples=60)
def test_whoever_gets_a_slot_finds_nothing_in_it(actions: list[tuple[str, int]]) -> None:
    """Whatever becomes of those before, every answer is that of a session alone, bit for bit, and no slot is lost."""
    churn = Churn()
    for operation, number in actions:
        churn.act(operation, number)
    for adder in churn.adders:
        churn.step(adder, 0)
    churn.rig.model.close_sessions(np.array([adder.row for adder in churn.adders], np.int64))
    assert churn.rig.model.slots.num_free == 4
    for each in [Adder(row) for row in churn.rig.open(4).tolist()]:
        churn.adders = [each]
        churn.step(each, 0)


@pytest.mark.parametrize("how", ["close", "expire", "fail", "quarantine"])
def test_a_marker_is_gone_with_its_session(how: str) -> None:
    """All slots are filled with markers and given up; fresh sessions in them begin at the initial state."""
    churn = Churn()
    for _ in range(4):
        churn.open(is_marked=True)
    for adder in [*churn.adders]:
        churn.step(adder, 0)
        getattr(churn, how)(adder, 0)
    for _ in range(4):
        churn.open(is_marked=False)
    for adder in churn.adders:
        churn.step(adder, 0)
    assert len(churn.adders) == 4
    assert churn.num_compared > 8
    assert {stream for stream, _, _ in churn.rig.ended} <= {STREAM}


def test_a_parked_session_has_no_slot_to_clear() -> None:
    """Quarantine of a session that lies in the host's memory writes no slot: not the last one of the arena either."""
    churn = Churn()
    churn.rig = Rig(SUM, max_slots=4, max_rows=2, host_bytes=1 << 20)
    for _ in range(6):
        churn.open(is_marked=False)
    for adder in churn.adders:
        churn.add([adder], 1)
    rig = churn.rig
    parked = [adder for adder in churn.adders if rig.table.slot[adder.row] == NOWHERE]
    assert len(parked) == 2
    every = np.arange(rig.model.engine.num_slots + NUM_RESERVED_SLOTS)
    rig.model.engine.write_states(every[-1:], [np.full((1, 2), MARKER, np.float32), np.ones(1, np.bool_)])
    before = rig.model.engine.read_states(every)
    rig.model.quarantine_sessions(np.array([adder.row for adder in parked]))
    rig.run_all()
    for old, new in zip(before, rig.model.engine.read_states(every), strict=True):
        assert old.tobytes() == new.tobytes()
    churn.adders = [adder for adder in churn.adders if adder not in parked]
    for adder in churn.adders:
        churn.add([adder], 1)
