"""The coalescer of the Open Inference Protocol: steps of many streams as one chunk.

Owns what has arrived since the dispatcher's last pass and looks like steps of sequences. Their inputs are cut out of
all of them at once, and those whose sequences have nothing under way go to the scheduler as rows of one chunk; every
other message is given back to its stream. What `coalescer` does for eddy.v1; the difference is whose sessions they are.

Ordering rules: a stream's messages keep their order: each waits alone, and a message that is not taken flushes what
waits of its stream. A sequence that has something under way takes the slow way, where its requests queue up.

Dimension key: G messages, which become the rows of a chunk, T steps.
"""

from __future__ import annotations

import logging
from typing import Protocol

import numpy as np

from eddy.service.chunk import NO_DEADLINE, Chunk, ChunkResult
from eddy.service.coalescer import MIN_MESSAGES, submit_coalesced
from eddy.service.errors import EddyError
from eddy.service.host import Host
from eddy.service.model import ServedModel
from eddy.service.oip_layout import InferLayout, InferLayouts
from eddy.service.oip_sequences import Sequence, Sequences

_LOG = logging.getLogger(__name__)


class Sender(Protocol):
    """A stream whose messages are coalesced."""

    number: int
    is_gone: bool

    def receive_alone(self, data: bytes) -> None:
        """Takes a message back, to act on it by itself."""

    def expect(self, num_bytes: int) -> None:
        """A request of so many bytes, with its answer, was handed over."""

    def answer(self, num_bytes: int, data: bytes) -> None:
        """`data` answers one request of `num_bytes`."""

    def answer_error(self, layout: InferLayout, data: bytes, arrival: float, error: EddyError) -> None:
        """The request `data`, which came at `arrival`, was refused."""


Group = list[tuple[Sender, bytes]]


class InferCoalescer:
    """Gathers steps of sequences.

    Args:
        host: sessions and models; layouts, sequences: of all streams of the server.
    """

    def __init__(self, host: Host, layouts: InferLayouts, sequences: Sequences) -> None:
        self._host = host
        self._layouts = layouts
        self._sequences = sequences
        # Changed only on the event loop: what has arrived since the last flush, when the first of it did, and the
        # numbers of its streams.
        self._arrived: Group = []
        self._arrival = 0.0
        self._numbers: set[int] = set()
        # Messages that became rows of a chunk, since the start.
        self.num_coalesced = 0

    def add(self, sender: Sender, data: bytes) -> bool:
        """Takes a message that has the length of a step, unless it is the first that arrives (see `coalescer`)."""
        if sender.number in self._numbers:
            self.flush()
        if not self._host.dispatcher.is_scheduled or len(data) not in self._layouts.by_length:
            return False
        if not self._arrived:
            self._arrival = self._host.clock()
            self._host.dispatcher.call_before_pass(self.flush)
        self._arrived.append((sender, data))
        self._numbers.add(sender.number)
        return True

    def flush(self) -> None:
        """Submits what has arrived."""
        arrived, self._arrived = self._arrived, []
        self._numbers.clear()
        by_length: dict[int, Group] = {}
        for sender, data in arrived:
            if not sender.is_gone:
                by_length.setdefault(len(data), []).append((sender, data))
        for length, group in by_length.items():
            for layout in list(self._layouts.by_length.get(length, ())):
                if len(group) < MIN_MESSAGES:
                    break
                group = self._take(layout, group)
            for sender, data in group:
                sender.receive_alone(data)

    def _take(self, layout: InferLayout, group: Group) -> Group:
        """Submits messages that fit as rows of chunks; returns the others."""
        try:
            batches, others = self._cut(layout, group)
        except Exception:  # noqa: BLE001  the messages' root: each goes its own way, and fails there if it must
            _LOG.exception("%d requests could not be coalesced", len(group))
            return group
        for model, chunk, senders in batches:
            self.num_coalesced += chunk.num_rows
            senders.begin()
            submit_coalesced(self._host, model, chunk)
        return others

    def _cut(self, layout: InferLayout, group: Group) -> tuple[list[tuple[ServedModel, Chunk, _Senders]], Group]:
        """Chunks of the messages that fit and whose sequences are free, and the other messages."""
        messages = [data for _, data in group]
        fits, matrix = layout.match(messages)
        find, name, version, model = self._sequences.find, layout.name, layout.version, layout.model
        rows: list[int] = []
        sequences: dict[Sequence, None] = {}
        others: Group = []
        ids = layout.sequences_of(messages, matrix)
        for row, (is_good, sequence_id) in enumerate(zip(fits.tolist(), ids, strict=True)):
            sequence = find(name, version, sequence_id) if is_good else None
            if (
                sequence is None
                or not sequence.handle
                or sequence.is_running
                or sequence.model is not model
                or sequence in sequences
            ):
                others.append(group[row])
            else:
                rows.append(row)
                sequences[sequence] = None
        batches = []
        if model is not None and rows:
            free = list(sequences)
            # More would be sliced, which is for long requests.
            most = max(1, model.scheduler.queue.most_rows(layout.num_steps))
            for begin in range(0, len(rows), most):
                part = slice(begin, begin + most)
                senders = _Senders(self._sequences, layout, [group[row] for row in rows[part]], free[part])
                batches.append((model, self._chunk(model, layout, senders, free[part], matrix[rows[part]]), senders))
        return batches, others

    def _chunk(
        self,
        model: ServedModel,
        layout: InferLayout,
        senders: _Senders,
        sequences: list[Sequence],
        matrix: np.ndarray,
    ) -> Chunk:
        handles, positions = self._sequences.places_of(sequences)
        inputs = tuple([matrix[:, begin:end].tobytes() for begin, end in layout.inputs])
        return Chunk(
            handles,
            positions,
            layout.num_steps,
            model.contract.feed(inputs, len(sequences), layout.num_steps),
            self._host.route(self._sequences.number, model),
            senders,
            0,
            model.contract,
            self._arrival,
            self._arrival + layout.timeout_seconds if layout.timeout_seconds else NO_DEADLINE,
            num_requests=len(sequences),
        )


class _Senders:
    """The streams of a coalesced chunk, row by row (`chunk.Source`)."""

    # The sequences go on behind this chunk whoever is gone.
    is_gone = False

    def __init__(self, sequences: Sequences, layout: InferLayout, group: Group, mine: list[Sequence]) -> None:
        self._sequences = sequences
        self._layout = layout
        self._group = group
        self._mine = mine

    def begin(self) -> None:
        """The chunk is about to be handed over."""
        for sequence in self._mine:
            sequence.is_running = True
        for sender, _ in self._group:
            sender.expect(self._layout.num_bytes)

    def deliver(self, chunk: Chunk, result: ChunkResult) -> None:
        """Each row's result to its stream, then the sequences' next turns."""
        layout, num_bytes = self._layout, self._layout.num_bytes
        sizes = [len(block) // chunk.num_rows for block in result.outputs]
        for row, (sender, data) in enumerate(self._group):
            error = result.failure or result.errors.get(row)
            if error is not None:
                sender.answer_error(layout, data, chunk.arrival, error)
                continue
            blocks = [block[row * size : (row + 1) * size] for block, size in zip(result.outputs, sizes, strict=True)]
            sender.answer(num_bytes, layout.answer(data, blocks))
        for sequence in self._mine:
            self._sequences.stepped(sequence)
