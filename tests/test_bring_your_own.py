"""Files of others through a real server: silero VAD on recorded speech, and hostile files beside good ones."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from graphs import family
from loopback import configure, serve
from onnx import TensorProto, helper, numpy_helper

from eddy import Client, SyncClient
from eddy.training.errors import PackageError
from eddy.training.packages import fetch_package, find_package, read_packaged
from examples import keras_lstm
from examples.server import ServerProcess
from examples.silero_vad import WINDOW, read_windows, write_repository

SPEECH = Path(os.environ.get("SPEECH_SAMPLES", "/usr/share/sounds/alsa"))
CONTEXT = 64


@pytest.fixture(scope="module")
def _silero() -> None:
    """The package, from the data folder or fetched."""
    try:
        fetch_package(find_package("silero-vad"))
    except PackageError as error:
        pytest.skip(f"silero-vad cannot be fetched: {error}")


def _recordings() -> list[np.ndarray]:
    """Spoken words, [T, 512] each, from Debian's alsa-utils (GPL-2+)."""
    files = sorted(SPEECH.glob("*_*.wav"))
    if not files:
        pytest.skip(f"no recorded speech in {SPEECH}: apt-get install alsa-utils, or set SPEECH_SAMPLES")
    return [read_windows(file) for file in files]


def _session(file: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    raw = read_packaged(f"wheel:silero-vad:silero_vad/data/{file}")
    return ort.InferenceSession(raw, options, providers=["CPUExecutionProvider"])


def _by_hand(windows: np.ndarray) -> np.ndarray:
    """The file called directly, window by window, state and context kept here; float32 [T, 1]."""
    program = _session("silero_vad.onnx")
    state, context, found = np.zeros((2, 1, 128), np.float32), np.zeros((1, CONTEXT), np.float32), []
    for window in windows[:, None]:
        feed = {"input": np.concatenate([context, window], axis=1), "state": state, "sr": np.array(16000)}
        output, state = program.run(["output", "stateN"], feed)
        context = window[:, -CONTEXT:]
        found.append(output[0])
    return np.array(found)


@pytest.mark.usefixtures("_silero")
def test_silero_on_speech_is_the_file_bit_for_bit(tmp_path: Path) -> None:
    """Many sessions at once, each its own recording in chunks of its own size: as called directly, to the last bit."""
    recordings = _recordings()
    write_repository(tmp_path)

    async def stream(client: Client, windows: np.ndarray, size: int) -> np.ndarray:
        async with client.session("silero_vad") as session:
            chunks = [windows[begin : begin + size] for begin in range(0, len(windows), size)]
            return np.concatenate([await session.step(chunk) for chunk in chunks])

    async def scenario(target: str) -> list[np.ndarray]:
        async with Client(target) as client:
            works = (stream(client, recordings[n % len(recordings)], 1 + n % 5) for n in range(32))
            return await asyncio.gather(*works)

    with ServerProcess(tmp_path) as server:
        assert server.why_not_ready() == ""
        found = asyncio.run(scenario(server.target))
    expected = [_by_hand(windows) for windows in recordings]
    assert max(values.max() for values in expected) > 0.9, "nobody speaks in these recordings"
    for number, values in enumerate(found):
        assert np.array_equal(values, expected[number % len(recordings)])


@pytest.mark.usefixtures("_silero")
def test_the_sequence_variant_is_the_file_bit_for_bit(tmp_path: Path) -> None:
    """Chunks of any size of a file that takes sequences of one row: as called once with the whole recording."""
    windows = _recordings()[0]
    past = np.concatenate([np.zeros((1, WINDOW), np.float32), windows[:-1]])[:, -CONTEXT:]
    frames = np.concatenate([past, windows], axis=1)
    file = "silero_vad_16k_sequence.onnx"
    (tmp_path / file).write_bytes(read_packaged(f"wheel:silero-vad:silero_vad/data/{file}"))
    zeros = np.zeros((1, 1, 128), np.float32)
    [expected] = _session(file).run(["speech_probs"], {"input": frames, "h": zeros, "c": zeros})

    async def stream(client: Client, size: int) -> np.ndarray:
        async with client.session("silero_vad_16k_sequence") as session:
            return np.concatenate([await session.step(frames[i : i + size]) for i in range(0, len(frames), size)])

    async def scenario(target: str) -> list[np.ndarray]:
        async with Client(target) as client:
            return await asyncio.gather(*(stream(client, size) for size in (1, 2, 3, 7, 100)))

    with ServerProcess(tmp_path) as server:
        for values in asyncio.run(scenario(server.target)):
            assert np.array_equal(values.reshape(-1), expected)


@pytest.mark.usefixtures("_silero")
def test_the_example_finds_speech() -> None:
    """A spoken word has a beginning and an end."""
    _recordings()
    run = subprocess.run(  # noqa: S603  our own script
        [sys.executable, "-m", "examples.silero_vad", str(SPEECH / "Front_Center.wav")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        timeout=120.0,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "Front_Center.wav: 1.4 s" in run.stdout
    assert " s " in run.stdout.partition("probability")[2]


def test_a_keras_model_streams_untouched(tmp_path: Path) -> None:
    """Dropped into a repository as Keras wrote it: many sessions, in chunks, are the file called once, bit for bit."""
    shutil.copy(keras_lstm.MODEL, tmp_path)
    readings = keras_lstm.read(keras_lstm.SAMPLE)
    whole = ort.InferenceSession(keras_lstm.MODEL, providers=["CPUExecutionProvider"])
    # Two rows: ONNX Runtime computes one by itself another way.
    expected = whole.run(None, {"glucose": np.stack([readings, readings])})[0][0]

    async def stream(client: Client, size: int) -> np.ndarray:
        async with client.session("glucose_lstm") as session:
            return np.concatenate([await session.step(readings[i : i + size]) for i in range(0, len(readings), size)])

    async def scenario(target: str) -> list[np.ndarray]:
        async with Client(target) as client:
            return await asyncio.gather(*(stream(client, size) for size in (1, 1, 2, 3, 5, 24)))

    with ServerProcess(tmp_path) as server:
        assert server.why_not_ready() == ""
        for forecasts in asyncio.run(scenario(server.target)):
            assert np.array_equal(forecasts, expected)


def test_the_keras_example_forecasts() -> None:
    """Each reading has its forecasts, and they are near it: blood sugar does not jump in five minutes."""
    run = subprocess.run(
        [sys.executable, "-m", "examples.keras_lstm"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        timeout=120.0,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    rows = [[float(cell) for cell in re.findall(r"[\d.]+", line)] for line in run.stdout.splitlines() if "│" in line]
    assert len(rows) == 24
    assert all(len(row) == 4 and abs(row[0] - row[1]) < 25 for row in rows)


def _graph(nodes: list[onnx.NodeProto], *weights: tuple[str, object]) -> bytes:
    graph = helper.make_graph(
        nodes,
        "hostile",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", "T", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array(values), name) for name, values in weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model.SerializeToString()


def _endless(*, is_alone: bool) -> bytes:
    """A loop of 2**62 trips, between input and output alone or with more around it."""
    ports = [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        helper.make_tensor_value_info("v", TensorProto.FLOAT, None),
    ]
    results = [
        helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
        helper.make_tensor_value_info("w", TensorProto.FLOAT, None),
    ]
    nodes = [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Neg", ["v"], ["w"])]
    body = helper.make_graph(nodes, "body", ports, results)
    around = [
        helper.make_node("Relu", ["x"], ["begin"]),
        helper.make_node("Loop", ["n", "yes", "begin"], ["end"], body=body),
        helper.make_node("Add", ["x", "end"], ["y"]),
    ]
    alone = [helper.make_node("Loop", ["n", "yes", "x"], ["y"], body=body)]
    return _graph(alone if is_alone else around, ("n", 1 << 62), ("yes", True))


def _enormous() -> bytes:
    """A terabyte of zeros."""
    nodes = [
        helper.make_node("ConstantOfShape", ["n"], ["z"]),
        helper.make_node("ReduceSum", ["z"], ["s"], keepdims=0),
        helper.make_node("Add", ["x", "s"], ["y"]),
    ]
    return _graph(nodes, ("n", [1 << 38]))


def test_hostile_files_beside_good_ones(tmp_path: Path) -> None:
    """Each refused one names its reason, and the good ones are served."""
    good = family("lstm").graph().SerializeToString()
    files = {
        "endless": _endless(is_alone=False),
        "alone": _endless(is_alone=True),
        "enormous": _enormous(),
        "garbage": b"\x07" * 99,
        "cut": good[:-9],
        "good": good,
    }
    for name, raw in files.items():
        (tmp_path / f"{name}.onnx").write_bytes(raw)
    config = configure(tmp_path, inspection={"max_seconds": 15.0})

    async def scenario() -> dict[str, str]:
        async with serve(config) as loopback:
            return {entry.file.name: entry.error.message if entry.error else "" for entry in loopback.host.catalog}

    found = asyncio.run(scenario())
    assert found["good"] == ""
    assert "inspection.max_seconds" in found["endless"]
    assert "inspection.max_seconds" in found["alone"]
    assert "Failed to allocate memory for requested buffer of size 1099511627776" in found["enormous"]
    assert "not an ONNX file" in found["garbage"]
    assert "not an ONNX file" in found["cut"]


def test_probes_are_told_of_a_refused_file(tmp_path: Path) -> None:
    """/readyz says which of a repository's lone files is refused at the start and why, and the others are served."""
    shutil.copy(keras_lstm.MODEL, tmp_path)
    nodes = [helper.make_node("Whisper", ["x"], ["y"], name="secret", domain="com.example")]
    (tmp_path / "custom.onnx").write_bytes(_graph(nodes))
    with ServerProcess(tmp_path) as server:
        reason = server.why_not_ready()
        with SyncClient(server.target) as client, client.session("glucose_lstm") as session:
            assert len(session.step([120.0])) == 3
    assert "model 'custom' version '1'" in reason
    assert "node 'secret' (Whisper) is a custom operator of the domain 'com.example'" in reason
