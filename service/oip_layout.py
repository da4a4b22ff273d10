"""Layouts of the Open Inference Protocol: where a step's inputs lie in the bytes of a request, and its answer's.

Owns the recognition of requests that differ from an earlier one in nothing but their id, their sequence and their
data, as `layout` does for eddy.v1; and answers written the same way. Must not know which checks a request has passed:
a layout is learned from one that has.

Dimension key: G requests, B rows, T steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import ref

import numpy as np

from eddy.oip import grpc_service_pb2 as oip
from eddy.service.fields import BYTES, VARINT, read_varint
from eddy.service.layout import Pattern, UnusualError, Window, fields_of
from eddy.service.model import ServedModel
from eddy.service.oip_codec import FINAL, Form, SequenceId, build_response

_REQUEST = oip.ModelInferRequest.DESCRIPTOR.fields_by_name
_PARAMETER = oip.InferParameter.DESCRIPTOR.fields_by_name
_ID, _PARAMETERS, _RAW = (_REQUEST[name].number << 3 | BYTES for name in ("id", "parameters", "raw_input_contents"))
_ENTRY_KEY, _ENTRY_VALUE = 1 << 3 | BYTES, 2 << 3 | BYTES
_NUMBERS = {_PARAMETER[name].number << 3 | VARINT for name in ("int64_param", "uint64_param")}
_TEXT = _PARAMETER["string_param"].number << 3 | BYTES
_ANSWER = oip.ModelStreamInferResponse.DESCRIPTOR.fields_by_name["infer_response"].number << 3 | BYTES
_ANSWER_ID = oip.ModelInferResponse.DESCRIPTOR.fields_by_name["id"].number << 3 | BYTES

_MASK = (1 << 64) - 1
# A client whose messages have more lengths than this teaches some of them again.
_MAX_LENGTHS = 1024
# Parameters are written in no fixed order: six orders of the three that sequences have.
_MAX_LAYOUTS_OF_A_LENGTH = 8


class InferLayout(Pattern):
    """The layout of requests for one step, or several, of a sequence that has begun and does not end.

    Attributes:
        name, version: of the model whose checks they have passed, as requested.
        form: of the answers; num_steps: T; timeout_seconds: 0 for none.
        request_id: begin and end of the client's own id; inputs: of each input's data, in the contract's order.
        num_bytes: of a request's data and its answer's.
    """

    __slots__ = (
        "_heads",
        "_is_text",
        "_model",
        "_sequence",
        "form",
        "inputs",
        "name",
        "num_bytes",
        "num_steps",
        "request_id",
        "timeout_seconds",
        "version",
    )

    def __init__(
        self,
        data: bytes,
        request_id: Window,
        sequence: Window,
        inputs: list[Window],
        model: ServedModel,
        message: oip.ModelInferRequest,
        form: Form,
        num_steps: int,
        timeout_seconds: float,
        *,
        is_text: bool,
    ) -> None:
        texts = [request_id, sequence] if is_text else [request_id]
        super().__init__(data, inputs, [] if is_text else [sequence], texts)
        self.request_id = request_id
        self._sequence = sequence
        self._is_text = is_text
        self.inputs = inputs
        # A model that is served no more goes; what was learned of it stays until it is pushed out.
        self._model = ref(model)
        self.name, self.version = message.model_name, message.model_version
        self.form = form
        self.num_steps = num_steps
        self.timeout_seconds = timeout_seconds
        sizes = [form.signature.outputs[place].port.step_bytes * num_steps for place in form.places]
        self.num_bytes = sum(end - begin for begin, end in inputs) + sum(sizes)
        self._heads = _heads(form, num_steps, request_id[1] - request_id[0], sizes)

    @property
    def model(self) -> ServedModel | None:
        """The model whose checks they have passed, None when it has gone."""
        return self._model()

    def sequence_of(self, data: bytes) -> SequenceId:
        """The sequence of `data`, which fits."""
        begin, end = self._sequence
        if self._is_text:
            return data[begin:end].decode()
        return read_varint(data, begin)[0] & _MASK

    def sequences_of(self, messages: Sequence[bytes], matrix: np.ndarray) -> list[SequenceId]:
        """The sequences of G messages, whose bytes are `matrix` uint8 [G, length]."""
        begin, end = self._sequence
        if self._is_text:
            return [data[begin:end].decode(errors="replace") for data in messages]
        digits = (matrix[:, begin:end] & 0x7F).astype(np.uint64)
        shifts = np.arange(0, 7 * (end - begin), 7, dtype=np.uint64)
        numbers: list[SequenceId] = (digits << shifts).sum(axis=1, dtype=np.uint64).tolist()
        return numbers

    def answer(self, data: bytes, blocks: Sequence[bytes]) -> bytes:
        """The stream's answer to the request `data`: `blocks` raw bytes a result of the contract, of one row."""
        before, *heads = self._heads
        begin, end = self.request_id
        parts = [before, data[begin:end]]
        for head, place in zip(heads, self.form.places, strict=True):
            parts += (head, blocks[place])
        return b"".join(parts)


def _heads(form: Form, num_steps: int, id_bytes: int, sizes: Sequence[int]) -> list[bytes]:
    """What stands in an answer before its id, and before the data of each output."""
    response = build_response("x" * id_bytes, form, 1, [num_steps] * len(sizes), [bytes(size) for size in sizes])
    response.parameters[FINAL].bool_param = True
    data = oip.ModelStreamInferResponse(infer_response=response).SerializeToString()
    inner = dict(fields_of(data, 0, len(data)))[_ANSWER]
    begin, end = dict(fields_of(data, *inner)).get(_ANSWER_ID, (inner[0], inner[0]))
    heads = [data[:begin]]
    raw = [window for key, window in fields_of(data, *inner) if key == _RAW_ANSWER]
    for first, last in raw:
        heads.append(data[end:first])
        end = last
    assert end == len(data), "the outputs' data are encoded last"
    return heads


_RAW_ANSWER = oip.ModelInferResponse.DESCRIPTOR.fields_by_name["raw_output_contents"].number << 3 | BYTES


class InferLayouts:
    """What was learned from the requests of all streams. Bounded: clients choose what is learned."""

    def __init__(self) -> None:
        # Changed only on the server's event loop.
        self.by_length: dict[int, list[InferLayout]] = {}
        self._seen: set[int] = set()

    def find(self, data: bytes) -> InferLayout | None:
        """The layout of a request, if it is known."""
        for layout in self.by_length.get(len(data), ()):
            if layout.fits(data):
                return layout
        return None

    def learn(
        self,
        data: bytes,
        message: oip.ModelInferRequest,
        model: ServedModel,
        form: Form,
        num_steps: int,
        timeout_seconds: float,
    ) -> None:
        """Learns from the second request of its length that steps a sequence that has begun, and was accepted.

        Args:
            data: the whole request; message: the same, parsed; form: of its answer.
        """
        length = len(data)
        if length not in self._seen:
            if len(self._seen) >= _MAX_LENGTHS:
                self._seen.clear()
                self.by_length.clear()
            self._seen.add(length)
            return
        try:
            found = _windows(data)
        except UnusualError:
            return
        request_id, sequence, raw, is_text = found
        names = [tensor.name for tensor in message.inputs]
        if len(raw) != len(names):  # Typed contents.
            return
        inputs = [raw[names.index(terminal.port.name)] for terminal in form.signature.inputs]
        layout = InferLayout(
            data, request_id, sequence, inputs, model, message, form, num_steps, timeout_seconds, is_text=is_text
        )
        layouts = self.by_length.setdefault(length, [])
        # One for a model that has been replaced since is of no more use.
        layouts[:] = [layout, *(each for each in layouts if not each.fits(data))][:_MAX_LAYOUTS_OF_A_LENGTH]


def _windows(data: bytes) -> tuple[Window, Window, list[Window], bool]:
    """Where id, sequence and raw inputs of a request lie, and whether its sequence's id is text.

    Raises:
        UnusualError: it has what should be there once more often, or not at all.
    """
    fields = list(fields_of(data, 0, len(data)))
    ids = [window for key, window in fields if key == _ID]
    raw = [window for key, window in fields if key == _RAW]
    sequences = [
        _value(data, window) for key, window in fields if key == _PARAMETERS and _name(data, window) == b"sequence_id"
    ]
    if len(ids) > 1 or len(sequences) != 1:
        raise UnusualError
    [(kind, window)] = sequences
    if kind not in _NUMBERS and kind != _TEXT:
        raise UnusualError
    return ids[0] if ids else (0, 0), window, raw, kind == _TEXT


def _entry(data: bytes, window: Window) -> dict[int, Window]:
    fields = list(fields_of(data, *window))
    if sorted(key for key, _ in fields) != [_ENTRY_KEY, _ENTRY_VALUE]:
        raise UnusualError
    return dict(fields)


def _name(data: bytes, window: Window) -> bytes:
    begin, end = _entry(data, window)[_ENTRY_KEY]
    return data[begin:end]


def _value(data: bytes, window: Window) -> tuple[int, Window]:
    """Kind and place of a parameter's value."""
    [*fields] = fields_of(data, *_entry(data, window)[_ENTRY_VALUE])
    if len(fields) != 1:
        raise UnusualError
    return fields[0]
