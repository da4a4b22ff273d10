"""The model repository: what does not load is named with its reason, and everything else is served."""

import asyncio
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf import json_format
from graphs import METADATA_KEY, Family, PortSpec, StateSpec, family
from grpc_health.v1 import health_pb2, health_pb2_grpc
from loopback import Loopback, array, configure, serve, write_model
from onnx import helper

from eddy.service.catalog import Catalog
from eddy.service.errors import ClientError, ModelError, Reason
from eddy.service.repository import RepositoryError
from eddy.service.runtime import usable_providers
from eddy.service.sessions import SessionTable
from eddy.v1 import contract_pb2, models_pb2

HISTORY = family("history")


def _catalog(repository: Path) -> Catalog:
    table = SessionTable(100, lambda: 0.0, os.urandom)
    catalog = Catalog(configure(repository), table, lambda *_: None)
    catalog.load()
    return catalog


def _reasons(catalog: Catalog) -> dict[str, str]:
    return {entry.file.name: entry.error.message for entry in catalog if entry.error is not None}


def _with_contract(change: Callable[[contract_pb2.ModelContract], None], base: Family = HISTORY) -> onnx.ModelProto:
    contract = base.contract()
    change(contract)
    return base.model(contract)


def _with_metadata(text: str) -> onnx.ModelProto:
    model = HISTORY.graph()
    helper.set_model_props(model, {METADATA_KEY: text})
    return model


def _with_custom_operator() -> onnx.ModelProto:
    """A graph without a contract that nobody can run."""
    model = HISTORY.graph()
    model.graph.node[0].op_type, model.graph.node[0].domain = "Magic", "my.ops"
    return model


def _set_range(contract: contract_pb2.ModelContract) -> None:
    contract.inputs[0].range.minimum, contract.inputs[0].range.maximum = 5, 3


def _shared_output() -> onnx.ModelProto:
    """One graph output that is the model's output and its next state at once."""
    port = StateSpec("s", "y", np.float32, (2,))
    shared = Family(
        "shared",
        (PortSpec("x", np.float32, (2,)),),
        (PortSpec("y", np.float32, (2,)),),
        (port,),
        (helper.make_node("Add", ["x", "s"], ["y"]),),
    )
    model = helper.make_model(
        helper.make_graph(
            list(shared.body),
            "shared",
            [
                helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["B", "T", 2]),
                helper.make_tensor_value_info("s", onnx.TensorProto.FLOAT, ["B", 2]),
            ],
            [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
    )
    model.ir_version = 9
    helper.set_model_props(model, {METADATA_KEY: json_format.MessageToJson(shared.contract())})
    return model


def _one_step_only() -> onnx.ModelProto:
    """A graph that was traced with one step and bakes it in."""
    baked = Family(
        "baked",
        (PortSpec("x", np.float32, (2,)),),
        (PortSpec("y", np.float32, (2,)),),
        (StateSpec("s", "s_next", np.float32, (2,)),),
        (
            helper.make_node("ReduceSum", ["x", "axis"], ["x_now"], keepdims=0),
            helper.make_node("Add", ["x_now", "s"], ["s_next"]),
            helper.make_node("Unsqueeze", ["s_next", "axis"], ["y"]),
        ),
        (onnx.numpy_helper.from_array(np.array([1]), "axis"),),
    )
    return baked.model()


def _give_both_graphs(contract: contract_pb2.ModelContract) -> None:
    contract.graphs.prime, contract.graphs.whole, contract.max_prime_steps = "prime.onnx", "whole.onnx", 3
    contract.prime_inputs.add(name="source", dtype=contract_pb2.DATA_TYPE_INT64)


_BROKEN: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "no-contract": (_with_custom_operator, "carries no contract, and inspection refuses it: the Magic of"),
    "contract-not-json": (lambda: _with_metadata("{"), "is not readable"),
    "contract-with-unknown-key": (lambda: _with_metadata('{"colour": 1}'), "is not readable"),
    "contract-of-another-type": (lambda: _with_metadata("[1]"), "is not readable"),
    "schema-of-the-future": (
        lambda: _with_contract(lambda c: setattr(c, "schema_version", 2)),
        "schema_version is 2, this server reads 1",
    ),
    "not-streamable": (
        lambda: _with_contract(lambda c: c.streaming.CopyFrom(contract_pb2.Streaming(reason="it looks back"))),
        "not streamable (it looks back), and names no whole graph",
    ),
    "port-that-is-not-there": (
        lambda: _with_contract(lambda c: setattr(c.ports, "flush", "end")),
        "the contract names the step graph's inputs ['end', 'history', 'x'], the graph has ['history', 'x']",
    ),
    "emits-without-end": (
        lambda: _with_contract(lambda c: setattr(c.ports, "emitted", "emitted")),
        "port 'emitted' needs the ports 'flush' and 'length'",
    ),
    "prime-without-inputs": (
        lambda: _with_contract(lambda c: setattr(c.graphs, "prime", "prime.onnx")),
        "a prime graph, its inputs and max_prime_steps together",
    ),
    "prime-and-whole": (
        lambda: _with_contract(_give_both_graphs),
        "names a prime graph and a whole graph",
    ),
    "graph-outside": (
        lambda: _with_contract(lambda c: setattr(c.graphs, "whole", "../whole.onnx")),
        "is not the plain name of a file",
    ),
    "graph-missing": (
        lambda: _with_contract(lambda c: setattr(c.graphs, "whole", "whole.onnx")),
        "whole.onnx cannot be read",
    ),
    "no-states": (
        lambda: _with_contract(lambda c: c.ClearField("states")),
        "names the step graph's inputs ['x'], the graph has ['history', 'x']",
    ),
    "no-outputs": (lambda: _with_contract(lambda c: c.ClearField("outputs")), "at least one input and one output"),
    "other-input-name": (
        lambda: _with_contract(lambda c: setattr(c.inputs[0], "name", "z")),
        "the contract names the step graph's inputs",
    ),
    "other-output-name": (
        lambda: _with_contract(lambda c: setattr(c.outputs[0], "name", "z")),
        "the contract names the step graph's outputs",
    ),
    "other-dtype": (
        lambda: _with_contract(lambda c: setattr(c.inputs[0], "dtype", contract_pb2.DATA_TYPE_FLOAT32)),
        "step graph's input 'x': the contract's dtype float32 is not the graph's",
    ),
    "no-dtype": (lambda: _with_contract(lambda c: setattr(c.inputs[0], "dtype", 0)), "unknown dtype number 0"),
    "other-rank": (lambda: _with_contract(lambda c: c.inputs[0].shape.append(3)), "the contract's rank 3"),
    "other-state-shape": (lambda: _with_contract(lambda c: c.states[0].shape.__setitem__(1, 5), family("lstm")), ""),
    "other-output-shape": (lambda: _with_contract(lambda c: c.outputs[0].shape.__setitem__(0, 5), family("lstm")), ""),
    "empty-shape": (
        lambda: _with_contract(lambda c: c.inputs[0].shape.__setitem__(0, 0), family("lstm")),
        "must be positive",
    ),
    "huge-state": (lambda: _with_contract(lambda c: c.states[0].shape.__setitem__(1, 1 << 50), family("lstm")), ""),
    "mutable-and-immutable": (
        lambda: _with_contract(lambda c: setattr(c.states[0], "immutable", True)),
        "exactly one of",
    ),
    "short-initial-data": (
        lambda: _with_contract(lambda c: setattr(c.states[0].initial, "data", b"123")),
        "initial data has 3 bytes",
    ),
    "initial-not-finite": (
        lambda: _with_contract(lambda c: setattr(c.states[0].initial, "constant", np.inf), family("lstm")),
        "not finite",
    ),
    "initial-does-not-fit": (lambda: _with_contract(lambda c: setattr(c.states[0].initial, "constant", 1e30)), ""),
    "range-upside-down": (lambda: _with_contract(_set_range), ""),
    "output-is-the-state": (_shared_output, ""),
    "one-step-only": (_one_step_only, ""),
}


@pytest.mark.parametrize("name", _BROKEN)
def test_a_model_that_cannot_be_served_says_why(name: str, tmp_path: Path) -> None:
    """Each defect refuses its own model with the reason; the model beside it is served."""
    build, why = _BROKEN[name]
    write_model(tmp_path, name, model=build())
    write_model(tmp_path, "history")
    catalog = _catalog(tmp_path)
    assert [served.file.name for served in catalog.served] == ["history"]
    reasons = _reasons(catalog)
    assert list(reasons) == [name]
    assert why in reasons[name]
    assert repr(name) in reasons[name]
    with pytest.raises(ModelError) as caught:
        catalog.ready(name, "")
    assert caught.value.reason is Reason.MODEL_NOT_READY


def test_files_that_are_no_models(tmp_path: Path) -> None:
    """Truncated, empty, garbage, missing, a folder in place of the file, no version: each is named."""
    good = write_model(tmp_path, "history")
    raw = write_model(tmp_path, "truncated", model=family("lstm").model())
    raw.write_bytes(raw.read_bytes()[:-40])
    for name, content in (("empty", b""), ("garbage", b"\x00\xff garbage" * 9)):
        path = tmp_path / name / "1" / "model.onnx"
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    (tmp_path / "missing" / "1").mkdir(parents=True)
    (tmp_path / "a-folder" / "1" / "model.onnx").mkdir(parents=True)
    (tmp_path / "no-version").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "notes.txt").write_text("not a model")
    catalog = _catalog(tmp_path)
    reasons = _reasons(catalog)
    assert sorted(reasons) == ["a-folder", "empty", "garbage", "missing", "no-version", "truncated"]
    assert "empty" in reasons["empty"]
    assert "is not an ONNX file" in reasons["garbage"]
    assert "is not an ONNX file" in reasons["truncated"]
    assert "No such file" in reasons["missing"]
    assert "Is a directory" in reasons["a-folder"]
    assert "no version" in reasons["no-version"]
    assert [model.file.name for model in catalog.served] == ["history"]
    assert good.exists()


@contextmanager
def _unprivileged() -> Iterator[Path]:
    """A folder of somebody who is not the superuser, for whom every folder is readable."""
    nobody = 65534
    is_root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        if is_root:
            os.chown(root, nobody, nobody)
            os.seteuid(nobody)
        try:
            yield root
        finally:
            if is_root:
                os.seteuid(0)


def test_folders_that_cannot_be_read() -> None:
    """A model's folder without permission refuses that model only; a repository without it refuses to start."""
    with _unprivileged() as root:
        write_model(root, "history")
        write_model(root, "secret", model=HISTORY.model())
        write_model(root, "sealed", model=HISTORY.model())
        (root / "secret").chmod(0)
        (root / "sealed" / "1" / "model.onnx").chmod(0)
        try:
            catalog = _catalog(root)
            reasons = _reasons(catalog)
            assert sorted(reasons) == ["sealed", "secret"]
            assert all("Permission denied" in reason for reason in reasons.values())
            assert [model.file.name for model in catalog.served] == ["history"]
        finally:
            (root / "secret").chmod(0o700)
        root.chmod(0)
        try:
            with pytest.raises(RepositoryError, match="Permission denied"):
                _catalog(root)
        finally:
            root.chmod(0o700)


def test_a_file_in_the_top_is_a_model(tmp_path: Path) -> None:
    """`name.onnx` is version 1 of `name`, also beside a folder of other versions; of two versions 1 the folder's is."""
    raw = HISTORY.model().SerializeToString()
    write_model(tmp_path, "both", "2", HISTORY.model())
    write_model(tmp_path, "clash", "1", HISTORY.model())
    for name in ("lone.v5", "both", "clash"):
        (tmp_path / f"{name}.onnx").write_bytes(raw)
    os.mkfifo(tmp_path / "pipe.onnx")
    (tmp_path / "gone.onnx").symlink_to(tmp_path / "nowhere")
    (tmp_path / ".hidden.onnx").write_bytes(raw)
    catalog = _catalog(tmp_path)
    found = {(entry.file.name, entry.file.version): entry.error for entry in catalog}
    served = [("both", "1"), ("both", "2"), ("clash", "1"), ("lone.v5", "1")]
    assert [key for key, error in found.items() if error is None] == served
    refused = {key: error.message for key, error in found.items() if error is not None}
    assert set(refused) == {("clash", "clash.onnx"), ("pipe", "1"), ("gone", "1")}
    assert "version 1 is there twice, as clash.onnx and as clash/1" in refused["clash", "clash.onnx"]
    assert "pipe.onnx is not a regular file" in refused["pipe", "1"]
    assert "gone.onnx cannot be read: No such file" in refused["gone", "1"]


def test_cuda_needs_a_driver() -> None:
    """A build of ONNX Runtime for GPUs lists CUDA on every machine: it is chosen only where the driver is installed."""
    built = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    assert usable_providers(built, has_driver=True) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert usable_providers(built, has_driver=False) == ("CPUExecutionProvider",)
    assert usable_providers(["CPUExecutionProvider"], has_driver=True) == ("CPUExecutionProvider",)


def test_no_repository(tmp_path: Path) -> None:
    """A repository that is not there, or is a file, is an error that names it."""
    with pytest.raises(RepositoryError, match="nowhere"):
        _catalog(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(RepositoryError, match="file"):
        _catalog(tmp_path / "file")


def test_the_latest_version_that_is_ready(tmp_path: Path) -> None:
    """Versions are ordered as numbers; an empty version means the latest that is ready, and names find the others."""
    for version in ("2", "10", "9", "beta"):
        write_model(tmp_path, "history", version)
    broken = tmp_path / "history" / "11" / "model.onnx"
    broken.parent.mkdir()
    broken.write_bytes(b"")
    catalog = _catalog(tmp_path)
    assert catalog.ready("history", "").file.version == "10"
    assert catalog.ready("history", "2").file.version == "2"
    assert [entry.file.version for entry in catalog] == ["beta", "2", "9", "10", "11"]
    with pytest.raises(ClientError) as caught:
        catalog.find("history", "3")
    assert caught.value.reason is Reason.UNKNOWN_VERSION
    assert "10" in caught.value.detail.expected


def test_clients_see_what_is_not_ready(tmp_path: Path) -> None:
    """ListModels, GetModel and health tell ready models from others, with the reason."""
    write_model(tmp_path, "history")
    write_model(tmp_path, "bare", model=_with_custom_operator())

    async def scenario() -> None:
        async with serve(configure(tmp_path)) as loopback, loopback.stream() as stream:
            listed = await loopback.unary(
                "ModelService/ListModels", models_pb2.ListModelsRequest(), models_pb2.ListModelsResponse
            )
            by_name = {status.name: status for status in listed.models}
            assert by_name["history"].ready
            assert by_name["history"].provider == "CPUExecutionProvider"
            assert by_name["history"].state_bytes_per_session == 8
            assert len(by_name["history"].digest) == 64
            assert not by_name["bare"].ready
            assert by_name["bare"].error.reason == Reason.MODEL_NOT_READY
            assert "carries no contract" in by_name["bare"].error.message
            got = await loopback.unary(
                "ModelService/GetModel", models_pb2.GetModelRequest(name="bare"), models_pb2.GetModelResponse
            )
            assert not got.status.ready
            got = await loopback.unary(
                "ModelService/GetModel", models_pb2.GetModelRequest(name="history"), models_pb2.GetModelResponse
            )
            assert got.contract == HISTORY.contract()
            assert got.limits.max_rows == 64
            assert await _health(loopback, "models/history/1") == "SERVING"
            assert await _health(loopback, "models/bare/1") == "NOT_SERVING"
            assert await _health(loopback, "") == "SERVING"
            handles = await stream.handles("history")
            result = await stream.step(HISTORY, handles, [0], [[1, 2, 3]])
            assert array(result.outputs[0]).tolist() == [[1, 12, 123]]

    asyncio.run(scenario())


async def _health(loopback: Loopback, service: str) -> str:
    stub = health_pb2_grpc.HealthStub(loopback.channel)
    response = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))
