"""Isolation: a model file is inspected in a process of its own, and what that hands back is read.

Owns the process: its start, its end, and the words for every way in which it can end. Must not import what it runs,
nor ONNX Runtime. Blocks until the process has ended: not for an event loop.

What a file can do when it is inspected ends with that process. What its graph does later, in the server, with other
inputs than those that were tried, does not.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from eddy.inspection.errors import InspectionError
from eddy.service.config import InspectionConfig

_MODULE = "eddy.service.inspector"
RESULT_FILE, STEP_FILE, WHOLE_FILE = "result.json", "step.onnx", "whole.onnx"
_MAX_RESULT_BYTES = 64 << 20
# Of what a process said before it died: its last line is the reason.
_TAIL_BYTES = 2000


@dataclass(frozen=True, slots=True)
class Inspected:
    """What the process found.

    Attributes:
        report: `Report.as_json`.
        step, whole: serialized graphs with the contract in their metadata; None where the model has no such graph.
    """

    report: dict[str, Any]
    step: bytes | None
    whole: bytes | None


@dataclass(frozen=True, slots=True)
class Task:
    """What the process inspects; one JSON object on its standard input.

    Attributes:
        model: the file; settings: its settings, empty where there are none; name: for the contract.
        folder: an empty one, for `RESULT_FILE`, which has a "report" or a "refusal", and the graphs.
        max_memory_bytes: address space; max_seconds: processor time.
        wants_costs: what a step takes is measured, too.
    """

    model: str
    settings: str
    name: str
    folder: str
    max_memory_bytes: int
    max_seconds: int
    wants_costs: bool


def inspect_file(
    model: Path,
    settings: Path | None,
    name: str,
    bounds: InspectionConfig,
    *,
    wants_costs: bool = False,
    module: str = _MODULE,
) -> Inspected:
    """Inspects the file `model` in another process.

    Args:
        name: for the contract; wants_costs: the report has them; module: what that process runs.

    Raises:
        InspectionError: the file is refused, or the process ended without an answer; the message says why.
    """
    with tempfile.TemporaryDirectory(prefix="eddy-inspect-") as draft:
        folder = Path(draft)
        task = Task(
            str(model.absolute()),
            str(settings.absolute()) if settings else "",
            name,
            draft,
            bounds.max_memory_bytes,
            math.ceil(bounds.max_seconds),
            wants_costs,
        )
        with (folder / "said").open("w+b") as said:
            code = _run(module, json.dumps(asdict(task)), bounds.max_seconds, said)
            result = _result(folder)
            if result is None:
                raise InspectionError(_ending(code, _tail(said), bounds))
        if "refusal" in result:
            raise InspectionError(str(result["refusal"]))
        step, whole = (_read(folder / file) for file in (STEP_FILE, WHOLE_FILE))
        return Inspected(result["report"], step, whole)


def _run(module: str, task: str, max_seconds: float, said: IO[bytes]) -> int | None:
    """The process's exit code, as `subprocess` has it; None where it took too long."""
    process = subprocess.Popen(  # noqa: S603  our own module
        # -P: nothing is imported from the folder that the server was started in.
        [sys.executable, "-P", "-m", module],
        stdin=subprocess.PIPE,
        stdout=said,
        stderr=said,
        # A group of its own: a terminal's Ctrl-C is for the server, and the whole group can be ended.
        start_new_session=True,
    )
    try:
        process.communicate(task.encode(), timeout=max_seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end(process)
    return process.returncode


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the process, also when the server is told to stop meanwhile."""
    if process.poll() is None:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()


def _result(folder: Path) -> dict[str, Any] | None:
    raw = _read(folder / RESULT_FILE)
    if raw is None or len(raw) > _MAX_RESULT_BYTES:
        return None
    try:
        result = json.loads(raw)
    except ValueError:  # It ended while it wrote.
        return None
    return result if isinstance(result, dict) else None


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _tail(said: IO[bytes]) -> str:
    """The last line."""
    said.seek(max(0, said.seek(0, os.SEEK_END) - _TAIL_BYTES))
    lines = said.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _ending(code: int | None, tail: str, bounds: InspectionConfig) -> str:
    """Why there is no answer."""
    if code is None:
        return f"inspecting it took more than {bounds.max_seconds:g} s (inspection.max_seconds)"
    if code >= 0:
        return f"inspecting it ended with exit code {code}: {tail or 'nothing said'}"
    name = next((each.name for each in signal.Signals if each == -code), f"signal {-code}")
    memory = f"it may need more than {bounds.max_memory_bytes:,} bytes of memory (inspection.max_memory_bytes)"
    why = {
        "SIGXCPU": f"it took more than {bounds.max_seconds:g} s (inspection.max_seconds)",
        "SIGKILL": "the system had no memory left for it, or it took too long",
        "SIGABRT": memory,
        "SIGSEGV": f"it makes the runtime crash, or {memory}",
    }.get(name, "")
    return f"inspecting it ended with {name}" + "".join(f": {part}" for part in (why, tail) if part)
