"""Graphs that do not take any number of rows and steps: how a tick is cut, what it costs, and models without states."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import Family, family
from hypothesis import given
from hypothesis import strategies as st
from loopback import Loopback, array, configure, serve, write_model
from schedule import plain_graph
from simulation import Rig

from eddy.service.arena import INITIAL_SLOT, NUM_RESERVED_SLOTS
from eddy.service.contract import read_contract
from eddy.service.cost import TickCost
from eddy.service.engine import Engine
from eddy.service.errors import ModelError
from eddy.service.graph import ModelGraphs
from eddy.service.runs import Runs
from eddy.v1 import errors_pb2, sessions_pb2

LIMITED = ("history-by-step", "history-two-steps", "history-one-row", "history-three-rows", "stateless-one-row")


def _engine(spec: Family, num_slots: int = 40) -> Engine:
    model = spec.model()
    prime = None if spec.prime is None else spec.prime.graph()
    return Engine(ModelGraphs(model, prime), read_contract(model), num_slots=num_slots)


@given(st.integers(0, 9), st.integers(0, 9), st.integers(1, 40), st.integers(1, 40))
def test_cuts_cover_everything_once(rows: int, steps: int, num_rows: int, num_steps: int) -> None:
    """Groups and pieces follow each other, none is larger than a run, and their numbers are those that are counted."""
    runs = Runs(rows, steps)
    for cuts, most, total, number in (
        (list(runs.row_groups(num_rows)), rows, num_rows, runs.num_groups(num_rows)),
        (list(runs.step_pieces(num_steps)), steps, num_steps, runs.num_pieces(num_steps)),
    ):
        assert [place for cut in cuts for place in range(cut.start, cut.stop)] == list(range(total))
        assert len(cuts) == number and all(cut.stop - cut.start <= (most or total) for cut in cuts)
    assert runs.fits(num_rows, num_steps) == (runs.num_groups(num_rows) * runs.num_pieces(num_steps) == 1)
    assert runs.padded(num_rows) >= num_rows and (not rows or runs.padded(num_rows) % rows == 0)


@given(
    st.one_of(st.none(), st.builds(Runs, st.integers(0, 9), st.integers(0, 9))),
    st.integers(1, 50),
    st.integers(1, 2000),
    st.integers(1, 200),
    st.integers(1, 2000),
)
def test_what_fits_takes_no_longer(runs: Runs | None, fixed: int, budget: int, num_steps: int, num_rows: int) -> None:
    """Most rows and most steps cost what a tick may, and one run more of them would not; one run always goes."""
    cost = TickCost(fixed * 1.0, 1.0, runs)
    fits = cost.budget(budget)
    # A tick that is always one run pays its fixed part once, however long it is: that is of no account.
    most = budget + (fixed if runs is None else 0)
    rows, steps = fits.most_rows(num_steps), fits.most_steps(num_rows)
    group, piece = (runs.rows or 1, runs.steps or 1) if runs is not None else (1, 1)
    assert rows <= group or cost.seconds(rows, num_steps) <= most
    assert cost.seconds(rows + group, num_steps) > most
    assert steps == 0 or cost.seconds(num_rows, steps) <= most
    assert cost.seconds(num_rows, steps + piece) > most


@pytest.mark.parametrize("name", LIMITED)
def test_the_graph_itself_refuses_more(name: str) -> None:
    """The models of these tests cannot be run in any other way: without what the contract says they do not load."""
    spec = family(name)
    # The shapes that it declares stay as they are.
    contract = replace(spec, run_rows=0, max_run_steps=0).contract()
    model = spec.model(contract)
    with pytest.raises(ModelError):
        Engine(ModelGraphs(model), read_contract(model), num_slots=3)


@pytest.mark.parametrize("name", ["history-one-row", "history-three-rows", "primed-in-parts", "history"])
def test_all_rows_are_read_before_any_is_written(name: str) -> None:
    """Sessions that trade slots within a tick, as beams do, get each other's states, however many runs it is."""
    engine, spec = _engine(family(name)), family(name)
    slots = np.arange(7) + NUM_RESERVED_SLOTS
    generator = np.random.default_rng(3)
    order = np.array([1, 2, 3, 4, 5, 6, 0])  # A ring: whatever comes first overwrites what another has yet to read.
    given = [
        np.arange(7, dtype=state.dtype) + 1 if state.next_name else np.full(7, 2, state.dtype) for state in spec.states
    ]
    engine.write_states(slots, given)
    inputs = [generator.integers(1, 9, (7, 4))]
    [block] = engine.run([inputs[0].tobytes()], slots[order], slots, 7, 4, slots)
    got = np.frombuffer(block, "<i8").reshape(7, 4)
    moving = [number for number, state in enumerate(spec.states) if state.next_name]
    for row in range(7):
        value = int(given[moving[0]][order[row]])
        for step in range(4):
            digit = int(inputs[0][row, step])
            value = value + 2 * digit if spec.prime is not None else 10 * value + digit
            assert got[row, step] == value
    np.testing.assert_array_equal(engine.read_states(slots)[moving[0]], got[:, -1])
    for number, state in enumerate(spec.states):
        if not state.next_name:
            np.testing.assert_array_equal(engine.read_states(slots)[number], given[number])


@pytest.mark.parametrize("name", LIMITED)
def test_a_long_chunk_is_one_tick(name: str) -> None:
    """Steps are run one after the other within a tick, not as a tick each, as far as its time allows."""
    spec = family(name)
    rig = Rig(spec)
    rig.scheduler.queue.limits = replace(rig.scheduler.queue.limits, budget=rig.model.cost.budget(10.0))
    rows = rig.open(5)
    generator = np.random.default_rng(1)
    inputs = [np.stack(values) for values in zip(*[spec.example(generator, 64) for _ in rows], strict=True)]
    result = rig.step(rows, [0] * 5, inputs)
    assert (rig.scheduler.num_ticks, rig.scheduler.num_row_steps) == (1, 5 * 64)
    [got] = rig.outputs(result, 5, 64)
    for row in range(5):
        [expected], _ = plain_graph(spec).whole([values[row] for values in inputs])
        np.testing.assert_array_equal(got[row], expected)


@pytest.mark.parametrize("name", LIMITED)
def test_cost_counts_runs(name: str) -> None:
    """A tick of many runs is expected to take as long as they do, and as many are formed as there is time for."""
    cost = _engine(family(name)).measure_cost(repeats=3)
    runs = cost.runs
    assert runs is not None
    rows, steps = 4 * (runs.rows or 1), 8 * (runs.steps or 1)
    num_runs = runs.num_groups(rows) * runs.num_pieces(steps)
    assert cost.seconds(rows, steps) >= num_runs * cost.fixed_seconds > 0
    budget = cost.budget(0.01)
    assert cost.seconds(rows, budget.most_steps(rows)) <= 0.01


def test_a_model_without_states() -> None:
    """It has slots, which take no memory, and sessions, which are positions."""
    rig = Rig(family("stateless"), max_slots=9)
    engine = rig.model.engine
    assert (engine.arena_bytes, rig.model.slots.num_slots, engine.contract.state_bytes) == (0, 9, 0)
    assert engine.read_states(np.array([INITIAL_SLOT])) == []
    rows = rig.open(9)
    inputs = [np.ones((9, 2, 2), np.float32)]
    assert rig.outputs(rig.step(rows, [0] * 9, inputs), 9, 2)[0].tolist() == [[[4.0, 4.0]] * 2] * 9
    assert rig.table.next_position[rows].tolist() == [2] * 9


# The contract's idle time


async def _idle(running: Loopback, asked: float) -> float:
    request = sessions_pb2.OpenSessionRequest(model="history", idle_timeout_seconds=asked)
    response: Any = await running.unary("SessionService/OpenSession", request, sessions_pb2.OpenSessionResponse)
    return float(response.session.idle_timeout_seconds)


@pytest.mark.parametrize(("stated", "default"), [(0.0, 20.0), (5.0, 5.0), (90.0, 20.0)])
def test_the_contract_says_how_long_sessions_idle(tmp_path: Path, stated: float, default: float) -> None:
    """Those whose client asks for nothing, on a stream and off it; the server's is the most, whoever asks."""
    contract = family("history").contract()
    contract.idle_timeout_seconds = stated
    write_model(tmp_path, "history", model=family("history").model(contract))

    async def check() -> None:
        config = configure(tmp_path, session={"idle_timeout_seconds": 20.0, "max_idle_timeout_seconds": 20.0})
        async with serve(config) as running, running.stream() as stream:
            assert await _idle(running, 0.0) == default
            assert await _idle(running, 7.0) == 7.0
            assert (await stream.open("history")).idle_timeout_seconds == default
            request = sessions_pb2.OpenSessionRequest(model="history", idle_timeout_seconds=21.0)
            refusal = await running.refusal("SessionService/OpenSession", request, sessions_pb2.OpenSessionResponse)
            assert refusal.reason == errors_pb2.ERROR_REASON_OUT_OF_RANGE

    asyncio.run(check())


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_an_idle_time_that_is_none(seconds: float) -> None:
    """A contract with one is refused."""
    contract = family("history").contract()
    contract.idle_timeout_seconds = seconds
    with pytest.raises(ModelError, match="idle_timeout_seconds"):
        read_contract(family("history").model(contract))


def test_many_rows_and_steps_over_the_wire(tmp_path: Path) -> None:
    """More rows than working slots and more steps than a slice, of a graph that takes one step of one row."""
    write_model(tmp_path, "history-one-row")
    model = family("history-one-row")
    generator = np.random.default_rng(2)
    inputs = [generator.integers(0, 9, (8, 15)) for _ in range(3)]

    async def check() -> None:
        # Ticks of next to no time: every chunk is sliced to steps.
        config = configure(tmp_path, model={"max_rows": 8, "max_tick_seconds": 1e-9, "max_slots": 24})
        async with serve(config) as running, running.stream() as stream:
            handles = [await stream.handles(model.name, 8) for _ in inputs]
            steps = [stream.step(model, mine, [0] * 8, values) for mine, values in zip(handles, inputs, strict=True)]
            for values, result in zip(inputs, await asyncio.gather(*steps), strict=True):
                spelled = [[int("".join(map(str, row[: end + 1]))) for end in range(15)] for row in values.tolist()]
                assert array(result.outputs[0]).tolist() == spelled

    asyncio.run(check())
