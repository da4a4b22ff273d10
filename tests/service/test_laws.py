"""The laws under random schedules, through scheduler and engine: no wire, no real clock.

All comparisons are bit for bit where the model's contract says so, as every family of ours does.
"""

from pathlib import Path

import pytest
from graphs import FAMILIES, Family, family, shipped_families
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule import CALM, STORMY, Action, Schedule, plain_graph
from simulation import Rig

MODELS = Path(__file__).parents[2] / "models"

# Rows x steps in a tick: everything at once, some slices, a slice a step.
BUDGETS = st.sampled_from([1 << 20, 16, 4, 1])


@pytest.mark.parametrize("name", FAMILIES)
@given(actions=CALM, budget=BUDGETS, seed=st.integers(0, 1000))
def test_calm_schedules_change_nothing(name: str, actions: list[Action], budget: int, seed: int) -> None:
    """However chunks are cut, batched, sliced and overlapped, each session gets what it would get alone.

    Chunk, batch and parity law: outputs and final states are the plain graph's, and nothing is refused.
    """
    schedule = Schedule(Rig(family(name), row_steps_budget=budget), seed=seed)
    schedule.run(actions)
    schedule.check(plain_graph(family(name)))
    assert schedule.refused() == []


@pytest.mark.parametrize("name", FAMILIES)
@given(actions=STORMY, budget=BUDGETS, seed=st.integers(0, 1000))
def test_stormy_schedules_change_nothing(name: str, actions: list[Action], budget: int, seed: int) -> None:
    """Retries, abuse, cancelled chunks and failing ticks reach nobody but their own session, and apply nothing twice.

    Isolation and exactly-once law; every other session's inputs are large markers.
    """
    schedule = Schedule(Rig(family(name), row_steps_budget=budget), seed=seed, marker=1e4)
    schedule.run(actions)
    schedule.check(plain_graph(family(name)))
    schedule.check_refusals()


@pytest.mark.parametrize("spec", shipped_families(MODELS), ids=lambda spec: spec.name)
@settings(max_examples=10)
@given(actions=STORMY, budget=BUDGETS, seed=st.integers(0, 1000))
def test_stormy_schedules_on_the_shipped_models(spec: Family, actions: list[Action], budget: int, seed: int) -> None:
    """The models that we ship obey the same laws."""
    schedule = Schedule(Rig(spec, row_steps_budget=budget), seed=seed)
    schedule.run(actions)
    schedule.check(plain_graph(spec))
    schedule.check_refusals()
