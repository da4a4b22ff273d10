"""Verification: what passes, what fails, and how a failure names its element."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from eddy.training.__main__ import main
from eddy.training.checkpoint import load_checkpoint
from eddy.training.comparison import compare
from eddy.training.contract import attach_contract, read_contract
from eddy.training.errors import ContractError, VerificationError
from eddy.training.export import describe, export_graphs, write_benchmark_model
from eddy.training.verify import BATCHES, CHUNK_STEPS, verify
from eddy.v1 import contract_pb2 as pb


@pytest.fixture
def exported(text_checkpoint: Path, tmp_path: Path) -> Path:
    """The tiny character model's step graph, not yet verified."""
    source = load_checkpoint(text_checkpoint)
    path = tmp_path / "model.onnx"
    export_graphs(source.build(), tmp_path, describe(source))
    return path


def perturb(path: Path, name: str, by: float) -> None:
    """Add `by` to the first element of an initializer."""
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name == name)
    value = numpy_helper.to_array(tensor).copy()
    value.flat[0] += by
    tensor.CopyFrom(numpy_helper.from_array(value, name))
    onnx.save(model, path)


def write_cell(path: Path, nodes: list[onnx.NodeProto]) -> None:
    """A float model x [B, T, 2], s [B, 2] -> y [B, T, 2], s_next [B, 2] from the given nodes, with its contract."""

    def port(name: str, *axes: str | int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, axes)

    ones = [helper.make_tensor("one", TensorProto.INT64, [1], [1])]
    ends = [port("x", "B", "T", 2), port("s", "B", 2)], [port("y", "B", "T", 2), port("s_next", "B", 2)]
    model = helper.make_model(
        helper.make_graph(nodes, "step", *ends, ones), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.checker.check_model(model)
    contract = pb.ModelContract(schema_version=1, name="cell", task=pb.TASK_OTHER)
    for ports, name in ((contract.inputs, "x"), (contract.outputs, "y")):
        ports.add(name=name, dtype=pb.DATA_TYPE_FLOAT32, shape=[2])
    state = contract.states.add(name="s", next_name="s_next", dtype=pb.DATA_TYPE_FLOAT32, shape=[2])
    state.initial.data = np.array([0.5, -0.5], "<f4").tobytes()
    contract.streaming.streamable = True
    attach_contract(model, contract)
    onnx.save(model, path)


def test_verdict_is_written_into_the_contract(exported: Path, text_checkpoint: Path) -> None:
    """Bitwise, parity, the schedule, the runtime and the processor; the rest of the contract stays."""
    before = read_contract(exported)
    report = verify(exported, text_checkpoint)
    after = read_contract(exported)
    assert report.bitwise
    assert report.parity is not None
    assert after.numerics.bitwise
    assert after.numerics.parity_max_difference == report.parity.largest
    assert (tuple(after.numerics.batches), tuple(after.numerics.chunk_steps)) == (BATCHES, CHUNK_STEPS)
    assert after.numerics.runtime
    assert after.numerics.cpu
    after.ClearField("numerics")
    before.ClearField("numerics")
    assert after == before


def test_parity_measured_earlier_stays(exported: Path, text_checkpoint: Path) -> None:
    """Verifying again without a checkpoint keeps what PyTorch's comparison found."""
    verify(exported, text_checkpoint)
    parity = read_contract(exported).numerics.parity_max_difference
    assert verify(exported).parity is None
    assert read_contract(exported).numerics.parity_max_difference == parity > 0


@pytest.mark.parametrize("weight", ["R_0", "embedding", "head_bias"])
def test_a_changed_weight_is_found_and_its_worst_element_named(
    exported: Path, text_checkpoint: Path, weight: str
) -> None:
    """One element of one weight moved by 0.01: an error that names tensor, index and both values; file untouched."""
    perturb(exported, weight, 0.01)
    before = exported.read_bytes()
    with pytest.raises(
        VerificationError, match=r"PyTorch .*: \w+\[\d+, \d+, \d+\] is \S+, expected \S+ \(PyTorch, batch"
    ):
        verify(exported, text_checkpoint)
    assert exported.read_bytes() == before


def test_the_command_fails_with_exit_code_1(
    exported: Path, text_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`verify` prints the worst element on standard error and exits 1; on a sound file it exits 0."""
    assert main(["verify", str(exported), "--checkpoint", str(text_checkpoint)]) == 0
    assert "bitwise over" in capsys.readouterr().out
    perturb(exported, "W_0", 0.01)
    assert main(["verify", str(exported), "--checkpoint", str(text_checkpoint)]) == 1
    error = capsys.readouterr().err
    assert "VerificationError" in error
    assert "expected" in error


def test_a_model_that_mixes_its_rows_is_found(tmp_path: Path) -> None:
    """Subtracting the batch's mean makes a row depend on its neighbours: no checkpoint is needed to see it."""
    path = tmp_path / "model.onnx"
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["y"]),
        helper.make_node("Identity", ["s"], ["s_next"]),
    ]
    write_cell(path, nodes)
    with pytest.raises(VerificationError, match=r"the same model run whole .*: y\[\d+, \d+, \d\] is"):
        verify(path)


def test_a_model_that_restarts_at_every_call_is_found(tmp_path: Path) -> None:
    """A sum over the call's own steps depends on how the stream was cut."""
    path = tmp_path / "model.onnx"
    nodes = [
        helper.make_node("Squeeze", ["one"], ["axis"]),
        helper.make_node("CumSum", ["x", "axis"], ["y"]),
        helper.make_node("Identity", ["s"], ["s_next"]),
    ]
    write_cell(path, nodes)
    with pytest.raises(VerificationError, match=r"the same model run whole .*: y\[\d+, \d+, \d\] is"):
        verify(path)


def test_agreement_within_rounding_is_a_tolerance(tmp_path: Path) -> None:
    """A running sum whose order of additions follows the cut agrees closely, not bit for bit."""
    path = tmp_path / "model.onnx"
    nodes = [
        helper.make_node("Squeeze", ["one"], ["axis"]),
        helper.make_node("CumSum", ["x", "axis"], ["sums"]),
        helper.make_node("Unsqueeze", ["s", "one"], ["start"]),
        helper.make_node("Add", ["sums", "start"], ["y"]),
        helper.make_node("ReduceSum", ["x", "one"], ["total"], keepdims=0),
        helper.make_node("Add", ["s", "total"], ["s_next"]),
    ]
    write_cell(path, nodes)
    report = verify(path)
    numerics = read_contract(path).numerics
    assert not report.bitwise
    assert not numerics.bitwise
    assert 0 < numerics.tolerance == report.tolerance < 1e-4
    with pytest.raises(VerificationError, match="by more than 1e-12"):
        verify(path, limit=1e-12)


def test_bare_models_verify_without_torch(tmp_path: Path) -> None:
    """In a process where importing torch fails, a model without a checkpoint still gets its verdict."""
    path = tmp_path / "model.onnx"
    write_benchmark_model(path, features=2, hidden=4, outputs=2)
    code = (
        "import sys; sys.modules['torch'] = None\nfrom eddy.training.__main__ import main\nsys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(  # noqa: S603  # this interpreter on the line above
        [sys.executable, "-c", code, "verify", str(path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert read_contract(path).numerics.bitwise


def test_worst_element_by_hand() -> None:
    """Differences count relative to the value or the tensor's root mean square, whichever is larger, and above 1."""
    expected = {"y": np.array([[7.0, 1.0]]), "s": np.array([0.0])}
    found = compare({"y": np.array([[7.5, 1.5]]), "s": np.array([0.05])}, expected, "a run")
    assert (found.worst.tensor, found.worst.index) == ("y", (0, 1))
    assert found.worst.relative == pytest.approx(0.1)
    assert found.largest == 0.5
    assert str(found.worst).startswith("y[0, 1] is 1.5, expected 1.0")
    found = compare({"y": np.array([[14.0, 1.0]]), "s": np.array([0.05])}, expected, "a run")
    assert (found.worst.index, found.worst.relative) == ((0, 0), 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("side", ["found", "expected", "both"])
def test_what_is_not_finite_is_infinitely_far(bad: float, side: str) -> None:
    """A NaN or an infinity on either side is worse than any number, and does not hide behind itself."""
    found, expected = np.array([[bad, 9.0]]), np.array([[bad, 0.5]])
    if side != "both":
        (expected if side == "found" else found)[0, 0] = 7.0
    worst = compare({"y": found}, {"y": expected}, "a run").worst
    assert (worst.index, worst.relative) == ((0, 0), np.inf)


def test_wrong_shapes_are_named() -> None:
    """A shape or dtype that differs is an error of its own."""
    with pytest.raises(VerificationError, match=r"y: got float32 \[2\], expected float64 \[3\]"):
        compare({"y": np.zeros(2, np.float32)}, {"y": np.zeros(3)}, "a run")


def test_models_that_cannot_be_driven_are_refused(tmp_path: Path) -> None:
    """Not streamable, a port or a file that is not there: all said plainly; so is a file that is no model."""
    path = tmp_path / "model.onnx"
    contract = write_benchmark_model(path, features=2, hidden=3, outputs=1)
    model = onnx.load(path)
    for change, message in (
        (pb.ModelContract(ports=pb.Ports(emitted="count")), "graph output 'count' is in the contract but not"),
        (pb.ModelContract(ports=pb.Ports(length="steps")), "graph input 'steps' is in the contract but not"),
        (pb.ModelContract(graphs=pb.Graphs(prime="prime.onnx")), "prime.onnx: ONNX Runtime refuses it"),
        (pb.ModelContract(graphs=pb.Graphs(whole="whole.onnx")), "whole.onnx: ONNX Runtime refuses it"),
    ):
        changed = pb.ModelContract()
        changed.CopyFrom(contract)
        changed.MergeFrom(change)
        attach_contract(model, changed)
        onnx.save(model, path)
        with pytest.raises(ContractError, match=message):
            verify(path)
    contract.streaming.streamable = False
    contract.streaming.reason = "bidirectional"
    attach_contract(model, contract)
    onnx.save(model, path)
    with pytest.raises(ContractError, match=r"not streamable \(bidirectional\)"):
        verify(path)
    path.write_bytes(b"not a model")
    with pytest.raises(ContractError, match="not readable as an ONNX model"):
        verify(path)
