"""Modules of others, exported in one call, behind the server: the chunk and the batch law hold for them as for ours."""

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import configure, serve
from player import Player
from schedule import CALM, STORMY, Action, Schedule, plain_graph
from simulation import Rig
from strangers import MODULES, exported, module_family

BUDGETS = st.sampled_from([1 << 20, 16, 1])


@pytest.mark.parametrize("name", MODULES)
@settings(max_examples=5)
@given(actions=CALM, budget=BUDGETS, seed=st.integers(0, 1000))
def test_calm_schedules_change_nothing(name: str, actions: list[Action], budget: int, seed: int) -> None:
    """However chunks are cut, batched, sliced and overlapped, each session gets what it would get alone."""
    schedule = Schedule(Rig(module_family(name), row_steps_budget=budget), seed=seed)
    schedule.run(actions)
    schedule.check(plain_graph(module_family(name)))
    assert schedule.refused() == []


@pytest.mark.parametrize("name", MODULES)
@settings(max_examples=5)
@given(actions=STORMY, budget=BUDGETS, seed=st.integers(0, 1000))
def test_stormy_schedules_change_nothing(name: str, actions: list[Action], budget: int, seed: int) -> None:
    """Retries, abuse, cancelled chunks and failing ticks reach nobody else, and nothing is applied twice."""
    schedule = Schedule(Rig(module_family(name), row_steps_budget=budget), seed=seed)
    schedule.run(actions)
    schedule.check(plain_graph(module_family(name)))
    schedule.check_refusals()


@pytest.mark.parametrize("name", MODULES)
def test_streams_that_break(name: str) -> None:
    """Clients that retry and reconnect over a real server get what each would get alone."""

    async def scenario() -> None:
        async with serve(configure(exported(name).parents[2])) as loopback:
            players = [
                Player(loopback, module_family(name), np.random.default_rng([7, number]), 2) for number in range(2)
            ]
            await asyncio.gather(*(player.play(3, 24, 1) for player in players))
            assert sum(player.check() for player in players) > 0

    asyncio.run(scenario())
