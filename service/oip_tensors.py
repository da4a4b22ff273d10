"""Tensors of the Open Inference Protocol: a model's inputs and outputs as that protocol describes and carries them.

Owns datatypes by name, shapes with and without a time axis, raw and typed contents, and the errors for what does not
fit, in the words that clients of the protocol know. Must not know sequences, or how a model is run.

A step of a sequence is [1, T, ...]; a tensor that had no time axis in the file it came from may also be sent as
[1, ...], and is then answered so.

Dimension key: B batch, T steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eddy.oip import grpc_service_pb2 as oip
from eddy.service.contract import Contract
from eddy.service.errors import ClientError, Detail, Reason
from eddy.service.ports import Port

# Sizes that are not fixed.
ANY_SIZE = -1
# Longer shapes are not quoted.
_MAX_RANK = 32

_DATATYPES = {
    np.dtype("?"): "BOOL",
    np.dtype("u1"): "UINT8",
    np.dtype("<i4"): "INT32",
    np.dtype("<i8"): "INT64",
    np.dtype("<f2"): "FP16",
    np.dtype("<f4"): "FP32",
    np.dtype("<f8"): "FP64",
}
# Where elements are that are not sent raw; half precision can only be sent raw.
_CONTENTS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}


@dataclass(frozen=True, slots=True)
class Terminal:
    """An input or output of a model.

    Attributes:
        datatype: the protocol's name of its dtype; has_time: it had a time axis in the file it came from.
    """

    port: Port
    datatype: str
    has_time: bool

    @property
    def shape(self) -> list[int]:
        """As metadata tell it: -1 for the batch, and for time where it has it."""
        return [ANY_SIZE, *self.dims]

    @property
    def dims(self) -> list[int]:
        """The same without the batch."""
        return [ANY_SIZE, *self.port.shape] if self.has_time else list(self.port.shape)


@dataclass(frozen=True, slots=True)
class Signature:
    """What a model takes and gives."""

    model: str
    inputs: tuple[Terminal, ...]
    outputs: tuple[Terminal, ...]

    def output_places(self, requested: Sequence[str]) -> tuple[int, ...]:
        """Which outputs are answered, in the order requested; all where none is.

        Raises:
            ClientError: UNKNOWN_INPUT.
        """
        if not requested:
            return tuple(range(len(self.outputs)))
        names = [terminal.port.name for terminal in self.outputs]
        for name in requested:
            if name not in names:
                raise ClientError(
                    Reason.UNKNOWN_INPUT,
                    f"unexpected inference output '{_clipped(name)}' requested for model '{self.model}'",
                    Detail("outputs", _clipped(name), ", ".join(names)),
                )
        return tuple(names.index(name) for name in requested)


@dataclass(frozen=True, slots=True)
class Feeds:
    """The inputs of a request.

    Attributes:
        inputs: raw bytes an input of the contract, [B, T, ...].
        is_stepwise: a tensor that has no time axis was sent with one, so the client knows it.
    """

    inputs: tuple[bytes, ...]
    num_rows: int
    num_steps: int
    is_stepwise: bool


def signature(name: str, contract: Contract) -> Signature:
    """What the model `name` takes and gives."""
    message = contract.message
    return Signature(
        name,
        tuple(_terminal(port, spec.no_time_axis) for port, spec in zip(contract.inputs, message.inputs, strict=True)),
        tuple(_terminal(port, spec.no_time_axis) for port, spec in zip(contract.outputs, message.outputs, strict=True)),
    )


def datatype_of(dtype: np.dtype) -> str:
    """The protocol's name of a dtype."""
    return _DATATYPES[dtype]


def _terminal(port: Port, no_time_axis: bool) -> Terminal:
    return Terminal(port, datatype_of(port.dtype), not no_time_axis)


# Requests


def read_inputs(request: oip.ModelInferRequest, expected: Signature) -> Feeds:
    """The inputs of `request`, checked.

    Raises:
        ClientError: one is missing, unknown, twice there, of the wrong datatype or shape, or has too few or too many
            elements.
    """
    tensors = _by_name(request, expected)
    raw: list[bytes] = []
    num_rows = num_steps = -1
    is_stepwise = False
    for terminal in expected.inputs:
        tensor, place = tensors[terminal.port.name]
        if tensor.datatype != terminal.datatype:
            raise ClientError(
                Reason.INVALID_DTYPE,
                f"inference input '{terminal.port.name}' data-type is '{_clipped(tensor.datatype)}', but model "
                f"'{expected.model}' expects '{terminal.datatype}'",
                Detail(f"inputs[{terminal.port.name}].datatype", _clipped(tensor.datatype), terminal.datatype),
            )
        shape = list(tensor.shape) if len(tensor.shape) <= _MAX_RANK else []
        steps = _steps(terminal, shape)
        if steps is None or (num_rows >= 0 and (shape[0], steps) != (num_rows, num_steps)):
            wanted = terminal.shape if num_rows < 0 else _shape(terminal, num_rows, num_steps)
            raise _wrong_shape(terminal, expected.model, shape, wanted)
        num_rows, num_steps = shape[0], steps
        is_stepwise |= not terminal.has_time and len(shape) == len(terminal.port.shape) + 2
        size = num_rows * num_steps * terminal.port.step_bytes
        raw.append(_elements(request, tensor, place, terminal, size))
    return Feeds(tuple(raw), num_rows, num_steps, is_stepwise)


def _by_name(
    request: oip.ModelInferRequest, expected: Signature
) -> dict[str, tuple[oip.ModelInferRequest.InferInputTensor, int]]:
    """Each input with its place in the message."""
    names = [terminal.port.name for terminal in expected.inputs]
    found: dict[str, tuple[oip.ModelInferRequest.InferInputTensor, int]] = {}
    num_raw = len(request.raw_input_contents)
    if num_raw > len(request.inputs):
        raise ClientError(
            Reason.UNKNOWN_INPUT,
            f"got {num_raw} raw_input_contents for {len(request.inputs)} inputs for model '{expected.model}'",
            Detail("raw_input_contents", str(num_raw), str(len(request.inputs))),
        )
    for place, tensor in enumerate(request.inputs):
        if tensor.name not in names or tensor.name in found:
            raise ClientError(
                Reason.UNKNOWN_INPUT,
                f"unexpected inference input '{_clipped(tensor.name)}' for model '{expected.model}'",
                Detail("inputs", _clipped(tensor.name), f"each once: {', '.join(names)}"),
            )
        found[tensor.name] = tensor, place
    if missing := [name for name in names if name not in found]:
        raise ClientError(
            Reason.MISSING_FIELD,
            f"expected {len(names)} inputs but got {len(found)} inputs for model '{expected.model}'. Got input(s) "
            f"{list(found)}, but missing required input(s) {missing}. Please provide all required input(s).",
            Detail("inputs", ", ".join(found), ", ".join(names)),
        )
    return found


def _steps(terminal: Terminal, shape: Sequence[int]) -> int | None:
    """T of an input of `shape`, None where it has none that is right."""
    own = terminal.port.shape
    if len(shape) == len(own) + 2 and tuple(shape[2:]) == own and shape[0] >= 1 and shape[1] >= 1:
        return shape[1]
    if not terminal.has_time and len(shape) == len(own) + 1 and tuple(shape[1:]) == own and shape[0] >= 1:
        return 1
    return None


def _shape(terminal: Terminal, num_rows: int, num_steps: int) -> list[int]:
    return [num_rows, *([num_steps] if terminal.has_time or num_steps != 1 else []), *terminal.port.shape]


def _wrong_shape(terminal: Terminal, model: str, shape: Sequence[int], wanted: Sequence[int]) -> ClientError:
    got, expected = _listed(shape), _listed(wanted)
    return ClientError(
        Reason.INVALID_SHAPE,
        f"unexpected shape for input '{terminal.port.name}' for model '{model}'. Expected {expected}, got {got}",
        Detail(f"inputs[{terminal.port.name}].shape", got, expected),
    )


def _elements(
    request: oip.ModelInferRequest,
    tensor: oip.ModelInferRequest.InferInputTensor,
    place: int,
    terminal: Terminal,
    size: int,
) -> bytes:
    """The elements of an input, raw little-endian bytes.

    Cases: named in shared memory; raw and typed both; raw; typed; neither.
    """
    name, model = terminal.port.name, request.model_name
    raw = request.raw_input_contents
    if "shared_memory_region" in tensor.parameters:
        raise ClientError(
            Reason.UNKNOWN_INPUT,
            f"input '{name}' is in shared memory, which this server does not read; send its elements",
            Detail(f"inputs[{name}].parameters", "shared_memory_region", "none"),
        )
    if len(raw) and tensor.HasField("contents"):
        raise ClientError(
            Reason.UNKNOWN_INPUT,
            f"contents field must not be specified when using raw_input_contents for '{name}' for model '{model}'",
            Detail(f"inputs[{name}].contents", "contents and raw_input_contents", "one of them"),
        )
    if len(raw):
        data = raw[place] if place < len(raw) else None
    else:
        data = _typed(tensor, terminal, model) if tensor.HasField("contents") else None
    if data is None:
        raise ClientError(
            Reason.MISSING_FIELD,
            f"unable to find data for input tensor '{name}' for model '{model}' in request.",
            Detail(f"inputs[{name}]", "no elements", f"{size} bytes"),
        )
    if len(data) != size:
        raise ClientError(
            Reason.INVALID_BYTE_LENGTH,
            f"input byte size mismatch for input '{name}' for model '{model}'. Expected {size}, got {len(data)}",
            Detail(f"inputs[{name}]", f"{len(data)} bytes", f"{size} bytes"),
        )
    return data


def _typed(tensor: oip.ModelInferRequest.InferInputTensor, terminal: Terminal, model: str) -> bytes:
    """The elements of an input that sent them one by one."""
    field = _CONTENTS.get(terminal.datatype, "")
    given = [found.name for found, _ in tensor.contents.ListFields()]
    if given not in ([], [field]):
        raise ClientError(
            Reason.INVALID_DTYPE,
            f"unexpected explicit tensor data for input tensor '{terminal.port.name}' for model '{model}': got "
            f"{', '.join(given)}, expected {field or 'raw_input_contents'} for datatype '{terminal.datatype}'",
            Detail(f"inputs[{terminal.port.name}].contents", ", ".join(given), field or "raw_input_contents"),
        )
    if not given:
        return b""
    try:
        return np.array(getattr(tensor.contents, field), terminal.port.dtype).tobytes()
    except OverflowError:
        raise ClientError(
            Reason.OUT_OF_RANGE,
            f"input '{terminal.port.name}' for model '{model}' has values outside of '{terminal.datatype}'",
            Detail(f"inputs[{terminal.port.name}].contents", "values that are too large", terminal.datatype),
        ) from None


# Responses


def output_shape(terminal: Terminal, num_rows: int, num_steps: int, *, is_stepwise: bool) -> list[int]:
    """The shape of an output of B rows of T steps, answering inputs that were sent stepwise, or not."""
    if terminal.has_time or num_steps != 1 or is_stepwise:
        return [num_rows, num_steps, *terminal.port.shape]
    return [num_rows, *terminal.port.shape]


def _listed(shape: Sequence[int]) -> str:
    """As the protocol's servers write shapes."""
    return f"[{','.join(map(str, shape))}]"


def _clipped(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:100]}..."
