"""Foreign modules: anybody's `nn.Module` with recurrent layers becomes a model that the server streams, in one call.

Owns the order: export by torch, lift the states and find the axes (`eddy.inspection`), write a draft, verify it against
PyTorch, then give it its name. Must not know any particular module.

Dimension key: B batch, T steps.
"""

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import torch
from torch import nn

from eddy.inspection.errors import InspectionError
from eddy.inspection.inspect import Inspection, inspect
from eddy.inspection.lift import lift
from eddy.inspection.lifted import Lift
from eddy.inspection.settings import Settings
from eddy.training.contract import STEP_FILE, attach_contract, save_model
from eddy.training.errors import ExportError
from eddy.training.flat import Example, FlatModule
from eddy.training.foreign_reference import ForeignReference
from eddy.training.runtime import load_graph
from eddy.training.storage import make_folder
from eddy.training.verify import LIMIT, Report, verify

_OPSET = 17
_CELLS = (nn.RNNCell, nn.LSTMCell, nn.GRUCell)
BATCH, TIME = "batch", "time"


def export(
    module: nn.Module,
    example: Example,
    folder: str | Path,
    *,
    name: str = "",
    description: str = "",
    axes: Mapping[str, Sequence[str | int]] | None = None,
    limit: float = LIMIT,
) -> Report:
    """Exports a module that contains nn.RNN, nn.LSTM or nn.GRU, its states lifted, and proves it against PyTorch.

    The module need not take or give states: those that it begins with zeros, or with constants, become states of the
    server's sessions. States that it does take and give are found by trying. It is copied, put into evaluation mode
    and left as it was.

    >>> import torch, eddy
    >>> class Tagger(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.rnn = torch.nn.GRU(3, 16, batch_first=True)
    ...         self.head = torch.nn.Linear(16, 5)
    ...     def forward(self, x):
    ...         return self.head(self.rnn(x)[0])
    >>> report = eddy.export(Tagger(), torch.randn(2, 7, 3), "models/tagger/1")  # doctest: +SKIP

    Args:
        example: an input [B, T, ...], the tuple of `forward`'s arguments, or the dictionary of its keyword arguments.
            Only shapes and dtypes count; every size but B and T is the model's. Best is another B than T.
        folder: `<repository>/<model>/<version>`; `model.onnx` appears there when everything holds.
        name: of the model; left out, the folder's parent's.
        axes: what the axes of an input are, where trying does not tell: {"x": ("time", "batch", 40)}.
        limit: the largest difference from PyTorch and from itself, relative, as in `eddy verify`.

    Returns:
        what verification found: whole, in chunks, step by step, over batches, against PyTorch; it stands in the
        model's contract as well.

    Raises:
        ExportError: torch cannot export it, or it does not stream; the message says why and names the node.
        VerificationError: it computes something else than PyTorch, or not the same in chunks; the worst element.
        StorageError: the folder cannot be written.
    """
    flat = FlatModule(module, example)
    target = Path(folder)
    lifted = _lift(_graph_of(flat))
    pairs = {state.input: state.output for state in lifted.states}
    settings = Settings(description=description, axes=_axes(flat) | _given(axes), states=pairs)
    found = _inspect(lifted, settings, name or target.parent.name, flat)
    assert found.step is not None, "a model that streams has a step graph"
    contract = found.contract
    _begin(found, lifted)
    contract.family = ", ".join(sorted({type(part).__name__.lower() for part in _recurrent(flat)}))
    contract.training.framework = f"torch {torch.__version__}"
    contract.training.parameters = sum(parameter.numel() for parameter in flat.parameters())
    attach_contract(found.step, contract)
    make_folder(target)
    with TemporaryDirectory(prefix=".unproven-", dir=target) as draft:
        model = Path(draft) / STEP_FILE
        save_model(model, found.step)
        report = verify(model, reference=ForeignReference(flat, found.report, contract), limit=limit)
        model.replace(target / STEP_FILE)
    return report


def _graph_of(flat: FlatModule) -> onnx.ModelProto:
    """The module as torch's tracing exporter writes it: the one that exports every recurrent layer for any B and T."""
    file = io.BytesIO()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            # About the exporter itself, batches in recurrent layers and traced conditions: all of it is tried later.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                flat,
                flat.example,
                file,  # type: ignore[arg-type]  # the tracing exporter writes into open files
                dynamo=False,
                opset_version=_OPSET,
                input_names=flat.input_names,
                output_names=flat.output_names,
                dynamic_axes=_dynamic_axes(flat),
            )
    except Exception as error:  # the exporter raises what it likes, and so does somebody else's module
        raise ExportError(f"torch cannot export the module: {type(error).__name__}: {_first_line(error)}") from error
    return onnx.load_model_from_string(file.getvalue())


def _dynamic_axes(flat: FlatModule) -> dict[str, dict[int, str]]:
    """Which axes of the inputs have no fixed size: the first two of data, and of states those as long as the batch.

    Which of data's two is the batch decides what is tried first, no more.
    """
    time_first = any(isinstance(part, nn.RNNBase) and not part.batch_first for part in flat.modules())
    batch_axis = 1 if time_first and flat.example[0].ndim > 2 else 0
    sizes = flat.example[0].shape[:2]
    found: dict[str, dict[int, str]] = {}
    for name, value in zip(flat.input_names, flat.example, strict=True):
        if value.ndim >= 2 and value.shape[:2] == sizes:
            found[name] = {batch_axis: BATCH, 1 - batch_axis: TIME}
        else:
            found[name] = {axis: BATCH for axis, size in enumerate(value.shape) if size == sizes[batch_axis]}
    return found


def _lift(model: onnx.ModelProto) -> Lift:
    """The graph with its hidden states lifted. Raises ExportError where a node looks ahead.

    Final states that the module returns as well are states already; they go, unless there is nothing else.
    """
    try:
        lifted = lift(model)
    except InspectionError as error:
        raise ExportError(f"the exported graph cannot be used: {error}") from error
    if lifted.obstacles:
        raise ExportError(f"the module does not stream: {lifted.obstacles[0].reason}")
    ports = lifted.model.graph.output
    nexts = {state.output for state in lifted.states}
    kept = [port for port in ports if port.name not in lifted.echoes]
    if any(port.name not in nexts for port in kept):
        del ports[:]
        ports.extend(kept)
    return lifted


def _inspect(lifted: Lift, settings: Settings, name: str, flat: FlatModule) -> Inspection:
    """The model in the form that is served. Raises ExportError where it does not stream."""
    more = "".join(f"; {given.reason}" for given in lifted.given if given.through) + _hint(flat)
    try:
        found = inspect(lifted.model, load_graph, settings, name)
    except InspectionError as error:
        raise ExportError(f"the exported graph cannot be used: {error}{more}") from error
    if not found.report.streamable:
        raise ExportError(f"the module does not stream: {found.report.reason}{more}")
    if found.contract.streaming.run_rows:
        rows = found.contract.streaming.run_rows
        raise ExportError(
            f"the exported graph takes {rows} rows a run, expected any number: a size of the example's batch stands in "
            f"the module's forward{more}"
        )
    return found


def _begin(found: Inspection, lifted: Lift) -> None:
    """Puts what the lifted states begin with into the contract."""
    known = {state.input: state for state in lifted.states}
    for one, spec in zip(found.report.states, found.contract.states, strict=True):
        state = known.get(one.input)
        if state is not None and state.initial.ndim == 0:
            spec.initial.constant = float(state.initial)
        elif state is not None:
            row = np.broadcast_to(state.initial, tuple(spec.shape))
            spec.initial.data = row.astype(row.dtype.newbyteorder("<")).tobytes()


def _hint(flat: FlatModule) -> str:
    """What may be behind it, where a module has cells: tracing writes their loop out."""
    cell = next((label for label, part in flat.module.named_modules() if isinstance(part, _CELLS)), None)
    if cell is None:
        return ""
    return (
        f"; the module steps the cell {cell!r} itself, and tracing writes such a loop out for the example's steps: use "
        "nn.RNN, nn.LSTM or nn.GRU, or put the loop into a function under torch.jit.script"
    )


def _recurrent(flat: FlatModule) -> list[nn.Module]:
    return [part for part in flat.modules() if isinstance(part, (nn.RNNBase, *_CELLS))]


def _axes(flat: FlatModule) -> dict[str, tuple[str | int, ...]]:
    """The axes of inputs that are sequences beyond doubt: features by step, or symbols."""
    first = flat.example[0]
    if first.ndim < 3 and first.is_floating_point():
        return {}
    named = _dynamic_axes(flat)
    sequences = {
        name: value for name, value in zip(flat.input_names, flat.example, strict=True) if len(named[name]) == 2
    }
    return {
        name: tuple(named[name].get(axis, size) for axis, size in enumerate(value.shape))
        for name, value in sequences.items()
        if set(named[name].values()) == {BATCH, TIME}
    }


def _given(axes: Mapping[str, Sequence[str | int]] | None) -> dict[str, tuple[str | int, ...]]:
    return {name: tuple(each) for name, each in (axes or {}).items()}


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), "no message")
