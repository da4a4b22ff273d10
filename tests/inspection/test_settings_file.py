"""`model.toml`: what it says becomes settings, what is wrong is refused by name, and a draft reads as it is meant."""

import tomllib
from pathlib import Path

import numpy as np
import pytest

from eddy.inspection.draft import draft
from eddy.inspection.errors import InspectionError
from eddy.inspection.report import FoundState, FoundTensor, Origin, Probes, Report
from eddy.inspection.settings import Settings
from eddy.inspection.settings_file import KEYS, parse_settings, read_settings

FULL = """
description = "speech detector"
idle_timeout_seconds = 60
adopts = ["1", "2"]
[states]
state = "stateN"
[context_steps]
input = 64
[constants]
sr = 16000
gain = [[0.5, 2.0]]
[names]
output = "speech"
[axes]
input = ["batch", "time", 512]
"""

REPORT = Report(
    True,
    "the chunk law holds",
    (
        FoundState("h", "hn", (64,), "float32", 0, Origin.EXPLICIT, "names"),
        FoundState("lstm_c", "lstm_c_next", (64,), "float32", 1, Origin.LIFTED, "the node lstm"),
    ),
    (FoundTensor('odd "name"\x7f\n', "float32", ("batch", "time", 3)),),
    (FoundTensor("y", "float32", ("batch", "time", 1)),),
    None,
    Probes(0.0, 0.0),
)


def test_everything_that_can_be_said() -> None:
    """Every key has its place and type."""
    settings = parse_settings(FULL)
    assert set(tomllib.loads(FULL)) == set(KEYS)
    assert (settings.description, settings.idle_timeout_seconds) == ("speech detector", 60.0)
    assert settings.adopts == ("1", "2")
    assert settings.states == {"state": "stateN"}
    assert settings.context_steps == {"input": 64}
    assert settings.names == {"output": "speech"}
    assert settings.axes == {"input": ("batch", "time", 512)}
    assert (settings.constants["sr"].dtype, settings.constants["sr"].shape) == (np.int64, ())
    assert settings.constants["gain"].tolist() == [[0.5, 2.0]]


def test_nothing_needs_to_be_said() -> None:
    """An empty file is as good as none."""
    assert parse_settings("") == Settings()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[context_step]", "unknown key 'context_step', did you mean context_steps?"),
        ("zzz = 1", "unknown key 'zzz', expected one of description, "),
        ("description = 3", "description: got '3', expected a string"),
        ("idle_timeout_seconds = -1", "idle_timeout_seconds: got '-1', expected a positive number of seconds"),
        ("idle_timeout_seconds = inf", "expected a positive number of seconds"),
        ("idle_timeout_seconds = true", "expected a positive number of seconds"),
        ("states = 3", "states: got '3', expected a table: [states]"),
        ('[states]\nh = ""', "states.h: got '', expected a tensor's name"),
        ("[context_steps]\ninput = 0", "context_steps.input: got '0', expected a whole number, 1 to"),
        ("[context_steps]\ninput = 1.5", "context_steps.input: got '1.5', expected a whole number"),
        ("[context_steps]\ninput = 99999999999", "expected a whole number, 1 to"),
        ('[constants]\nsr = "16000"', "constants.sr: got '16000', expected a number, true, false, or lists"),
        ("[constants]\nsr = [[1], [1, 2]]", "constants.sr: got '[[1], [1, 2]]', expected a number"),
        ("[constants]\nsr = nan", "constants.sr: got 'nan', expected finite numbers"),
        ("[constants]\nsr = 99999999999999999999999", "constants.sr: got"),
        ("[constants]\nsr = []", "constants.sr: got '[]'"),
        ('[axes]\nx = ["batch", "batch"]', "axes.x: got"),
        ('[axes]\nx = ["bach", 3]', "axes.x: got"),
        ("[axes]\nx = [0]", "axes.x: got '[0]', expected a list of"),
        ("[states", "not readable as TOML"),
        ("x = " + "[" * 100_000, "not readable as TOML"),
    ],
)
def test_what_is_wrong_is_named(text: str, complaint: str) -> None:
    """The key, what came, and what was expected; an unknown key with the nearest one."""
    with pytest.raises(InspectionError) as caught:
        parse_settings(text)
    assert complaint in str(caught.value)


def test_a_file_is_named(tmp_path: Path) -> None:
    """Errors of a file begin with its name; one that is no text is no settings file."""
    path = tmp_path / "model.toml"
    for raw, complaint in ((b"zzz = 1", "model.toml: unknown key"), (b"\xff\xfe", "model.toml is not UTF-8 text")):
        path.write_bytes(raw)
        with pytest.raises(InspectionError, match=complaint):
            read_settings(path)
    path.write_text(FULL, encoding="utf-8")
    assert read_settings(path).description == "speech detector"


def test_a_draft_means_what_no_file_means() -> None:
    """All that was found is a comment; taken out of the comments it is valid, too."""
    text = draft(REPORT, Settings(), "model.onnx")
    assert parse_settings(text) == Settings()
    lines = [line.removeprefix("# ") if " = " in line and "#" in line else line for line in text.splitlines()]
    awake = parse_settings("\n".join(lines))
    assert awake.states == {"h": "hn"}
    assert awake.axes == {'odd "name"\x7f\n': ("batch", "time", 3)}


def test_a_draft_keeps_what_was_said() -> None:
    """Settings that were there come out as they were."""
    settings = parse_settings(FULL)
    again = parse_settings(draft(REPORT, settings, "model.onnx"))
    assert again.constants.keys() == settings.constants.keys()
    assert all((again.constants[name] == value).all() for name, value in settings.constants.items())
    for name in ("description", "idle_timeout_seconds", "states", "context_steps", "names", "axes"):
        assert getattr(again, name) == getattr(settings, name)
