"""What `make gpu-check` checks, with the CPU in the device's place: it runs for every architecture, and can fail."""

import io
from pathlib import Path

import numpy as np
import pytest
from architectures import EXAMPLES, example_folder
from graphs import WHOLE_FAMILIES
from loopback import write_model
from rich.console import Console

from benchmarks import gpu_check
from eddy.service.engine import Engine

LIMITED = ("history-by-step", "history-one-row", "history-three-rows", "stateless", "look-ahead-in-parts")


def _check(name: str) -> tuple[bool, str]:
    return _check_file(example_folder(name) / "model.onnx")


def _check_file(path: Path) -> tuple[bool, str]:
    text = io.StringIO()
    holds = gpu_check.check_model(Console(file=text, width=160), path, gpu_check.CPU)
    return holds, text.getvalue()


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_laws_are_checked(name: str) -> None:
    """Every architecture: all laws hold exactly on one device, and the cost of ticks is shown."""
    holds, text = _check(name)
    assert holds and "NO" not in text
    assert "parity" in text and "neighbours are not touched" in text and "device steps/s" in text


@pytest.mark.parametrize("name", LIMITED)
def test_graphs_that_take_what_they_take(name: str, tmp_path: Path) -> None:
    """Fixed rows, one step a run, no states: all laws hold, and ticks have their cost."""
    holds, text = _check_file(write_model(tmp_path, name))
    assert holds and "NO" not in text
    assert "parity" in text and "device steps/s" in text


@pytest.mark.parametrize("name", WHOLE_FAMILIES)
def test_models_that_do_not_stream(name: str, tmp_path: Path) -> None:
    """Whole sequences are compared, and nothing that belongs to sessions."""
    holds, text = _check_file(write_model(tmp_path, name))
    assert holds and "whole sequences" in text and "parity" not in text


def test_a_broken_law_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that touches a neighbour's slot fails the check, which names the law."""
    run = Engine.run

    def careless(engine: Engine, *arguments: object) -> list[bytes]:
        blocks = run(engine, *arguments)  # type: ignore[arg-type]
        slots = np.atleast_1d(np.asarray(arguments[2]))
        if len(slots) == 8:
            engine.write_states(slots[:1] + 1, [state[:1] * 2 for state in engine.read_states(slots[:1])])
        return blocks

    monkeypatch.setattr(Engine, "run", careless)
    holds, text = _check("gru")
    [line] = [line for line in text.splitlines() if "neighbours are not touched" in line]
    assert not holds and "NO" in line
