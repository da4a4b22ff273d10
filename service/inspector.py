"""The process that inspects a model file: `python -m eddy.service.inspector`.

Owns its own bounds, and the order: bounds, reading, inspecting, writing what was found. A file that crashes ONNX
Runtime, eats memory or never ends takes this process with it and no other. Must not know the repository, nor who
started it.

Reads a `Task` from standard input and writes into its folder.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf import json_format

from eddy.inspection.cost import measure
from eddy.inspection.errors import InspectionError
from eddy.inspection.inspect import Inspection, inspect
from eddy.inspection.program import Program
from eddy.inspection.reading import read_model
from eddy.inspection.settings import Settings
from eddy.inspection.settings_file import read_settings
from eddy.service.contract import METADATA_KEY
from eddy.service.errors import ModelError
from eddy.service.isolation import RESULT_FILE, STEP_FILE, WHOLE_FILE, Task
from eddy.service.runtime import Runtime
from eddy.v1 import contract_pb2

# Also where a machine has a GPU: what is found out there would depend on the machine.
_PROVIDER = "CPUExecutionProvider"


def main() -> int:
    """Inspects; a refusal is a result, too."""
    task = Task(**json.load(sys.stdin))
    bound(task)
    folder = Path(task.folder)
    try:
        result = _inspect(task, folder)
    except (InspectionError, ModelError) as error:
        result = {"refusal": str(error)}
    except MemoryError:
        result = {"refusal": f"inspecting it takes more than {task.max_memory_bytes:,} bytes of memory"}
    except Exception as error:  # noqa: BLE001  the root of the task
        traceback.print_exc()
        result = {"refusal": f"inspection failed: {type(error).__name__}: {error}"}
    (folder / RESULT_FILE).write_text(json.dumps(result), encoding="utf-8")
    return 0


def bound(task: Task) -> None:
    """Bounds of this process, as far as the system has them."""
    try:
        import resource
    except ImportError:  # Windows. Time is bounded by who waits.
        return
    limits = {
        # The process is killed in the second after; whoever waits has given up by then.
        resource.RLIMIT_CPU: (task.max_seconds + 1, task.max_seconds + 2),
        resource.RLIMIT_CORE: (0, 0),
        # Two graphs, each a message of protobuf's 2 GiB at most.
        resource.RLIMIT_FSIZE: (2 << 30, 2 << 30),
    }
    if sys.platform == "linux":
        limits[resource.RLIMIT_AS] = (task.max_memory_bytes, task.max_memory_bytes)
        # Where the machine itself has no memory left, this process is the one to end.
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    for kind, (soft, hard) in limits.items():
        most = resource.getrlimit(kind)[1]
        if most != resource.RLIM_INFINITY:
            soft, hard = min(soft, most), min(hard, most)
        resource.setrlimit(kind, (soft, hard))


class _Loader:
    """Loads graphs, and remembers why the first run that failed did: where no run succeeds, that is the reason."""

    def __init__(self) -> None:
        # Changed only by programs that run.
        self.complaint = ""

    def __call__(self, model: onnx.ModelProto) -> Program:
        return _Program(Runtime(_PROVIDER, 1).session(model), self)


class _Program:
    """A loaded graph that tells its loader what went wrong."""

    def __init__(self, session: Any, loader: _Loader) -> None:
        self._session = session
        self._loader = loader

    def run(self, output_names: Sequence[str], input_feed: Mapping[str, np.ndarray], /) -> list[Any]:
        """See `Program`."""
        try:
            found: list[Any] = self._session.run(list(output_names), dict(input_feed))
        except Exception as error:
            self._loader.complaint = self._loader.complaint or str(error)
            raise
        return found


def _inspect(task: Task, folder: Path) -> dict[str, object]:
    settings = read_settings(Path(task.settings)) if task.settings else Settings()
    model = read_model(Path(task.model))
    load = _Loader()
    try:
        inspection = inspect(model, load, settings, task.name)
    except InspectionError as error:
        if not load.complaint or load.complaint in str(error):
            raise
        complaint = " ".join(load.complaint.split())[:500]
        raise InspectionError(f"{error}; the first run that failed: {complaint}") from error
    _write(inspection, folder)
    report = inspection.report
    if task.wants_costs and inspection.step is not None:
        report = replace(report, costs=measure(inspection.step, inspection.contract, load))
    return {"report": report.as_json()}


def _write(inspection: Inspection, folder: Path) -> None:
    """The graphs, each with the contract in its metadata."""
    for graph, name in ((inspection.step, STEP_FILE), (inspection.whole, WHOLE_FILE)):
        if graph is not None:
            set_contract(graph, inspection.contract)
            (folder / name).write_bytes(graph.SerializeToString())


def set_contract(model: onnx.ModelProto, contract: contract_pb2.ModelContract) -> None:
    """Puts `contract` into the metadata, in the place of what was there."""
    others = [entry for entry in model.metadata_props if entry.key != METADATA_KEY]
    text = json_format.MessageToJson(contract, preserving_proto_field_name=True, indent=None)
    model.ClearField("metadata_props")
    model.metadata_props.extend([*others, onnx.StringStringEntryProto(key=METADATA_KEY, value=text)])


if __name__ == "__main__":
    sys.exit(main())
