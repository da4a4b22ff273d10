"""The speech detector of the package silero-vad, as published: https://github.com/snakers4/silero-vad (MIT).

The wheel is not installed; its files are read out of it where it has been fetched into the data folder.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from eddy.inspection.settings import Settings
from eddy.training.packages import data_folder
from tests.inspection.runtime import Walker, load, look

WHEEL = "silero_vad-6.2.3-py3-none-any.whl"
WINDOW, CONTEXT = 512, 64
SETTINGS = Settings(
    axes={"input": ("batch", WINDOW + CONTEXT)},
    context_steps={"input": CONTEXT},
    constants={"sr": np.array(16000)},
)


def read(file: str) -> onnx.ModelProto:
    """A model file of the wheel; skips the test where the wheel is not there."""
    path = data_folder() / WHEEL
    if not path.is_file():
        path = Path(__file__).parents[2] / "data" / WHEEL
    if not path.is_file():
        pytest.skip(f"{WHEEL} of PyPI is not in the data folder")
    with zipfile.ZipFile(path) as wheel:
        return onnx.load_from_string(wheel.read(f"silero_vad/data/{file}"))


def speech(rows: int, num_windows: int, seed: int = 0) -> np.ndarray:
    """Noise with a beat, [B, windows, 512], as loud as speech."""
    generator = np.random.default_rng(seed)
    beat = 1 + np.sin(np.arange(num_windows * WINDOW) / 900)
    values = 0.1 * beat * generator.standard_normal((rows, num_windows * WINDOW))
    return values.reshape(rows, num_windows, WINDOW).astype(np.float32)


def by_hand(model: onnx.ModelProto, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The file itself, state and context carried by the caller: outputs [B, windows], the last state [2, B, 128]."""
    program = load(model)
    rows = len(windows)
    state, context = np.zeros((2, rows, 128), np.float32), np.zeros((rows, CONTEXT), np.float32)
    outputs = []
    for window in windows.transpose(1, 0, 2):
        feed = {"input": np.concatenate([context, window], axis=1), "state": state, "sr": np.array(16000)}
        output, state = program.run(["output", "stateN"], feed)
        context = window[:, -CONTEXT:]
        outputs.append(output)
    return np.concatenate(outputs, axis=1), state


def test_window_by_window_equals_the_file_with_state_and_context_carried_by_hand() -> None:
    """The canonical graph of silero_vad.onnx gives its bits, and its state's."""
    model = read("silero_vad.onnx")
    found = look(model, SETTINGS)
    windows = speech(3, 40)
    expected, last = by_hand(model, windows)
    walker = Walker(found, 3)
    got = walker.steps({"input": windows}, [1] * 40)["output"]
    assert np.ptp(expected) > 0.02, "the example says something"
    np.testing.assert_array_equal(got[..., 0], expected)
    np.testing.assert_array_equal(walker.states["state"], last.transpose(1, 0, 2))


def test_a_row_of_a_batch_equals_the_row_by_itself() -> None:
    """A batch of three gives the bits of three single streams."""
    found = look(read("silero_vad.onnx"), SETTINGS)
    windows = speech(3, 20, seed=1)
    together = Walker(found, 3).steps({"input": windows}, [1] * 20)["output"]
    alone = [Walker(found, 1).steps({"input": windows[row : row + 1]}, [1] * 20)["output"] for row in range(3)]
    np.testing.assert_array_equal(together, np.concatenate(alone))


def test_what_is_said_of_silero_vad() -> None:
    """One call is one step; the state is found with its batch on axis 1; rows do not know each other."""
    found = look(read("silero_vad.onnx"), SETTINGS)
    report = found.report.as_json()
    assert report["streamable"]
    state, context = report["states"]
    assert (state["input"], state["output"], state["shape"], state["batch_axis"]) == ("state", "stateN", [2, 128], 1)
    assert state["origin"] == "explicit"
    assert context["shape"] == [CONTEXT]
    assert report["max_batch"] is None
    assert report["probes"] == {"chunk_max_difference": 0.0, "batch_max_difference": 0.0}
    assert found.contract.streaming.max_run_steps == 1
    assert found.contract.numerics.bitwise
    [spec] = found.contract.inputs
    assert (list(spec.shape), spec.no_time_axis) == ([WINDOW], True)


@pytest.mark.parametrize("file", ["silero_vad.onnx", "silero_vad_op18_ifless.onnx", "silero_vad_half.onnx"])
def test_without_settings_it_streams_and_says_what_was_assumed(file: str) -> None:
    """Nobody says what a window is: one that runs is assumed, with a warning, and the rate that the graph names."""
    model = read(file)
    found = look(model)
    report = found.report
    assert report.streamable and report.max_batch is None
    assert [(state.input, state.output, state.shape, state.batch_axis) for state in report.states] == [
        ("state", "stateN", (2, 128), 1)
    ]
    assert [port.name for port in report.inputs] == ["input"]
    assert len(report.warnings) == 1 and f"{WINDOW} values of 'input'" in report.warnings[0]
    has_rate = any(port.name == "sr" for port in model.graph.input)
    assert any("16000" in note for note in report.notes) == has_rate
    windows = speech(2, 12, seed=4)
    got = Walker(found, 2).steps({"input": windows}, [1] * 12)["output"]
    program, state = load(model), np.zeros((2, 2, 128), np.float32)
    for step in range(12):
        feed = {"input": windows[:, step], "state": state} | ({"sr": np.array(16000)} if has_rate else {})
        output, state = program.run(["output", "stateN"], feed)
        np.testing.assert_array_equal(got[:, step], output)


def test_the_sequence_variant_cut_into_chunks_equals_the_whole() -> None:
    """silero_vad_16k_sequence.onnx, which has no batch axis: [T, 576] in chunks gives the bits of the whole."""
    model = read("silero_vad_16k_sequence.onnx")
    found = look(model)
    windows = np.random.default_rng(2).standard_normal((1, 30, WINDOW + CONTEXT)).astype(np.float32) / 10
    zeros = np.zeros((1, 1, 128), np.float32)
    expected = load(model).run(["speech_probs"], {"input": windows[0], "h": zeros, "c": zeros})[0]
    got = Walker(found, 1).steps({"input": windows}, [1, 7, 2, 20])["speech_probs"]
    np.testing.assert_array_equal(got[0], expected)
    assert found.contract.streaming.run_rows == 1
    assert found.report.probes.chunk_max_difference == 0.0


def test_the_sequence_variant_keeps_its_context_itself() -> None:
    """With `context_steps` clients send 512 new samples a window, and the results are the bits of whole windows."""
    model = read("silero_vad_16k_sequence.onnx")
    found = look(model, Settings(context_steps={"input": CONTEXT}))
    windows = speech(1, 25, seed=3)
    before = np.concatenate([np.zeros((1, 1, CONTEXT), np.float32), windows[:, :-1, -CONTEXT:]], axis=1)
    zeros = np.zeros((1, 1, 128), np.float32)
    feed = {"input": np.concatenate([before, windows], axis=2)[0], "h": zeros, "c": zeros}
    [expected] = load(model).run(["speech_probs"], feed)
    got = Walker(found, 1).steps({"input": windows}, [5, 1, 19])["speech_probs"]
    np.testing.assert_array_equal(got[0], expected)
