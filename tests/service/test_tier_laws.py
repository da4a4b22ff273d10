"""Law 6 where there are more sessions than slots: who is paged out and in, and when, shows in nothing.

The schedules are those of the other laws, over arenas of a few slots, with time that passes, states that are read and
put back, and page moves that fail. Every session is judged by the plain graph, run alone: bit for bit where the
contract says so. Every other session's inputs are large markers.
"""

from pathlib import Path

import pytest
from graphs import FAMILIES, Family, family, shipped_families
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule import CALM, CROWDED, SHELVED, TIERED, Action, Schedule, plain_graph
from simulation import Rig, Shelf

from eddy.service.contract import read_contract

MODELS = Path(__file__).parents[2] / "models"
BUDGETS = st.sampled_from([1 << 20, 16, 4, 1])
HOST_BYTES = 64 << 20


def _schedule(spec: Family, slots: int, budget: int, seed: int, *, is_late: bool) -> Schedule:
    rig = Rig(spec, row_steps_budget=budget, max_slots=slots, host_bytes=HOST_BYTES, is_late=is_late)
    return Schedule(rig, seed=seed, marker=1e4)


@pytest.mark.parametrize("name", FAMILIES)
@given(actions=CALM, slots=st.integers(5, 8), budget=BUDGETS, seed=st.integers(0, 1000), is_late=st.booleans())
def test_calm_schedules_over_few_slots(
    name: str, actions: list[Action], slots: int, budget: int, seed: int, is_late: bool
) -> None:
    """Nothing is refused that would not be over slots for everybody."""
    schedule = _schedule(family(name), slots, budget, seed, is_late=is_late)
    schedule.run(actions)
    schedule.check(plain_graph(family(name)))
    assert schedule.refused() == []


@pytest.mark.parametrize("name", FAMILIES)
@given(actions=CROWDED, slots=st.integers(2, 8), budget=BUDGETS, seed=st.integers(0, 1000), is_late=st.booleans())
def test_crowded_schedules_over_few_slots(
    name: str, actions: list[Action], slots: int, budget: int, seed: int, is_late: bool
) -> None:
    """Retries, abuse, cancelled chunks, ends, resets, failing ticks and failing moves reach nobody else."""
    schedule = _schedule(family(name), slots, budget, seed, is_late=is_late)
    schedule.run(actions)
    schedule.check(plain_graph(family(name)))
    schedule.check_refusals()


@pytest.mark.parametrize("name", FAMILIES)
@given(
    actions=SHELVED, slots=st.integers(2, 6), spare=st.integers(0, 3), seed=st.integers(0, 1000), is_late=st.booleans()
)
def test_schedules_over_few_slots_and_cells(
    name: str, actions: list[Action], slots: int, spare: int, seed: int, is_late: bool
) -> None:
    """Where the host's memory is short, too, states go to the state store and come back: also late, or not at first.

    Only chunks are refused, by a store that is away; their sessions stay as they were.
    """
    spec = family(name)
    state_bytes = max(1, sum(read_state.row_bytes for read_state in read_contract(spec.model()).states))
    rig = Rig(spec, max_slots=slots, host_bytes=state_bytes * (2 * slots + spare), shelf=Shelf(), is_late=is_late)
    schedule = Schedule(rig, seed=seed, marker=1e4)
    schedule.run(actions)
    schedule.check(plain_graph(spec))


@pytest.mark.parametrize("name", FAMILIES)
@given(
    actions=TIERED, slots=st.integers(1, 3), spare=st.integers(0, 3), seed=st.integers(0, 1000), is_late=st.booleans()
)
def test_crowds_that_come_and_go(
    name: str, actions: list[Action], slots: int, spare: int, seed: int, is_late: bool
) -> None:
    """Resets, forks and readings among sessions most of which are in the store: whoever comes back is who left."""
    spec = family(name)
    state_bytes = max(1, sum(state.row_bytes for state in read_contract(spec.model()).states))
    rig = Rig(spec, max_slots=slots, host_bytes=state_bytes * (2 * slots + spare), shelf=Shelf(), is_late=is_late)
    schedule = Schedule(rig, seed=seed, marker=1e4)
    schedule.run(actions, num_sessions=8)
    schedule.check(plain_graph(spec))


@pytest.mark.parametrize("spec", shipped_families(MODELS), ids=lambda spec: spec.name)
@settings(max_examples=10)
@given(actions=CROWDED, slots=st.integers(2, 8), budget=BUDGETS, seed=st.integers(0, 1000), is_late=st.booleans())
def test_crowded_schedules_on_the_shipped_models(
    spec: Family, actions: list[Action], slots: int, budget: int, seed: int, is_late: bool
) -> None:
    """The models that we ship obey the same laws."""
    schedule = _schedule(spec, slots, budget, seed, is_late=is_late)
    schedule.run(actions)
    schedule.check(plain_graph(spec))
    schedule.check_refusals()
