"""The laws through a real server: concurrent streams, lost replies, broken connections, both ways to run ticks.

All comparisons are with the plain graph, run for each session alone, and bit for bit where the contract says so.
"""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from graphs import FAMILIES, Family, family, shipped_families
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import configure, serve, write_model
from player import Player

from eddy.service.cost import Budget
from eddy.service.queue import Limits

MODELS = Path(__file__).parents[2] / "models"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every family."""
    root = tmp_path_factory.mktemp("models")
    for name in FAMILIES:
        write_model(root / name, name)
    return root


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=12)
@given(
    seed=st.integers(0, 1 << 16),
    is_inline=st.booleans(),
    budget=st.sampled_from([1 << 20, 8, 2]),
    max_in_flight=st.integers(1, 4),
    num_breaks=st.integers(0, 2),
    num_forks=st.integers(0, 3),
    num_moves=st.integers(0, 3),
    is_crowded=st.booleans(),
)
def test_concurrent_clients_get_what_each_would_get_alone(
    repository: Path,
    name: str,
    seed: int,
    *,
    is_inline: bool,
    budget: int,
    max_in_flight: int,
    num_breaks: int,
    num_forks: int,
    num_moves: int,
    is_crowded: bool,
) -> None:
    """Three clients share a server, retry, reconnect, fork and move; every session gets the plain graph's outputs.

    Bit for bit, and those that were forked off others, while chunks of those were under way, from their fork on.
    """

    async def scenario() -> None:
        server = {"inline_tick_seconds": 1.0 if is_inline else 0.0}
        # As few slots as a message may have sessions: others begin, are forked and are moved in the host's memory.
        max_slots = 3 << num_forks if is_crowded else 256
        config = configure(
            repository / name, server=server, model={"max_slots": max_slots}, state={"host_bytes": 1 << 24}
        )
        async with serve(config) as loopback:
            scheduler = loopback.host.catalog.served[0].scheduler
            scheduler.queue.limits = Limits(16, Budget(budget), 1024)
            players = [
                Player(loopback, family(name), np.random.default_rng([seed, number]), max_in_flight)
                for number in range(3)
            ]
            await asyncio.gather(*(player.play(3, 20, num_breaks, num_forks, num_moves) for player in players))
            assert sum(player.check() for player in players) > 0
            dispatcher = loopback.host.dispatcher
            assert (dispatcher.num_thread_ticks == 0) == is_inline

    asyncio.run(scenario())


def test_the_shipped_models_together() -> None:
    """All shipped models on one server at once, two clients each: every session gets what it would get alone."""
    specs: list[Family] = [*shipped_families(MODELS)]
    assert specs, "no models are shipped"

    async def scenario() -> None:
        async with serve(configure(MODELS)) as loopback:
            players = [
                Player(loopback, spec, np.random.default_rng([number, client]), max_in_flight=2)
                for number, spec in enumerate(specs)
                for client in range(2)
            ]
            await asyncio.gather(*(player.play(3, 20, 1, 2, 2) for player in players))
            assert sum(player.check() for player in players) > 0

    asyncio.run(scenario())
