"""Reading foreign files: what is damaged, hostile or enormous ends in a reason, and nothing outside is touched."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from eddy.inspection.errors import InspectionError
from eddy.inspection.limits import Limits
from eddy.inspection.reading import read_model

WEIGHTS = np.arange(8, dtype=np.float32).reshape(2, 4)


def _model(
    nodes: list[onnx.NodeProto] | None = None,
    initializers: list[TensorProto] | None = None,
    *,
    inputs: list[onnx.ValueInfoProto] | None = None,
    opset: int = 17,
    domains: tuple[str, ...] = (),
    functions: list[onnx.FunctionProto] | None = None,
) -> onnx.ModelProto:
    """A graph whose output is `x w`, or what `nodes` give as `y`."""
    graph = helper.make_graph(
        nodes or [helper.make_node("MatMul", ["x", "w"], ["y"], "mix")],
        "graph",
        inputs or [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(WEIGHTS, "w")] if initializers is None else initializers,
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    model = helper.make_model(graph, opset_imports=imports, functions=functions or [])
    model.ir_version = 9
    return model


def _write(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def _refusal(path: Path, limits: Limits | None = None) -> str:
    with pytest.raises(InspectionError) as caught:
        read_model(path, limits or Limits())
    return str(caught.value)


# The file itself


def _directory(path: Path) -> None:
    path.mkdir()


def _link_to_endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda path: path.write_bytes(b""), "model.onnx is empty"),
        (lambda path: path.write_bytes(os.urandom(64) + b"\xff" * 64), "not an ONNX file"),
        (lambda path: path.write_bytes(_model().SerializeToString()[:-5]), "not an ONNX file"),
        (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100)), "zip archive, as PyTorch"),
        (lambda path: path.write_bytes(b"\x89HDF\r\n"), "HDF5"),
        (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "Git LFS pointer"),
        (lambda path: path.write_bytes(b"\x08\x07"), "it holds no graph"),
        (_directory, "model.onnx cannot be read: Is a directory"),
        (os.mkfifo, "model.onnx is not a regular file"),
        (_link_to_endless, "model.onnx is not a regular file"),
        (lambda _: None, "model.onnx cannot be read: No such file"),
    ],
    ids=["empty", "garbage", "cut", "zip", "hdf5", "lfs", "no-graph", "folder", "fifo", "device", "missing"],
)
def test_what_is_no_model(make: Callable[[Path], object], complaint: str, tmp_path: Path) -> None:
    """Whatever lies under the name: a reason at once, without waiting."""
    make(tmp_path / "model.onnx")
    assert complaint in _refusal(tmp_path / "model.onnx")


def test_a_file_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    """A sparse file of a terabyte is refused by its size."""
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert "1,099,511,627,776 bytes, expected at most 1,073,741,824" in _refusal(path)


def test_nested_messages(tmp_path: Path) -> None:
    """Graphs within graphs, a hundred thousand deep, do not reach the end of any stack."""
    raw = b""
    for _ in range(20_000):  # A graph's node's attribute's graph.
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            raw = tag + _varint(len(raw)) + raw
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x3a" + _varint(len(raw)) + raw)
    assert "not an ONNX file" in _refusal(path)


def _varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def test_names_that_are_no_text(tmp_path: Path) -> None:
    """Protobuf lets bytes through that are no UTF-8."""
    path = _write(tmp_path, _model())
    path.write_bytes(path.read_bytes().replace(b"MatMul", b"MatM\xffl"))
    assert "model.onnx is corrupt: op_type b'MatM\\xffl' is no text" in _refusal(path)


def test_damaged_bytes(tmp_path: Path) -> None:
    """A shipped model with bytes changed, cut out and put in is read or refused, and nothing else happens."""
    good = (Path(__file__).parents[2] / "models" / "forecast-gru" / "1" / "model.onnx").read_bytes()
    generator, path, num_refused = np.random.default_rng(7), tmp_path / "model.onnx", 0
    for _ in range(400):
        raw = bytearray(good)
        place = int(generator.integers(len(raw)))
        count = int(generator.integers(1, 6))
        raw[place : place + int(generator.integers(count + 1))] = generator.bytes(count)
        path.write_bytes(raw)
        try:
            read_model(path)
        except InspectionError:
            num_refused += 1
    assert num_refused > 100


def test_a_good_file_is_read_as_it_is(tmp_path: Path) -> None:
    """Also through a link; an unknown size that is written as -1 becomes one."""
    model = _model()
    path = tmp_path / "link.onnx"
    path.symlink_to(_write(tmp_path, model))
    assert read_model(path) == model
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    _write(tmp_path, model)
    assert not read_model(path).graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value")


# External data


def _external(location: str, **entries: object) -> onnx.ModelProto:
    model = _model()
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        weight.external_data.add(key=key, value=str(value))
    return model


def test_external_data_comes_inside(tmp_path: Path) -> None:
    """From an offset of a file beside the model, or in a folder below; links within the folder are followed."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "data").write_bytes(bytes(64) + WEIGHTS.tobytes())
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "data")
    for location in ("deep/data", "./deep/data", "link"):
        model = read_model(_write(tmp_path, _external(location, offset=64, length=32)))
        assert (numpy_helper.to_array(model.graph.initializer[0]) == WEIGHTS).all()
        assert not model.graph.initializer[0].external_data


@pytest.mark.parametrize(
    ("location", "entries", "complaint"),
    [
        ("../secret", {}, "expected a path inside of the model's folder"),
        ("below/../../secret", {}, "expected a path inside of the model's folder"),
        ("/etc/passwd", {}, "expected a path inside of the model's folder"),
        ("C:\\secret", {}, "expected a path inside of the model's folder"),
        ("c:secret", {}, "expected a path inside of the model's folder"),
        ("\\\\host\\share", {}, "expected a path inside of the model's folder"),
        ("sec\0ret", {}, "expected a path inside of the model's folder"),
        ("", {}, "expected a path inside of the model's folder"),
        ("out", {}, "is a link out of the model's folder"),
        ("folder-out/secret", {}, "is a link out of the model's folder"),
        ("circle", {}, "cannot be read"),
        ("missing", {}, "cannot be read: No such file"),
        ("folder", {}, "folder cannot be read: Is a directory"),
        ("pipe", {}, "pipe is not a regular file"),
        ("short", {}, "ends at byte 32, short has 31"),
        ("data", {"offset": 1}, "ends at byte 33, data has 32"),
        ("data", {"offset": -1}, "offset '-1', expected a number of bytes"),
        ("data", {"offset": "9" * 30}, "expected a number of bytes"),
        ("data", {"length": 31}, "has the length 31, expected 32"),
        ("data", {"length": 1 << 60}, "has the length 1,152,921,504,606,846,976, expected 32"),
        ("data", {"surprise": 1}, "unknown entry 'surprise'"),
    ],
)
def test_external_data_that_is_refused(
    location: str, entries: dict[str, object], complaint: str, tmp_path: Path
) -> None:
    """Out of the folder by any way, missing, short, no file, numbers beyond it: the initializer and the reason."""
    folder = tmp_path / "model"
    (folder / "folder").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(bytes(32))
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "folder-out").symlink_to(tmp_path)
    (folder / "circle").symlink_to(folder / "circle")
    os.mkfifo(folder / "pipe")
    (folder / "short").write_bytes(bytes(31))
    (folder / "data").write_bytes(bytes(32))
    said = _refusal(_write(folder, _external(location, **entries)))
    assert said.startswith(("initializer 'w'", location))
    assert complaint in said


def test_external_data_in_a_subgraph_is_no_exception(tmp_path: Path) -> None:
    """A tensor of a node within a branch is looked at like any other."""
    constant = helper.make_node("Constant", [], ["z"], "inner", value=_external("../x").graph.initializer[0])
    branch = helper.make_graph([constant], "b", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)])
    nodes = [helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)]
    model = _model(nodes, inputs=[helper.make_tensor_value_info("c", TensorProto.BOOL, [])])
    assert "node 'inner' (Constant): 'value'" in _refusal(_write(tmp_path, model))


def test_external_data_beyond_the_limit(tmp_path: Path) -> None:
    """Many tensors of one file count each: nothing is read that would exceed the limit."""
    (tmp_path / "data").write_bytes(bytes(1 << 20))
    model = _external("data")
    weight = model.graph.initializer[0]
    weight.dims[:] = [1 << 18]
    for number in range(100):
        model.graph.initializer.add().CopyFrom(weight)
        model.graph.initializer[-1].name = f"w{number}"
    said = _refusal(_write(tmp_path, model), Limits(max_file_bytes=10 << 20))
    assert "the model and its external data have more than 10,485,760 bytes" in said


# Tensors


def _tensor(change: Callable[[TensorProto], object]) -> onnx.ModelProto:
    model = _model()
    change(model.graph.initializer[0])
    return model


def _typed(tensor: TensorProto, count: int) -> None:
    tensor.ClearField("raw_data")
    tensor.float_data.extend([0.0] * count)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda tensor: tensor.dims.__setitem__(0, 3), "32 bytes of data, expected 48 for FLOAT [3, 4]"),
        (lambda tensor: tensor.dims.__setitem__(0, -2), "expected no negative size"),
        (lambda tensor: tensor.dims.__setitem__(0, 1 << 62), "expected at most 1,073,741,824 elements"),
        (lambda tensor: tensor.dims.extend([1 << 62] * 40), "expected at most 1,073,741,824 elements"),
        (lambda tensor: tensor.dims.extend([1] * 100), "102 axes"),
        (lambda tensor: setattr(tensor, "data_type", 99), "number 99"),
        (lambda tensor: setattr(tensor, "data_type", TensorProto.DOUBLE), "expected 64 for DOUBLE"),
        (lambda tensor: setattr(tensor, "data_type", TensorProto.STRING), "no fixed size"),
        (lambda tensor: tensor.float_data.append(1.0), "its data twice"),
        (lambda tensor: _typed(tensor, 7), "7 in float_data, expected 8 in float_data"),
        (lambda tensor: tensor.ClearField("raw_data"), "none, expected 8 in float_data"),
        (lambda tensor: tensor.external_data.add(key="location", value="x"), "says that it has none"),
    ],
)
def test_tensors_that_contradict_themselves(
    change: Callable[[TensorProto], object], complaint: str, tmp_path: Path
) -> None:
    """Shape, type and data of a tensor must agree; both numbers are named."""
    said = _refusal(_write(tmp_path, _tensor(change)))
    assert "initializer 'w'" in said
    assert complaint in said


def test_packed_types_are_read(tmp_path: Path) -> None:
    """Two weights of four bits in a byte, raw or as numbers; eight-bit floats."""
    raw = helper.make_tensor("q", TensorProto.INT4, [3], b"\x21\x03", raw=True)
    typed = TensorProto(name="r", data_type=TensorProto.UINT4, dims=[5], int32_data=[1, 2, 3])
    small = helper.make_tensor("s", TensorProto.FLOAT8E4M3FN, [3], bytes(3), raw=True)
    model = _model(initializers=[numpy_helper.from_array(WEIGHTS, "w"), raw, typed, small], opset=21)
    model.ir_version = 10
    assert len(read_model(_write(tmp_path, model)).graph.initializer) == 4


def test_declared_shapes_of_terabytes(tmp_path: Path) -> None:
    """An input that says it has 2**40 values."""
    model = _model(inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 1 << 20, 1 << 20])])
    assert "input 'x' has the shape [1, 1048576, 1048576], expected at most" in _refusal(_write(tmp_path, model))


# The graph


def _node(op: str, inputs: list[str], outputs: list[str], name: str, **options: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs, outputs, name, **options)  # type: ignore[arg-type]


def _sparse() -> onnx.ModelProto:
    model = _model()
    values = numpy_helper.from_array(np.ones(1, np.float32), "thin")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "i")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [8]))
    return model


def _sequence_input() -> onnx.ModelProto:
    port = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, None)
    return _model([_node("SequenceAt", ["x", "i"], ["y"], "at")], inputs=[port])


def _nested(depth: int) -> onnx.ModelProto:
    nodes = [_node("Relu", ["x"], ["y"], "core")]
    for level in range(depth):
        branch = helper.make_graph(
            nodes, f"b{level}", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
        )
        nodes = (
            [helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)]
            if level < 3
            else [helper.make_node("If", ["c"], ["y"], then_branch=branch)]
        )
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B"])]
    return _model(nodes, inputs=[*inputs, helper.make_tensor_value_info("c", TensorProto.BOOL, [])])


def _without_opset() -> onnx.ModelProto:
    model = _model()
    model.ClearField("opset_import")
    return model


def _without_nodes() -> onnx.ModelProto:
    model = _model()
    model.graph.ClearField("node")
    return model


_MATMUL = _node("MatMul", ["x", "w"], ["y"], "mix")
GRAPHS: dict[str, tuple[onnx.ModelProto, str]] = {
    "custom operator": (
        _model([_node("Magic", ["x"], ["y"], "m", domain="my.ops")], domains=("my.ops",)),
        "node 'm' (Magic) is a custom operator of the domain 'my.ops'",
    ),
    "unknown operator": (_model([_node("Magik", ["x"], ["y"], "m")]), "version 17 of ONNX's operators has no 'Magik'"),
    "operator of a later version": (
        _model([_node("Gelu", ["x"], ["y"], "g")]),
        "version 17 of ONNX's operators has no 'Gelu'",
    ),
    "operators of the future": (_model(opset=999), "uses version 999 of ONNX's operators, expected 1 to"),
    "no operator version": (_without_opset(), "no version of ONNX's operators"),
    "domain without version": (
        _model([_node("Gelu", ["x"], ["y"], "g", domain="com.microsoft")]),
        "no version of the operators of 'com.microsoft'",
    ),
    "undefined input": (_model([_node("Relu", ["ghost"], ["y"], "r")]), "node 'r' (Relu) reads 'ghost', which is not"),
    "cycle": (
        _model([_node("Add", ["x", "b"], ["a"], "first"), _node("Relu", ["a"], ["b"], "second"), _MATMUL]),
        "node 'first' (Add) and node 'second' (Relu) need each other: the graph has a cycle",
    ),
    "node that reads itself": (_model([_node("Add", ["x", "y"], ["y"], "own")]), "the graph has a cycle"),
    "nodes out of order": (
        _model([_node("Relu", ["a"], ["y"], "late"), _node("MatMul", ["x", "w"], ["a"], "early")]),
        "node 'late' (Relu) reads 'a' before node 'early' (MatMul) gives it: nodes out of order",
    ),
    "name given twice": (
        _model([_node("Relu", ["x"], ["y"], "one"), _node("Relu", ["x"], ["y"], "two")]),
        "node 'two' (Relu) gives 'y', which is already defined",
    ),
    "weight given anew": (_model([_node("Relu", ["x"], ["w"], "r"), _MATMUL]), "gives 'w', which is already defined"),
    "weights twice": (
        _model(initializers=[numpy_helper.from_array(WEIGHTS, "w")] * 2),
        "initializer 'w' is there twice",
    ),
    "output that nobody gives": (_model([_node("Relu", ["x"], ["z"], "r")]), "output 'y' is given by no node"),
    "sparse weights": (_sparse(), "initializer 'thin' is sparse"),
    "input that is a sequence": (_sequence_input(), "input 'x' is of the kind 'sequence_type', expected a tensor"),
    "too deep": (_nested(20), "graphs are nested more than 16 deep"),
    "no nodes": (_without_nodes(), "the graph has no nodes"),
    "name without end": (_model([_node("Relu", ["x"], ["y" * 5000], "r"), _MATMUL]), "has 5,000 characters"),
    "wrong attribute": (
        _model([_node("Concat", ["x", "w"], ["y"], "c")]),
        "onnx's checker refuses the graph: Required attribute 'axis' is missing",
    ),
}


@pytest.mark.parametrize("case", GRAPHS)
def test_graphs_that_are_refused(case: str, tmp_path: Path) -> None:
    """Each with the node, tensor or version at fault."""
    model, complaint = GRAPHS[case]
    assert complaint in _refusal(_write(tmp_path, model))


def test_too_many(tmp_path: Path) -> None:
    """Nodes and inputs beyond the limits."""
    chain = [_node("Relu", [f"a{i - 1}" if i else "x"], [f"a{i}"], "") for i in range(300)]
    model = _model([*chain, _node("Relu", ["a299"], ["y"], "")])
    path = _write(tmp_path, model)
    assert read_model(path)
    assert "the graph has 301 nodes" in _refusal(path, Limits(max_nodes=300))
    ports = [helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, ["B"]) for i in range(2000)]
    model = _model([_node("Relu", ["x0"], ["y"], "")], inputs=ports)
    assert "the graph has 2,000 inputs, expected at most 1,024" in _refusal(_write(tmp_path, model))


# Functions


def _function(name: str, calls: list[str]) -> onnx.FunctionProto:
    """A function that is one Relu and then `calls` in a row."""
    nodes = [helper.make_node("Relu", ["a"], ["r0"])]
    for number, call in enumerate(calls):
        nodes.append(helper.make_node(call, [f"r{number}"], [f"r{number + 1}"], domain="mine"))
    nodes.append(helper.make_node("Identity", [f"r{len(calls)}"], ["z"]))
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    return helper.make_function("mine", name, ["a"], ["z"], nodes, imports)


def _with_functions(*functions: onnx.FunctionProto) -> onnx.ModelProto:
    node = _node("F0", ["x"], ["y"], "call", domain="mine")
    return _model([node], domains=("mine",), functions=list(functions))


def test_functions_are_put_in_place(tmp_path: Path) -> None:
    """Also those that call others."""
    model = read_model(_write(tmp_path, _with_functions(_function("F0", ["F1", "F1"]), _function("F1", []))))
    assert not model.functions
    assert [node.op_type for node in model.graph.node].count("Relu") == 3


@pytest.mark.parametrize(
    ("functions", "complaint"),
    [
        ([_function("F0", ["F1"]), _function("F1", ["F0"])], "calls itself"),
        ([_function("F0", []), _function("F1", ["F1"])], "function 'F1' calls itself"),
        ([_function("F0", []), _function("F0", [])], "function 'F0' is defined twice"),
        ([*(_function(f"F{i}", [f"F{i + 1}"] * 4) for i in range(20)), _function("F20", [])], "e+12 nodes"),
        ([*(_function(f"F{i}", [f"F{i + 1}"]) for i in range(90)), _function("F90", [])], "more than 32 deep"),
        ([_function("F0", ["F7"])], "custom operator of the domain 'mine'"),
    ],
    ids=["circle", "unused-circle", "twice", "bomb", "deep", "missing"],
)
def test_functions_that_are_refused(functions: list[onnx.FunctionProto], complaint: str, tmp_path: Path) -> None:
    """Functions that stand for themselves or for more nodes than any memory holds are not written out."""
    assert complaint in _refusal(_write(tmp_path, _with_functions(*functions)))
