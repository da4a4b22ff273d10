"""Layouts: where the columns of a step message lie in its bytes.

Owns the recognition of messages that differ from an earlier one in nothing but tag, handles, positions and data: their
columns are cut out of the bytes, and neither parsing nor the checks of what is the same need be done again. Must not
know which checks those are: a layout is learned from a message that passed them.

A stream of one session sends such messages only, and parsing is a fifth of what one costs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from eddy.v1 import inference_pb2

_VARINT, _BYTES = 0, 2  # https://protobuf.dev/programming-guides/encoding/

_REQUEST = inference_pb2.StreamRequest.DESCRIPTOR.fields_by_name
_STEP = inference_pb2.StepChunk.DESCRIPTOR.fields_by_name
_TENSOR = inference_pb2.Tensor.DESCRIPTOR.fields_by_name
_TAG, _ACTION = _REQUEST["tag"].number, _REQUEST["step"].number
_HANDLES, _POSITIONS, _INPUTS = (_STEP[name].number for name in ("handles", "positions", "inputs"))
_NAME, _SHAPE, _DATA = (_TENSOR[name].number for name in ("name", "shape", "data"))
_STEP_NUMBERS, _TENSOR_NUMBERS = ({field.number for field in fields.values()} for fields in (_STEP, _TENSOR))
_MAX_TAG = (1 << 64) - 1

Window = tuple[int, int]


class StepLayout:
    """The layout of one step message.

    Attributes:
        handles, positions: begin and end of the columns; inputs: of each input's data, in the contract's order.
        num_steps: T; timeout_milliseconds: as in the message.
        models: indices of the models whose checks a message of this layout has passed.
    """

    __slots__ = ("_fixed", "_tag", "handles", "inputs", "models", "num_steps", "positions", "timeout_milliseconds")

    def __init__(self, data: bytes, tag: Window, columns: Sequence[Window], step: inference_pb2.StepChunk) -> None:
        self._tag = tag
        self.handles, self.positions, *inputs = columns
        self.inputs = inputs
        self.num_steps = step.num_steps
        self.timeout_milliseconds = step.timeout_milliseconds
        self.models: set[int] = set()
        windows = sorted((tag, *columns))
        begins, ends = [0, *(end for _, end in windows)], [*(begin for begin, _ in windows), len(data)]
        self._fixed = [(begin, end, data[begin:end]) for begin, end in zip(begins, ends, strict=True) if begin < end]

    def read_tag(self, data: bytes) -> int:
        """The tag of `data`, which has the layout's length; -1 when it is laid out otherwise."""
        for begin, end, fixed in self._fixed:
            if data[begin:end] != fixed:
                return -1
        begin, end = self._tag
        tag = shift = 0
        for byte in data[begin:end]:
            tag |= (byte & 0x7F) << shift
            shift += 7
            if (byte >= 0x80) is not (7 * (end - begin) > shift):
                return -1  # The tag ends earlier or goes on: what follows lies elsewhere.
        return tag & _MAX_TAG


def learn(data: bytes, step: inference_pb2.StepChunk, names: Sequence[str]) -> StepLayout | None:
    """The layout of a step message with inputs `names`, None when it has fields twice or fields not known here.

    Args:
        data: the whole request, already parsed; step: its step.
    """
    try:
        request = _once(_fields(data, 0, len(data)), {_TAG, _ACTION})
        fields = list(_fields(data, *request[_ACTION]))
        columns = _once([each for each in fields if each[0] != _INPUTS], _STEP_NUMBERS)
        tensors = [
            _once(_fields(data, *window), _TENSOR_NUMBERS, _SHAPE) for number, window in fields if number == _INPUTS
        ]
    except _UnusualError:
        return None
    data_of = {data[slice(*tensor[_NAME])].decode(): tensor[_DATA] for tensor in tensors}
    inputs = [data_of[name] for name in names]
    return StepLayout(data, request.get(_TAG, (0, 0)), [columns[_HANDLES], columns[_POSITIONS], *inputs], step)


class _UnusualError(Exception):
    """The message is written as no encoder known to us would write it; it is parsed every time."""


def _once(fields: Iterable[tuple[int, Window]], known: Collection[int], repeated: int = 0) -> dict[int, Window]:
    """The fields by number, each there once at most, but for `repeated`."""
    found: dict[int, Window] = {}
    for number, window in fields:
        if number not in known or (number in found and number != repeated):
            raise _UnusualError
        found[number] = window
    return found


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, Window]]:
    """Number and payload of each field in `data[at:end]`, which are known to parse."""
    while at < end:
        key, at = _varint(data, at)
        kind = key & 7
        if kind == _BYTES:
            size, at = _varint(data, at)
        elif kind == _VARINT:
            size = _varint(data, at)[1] - at
        else:  # No message of ours has such fields.
            raise _UnusualError
        yield key >> 3, (at, at + size)
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number that begins at `at`, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
