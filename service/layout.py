"""Layouts: where the columns of a step message lie in its bytes.

Owns the recognition of messages that differ from an earlier one in nothing but tag, handles, positions and data: their
columns are cut out of the bytes, and neither parsing nor the checks of what is the same need be done again. Must not
know which checks those are: a layout is learned from a message that passed them. `Pattern` is what another protocol's
layouts share with these.

A stream of one session sends such messages only, and parsing is a fifth of what one costs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from eddy.service.fields import BYTES, VARINT, read_varint
from eddy.service.ports import Port
from eddy.v1 import inference_pb2

_REQUEST = inference_pb2.StreamRequest.DESCRIPTOR.fields_by_name
_STEP = inference_pb2.StepChunk.DESCRIPTOR.fields_by_name
_TENSOR = inference_pb2.Tensor.DESCRIPTOR.fields_by_name


def _key(field: Any) -> int:  # A descriptor, of whichever of protobuf's implementations.
    """How a field begins: its number and its kind. With another kind it is no such field to the parser."""
    is_bytes = field.is_repeated or field.type in (field.TYPE_BYTES, field.TYPE_STRING, field.TYPE_MESSAGE)
    return int(field.number) << 3 | (BYTES if is_bytes else VARINT)


_TAG, _ACTION = _key(_REQUEST["tag"]), _key(_REQUEST["step"])
_HANDLES, _POSITIONS, _INPUTS = (_key(_STEP[name]) for name in ("handles", "positions", "inputs"))
_NAME, _DATA = _key(_TENSOR["name"]), _key(_TENSOR["data"])
# Packed, or one by one.
_SHAPES = {_key(_TENSOR["shape"]), _TENSOR["shape"].number << 3 | VARINT}
_STEP_KEYS, _TENSOR_KEYS = ({_key(field) for field in fields.values()} for fields in (_STEP, _TENSOR))
_MAX_TAG = (1 << 64) - 1

# A client whose messages have more lengths than this teaches some of them again.
_MAX_LENGTHS = 1024
_MAX_LAYOUTS_OF_A_LENGTH = 4
_HANDLE_BYTES = 8

Window = tuple[int, int]


class Pattern:
    """Messages of one length that are the same but for some windows.

    Args:
        data: one of them.
        free: windows of any bytes; digits: of an integer's, as many as here; text: of ASCII characters.
    """

    __slots__ = ("_checked", "_digits", "_expected", "_fixed", "_text")

    def __init__(
        self, data: bytes, free: Sequence[Window], digits: Sequence[Window], text: Sequence[Window] = ()
    ) -> None:
        windows = sorted((*free, *digits, *text))
        begins, ends = [0, *(end for _, end in windows)], [*(begin for begin, _ in windows), len(data)]
        self._fixed = [(begin, end, data[begin:end]) for begin, end in zip(begins, ends, strict=True) if begin < end]
        self._digits = [(begin, end) for begin, end in digits if begin < end]
        self._text = [(begin, end) for begin, end in text if begin < end]
        # The same for many messages at once: which bits are looked at, and what they must be.
        self._checked = np.zeros(len(data), np.uint8)
        for begin, end, _ in self._fixed:
            self._checked[begin:end] = 0xFF
        for begin, end in (*digits, *text):
            self._checked[begin:end] = 0x80
        self._expected = np.frombuffer(data, np.uint8) & self._checked

    def fits(self, data: bytes) -> bool:
        """`data`, which has the pattern's length, is one of them."""
        for begin, end, fixed in self._fixed:
            if data[begin:end] != fixed:
                return False
        for begin, end in self._digits:
            # The integer ends where it did: its last byte, and no other, has no continuation bit.
            if data[end - 1] >= 0x80 or (end - begin > 1 and min(data[begin : end - 1]) < 0x80):
                return False
        return all(data[begin:end].isascii() for begin, end in self._text) if self._text else True

    def match(self, messages: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """`fits` of G messages that have the pattern's length, bool [G], and their bytes, uint8 [G, length]."""
        matrix = np.frombuffer(b"".join(messages), np.uint8).reshape(len(messages), -1)
        return ~((matrix & self._checked) != self._expected).any(axis=1), matrix


class StepLayout(Pattern):
    """The layout of one step message.

    Attributes:
        tag: begin and end of its digits, the same where it is zero and left out.
        handles, positions: begin and end of the columns; inputs: of each input's data, in the contract's order.
        columns: all of these.
        num_steps: T; timeout_milliseconds: as in the message.
        models: indices of the models whose checks a message of this layout has passed.
    """

    __slots__ = (
        "columns",
        "handles",
        "inputs",
        "models",
        "num_steps",
        "positions",
        "tag",
        "timeout_milliseconds",
    )

    def __init__(self, data: bytes, tag: Window, columns: list[Window], step: inference_pb2.StepChunk) -> None:
        super().__init__(data, columns, [tag])
        self.tag = tag
        self.columns = columns
        self.handles, self.positions, *inputs = columns
        self.inputs = inputs
        self.num_steps = step.num_steps
        self.timeout_milliseconds = step.timeout_milliseconds
        self.models: set[int] = set()

    def read_tag(self, data: bytes) -> int:
        """The tag of `data`, which fits."""
        begin, end = self.tag
        tag = shift = 0
        for byte in data[begin:end]:
            tag |= (byte & 0x7F) << shift
            shift += 7
        return tag & _MAX_TAG


class Layouts:
    """What was learned from the step messages of all streams. Bounded: clients choose what is learned."""

    def __init__(self) -> None:
        # Changed only on the server's event loop. By length; lengths of which one message was seen.
        self._by_length: dict[int, list[StepLayout]] = {}
        self._seen: set[int] = set()
        # By length, the last that was learned of a message of one row.
        self.of_one_row: dict[int, StepLayout] = {}

    def forget(self, model: int) -> None:
        """The model is freed; its index may become another's, whose checks no message has passed."""
        for layouts in self._by_length.values():
            for layout in layouts:
                layout.models.discard(model)
        for layout in self.of_one_row.values():
            layout.models.discard(model)

    def find(self, data: bytes) -> StepLayout | None:
        """The layout of a step message, if it is known."""
        for layout in self._by_length.get(len(data), ()):
            if layout.fits(data):
                return layout
        return None

    def learn(self, data: bytes, step: inference_pb2.StepChunk, model: int, ports: Sequence[Port]) -> None:
        """Learns from the second message of its length that passed the checks of `model` with inputs `ports`.

        Args:
            data: the whole request, parsed and checked; step: its step.
        """
        length = len(data)
        if length not in self._seen:
            if len(self._seen) >= _MAX_LENGTHS:
                self._seen.clear()
                self._by_length.clear()
                self.of_one_row.clear()
            self._seen.add(length)
            return
        known = self.find(data)
        if known is None:
            known = _layout_of(data, step, [port.name for port in ports])
            if known is None:
                return
            layouts = self._by_length.setdefault(length, [])
            layouts.insert(0, known)
            del layouts[_MAX_LAYOUTS_OF_A_LENGTH:]
            if known.handles[1] - known.handles[0] == _HANDLE_BYTES:
                self.of_one_row[length] = known
        known.models.add(model)


def _layout_of(data: bytes, step: inference_pb2.StepChunk, names: Sequence[str]) -> StepLayout | None:
    """The layout of a step message with inputs `names`, None when it has fields twice or fields not known here."""
    try:
        request = _once(fields_of(data, 0, len(data)), {_TAG, _ACTION})
        fields = list(fields_of(data, *request[_ACTION]))
        columns = _once([each for each in fields if each[0] != _INPUTS], _STEP_KEYS)
        tensors = [
            _once(fields_of(data, *window), _TENSOR_KEYS | _SHAPES, _SHAPES) for key, window in fields if key == _INPUTS
        ]
    except UnusualError:
        return None
    data_of = {data[slice(*tensor[_NAME])].decode(): tensor[_DATA] for tensor in tensors}
    inputs = [data_of[name] for name in names]
    return StepLayout(data, request.get(_TAG, (0, 0)), [columns[_HANDLES], columns[_POSITIONS], *inputs], step)


class UnusualError(Exception):
    """The message is written as no encoder known to us would write it; it is parsed every time."""


def _once(
    fields: Iterable[tuple[int, Window]], known: Collection[int], repeated: Collection[int] = ()
) -> dict[int, Window]:
    """The fields by key, each there once at most, but for `repeated`."""
    found: dict[int, Window] = {}
    for key, window in fields:
        if key not in known or (key in found and key not in repeated):
            raise UnusualError
        found[key] = window
    return found


def fields_of(data: bytes, at: int, end: int) -> Iterator[tuple[int, Window]]:
    """Key and payload of each field in `data[at:end]`, which are known to parse."""
    while at < end:
        key, at = read_varint(data, at)
        kind = key & 7
        if kind == BYTES:
            size, at = read_varint(data, at)
        elif kind == VARINT:
            size = read_varint(data, at)[1] - at
        else:  # No message of ours has such fields.
            raise UnusualError
        yield key, (at, at + size)
        at += size
