"""What `make gpu-check` checks, with the CPU in the device's place: it runs for every architecture, and can fail."""

import io

import numpy as np
import pytest
from architectures import EXAMPLES, example_folder
from rich.console import Console

from benchmarks import gpu_check
from eddy.service.engine import Engine


def _check(name: str) -> tuple[bool, str]:
    text = io.StringIO()
    holds = gpu_check.check_model(Console(file=text, width=160), example_folder(name) / "model.onnx", gpu_check.CPU)
    return holds, text.getvalue()


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_laws_are_checked(name: str) -> None:
    """Every architecture: all laws hold exactly on one device, and the cost of ticks is shown."""
    holds, text = _check(name)
    assert holds and "NO" not in text
    assert "parity" in text and "neighbours are not touched" in text and "device steps/s" in text


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
