"""The codec of the Open Inference Protocol: between its inference messages and plain values.

Owns what a request's parameters mean, the building of answers, and which gRPC status code a reason has here. Must not
know gRPC itself, sequences' rules, or connections.

Dimension key: B rows, T steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from google.rpc import status_pb2

from eddy.oip import grpc_service_pb2 as oip
from eddy.service.codec import GRPC_CODES, error_status
from eddy.service.contract import Contract
from eddy.service.errors import ClientError, Detail, EddyError, Reason
from eddy.service.oip_tensors import Signature, output_shape

# A sequence's id: a number modulo 2**64, or text. 5 and "5" are two sequences.
SequenceId = int | str

_MASK = (1 << 64) - 1
_MAX_ID_CHARACTERS = 1024
_INVALID_ARGUMENT = 3
# Here nobody may ask whether a session is open: what is missing is the START flag.
_CODES = {Reason.UNKNOWN_SESSION: _INVALID_ARGUMENT, Reason.SESSION_EXPIRED: _INVALID_ARGUMENT}
# As clients of the protocol know them, where they differ from ours.
_TEXTS = {Reason.DEADLINE_EXCEEDED: "Request timeout expired"}

FINAL = "triton_final_response"


@dataclass(frozen=True, slots=True)
class Options:
    """What a request's parameters say.

    Attributes:
        sequence_id: 0 or "" where the request is of no sequence.
        timeout_seconds: it must begin within this time; 0 for no limit.
    """

    sequence_id: SequenceId
    is_start: bool
    is_end: bool
    timeout_seconds: float


@dataclass(frozen=True, slots=True)
class Form:
    """What an answer looks like, whatever its values.

    Attributes:
        version: of the model that answered; places: of the outputs wanted.
        is_stepwise: see `oip_tensors.output_shape`.
    """

    signature: Signature
    version: str
    places: tuple[int, ...]
    is_stepwise: bool


# Requests


def read_options(request: oip.ModelInferRequest) -> Options:
    """The parameters of `request` that this server knows; others are the client's own.

    `priority` is one that is known and changes nothing: requests run in the order they come.

    Raises:
        ClientError: one has a value of the wrong kind, or too long an id.
    """
    parameters = request.parameters
    if not parameters:
        return _NO_OPTIONS
    sequence_id: SequenceId = 0
    if "sequence_id" in parameters:
        value = parameters["sequence_id"]
        kind = value.WhichOneof("parameter_choice")
        if kind == "string_param":
            sequence_id = value.string_param
            if len(sequence_id) > _MAX_ID_CHARACTERS:
                raise _wrong_kind("sequence_id", f"{len(sequence_id)} characters", f"at most {_MAX_ID_CHARACTERS}")
        elif kind in ("int64_param", "uint64_param"):
            sequence_id = getattr(value, kind) & _MASK
        else:
            raise _wrong_kind("sequence_id", kind, "int64_param, uint64_param or string_param")
    return Options(
        sequence_id,
        _flag(request, "sequence_start"),
        _flag(request, "sequence_end"),
        _microseconds(request, "timeout") * 1e-6,
    )


_NO_OPTIONS = Options(0, is_start=False, is_end=False, timeout_seconds=0.0)


def _flag(request: oip.ModelInferRequest, name: str) -> bool:
    if name not in request.parameters:
        return False
    value = request.parameters[name]
    if value.WhichOneof("parameter_choice") != "bool_param":
        raise _wrong_kind(name, value.WhichOneof("parameter_choice"), "bool_param")
    return value.bool_param


def _microseconds(request: oip.ModelInferRequest, name: str) -> int:
    if name not in request.parameters:
        return 0
    value = request.parameters[name]
    kind = value.WhichOneof("parameter_choice")
    if kind not in ("int64_param", "uint64_param"):
        raise _wrong_kind(name, kind, "int64_param or uint64_param")
    number: int = getattr(value, kind)
    return max(0, number)


def _wrong_kind(name: str, received: str | None, expected: str) -> ClientError:
    return ClientError(
        Reason.OUT_OF_RANGE,
        f"invalid value type for '{name}' parameter, expected {expected}, got {received or 'nothing'}",
        Detail(f"parameters[{name}]", received or "nothing", expected),
    )


# Responses


def infer_response(
    request_id: str, form: Form, contract: Contract, num_rows: int, parts: Sequence[tuple[int, Sequence[bytes]]]
) -> oip.ModelInferResponse:
    """The answer to a request.

    Args:
        parts: of each chunk that carried it out, one after the other: T, and raw bytes a result of the contract.
    """
    if contract.emits:
        arrays = [
            np.concatenate([_emitted(contract, place, num_rows, *part) for part in parts], axis=1)
            for place in form.places
        ]
        num_steps = arrays[0].shape[1] if arrays else 0
        blocks = [array.tobytes() for array in arrays]
    else:
        [(num_steps, every)] = parts
        blocks = [every[place] for place in form.places]
    return build_response(request_id, form, num_rows, [num_steps] * len(blocks), blocks)


def build_response(
    request_id: str, form: Form, num_rows: int, num_steps: Sequence[int], blocks: Sequence[bytes]
) -> oip.ModelInferResponse:
    """The answer with the outputs of `form`: T and raw bytes of each, [B, T, ...]."""
    response = oip.ModelInferResponse(
        model_name=form.signature.model, model_version=form.version, id=request_id, raw_output_contents=blocks
    )
    for place, steps in zip(form.places, num_steps, strict=True):
        terminal = form.signature.outputs[place]
        shape = output_shape(terminal, num_rows, steps, is_stepwise=form.is_stepwise)
        response.outputs.add(name=terminal.port.name, datatype=terminal.datatype, shape=shape)
    return response


def _emitted(contract: Contract, place: int, num_rows: int, num_steps: int, blocks: Sequence[bytes]) -> np.ndarray:
    """The steps of an output that a chunk really gave."""
    most = int(np.frombuffer(blocks[-1], "<i8").max(initial=0))
    return contract.outputs[place].view(blocks[place], num_rows, num_steps)[:, :most]


def error_text(error: EddyError) -> str:
    """The sentence that tells of `error`."""
    return _TEXTS.get(error.reason, error_status(error).message)


def status_of(error: EddyError) -> status_pb2.Status:
    """The error as the status of a call, with details for clients that read them."""
    status = error_status(error)
    status.code = _CODES.get(error.reason, GRPC_CODES[error.reason])
    status.message = error_text(error)
    return status


def stream_error(request_id: str, model: str, version: str, error: EddyError) -> oip.ModelStreamInferResponse:
    """The error as a stream's answer to the request `request_id`."""
    response = oip.ModelStreamInferResponse(error_message=error_text(error))
    response.infer_response.id = request_id
    response.infer_response.model_name = model
    response.infer_response.model_version = version
    response.infer_response.parameters[FINAL].bool_param = True
    return response
