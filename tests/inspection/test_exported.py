"""Files as Keras and torch's newer exporter write them, with hidden states, untouched by hand."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from streams import load, run_cut, run_whole

from eddy.inspection.lift import lift

FOLDER = Path(__file__).parent / "exported"
# How many states are found in each.
FILES = {"keras-lstm": 4, "keras-gru": 3, "keras-simplernn": 3, "torch-dynamo-lstm": 2, "torch-dynamo-gru": 1}
# Two frameworks add in different orders; the values are below 1.
TOLERANCE = 1e-6


def test_every_file_is_tested() -> None:
    """None lies there for nothing."""
    assert {path.stem for path in FOLDER.glob("*.onnx")} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_pieces_answer_as_the_framework(name: str) -> None:
    """Cut with the states carried, bit for bit as the file in one call; the framework's answer within rounding."""
    model, said = onnx.load(FOLDER / f"{name}.onnx"), np.load(FOLDER / f"{name}.npz")
    found = lift(model)
    assert len(found.states) == FILES[name]
    assert not (found.given or found.obstacles)
    [output] = [port.name for port in model.graph.output]
    feeds = {"x": said["x"]}
    outputs, _ = run_cut(found, feeds, "x", [output], cuts=(0, 1, 3, 7))
    np.testing.assert_array_equal(outputs[output], run_whole(model, feeds)[output])
    np.testing.assert_allclose(outputs[output], said["y"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", FILES)
def test_no_shape_arithmetic_is_left(name: str) -> None:
    """What only served to make initial states is gone: the lifted graph loads and has fewer nodes."""
    model = onnx.load(FOLDER / f"{name}.onnx")
    lifted = lift(model).model
    assert len(lifted.graph.node) < len(model.graph.node)
    assert not {"ConstantOfShape", "Expand"} & {node.op_type for node in lifted.graph.node}
    load(lifted)


def test_the_trained_example() -> None:
    """The Keras forecaster among the examples: real readings in pieces give the bits of one call."""
    root = Path(__file__).parents[2]
    model = onnx.load(root / "examples" / "models" / "glucose_lstm.onnx")
    rows = np.loadtxt(root / "models" / "forecast-gru" / "1" / "sample.csv", np.float32, skiprows=1, max_rows=60)
    feeds = {"glucose": rows.reshape(3, 20, 1)}
    found = lift(model)
    assert len(found.states) == 4
    [output] = [port.name for port in model.graph.output]
    outputs, _ = run_cut(found, feeds, "glucose", [output], cuts=(0, 1, 3, 11, 20))
    np.testing.assert_array_equal(outputs[output], run_whole(model, feeds)[output])
