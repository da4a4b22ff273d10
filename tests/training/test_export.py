"""Export: the step graph against PyTorch, its contract, and the properties that serving relies on."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from eddy.training.__main__ import main
from eddy.training.builder import check_structure
from eddy.training.checkpoint import load_checkpoint
from eddy.training.contract import METADATA_KEY, read_contract, write_contract
from eddy.training.drawing import draw_inputs
from eddy.training.errors import ContractError, ExportError
from eddy.training.export import (
    draw_model,
    export_checkpoint,
    export_graphs,
    write_benchmark_model,
    write_example,
)
from eddy.training.families.recurrent.graph import build_step_graph
from eddy.training.families.recurrent.model import RecurrentModel
from eddy.training.families.recurrent.spec import RecurrentSpec
from eddy.training.families.registry import build_contract
from eddy.training.probe import probe
from eddy.training.runtime import Runtime
from eddy.training.spec import CELLS, FeatureInput, Head, Input, LinearHead, QuantileHead, TokenHead, TokenInput
from eddy.v1 import contract_pb2 as pb

# The parity law's bound; the values here are of size 1 to 30.
PARITY = 1e-5

TOKENS = TokenInput(vocabulary_size=13, embedding=5), TokenHead(vocabulary_size=13)
VALUES = (
    FeatureInput(mean=(3.0, 20.0, -1.0), scale=(2.0, 8.0, 0.5)),
    QuantileHead(horizons=(1, 4), quantiles=(0.05, 0.25, 0.5, 0.75, 0.95), target=1),
)
ONE_VALUE = FeatureInput(mean=(3.0,), scale=(2.0,)), QuantileHead(horizons=(1,), quantiles=(0.5,))


def plain_model(cell: str) -> RecurrentModel:
    """A model of one layer over two plain features, untrained."""
    model = draw_model(RecurrentSpec(cell, 1, 3, FeatureInput((0.0, 0.0), (1.0, 1.0), name="x"), (LinearHead(1),)))
    assert isinstance(model, RecurrentModel)
    return model


@pytest.mark.parametrize("ports", [TOKENS, VALUES, ONE_VALUE], ids=["tokens", "values", "median"])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_exported_graph_equals_torch(cell: str, layers: int, ports: tuple[Input, Head], tmp_path: Path) -> None:
    """Outputs and next states agree from states that are not zero, at two batch sizes and lengths."""
    torch.manual_seed(5)
    model = RecurrentModel(RecurrentSpec(cell, layers, 9, ports[0], (ports[1],))).eval()
    contract = build_contract(model, "m")
    path = tmp_path / "model.onnx"
    export_graphs(model, tmp_path, contract)
    runtime = Runtime(path, contract)
    for batch, steps in ((2, 1), (4, 7)):
        x = draw_inputs(contract, batch, 2 * steps)
        with torch.no_grad():
            inputs = torch.from_numpy(x[model.spec.input.name])
            _, state = model(inputs[:, :steps], model.initial_state(batch))
            outputs, final = model(inputs[:, steps:], state)
        found, y = runtime.run(x, steps), outputs[model.spec.head.name].numpy()
        assert np.abs(found[model.spec.head.name][:, steps:] - y).max() <= PARITY
        for name, value in zip(model.spec.state_names, final, strict=True):
            assert np.abs(found[f"{name}_next"] - value.numpy()).max() <= PARITY


def test_one_file_holds_graph_and_contract(text_checkpoint: Path, tmp_path: Path) -> None:
    """The exported folder: the model with everything inside, its card and a sample; no leftovers."""
    export_checkpoint(text_checkpoint, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "model.onnx", "sample.txt"]
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    assert [entry.key for entry in model.metadata_props] == [METADATA_KEY]
    assert not any(tensor.data_location == TensorProto.EXTERNAL for tensor in model.graph.initializer)
    assert "## What it writes\n" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert '"schema_version": 1' in model.metadata_props[0].value


def test_export_says_whose_sessions_it_adopts(text_checkpoint: Path, tmp_path: Path) -> None:
    """`--adopts` is in the contract, version by version; without it, nobody is adopted."""
    for adopts, wanted in ((["--adopts", " 1,3 ,"], ["1", "3"]), (["--adopts", "*"], ["*"]), ([], [])):
        assert main(["export", str(text_checkpoint), "--output", str(tmp_path), *adopts]) == 0
        assert list(read_contract(tmp_path / "model.onnx").adopts) == wanted


def test_text_contract_says_everything(text_checkpoint: Path, tmp_path: Path) -> None:
    """Task, ports with their ranges, states, vocabulary, training and numerics of a token model."""
    export_checkpoint(text_checkpoint, tmp_path)
    contract = read_contract(tmp_path / "model.onnx")
    size = len(load_checkpoint(text_checkpoint).symbols)
    assert (contract.name, contract.family, contract.task) == ("tiny-text", "lstm", pb.TASK_NEXT_TOKEN)
    (tokens,), (logits,) = contract.inputs, contract.outputs
    assert (tokens.name, tokens.dtype, list(tokens.shape)) == ("tokens", pb.DATA_TYPE_INT64, [])
    assert (tokens.range.minimum, tokens.range.maximum) == (0, size - 1)
    assert (logits.name, logits.dtype, list(logits.shape)) == ("logits", pb.DATA_TYPE_FLOAT32, [size])
    assert [(s.name, s.next_name, list(s.shape)) for s in contract.states] == [
        ("h", "h_next", [1, 12]),
        ("c", "c_next", [1, 12]),
    ]
    assert all(s.initial.WhichOneof("kind") == "constant" and s.initial.constant == 0 for s in contract.states)
    assert (contract.graphs.step, contract.streaming.streamable) == ("model.onnx", True)
    assert len(contract.vocabulary.symbols) == size
    assert (contract.vocabulary.unknown_id, contract.vocabulary.unit) == (0, "character")
    assert contract.training.seed == 1
    assert "bits_per_character" in {figure.name for figure in contract.training.figures}
    assert contract.numerics.bitwise
    assert 0 < contract.numerics.parity_max_difference <= PARITY
    assert contract.numerics.runtime.startswith("onnxruntime ")


def test_series_contract_says_everything(series_checkpoint: Path, tmp_path: Path) -> None:
    """Units, scaling inside the graph and the names along the axes of a forecaster."""
    export_checkpoint(series_checkpoint, tmp_path)
    contract = read_contract(tmp_path / "model.onnx")
    assert (contract.task, contract.family) == (pb.TASK_FORECAST, "gru")
    (values,), (quantiles,) = contract.inputs, contract.outputs
    assert (values.name, list(values.shape), values.unit) == ("values", [2], "m")
    assert values.normalization.inside_graph
    assert len(values.normalization.mean) == len(values.normalization.scale) == 2
    assert (quantiles.name, list(quantiles.shape), quantiles.unit) == ("quantiles", [2, 3], "m")
    assert [(axis.name, list(axis.labels)) for axis in quantiles.axes] == [
        ("horizons", ["1", "6"]),
        ("quantiles", ["0.1", "0.5", "0.9"]),
    ]
    assert not contract.HasField("vocabulary")
    card = (tmp_path / "README.md").read_text()
    assert "| 6 | " in card
    assert "licence CC0-1.0" in card
    assert (tmp_path / "sample.csv").read_text().startswith("phase,level\n")


def test_benchmark_models_have_plain_ports(tmp_path: Path) -> None:
    """Input x, output y, task other, and weights that depend on the seed alone."""
    path = tmp_path / "deep" / "model.onnx"
    contract = write_benchmark_model(path, features=4, hidden=6, layers=2, outputs=3)
    assert (contract.name, contract.task) == ("lstm-6x2", pb.TASK_OTHER)
    assert ([p.name for p in contract.inputs], [p.name for p in contract.outputs]) == (["x"], ["y"])
    assert [list(s.shape) for s in read_contract(path).states] == [[2, 6], [2, 6]]
    first = path.read_bytes()
    write_benchmark_model(path, features=4, hidden=6, layers=2, outputs=3)
    assert path.read_bytes() == first
    write_benchmark_model(path, features=4, hidden=6, layers=2, outputs=3, seed=1)
    assert path.read_bytes() != first


def test_recurrent_weights_must_be_initializers() -> None:
    """A weight that comes out of a node is refused by its role and name."""
    graph = build_step_graph(plain_model("gru"))
    node = next(n for n in graph.graph.node if n.op_type == "GRU")
    graph.graph.node.insert(0, helper.make_node("Identity", [node.input[2]], ["moved"]))
    node.input[2] = "moved"
    with pytest.raises(ExportError, match="GRU_0: R is 'moved', expected an initializer"):
        check_structure(graph)


def test_batch_first_recurrent_nodes_are_refused() -> None:
    """`layout` 1 has no CPU kernel in ONNX Runtime."""
    graph = build_step_graph(plain_model("lstm"))
    node = next(n for n in graph.graph.node if n.op_type == "LSTM")
    node.attribute.append(helper.make_attribute("layout", 1))
    with pytest.raises(ExportError, match="LSTM_0: layout is 1, expected 0"):
        check_structure(graph)


def test_a_fixed_batch_axis_is_refused() -> None:
    """A declared batch size that is a number is refused by the port's name."""
    graph = build_step_graph(plain_model("lstm"))
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    with pytest.raises(ExportError, match="'x': the first axis is fixed"):
        check_structure(graph)


def test_probe_finds_shapes_that_the_contract_does_not_have(tmp_path: Path) -> None:
    """A contract that promises another width is found by running the graph."""
    path = tmp_path / "model.onnx"
    contract = write_benchmark_model(path, features=2, hidden=3, outputs=4)
    contract.outputs[0].shape[0] = 5
    write_contract(path, contract)
    with pytest.raises(ExportError, match=r"'y': shape is \(2, 3, 4\) at B=2, T=3, expected \(2, 3, 5\)"):
        probe(path)


def test_probe_finds_a_baked_in_length(tmp_path: Path) -> None:
    """A graph that declares a dynamic length but reshapes to a fixed one does not pass."""
    path = tmp_path / "model.onnx"
    write_benchmark_model(path, features=2, hidden=3, outputs=4)
    model = onnx.load(path)
    turn = next(node for node in model.graph.node if node.output[0] == "y")
    turn.output[0] = "free"
    model.graph.initializer.append(helper.make_tensor("fixed", TensorProto.INT64, [3], [-1, 3, 4]))
    model.graph.node.append(helper.make_node("Reshape", ["free", "fixed"], ["y"]))
    onnx.save(model, path)
    with pytest.raises(ExportError, match=r"B=3, T=5"):
        probe(path)


def test_contracts_that_are_missing_broken_or_untrue_are_refused(tmp_path: Path) -> None:
    """No entry, not JSON, an unknown field, another schema, a port that the graph lacks, not an ONNX file."""
    path = tmp_path / "model.onnx"
    contract = write_benchmark_model(path, features=2, hidden=3, outputs=4)
    model = onnx.load(path)
    entry = model.metadata_props[0]
    good = entry.value
    for text, message in (
        ("{", "is not a contract"),
        ('{"schema_version": 1, "colour": 3}', 'no field named "colour"'),
        ('{"schema_version": 2}', "schema_version is 2, expected 1"),
        (good.replace('"h_next"', '"h_after"'), r"graph output 'h_after' is in the contract but not in the graph"),
    ):
        entry.value = text
        onnx.save(model, path)
        with pytest.raises(ContractError, match=message):
            read_contract(path)
    entry.key = "author"
    onnx.save(model, path)
    with pytest.raises(ContractError, match=f"no metadata entry '{METADATA_KEY}'"):
        read_contract(path)
    write_contract_back = path.with_name("cut.onnx")
    write_contract_back.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ContractError, match="not readable as an ONNX model"):
        write_contract(write_contract_back, contract)


def test_examples_come_at_the_width_that_is_asked_for(tmp_path: Path) -> None:
    """A benchmark's models are the tests' in another size; without proof the contract has no verdict."""
    contract = write_example("conv1d-gru", tmp_path, hidden=20, is_verified=False)
    assert {state.name: list(state.shape) for state in contract.states} == {
        "h": [1, 20],
        "conv_0": [2, 3],
        "conv_1": [4, 8],
    }
    assert not contract.HasField("numerics")
