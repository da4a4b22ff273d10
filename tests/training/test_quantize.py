"""Quantisation: 8-bit recurrent weights that keep every law, for each family that has layers to rewrite."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from eddy.service.arena import NUM_RESERVED_SLOTS
from eddy.service.contract import read_contract as read_served_contract
from eddy.service.engine import Engine
from eddy.service.graph import ModelGraphs
from eddy.training.contract import read_contract, write_contract
from eddy.training.errors import ExportError
from eddy.training.export import write_example
from eddy.training.quantize import quantize_model

# Every recurrent operator, with an input that is bounded and one that is not, and what may lie around them.
VARIANTS = (
    "lstm-2-layers",
    "lstm-4-layers-residual",
    "gru",
    "rnn-tanh",
    "lstm-learned-state",
    "conv1d-attention-gru",
    "conv2d-lstm",
    "translation-gru",
)
# Hidden states in steps of 1/127, over 64 steps of an untrained model.
CLOSE = 0.05


@pytest.mark.parametrize("name", VARIANTS)
def test_every_law_holds_bit_for_bit_and_the_result_is_close(name: str, tmp_path: Path) -> None:
    """Batches, chunks and neighbours change no bit; the result is near the float32 model's, and says how near."""
    write_example(name, tmp_path / "float32", is_verified=False)
    report = quantize_model(tmp_path / "float32" / "model.onnx", tmp_path / "int8")
    contract = read_contract(tmp_path / "int8" / "model.onnx")
    assert report.bitwise and contract.numerics.bitwise
    difference, *speeds = contract.training.figures
    assert [figure.name for figure in speeds] == ["speedup_1", "speedup_16", "speedup_256"]
    assert difference.name == "float32_largest_difference"
    assert 0 < difference.value < CLOSE
    assert (contract.name, contract.precision) == (f"{name}-int8", "int8")
    assert contract.description.endswith(", int8")
    with pytest.raises(ExportError, match="precision: got int8, expected a model in float32"):
        quantize_model(tmp_path / "int8" / "model.onnx", tmp_path / "again")


def test_weights_take_a_quarter(tmp_path: Path) -> None:
    """Of a model that is mostly recurrent weights, about a quarter of the bytes are left; other graphs stay."""
    write_example("translation-lstm", tmp_path / "float32", hidden=256, is_verified=False)
    quantize_model(tmp_path / "float32" / "model.onnx", tmp_path / "int8")
    sizes = [(tmp_path / kind / "model.onnx").stat().st_size for kind in ("float32", "int8")]
    assert sizes[1] < 0.5 * sizes[0]
    prime = [(tmp_path / kind / "prime.onnx").read_bytes() for kind in ("float32", "int8")]
    assert prime[0] == prime[1]


def test_the_service_serves_it_and_strangers_change_no_bit(tmp_path: Path) -> None:
    """In the engine, among sessions of inputs eight times as large, a session's outputs are the same bits as alone."""
    write_example("gru-4-layers-residual", tmp_path / "float32", hidden=32, is_verified=False)
    quantize_model(tmp_path / "float32" / "model.onnx", tmp_path / "int8")
    model = onnx.load(tmp_path / "int8" / "model.onnx")
    contract = read_served_contract(model)
    engine = Engine(ModelGraphs(model), contract, num_slots=16)
    generator = np.random.default_rng(1)
    values = generator.standard_normal((16, 5, *contract.inputs[0].shape)).astype(np.float32)
    values[1:] *= 8
    found = []
    for rows in (1, 16):
        slots = np.arange(rows) + NUM_RESERVED_SLOTS
        engine.begin(slots)
        steps = [
            engine.run([np.ascontiguousarray(values[:rows, step]).tobytes()], slots, slots, rows, 1)
            for step in range(5)
        ]
        found.append([outputs[0][: len(outputs[0]) // rows] for outputs in steps])
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["rnn-relu", "bidirectional-lstm"])
def test_what_cannot_be_quantised_is_refused(name: str, tmp_path: Path) -> None:
    """A ReLU's hidden state has no bound, and a bidirectional model's layers lie in a loop: nothing is written."""
    write_example(name, tmp_path / "float32", is_verified=False)
    with pytest.raises(ExportError, match="expected one"):
        quantize_model(tmp_path / "float32" / "model.onnx", tmp_path / "int8")
    assert not (tmp_path / "int8").exists()


def test_a_state_that_begins_beyond_its_bound_is_refused(tmp_path: Path) -> None:
    """A learned initial state above 1 could not be written in the fixed steps."""
    path = tmp_path / "float32" / "model.onnx"
    write_example("rnn-learned-state", tmp_path / "float32", is_verified=False)
    contract = read_contract(path)
    [state] = contract.states
    state.initial.data = np.full(state.shape, 1.5, "<f4").tobytes()
    write_contract(path, contract)
    with pytest.raises(ExportError, match=r"begins with 1\.5"):
        quantize_model(path, tmp_path / "int8")
