"""Whole sequences in one call: packed into as few messages as hold them, and their outputs cut apart again.

Owns the packing of `Infer`. Must not know calls.

Dimension key: N sequences, T steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from eddy.clients.errors import invalid
from eddy.clients.start import Primes, States, start_of_many
from eddy.clients.tensors import MESSAGE_OVERHEAD_BYTES, Sequences, Signature
from eddy.v1 import inference_pb2


class SequenceBatch:
    """Sequences of one model, of any lengths.

    Args:
        signature: the model's; values: as `Client.infer` takes them.
        limits: the server's, of one message; prime: what each reads first, states: what each begins with.

    Raises:
        InvalidInput: names, dtype or shape are wrong, or a sequence is too long for a message of its own.
    """

    def __init__(
        self,
        signature: Signature,
        values: Sequences,
        limits: inference_pb2.Limits,
        prime: Primes | None = None,
        states: States | None = None,
    ) -> None:
        self._signature = signature
        self._sequences = signature.sequences(values)
        self._start = start_of_many(signature, prime, states, len(self._sequences))
        self._max_bytes = max(1, limits.max_message_bytes - MESSAGE_OVERHEAD_BYTES)
        self._max_rows = limits.max_rows
        for number, sequence in enumerate(self._sequences):
            size = self._size(sequence)
            if size > self._max_bytes:
                received = f"{len(sequence[0])} steps, {size} bytes"
                expected = f"at most {self._max_bytes} bytes a sequence"
                raise invalid("MESSAGE_TOO_LARGE", f"sequences[{number}]", received, expected)

    def requests(self, model: str, version: str) -> Iterator[inference_pb2.InferRequest]:
        """The messages, sequences in their order."""
        begin = 0
        for part in self._parts():
            lengths = np.array([len(sequence[0]) for sequence in part], "<u4")
            request = inference_pb2.InferRequest(model=model, version=version, lengths=lengths.tobytes())
            raw = [b"".join([array.tobytes() for array in arrays]) for arrays in zip(*part, strict=True)]
            self._signature.write(request, raw, int(lengths.sum()))
            self._start.write(request, slice(begin, begin + len(part)))
            begin += len(part)
            yield request

    def _size(self, sequence: list[np.ndarray]) -> int:
        return self._signature.row_bytes(len(sequence[0])) + self._start.row_bytes

    def _parts(self) -> Iterator[list[list[np.ndarray]]]:
        part: list[list[np.ndarray]] = []
        room = self._max_bytes
        for sequence in self._sequences:
            size = self._size(sequence)
            if part and (size > room or len(part) == self._max_rows):
                yield part
                part, room = [], self._max_bytes
            part.append(sequence)
            room -= size
        yield part

    def outputs(self, responses: Sequence[inference_pb2.InferResponse]) -> dict[str, list[np.ndarray]]:
        """Every output by its name: an array [U, ...] a sequence, in the order of the sequences.

        U is T, unless the model answers sequences with other numbers of steps.
        """
        found: dict[str, list[np.ndarray]] = {spec.name: [] for spec in self._signature.outputs}
        for part, response in zip(self._parts(), responses, strict=True):
            lengths = [len(sequence[0]) for sequence in part]
            arrays = self._signature.read(response.outputs)
            for number, (name, array) in enumerate(zip(found, arrays, strict=True)):
                if response.output_lengths:
                    lengths = np.frombuffer(response.output_lengths[number], "<u4").tolist()
                found[name] += np.split(array, np.cumsum(lengths)[:-1])
        return found
