"""Tasks: what they draw and read, how they split it, and figures against answers that are known."""

import gzip
import hashlib
import io
import sys
import zipfile
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from eddy.training import packages
from eddy.training.arrays import read_object
from eddy.training.checkpoint import load_checkpoint
from eddy.training.class_plot import chart_classes
from eddy.training.data import NO_TOKEN, digest_examples
from eddy.training.errors import DataError, OptionError, RecipeError
from eddy.training.export import export_checkpoint
from eddy.training.packages import Package
from eddy.training.recipe import parse_recipe
from eddy.training.tasks.activity import ActivitySource, ActivityTask, trailing_features
from eddy.training.tasks.classes import NearestMean
from eddy.training.tasks.clips import ClipsTask
from eddy.training.tasks.digits import DIRECTIONS, ClipsSource, Images, draw_clips
from eddy.training.tasks.registry import TASKS
from eddy.training.tasks.speech import SpeechSource, SpeechTask, read_sequences
from eddy.training.train import train
from eddy.training.video import read_video, shrink

WATCH, VOWELS, DIGITS = "watch.npy", "vowels.ts", "digits.csv.gz"


def _watch() -> bytes:
    """Recordings of ten people and two exercises, told apart by one channel's mean."""
    rng = np.random.default_rng(0)
    rows = [(person, label) for person in range(1, 11) for label in (0, 1)]
    table = {
        "X": [rng.standard_normal((60, 6)) + 2 * label for _, label in rows],
        "y": np.array([label for _, label in rows]),
        "subject": np.array([float(person) for person, _ in rows]),
        "X_labels": ["ax", "ay", "az", "wx", "wy", "wz"],
        "y_labels": ["PEN", "ROW"],
    }
    file = io.BytesIO()
    np.save(file, np.array(table, dtype=object), allow_pickle=True)
    return file.getvalue()


def _vowels() -> bytes:
    """Forty sequences of two dimensions, 2 to 5 steps, of two speakers far apart."""
    rng = np.random.default_rng(0)
    lines = ["@problemName Test", "@data"]
    for number in range(40):
        speaker = number % 2
        values = rng.standard_normal((2, 2 + number % 4)) + 4 * speaker
        lines.append(":".join([*(",".join(f"{v:.3f}" for v in row) for row in values), str(speaker + 1)]))
    return "\n".join(lines).encode()


def _digits() -> bytes:
    """Forty images of four digits, the brighter the greater."""
    lines = [",".join(map(str, [*[5 * (number % 4) + 1] * 64, number % 4])) for number in range(40)]
    return gzip.compress("\n".join(lines).encode())


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A wheel with small files of all three formats; returns the beginning of their source strings."""
    path = tmp_path / "small.whl"
    with zipfile.ZipFile(path, "w") as file:
        for name, content in ((WATCH, _watch()), (VOWELS, _vowels()), (DIGITS, _digits())):
            file.writestr(name, content)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    small = Package("small", "small==1", path.name, digest, "CC0-1.0", "made here", "small files")
    monkeypatch.setitem(packages.PACKAGES, "small", small)
    monkeypatch.setenv(packages.FOLDER_VARIABLE, str(tmp_path))
    return "wheel:small:"


def test_people_are_in_one_part_only(wheel: str) -> None:
    """Eight train, one validates, one tests; scaling follows the training part; windows differ between epochs."""
    source = ActivitySource(wheel + WATCH, "CC0-1.0", window=16, windows=3)
    data = ActivityTask().load(source)
    assert {r.person for r in data.train_recordings} == set(range(1, 9))
    assert (len(data.validation), len(data.test)) == (2, 2)
    windows = data.train.epoch(1)
    assert len(windows) == 16 * 3
    assert {example.steps for example in windows} == {16}
    assert digest_examples(windows) == digest_examples(data.train.epoch(1))
    assert digest_examples(windows) != digest_examples(data.train.epoch(2))
    assert data.mean[0] == pytest.approx(1, abs=0.2)
    assert data.labels == ("pendulum", "upright row")


def test_trailing_features_by_hand() -> None:
    """Mean and deviation of the steps so far, then of the latest two; nothing that comes later counts."""
    values = np.array([[1.0], [3.0], [7.0]], np.float32)
    assert trailing_features(values, 2).tolist() == [[1, 0], [2, 1], [5, 2]]


def test_nearest_mean_by_hand() -> None:
    """Two classes around 0 and 10: what is below the middle belongs to the first."""
    rule = NearestMean(np.array([[-1.0], [1.0], [9.0], [11.0]], np.float32), np.array([0, 0, 1, 1]))
    assert rule(np.array([[4.0], [6.0]], np.float32)).tolist() == [0, 1]


def test_a_pickle_that_could_run_code_is_refused() -> None:
    """A file of arrays names parts of numpy only."""
    file = io.BytesIO()
    np.save(file, np.array({"X": Path("/")}, dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"small: not readable as arrays: got pathlib.*expected arrays only"):
        read_object(file.getvalue(), "small")
    with pytest.raises(DataError, match="not readable as arrays"):
        read_object(b"nothing", "small")


def test_sequences_of_the_ts_format() -> None:
    """Dimensions become columns, the class comes last; what is not a sequence is refused by its number."""
    [(values, label)] = read_sequences("@x\n@data\n1,2,3:4,5,6:a\n", "f.ts")
    assert (values.tolist(), label) == ([[1, 4], [2, 5], [3, 6]], "a")
    with pytest.raises(DataError, match="no line @data"):
        read_sequences("1,2:a", "f.ts")
    for line in ("1,x:2,3:a", "1,2:3:a", "1,nan:3,4:a"):
        with pytest.raises(DataError, match=r"f.ts: sequence 1: .*expected"):
            read_sequences(f"@data\n{line}\n", "f.ts")


def test_a_digit_moves_one_way_and_comes_back() -> None:
    """Without noise and bars every frame is the image itself, each a pixel further, around the frame's edges."""
    image = np.zeros((1, 8, 8), np.float32)
    image[0, 2, 5] = 1
    images = Images(image, np.array([3]))
    source = ClipsSource("s", "CC0-1.0", size=16, frames=17, speed=1, hidden=0, noise=0)
    ways = np.arange(len(DIRECTIONS))
    clips = draw_clips(source, images, np.zeros(8, np.int64), ways, np.random.default_rng(0))
    for clip, (down, right) in zip(clips, DIRECTIONS.values(), strict=True):
        assert (clip.sum(axis=(1, 2)) == 1).all()
        places = np.argwhere(clip)[:, 1:]
        assert ((np.diff(places, axis=0) - (down, right)) % 16 == 0).all()
        assert np.array_equal(clip[0], clip[16])


def test_bars_hide_half_of_a_digit_in_every_frame() -> None:
    """Of a white image half the pixels are left, rows or columns, others in other frames; all show in the end."""
    images = Images(np.ones((1, 8, 8), np.float32), np.array([0]))
    source = ClipsSource("s", "CC0-1.0", size=8, frames=16, hidden=4, noise=0)
    [clip] = draw_clips(source, images, np.zeros(1, np.int64), np.zeros(1, np.int64), np.random.default_rng(0))
    assert (clip.sum(axis=(1, 2)) == 32).all()
    assert len({frame.tobytes() for frame in clip}) > 4


def test_images_are_in_one_part_only_and_the_first_frame_has_no_direction(wheel: str) -> None:
    """Four of forty images test, in all eight directions; every frame asks for the digit."""
    task, source = ClipsTask(), ClipsSource(wheel + DIGITS, "CC0-1.0", frames=4)
    data = task.load(source)
    assert (len(data.train.epoch(1)), len(data.validation), len(data.test)) == (128, 32, 32)
    directions = np.stack([example.targets["direction"] for example in data.test])
    assert (directions[:, 0] == NO_TOKEN).all()
    assert np.bincount(directions[:, 1]).tolist() == [4] * 8
    assert len(task.sample(data, source).splitlines()) == 1 + 4 * 4
    frames = data.test[0].inputs["frames"]
    assert (frames.min() >= 0, frames.max() <= 1) == (True, True)


def test_speech_is_split_by_utterance(wheel: str) -> None:
    """80, 10 and 10 per cent of forty; the same seed gives the same parts, another one others."""
    first, again, other = (SpeechTask().load(SpeechSource(wheel + VOWELS, "CC0-1.0", seed=seed)) for seed in (1, 1, 2))
    assert (len(first.train.epoch(1)), len(first.validation), len(first.test)) == (32, 4, 4)
    assert digest_examples(first.test) == digest_examples(again.test) != digest_examples(other.test)


RECIPES: dict[str, dict[str, Any]] = {
    "activity": {
        "data": {"kind": "activity", "source": WATCH, "window": 16, "windows": 2},
        "model": {"cell": "gru", "hidden": 8, "convolutions": [{"channels": 4, "kernel": 3}]},
    },
    "speech": {
        "data": {"kind": "speech", "source": VOWELS},
        "model": {"cell": "gru", "hidden": 8, "learned_state": True},
    },
    "clips": {
        "data": {"kind": "clips", "source": DIGITS, "frames": 4, "noise": 0.02, "hidden": 0, "clips": 4},
        "model": {"cell": "lstm", "hidden": 12, "frame_convolutions": [{"channels": 4, "pool": 2}]},
    },
}


@pytest.mark.parametrize("kind", RECIPES)
def test_a_task_goes_the_whole_way(kind: str, wheel: str, tmp_path: Path) -> None:
    """Trained, measured beside baselines, exported with a card and a sample, and better than the majority class."""
    recipe = parse_recipe(
        {
            "name": f"tiny-{kind}",
            "description": "A tiny model",
            "data": {**RECIPES[kind]["data"], "source": wheel + RECIPES[kind]["data"]["source"], "licence": "CC0-1.0"},
            "model": RECIPES[kind]["model"],
            "training": {"epochs": 12, "batch": 8, "learning_rate": 0.02, "patience": 12},
        }
    )
    assert parse_recipe(recipe.to_dict()) == recipe
    path = train(recipe, tmp_path / "run", device="cpu", show_progress=False)
    figures = {figure.name: figure.value for figure in load_checkpoint(path).figures}
    main = "accuracy_digit" if kind == "clips" else "accuracy"
    assert figures[main] > figures[f"{main}_majority"]
    folder = tmp_path / "model"
    assert export_checkpoint(path, folder).bitwise
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"{figures[main]:.1%}" in card
    for label in TASKS[kind].baselines.values():
        assert label in card
    assert (folder / "sample.csv").stat().st_size > 0
    chart = chart_classes(folder / "model.onnx", folder / "sample.csv")
    shares = np.array([line.y for line in chart.lines])
    assert shares.min() >= 0
    assert shares.sum(axis=0).max() <= 1 + 1e-5
    with pytest.raises(OptionError, match="target: got 'colour', expected one of"):
        chart_classes(folder / "model.onnx", folder / "sample.csv", output="colour")
    with pytest.raises(OptionError, match="start: got 99, expected a sequence from 0 to"):
        chart_classes(folder / "model.onnx", folder / "sample.csv", start=99)


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("activity", "window", 0),
        ("clips", "size", 7),
        ("clips", "speed", 3),
        ("clips", "hidden", 8),
        ("speech", "seed", -1),
    ],
)
def test_impossible_data_tables_are_refused(kind: str, key: str, value: int) -> None:
    """The message names the key and what came."""
    with pytest.raises(RecipeError, match=rf"data.{key}: got {value}, expected"):
        TASKS[kind].table(source="s", licence="CC0-1.0", **{key: value})


def test_pictures_shrink_to_means() -> None:
    """A checkerboard of 2x2 squares becomes its four values, also where parts are not equal; none are made up."""
    board = np.kron(np.array([[0.0, 1.0], [0.5, 0.25]]), np.ones((3, 5))).astype(np.float32)
    assert shrink(board, 2, 2).tolist() == [[0, 1], [0.5, 0.25]]
    assert shrink(board, 4, 3).mean() == pytest.approx(board.mean(), abs=0.1)
    with pytest.raises(DataError, match=r"frame: got 6x10, expected at least 7x2"):
        shrink(board, 7, 2)


def test_a_film_becomes_small_grey_frames(tmp_path: Path) -> None:
    """Frames in order, brightness 0 to 1, each pixel the mean of its area; reading can end early."""
    path = tmp_path / "film.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10, width=64, height=48, pix_fmt="yuvj420p")
        for number in range(4):
            picture = np.zeros((48, 64, 3), np.uint8)
            picture[:, : 16 * (number + 1)] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    frames = read_video(str(path), 3, 4)
    assert frames.shape == (4, 3, 4)
    wanted = [[float(column <= number) for column in range(4)] for number in range(4)]
    assert np.abs(frames - np.array(wanted)[:, None]).max() < 0.05
    assert np.array_equal(read_video(str(path), 3, 4, max_frames=2), frames[:2])


def test_what_is_not_a_film_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the file, and what to install where `av` is missing."""
    path = tmp_path / "not.mp4"
    path.write_bytes(b"nothing of a film")
    with pytest.raises(DataError, match=r"not.mp4: not readable as video"):
        read_video(str(path), 16, 16)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DataError, match=r"not.mp4: av: not installed, expected it from the extra `video`"):
        read_video(str(path), 16, 16)
