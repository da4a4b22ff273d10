"""The benchmarks measure what they say: ceilings do the engine's work, and every way to write int8 is an LSTM."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.__main__ import main as measure
from benchmarks.bare import BareModel
from benchmarks.families import SPECS, main
from benchmarks.figure import DEFINITIONS
from benchmarks.int8 import Stepper
from benchmarks.message import StepMessage, open_message, reply_sizes
from benchmarks.models import build_model, model_path
from benchmarks.quantized import FLOAT32, VARIANTS
from benchmarks.shape import Shape
from benchmarks.stores import main as measure_stores
from benchmarks.values import draw_inputs
from eddy.service.arena import NUM_RESERVED_SLOTS
from eddy.service.contract import read_contract
from eddy.service.engine import Engine
from eddy.v1 import inference_pb2

ROWS = 9


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The measured models of all families."""
    root = tmp_path_factory.mktemp("families")
    assert main([str(root), *SPECS]) == 0
    return root


def test_every_family_has_a_figure() -> None:
    """What can be written is what is measured."""
    sizes = {"packed_128", "packed_512"}
    assert {f"packed_{name}" for name in SPECS} == {name for name in DEFINITIONS if name.startswith("packed_")} - sizes


@pytest.mark.parametrize("name", SPECS)
def test_ceiling_and_engine_do_the_same_work(name: str, repository: Path) -> None:
    """From the same beginnings, primed or within a block, bare graph and engine give the same bits, step after step."""
    model = BareModel(model_path(repository, name))
    contract = model.contract
    engine = Engine(model.graphs, contract, num_slots=ROWS)
    slots = np.arange(ROWS) + NUM_RESERVED_SLOTS
    bare = model.begin(ROWS)
    engine.write_states(slots, [bare[state.name] for state in contract.states])
    step = model.steps_from(bare, ROWS)
    feeds = contract.feed(tuple(values.tobytes() for values in draw_inputs(contract, ROWS)), ROWS, 1)
    for _ in range(3):
        step()
        engine.run(feeds, slots, slots, ROWS, 1, slots)
    for state, values in zip(contract.states, engine.read_states(slots), strict=True):
        assert values.tobytes() == bare[state.name].tobytes(), state.name


@pytest.mark.parametrize("name", ["lstm", "bidirectional", "translation"])
def test_messages_are_those_of_the_wire(name: str, repository: Path) -> None:
    """A step message parses, its positions rise from where the sessions are; sources come with the opening."""
    contract = BareModel(model_path(repository, name)).contract
    opening = open_message(contract, ROWS)
    assert opening.count == ROWS
    assert bool(opening.prime.inputs) == contract.is_primed
    message = StepMessage(contract, np.arange(ROWS, dtype=np.uint64), np.arange(ROWS) + 5)
    for number in range(2):
        request = inference_pb2.StreamRequest.FromString(message.next())
        assert np.frombuffer(request.step.positions, "<u8").tolist() == [5 + number + row for row in range(ROWS)]
    # Without and with durable positions.
    assert len(reply_sizes(contract, ROWS)) > 2 if contract.emits else len(reply_sizes(contract, ROWS)) == 2


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_every_way_to_write_eight_bits_is_the_same_lstm(variant: object) -> None:
    """Over some steps each variant stays near the float32 LSTM, and all but that one differ from it."""
    shape = Shape("small", features=6, hidden=32, layers=2)
    model = build_model(shape)
    contract = read_contract(model)
    values = np.random.default_rng(0).standard_normal((12, 4, 1, shape.features)).astype(np.float32)
    found = []
    for each in (FLOAT32, variant):
        stepper = Stepper(each.rewrite(model), contract)  # type: ignore[attr-defined]
        states = stepper.begin(4)
        found.append(np.stack([stepper.step(step, states) for step in values]))
    difference = float(np.abs(found[0] - found[1]).max())
    # Four bits a weight are the coarsest.
    assert difference < 0.1
    assert (difference == 0) == (variant is FLOAT32)


@pytest.mark.parametrize(
    "name", ["latency_excess_us", "singles_cpu_ratio", "coalescing_gain", "checkpoint_cost", "idle_session_bytes"]
)
def test_a_figure_can_be_measured(name: str, tmp_path: Path) -> None:
    """Servers, echoes and load generator understand each other; what the figure is says nothing here."""
    found = tmp_path / "figures.json"
    assert measure(["--quick", "--repetitions", "1", "--only", name, "--json", str(found)]) == 0
    assert list(json.loads(found.read_text())["figures"]) == [name]


def test_stores_can_be_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every step of it."""
    measure_stores([f"sqlite:{tmp_path}/state.db", "--sessions", "20", "--repetitions", "1"])
    assert "decode one" in capsys.readouterr().out
