"""Recurrent layers in int8: the same numbers as torch's, bits that depend on nothing else, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from eddy.training.__main__ import main
from eddy.training.comparison import compare
from eddy.training.contract import attach_contract, load_model, read_contract, write_contract
from eddy.training.drawing import draw_inputs
from eddy.training.errors import ExportError, OptionError, RecipeError, VerificationError
from eddy.training.evaluation import evaluate_model
from eddy.training.export import draw_model, export_checkpoint, export_graphs
from eddy.training.families.family import Tensors
from eddy.training.families.quantised import WEIGHT_LEVELS, Layer
from eddy.training.families.recurrent.family import RECURRENT
from eddy.training.families.recurrent.levels import levels_of
from eddy.training.families.recurrent.model import RecurrentModel
from eddy.training.families.recurrent.parts import Attention, Convolution
from eddy.training.families.recurrent.spec import RecurrentSpec
from eddy.training.families.registry import all_examples, build_contract
from eddy.training.families.shapes import at_precision, spec_from_dict
from eddy.training.recipe import Recipe
from eddy.training.runtime import Runtime
from eddy.training.spec import INT8, FeatureInput, LinearHead, TokenHead, TokenInput
from eddy.training.verify import verify
from eddy.v1 import contract_pb2 as pb

# The parity law's bound; untrained models answer with values of size 1.
PARITY = 1e-5
CELLS = ("rnn_tanh", "gru", "lstm")
INT8_TENSOR = onnx.TensorProto.INT8
VALUES = FeatureInput((0.5, 0.0), (2.0, 1.0))
PARTS: dict[str, dict[str, Any]] = {
    "layers": {"layers": 3},
    "residual": {"layers": 4, "residual": True},
    "learned-state": {"layers": 2, "learned_state": True},
    "around": {"convolutions": (Convolution(6, 3),), "attention": Attention(5)},
}


def draw(spec: RecurrentSpec, seed: int = 0) -> RecurrentModel:
    """An untrained model."""
    model = draw_model(spec, seed)
    assert isinstance(model, RecurrentModel)
    return model


def write(model: RecurrentModel, folder: Path) -> Runtime:
    """The model, exported and loaded."""
    contract = build_contract(model, "m")
    export_graphs(model, folder, contract)
    return Runtime(folder / "model.onnx", contract)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("cell", CELLS)
def test_the_graph_computes_what_torch_does(cell: str, part: str, tmp_path: Path) -> None:
    """Whole and cut, with every part of the family around the layers."""
    model = draw(replace(RecurrentSpec(cell, 1, 40, VALUES, (LinearHead(3),), precision=INT8), **PARTS[part]), 5)
    runtime = write(model, tmp_path)
    given = draw_inputs(runtime.contract, 16, 12)
    expected = RECURRENT.reference(model, given, runtime.trace(given))
    for chunk in (1, 5, 12):
        assert compare(runtime.run(given, chunk), expected, f"chunks of {chunk}").largest <= PARITY


def test_torch_takes_the_level_of_the_graph_where_both_are_right() -> None:
    """A wide model meets values halfway between two levels; without being told, torch goes another way there."""
    levels = torch.tensor([3.4, 3.4996, 3.5004, 3.6, -200.0, 200.0]) / 127
    other = torch.tensor([4.0, 4.0, 3.0, 3.0, 0.0, 0.0]) / 127
    assert levels_of(levels).tolist() == [3, 3, 4, 4, -128, 127]
    assert levels_of(levels, other).tolist() == [3, 4, 3, 4, -128, 127]


@pytest.mark.parametrize("cell", CELLS)
def test_bits_depend_neither_on_batch_nor_on_chunks(cell: str, tmp_path: Path) -> None:
    """A row beside loud strangers, in calls of one step and of all, of a model as wide as is worth it."""
    runtime = write(draw(RecurrentSpec(cell, 2, 256, VALUES, (LinearHead(3),), precision=INT8)), tmp_path)
    given = draw_inputs(runtime.contract, 33, 11)["values"]
    given[1:] *= 50
    expected = runtime.run({"values": given[:2]}, 11)
    for rows, chunk in ((2, 1), (2, 4), (3, 11), (8, 3), (33, 1), (33, 11)):
        found = runtime.run({"values": given[:rows]}, chunk)
        for name, value in expected.items():
            assert found[name][0].tobytes() == value[0].tobytes(), (name, rows, chunk)


def test_weights_are_bytes_that_sixteen_bits_can_add() -> None:
    """int8 inside the file, a quarter of the size, and small enough for processors that add products in pairs."""
    spec = RecurrentSpec("lstm", 2, 64, VALUES, (LinearHead(3),))
    sizes = {}
    for precision in ("float32", INT8):
        graph = RECURRENT.graphs(draw(replace(spec, precision=precision)))["model.onnx"]
        onnx.checker.check_model(graph, full_check=True)
        assert {node.domain for node in graph.graph.node} == {""}, "operators of ONNX itself alone"
        sizes[precision] = len(graph.SerializeToString())
        weights = [onnx.numpy_helper.to_array(t) for t in graph.graph.initializer if t.data_type == INT8_TENSOR]
        assert len(weights) == (3 if precision == INT8 else 0), "of two layers' states, and of the second one's input"
        for weight in weights:
            assert np.abs(weight.astype(int)).max() == WEIGHT_LEVELS
            assert 2 * 255 * np.abs(weight.astype(int)).max() < 2**15
    assert sizes[INT8] < 0.4 * sizes["float32"]


def test_an_input_without_a_bound_stays_float32() -> None:
    """The first layer's, and sums of a residual stack."""
    kinds = {}
    for residual in (False, True):
        spec = RecurrentSpec("gru", 4, 8, VALUES, (LinearHead(3),), residual=residual, precision=INT8)
        graph = RECURRENT.graphs(draw(spec))["model.onnx"].graph
        kinds[residual] = [t.name for t in graph.initializer if t.name.startswith("W_")]
    assert kinds == {False: ["W_0"], True: ["W_0", "W_2", "W_3"]}


def test_what_cannot_be_quantised_is_refused() -> None:
    """A ReLU RNN, a model without recurrent layers, another family, an unknown precision, a learned state too large."""
    examples = all_examples()
    with pytest.raises(RecipeError, match="precision: got 'int8', expected float32 for a ReLU RNN"):
        at_precision(examples["rnn-relu"], INT8)
    with pytest.raises(RecipeError, match="precision: got 'int8', expected float32 for a model without recurrent"):
        at_precision(examples["conv1d"], INT8)
    with pytest.raises(OptionError, match="precision int8: got a bidirectional model, expected a recurrent one"):
        at_precision(examples["bidirectional-lstm"], INT8)
    with pytest.raises(RecipeError, match="precision: got 'int4', expected one of float32, int8"):
        at_precision(examples["lstm"], "int4")
    model = draw(replace(examples["rnn-learned-state"], precision=INT8))
    with torch.no_grad():
        model.get_parameter("initial_h")[0, 0] = -1.5
    with pytest.raises(ExportError, match=r"initial state 'h': got a value of size 1\.5, expected at most 1 in int8"):
        build_contract(model, "m")


def test_specifications_and_contracts_say_the_precision(tmp_path: Path) -> None:
    """Through plain values, and through the file; states that a client may give have the bounds that levels have."""
    spec = all_examples()["lstm-int8"]
    assert spec_from_dict(spec.to_dict()) == spec
    assert spec_from_dict({k: v for k, v in spec.to_dict().items() if k != "precision"}) == at_precision(
        spec, "float32"
    )
    write(draw(spec), tmp_path)
    contract = read_contract(tmp_path / "model.onnx")
    assert contract.precision == INT8
    h, c = contract.states
    assert (h.range.minimum, h.range.maximum) == (-1, 1)
    assert not c.HasField("range")
    assert {state.dtype for state in contract.states} == {pb.DATA_TYPE_FLOAT32}
    write_contract(tmp_path / "model.onnx", contract)
    assert read_contract(tmp_path / "model.onnx") == contract
    assert build_contract(draw(at_precision(spec, "float32")), "m").precision == "float32"


def test_hidden_states_never_leave_their_bounds(tmp_path: Path) -> None:
    """Also where every gate is saturated, so that what a session gives back may be given again."""
    for cell in CELLS:
        folder = tmp_path / cell
        folder.mkdir()
        runtime = write(draw(RecurrentSpec(cell, 1, 16, VALUES, (LinearHead(3),), precision=INT8)), folder)
        given = {"values": 1e4 * draw_inputs(runtime.contract, 16, 20)["values"]}
        h = runtime.trace(given)["h_next"]
        assert 0.999 < np.abs(h).max() <= 1


def test_export_in_int8(text_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One command: proven against torch, measured, with a card that says what it loses and gains; verified again."""
    folder = tmp_path / "tiny-text-int8" / "1"
    assert main(["export", str(text_checkpoint), "--precision", "int8", "--output", str(folder)]) == 0
    said = capsys.readouterr().out
    contract = read_contract(folder / "model.onnx")
    values = {figure.name: figure.value for figure in contract.training.figures}
    assert contract.name == "tiny-text-int8"
    assert contract.description.endswith(", int8")
    assert contract.numerics.bitwise
    assert 0 < contract.numerics.parity_max_difference <= PARITY
    # A tiny model; a shipped one loses far less.
    assert values["bits_per_character"] == pytest.approx(values["float32_bits_per_character"], abs=0.02)
    assert values["bits_per_character"] != values["float32_bits_per_character"]
    assert "bits_per_character_4gram" in values
    assert "float32_bits_per_character_4gram" not in values
    speeds = [values[f"speedup_{rows}"] for rows in (1, 16, 256)]
    assert min(speeds) > 0.05
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith("# tiny-text-int8\n")
    assert f"| bits per character (bit) | {values['float32_bits_per_character']:.4f} | " in card
    assert f"| steps per second over float32's | {' | '.join(f'{speed:.2f}' for speed in speeds)} |" in card
    assert "--output models/tiny-text-int8/1 --precision int8" in card
    assert "speedup_256" in said
    for options in ([], ["--checkpoint", str(text_checkpoint)]):
        assert main(["verify", str(folder / "model.onnx"), *options]) == 0
    again = read_contract(folder / "model.onnx")
    assert again.numerics == contract.numerics


def test_evaluation_keeps_what_compares_with_float32(
    text_checkpoint: Path, text_recipe: Recipe, tmp_path: Path
) -> None:
    """A model file alone cannot measure these again."""
    export_checkpoint(text_checkpoint, tmp_path, precision=INT8)
    path = tmp_path / "model.onnx"
    before = {figure.name: figure.value for figure in read_contract(path).training.figures}
    assert {figure.name: figure.value for figure in evaluate_model(path, text_recipe)} == before


def test_verification_finds_another_rounding(text_checkpoint: Path, tmp_path: Path) -> None:
    """One wrong byte among the weights is a difference from PyTorch, and the file stays as it was."""
    export_checkpoint(text_checkpoint, tmp_path, precision=INT8)
    path = tmp_path / "model.onnx"
    model = load_model(path)
    (weights,) = (t for t in model.graph.initializer if t.data_type == INT8_TENSOR)
    values = onnx.numpy_helper.to_array(weights).copy()
    values[0, 0] += 1 if values[0, 0] < 0 else -1
    weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))
    attach_contract(model, read_contract(path))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(VerificationError, match="differs from PyTorch"):
        verify(path, text_checkpoint)


def test_a_layer_whose_weights_are_all_zero_has_a_scale() -> None:
    """No division by zero; its products are zero."""
    layer = Layer("rnn_tanh", [np.zeros((3, 2)), np.zeros((3, 3)), np.zeros(3), np.zeros(3)], reads_levels=False)
    assert not layer.own.any()
    assert np.isfinite(layer.own_scale).all()
    assert (layer.own_scale > 0).all()


def test_int8_reads_tokens_too(tmp_path: Path) -> None:
    """A language model's embedding stays float32."""
    spec = RecurrentSpec("lstm", 1, 24, TokenInput(11, 6), (TokenHead(11),), precision=INT8)
    model = draw(spec)
    runtime = write(model, tmp_path)
    given: Tensors = draw_inputs(runtime.contract, 5, 9)
    found, expected = runtime.run(given, 4), RECURRENT.reference(model, given, runtime.trace(given))
    assert compare(found, expected, "tokens").largest <= PARITY
