"""`eddy.export`: anybody's modules with recurrent layers, in one call."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from strangers import MODULES, Cells, Guessing, Summary, Tagger, Tokens, X, scripted
from torch import nn

import eddy
from eddy.training.contract import read_contract
from eddy.training.errors import ExportError, VerificationError
from eddy.training.verify import verify


def _export(name: str, root: Path) -> Any:
    make, example, _ = MODULES[name]
    torch.manual_seed(3)
    return eddy.export(make(), example, root / name / "1")


@pytest.mark.parametrize("name", MODULES)
def test_modules_of_others(name: str, tmp_path: Path) -> None:
    """One call: states lifted, verified against PyTorch in chunks and batches, the verdict in the contract."""
    report = _export(name, tmp_path)
    path = tmp_path / name / "1" / "model.onnx"
    contract = read_contract(path)
    assert contract.name == name
    assert len(contract.states) == MODULES[name][2]
    assert contract.streaming.streamable
    assert report.parity is not None
    assert contract.numerics.bitwise == report.bitwise
    assert list(contract.numerics.batches) == [1, 2, 3, 5, 8, 31, 64]
    assert list(contract.numerics.chunk_steps) == [1, 2, 3, 5, 8]
    assert verify(path).bitwise == report.bitwise
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]


def test_names_of_tensors(tmp_path: Path) -> None:
    """Inputs are called as forward calls them, outputs as the dictionary does; final states are no outputs."""
    _export("dictionary", tmp_path)
    contract = read_contract(tmp_path / "dictionary/1/model.onnx")
    assert [(port.name, list(port.shape)) for port in contract.inputs] == [("x", [3])]
    assert [(port.name, list(port.shape)) for port in contract.outputs] == [("classes", [5]), ("gate", [2])]


def test_learned_beginnings(tmp_path: Path) -> None:
    """States begin with what the module begins with."""
    _export("several-inputs", tmp_path)
    contract = read_contract(tmp_path / "several-inputs/1/model.onnx")
    torch.manual_seed(3)
    start = Tokens().start.detach().numpy()
    for number, state in enumerate(contract.states):
        row = np.frombuffer(state.initial.data, np.float32).reshape(tuple(state.shape))
        np.testing.assert_array_equal(row, start[number])


def test_the_module_stays_as_it_was(tmp_path: Path) -> None:
    """It is copied: its mode and its weights are its user's."""
    module = Tagger(nn.GRU).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    eddy.export(module, X, tmp_path / "kept" / "1")
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize(
    ("module", "example", "message"),
    [
        (Tagger(nn.LSTM, both=True), X, "LSTM '/module/rnn/LSTM' is bidirectional"),
        (Summary(nn.GRU), X, "does not stream"),
        (Cells(), X, "the module steps the cell 'cell' itself"),
        (
            nn.Sequential(scripted(nn.Linear(3, 4))),
            X,
            "its part '0' is a module under torch.jit.script, which cannot be traced; script a function",
        ),
        (Guessing(nn.GRU), X, "initial_h of GRU '/module/rnn_1/GRU' is computed from 'x' by"),
        (Tagger(nn.GRU), (X, 3), "does not fit the module's forward"),
        (Tagger(nn.GRU), torch.zeros(2, 7, 4), "the module does not run on the example"),
        (Tagger(nn.GRU), {}, "does not fit the module's forward"),
        (Tagger(nn.GRU), {"x": [[0.0]]}, "x_0_0: got float, expected a tensor"),
    ],
    ids=["bidirectional", "pooled", "cells", "scripted", "guessing", "too many", "wrong size", "nothing", "lists"],
)
def test_what_cannot_be_exported(module: nn.Module, example: Any, message: str, tmp_path: Path) -> None:
    """A typed error with the reason, and no file."""
    with pytest.raises(ExportError, match=message):
        eddy.export(module, example, tmp_path / "none" / "1")
    assert not list(tmp_path.rglob("*.onnx"))


def test_a_difference_from_torch_is_found(tmp_path: Path) -> None:
    """A limit that no rounding keeps ends with the worst element, and without a file."""
    with pytest.raises(VerificationError, match=r"output\[\d+, \d+, \d+\] is .* \(PyTorch, batch"):
        eddy.export(Tagger(nn.GRU), X, tmp_path / "strict" / "1", limit=0.0)
    assert not list(tmp_path.rglob("*.onnx"))


def test_the_documents_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The code block of docs/training.md runs as it stands there, and says what was verified."""
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    [code] = re.findall(
        r"```python\n(.*?)```", text.partition("## Models of your own")[2].partition("\n## ")[0], re.DOTALL
    )
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/training.md", "exec"), {})  # noqa: S102  # our own page
    assert "PyTorch differs by at most" in capsys.readouterr().out
    assert len(read_contract(tmp_path / "models/tagger/1/model.onnx").states) == 4


def test_importing_eddy_imports_no_torch() -> None:
    """`eddy.export` brings torch when it is used, not before."""
    script = "import sys, eddy; assert 'torch' not in sys.modules; eddy.export; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)  # noqa: S603  # our own words
