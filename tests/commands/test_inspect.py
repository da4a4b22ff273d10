"""`eddy inspect` as it is typed: a report, a draft of settings, or a reason, with the exit code that goes with it."""

import json
from io import StringIO
from pathlib import Path

import onnx
import pytest
from graphs import family
from onnx import TensorProto, helper
from rich.console import Console

from eddy.cli import main
from eddy.commands.report import printable, show_report
from eddy.inspection.report import Cost, FoundState, FoundTensor, Origin, Probes, Report
from eddy.inspection.settings import Settings
from eddy.inspection.settings_file import parse_settings

MODELS = Path(__file__).parents[2] / "models"


@pytest.fixture
def lstm(tmp_path: Path) -> Path:
    """An LSTM with explicit states and no contract."""
    path = tmp_path / "lstm.onnx"
    path.write_bytes(family("lstm").graph().SerializeToString())
    return path


@pytest.fixture
def custom(tmp_path: Path) -> Path:
    """A graph with an operator that nobody has, whose name would clear a terminal."""
    graph = helper.make_graph(
        [helper.make_node("Magic\x1b[2J", ["x"], ["y"], domain="my.ops")],
        "custom",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", 2])],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("my.ops", 1)]
    path = tmp_path / "custom.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=imports, ir_version=9).SerializeToString())
    return path


def test_a_report_for_programs(lstm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every field that programs rely on, of a real inspection: the states in pairs, the probes, the costs."""
    assert main(["inspect", str(lstm), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["streamable"] is True
    assert isinstance(found["reason"], str)
    assert {(state["input"], state["output"]) for state in found["states"]} == {
        (state.name, state.next_name) for state in family("lstm").states
    }
    for state in found["states"]:
        assert set(state) >= {"input", "output", "shape", "dtype", "batch_axis", "origin"}
        assert state["origin"] in ("explicit", "lifted")
    assert [port["name"] for port in found["inputs"]] == ["x"]
    assert [port["name"] for port in found["outputs"]] == ["y"]
    assert found["max_batch"] is None
    assert set(found["probes"]) == {"chunk_max_difference", "batch_max_difference"}
    assert 0 <= found["probes"]["chunk_max_difference"] < 1e-5
    assert [cost["rows"] for cost in found["costs"]] == [1, 16, 256]
    assert all(cost["seconds"] > 0 for cost in found["costs"])


def test_a_report_for_a_person(lstm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The verdict, the tensors, the states, and where settings would be."""
    assert main(["inspect", str(lstm)]) == 0
    said = capsys.readouterr().out
    assert "lstm.onnx" in said
    assert "streams: " in said
    assert "rows of a step" in said
    assert "no lstm.toml beside it: --write drafts one" in said


@pytest.mark.parametrize("width", [80, 120])
def test_nothing_is_cut_off(width: int, tmp_path: Path) -> None:
    """On a terminal long names go on in the next line, and no line is longer than the terminal."""
    long = "/model/encoder/layers.0/recurrent/" * 4
    report = Report(
        False,
        f"node {long!r} looks both ways",
        (FoundState(long + "h", long + "hn", (2, 128), "float32", 1, Origin.LIFTED, f"the node {long!r}"),),
        (FoundTensor(long + "x", "float32", ("batch", "time", 3)),),
        (FoundTensor("y", "float32", ()),),
        4,
        Probes(1e-7, None),
        ("served row by row: " + "because of it " * 20,),
        ("tried",),
        (Cost(1, 1e-5), Cost(16, 2.5e-3)),
    )
    screen = StringIO()
    path = tmp_path / "x.onnx"
    path.write_bytes(b"x")
    show_report(report, path, "no settings", Console(file=screen, width=width, markup=False))
    lines = screen.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert "\N{HORIZONTAL ELLIPSIS}" not in screen.getvalue()
    for said in ("Infer only", "lifted", "batch \N{MULTIPLICATION SIGN} time", "1e-07", "2.50 ms", "10.0 µs", "row by"):
        assert said in screen.getvalue()


def test_a_refusal(custom: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line on standard error, exit code 1, nothing that steers a terminal; as JSON a report that says why."""
    assert main(["inspect", str(custom)]) == 1
    said = capsys.readouterr()
    assert not said.out
    assert said.err.count("\n") == 1
    assert "is refused: the Magic" in said.err
    assert "is a custom operator of the domain 'my.ops'" in said.err
    assert "\x1b" not in said.err
    assert main(["inspect", str(custom), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["streamable"] is False
    assert "custom operator" in found["reason"]
    assert found["states"] == []


def test_printable_text() -> None:
    """Letters of any language stay, what steers a terminal does not."""
    assert printable("größe 状态 \x1b[31m\x07\n\u202e") == "größe 状态 \ufffd[31m\ufffd\ufffd\ufffd"


def test_a_draft(lstm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Written beside the model, valid, not twice; by force it keeps what it said."""
    path = lstm.with_suffix(".toml")
    assert main(["inspect", str(lstm), "--write"]) == 0
    assert f"wrote {path}" in capsys.readouterr().err
    assert parse_settings(path.read_text(encoding="utf-8")) == Settings()
    assert main(["inspect", str(lstm), "--write"]) == 2
    assert "is there already; --force replaces it" in capsys.readouterr().err
    path.write_text('description = "mine"', encoding="utf-8")
    assert main(["inspect", str(lstm), "--write", "--force"]) == 0
    assert parse_settings(path.read_text(encoding="utf-8")).description == "mine"
    assert f"settings: {path}" in capsys.readouterr().out


def test_settings_from_elsewhere(lstm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--settings` names the file; one that is missing is misuse, one that does not fit a refusal by name."""
    elsewhere = tmp_path / "mine.toml"
    assert main(["inspect", str(lstm), "--settings", str(elsewhere)]) == 2
    assert "mine.toml is not there" in capsys.readouterr().err
    elsewhere.write_text("[states]\nghost = 'y'", encoding="utf-8")
    assert main(["inspect", str(lstm), "--settings", str(elsewhere)]) == 1
    assert "ghost" in capsys.readouterr().err


def test_a_file_with_a_contract_and_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The contract is shown; a version's folder and a model's folder mean the graph in them; settings do not apply."""
    for given in (MODELS / "text-lstm", MODELS / "text-lstm" / "1", MODELS / "text-lstm" / "1" / "model.onnx"):
        assert main(["inspect", str(given), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert [state["input"] for state in found["states"]] == ["h", "c"]
        assert found["probes"] == {"chunk_max_difference": 0.0, "batch_max_difference": 0.0}
    assert main(["inspect", str(MODELS / "text-lstm"), "--write"]) == 2
    assert "brings its contract: settings do not apply" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path)]) == 2
    assert "neither model.onnx nor a version" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "nowhere.onnx")]) == 1
    assert "cannot be read: No such file" in capsys.readouterr().err


def test_a_broken_contract(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A contract that contradicts itself is a refusal, not a reason to inspect."""
    model = family("lstm").model()
    next(entry for entry in model.metadata_props if entry.key == "eddy.contract").value = "{"
    path = tmp_path / "broken.onnx"
    onnx.save(model, path)
    assert main(["inspect", str(path)]) == 1
    assert "is not readable" in capsys.readouterr().err
