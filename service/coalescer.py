"""The coalescer: step messages of one session each, from many streams, as one chunk.

Owns what has arrived since the dispatcher's last pass and looks like step messages of one row. Their columns are cut
out of all of them at once, and what passes the checks goes to the scheduler as rows of one chunk; a message that does
not is given back to its stream, which says why. Must not know gRPC, nor how chunks are run.

Ordering rules: a stream's messages keep their order: each waits alone, and every message that is not taken, of any
stream, flushes first. A stream that has ended by the time of the tick owns its sessions no more: its row is refused,
the others go on.

Dimension key: G messages, which become the rows of a chunk, T steps.
"""

from __future__ import annotations

import logging
from typing import Protocol

import numpy as np

from eddy.service.chunk import Chunk, ChunkResult, deadline_after
from eddy.service.codec import TAG_KEY, StepResponses
from eddy.service.contract import Contract
from eddy.service.errors import EddyError, Reason, ServerBug
from eddy.service.host import Host
from eddy.service.layout import Layouts, StepLayout
from eddy.service.model import ServedModel
from eddy.service.sessions import MODEL_BITS, MODEL_MASK

_LOG = logging.getLogger(__name__)

# Of a group of fewer, cutting them one by one is as fast.
MIN_MESSAGES = 3

_NO_MODEL = -1


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

    def answer_result(
        self,
        num_bytes: int,
        tag: int,
        contract: Contract,
        num_rows: int,
        num_steps: int,
        result: ChunkResult,
        durable_positions: bytes,
    ) -> None:
        """`result` answers one request of `num_bytes`."""


Group = list[tuple[Sender, bytes]]
Batch = tuple[ServedModel, Chunk, Group]


class Coalescer:
    """Gathers step messages of one row.

    Args:
        host: sessions and models; layouts, responses: of all streams of the server.
    """

    def __init__(self, host: Host, layouts: Layouts, responses: StepResponses) -> None:
        self._host = host
        self._layouts = layouts
        self._responses = responses
        # Changed only on the event loop: what has arrived since the last flush, when the first of it did, and
        # the numbers of its streams.
        self._arrived: Group = []
        self._arrival = 0.0
        self._numbers: set[int] = set()
        # Messages that became rows of a chunk, since the start.
        self.num_coalesced = 0

    def add(self, sender: Sender, data: bytes) -> bool:
        """Takes a message that has the length of a step of one row, unless it is the first thing that arrives.

        Whoever is alone would only wait for the others; once a pass is to come, more may come before it. Another
        message goes behind what has been taken.
        """
        if not self._host.dispatcher.is_scheduled:
            return False
        if len(data) in self._layouts.of_one_row:
            if sender.number in self._numbers:
                self.flush()
            if not self._arrived:
                self._arrival = self._host.clock()
                self._host.dispatcher.call_before_pass(self.flush)
            self._arrived.append((sender, data))
            self._numbers.add(sender.number)
            return True
        if self._arrived:
            self.flush()
        return False

    def flush(self) -> None:
        """Submits what has arrived."""
        arrived, self._arrived = self._arrived, []
        self._numbers.clear()
        if len(arrived) < MIN_MESSAGES:
            _give_back(arrived)
            return
        by_length: dict[int, Group] = {}
        for sender, data in arrived:
            if not sender.is_gone:
                by_length.setdefault(len(data), []).append((sender, data))
        for length, group in by_length.items():
            layout = self._layouts.of_one_row.get(length)
            if layout is None or len(group) < MIN_MESSAGES:
                _give_back(group)
                continue
            try:
                batches, others = self._cut(layout, group)
            except Exception:  # noqa: BLE001  the messages' root: each goes its own way, and fails there if it must
                _LOG.exception("%d step messages could not be coalesced", len(group))
                batches, others = [], group
            for model, chunk, senders in batches:
                self.num_coalesced += chunk.num_rows
                for sender, _ in senders:
                    sender.expect(chunk.num_bytes // chunk.num_rows)
                submit_coalesced(self._host, model, chunk)
            _give_back(others)

    def _cut(self, layout: StepLayout, group: Group) -> tuple[list[Batch], Group]:
        """Chunks of the messages of one length that are laid out as usual, and the messages that are not."""
        fits, matrix = layout.match([data for _, data in group])
        begin, end = layout.handles
        handles = np.ascontiguousarray(matrix[:, begin:end]).view("<u8")[:, 0]
        table = self._host.table
        rows = table.rows_of(handles)
        routes = table.route[rows]
        numbers = np.array([sender.number for sender, _ in group], np.int64)
        fits &= (table.handle[rows] == handles) & (routes >> MODEL_BITS == numbers)
        models = np.where(fits, routes & MODEL_MASK, _NO_MODEL)
        batches: list[Batch] = []
        others: Group = []
        for index in set(models.tolist()):
            places = np.flatnonzero(models == index)
            model = self._host.catalog.served[index] if index in layout.models else None
            # More would be sliced, which is for long chunks.
            most = 0 if model is None else model.scheduler.queue.most_rows(layout.num_steps)
            while model is not None and min(len(places), most) >= MIN_MESSAGES:
                mine, places = places[:most], places[most:]
                senders = [group[place] for place in mine.tolist()]
                chunk = self._chunk(model, layout, senders, matrix[mine], routes[mine])
                batches.append((model, chunk, senders))
            others.extend([group[place] for place in places.tolist()])
        return batches, others

    def _chunk(
        self, model: ServedModel, layout: StepLayout, group: Group, matrix: np.ndarray, routes: np.ndarray
    ) -> Chunk:
        handles, positions, *inputs = (matrix[:, begin:end].tobytes() for begin, end in layout.columns)
        feeds = model.contract.feed(tuple(inputs), len(group), layout.num_steps)
        return Chunk(
            handles,
            positions,
            layout.num_steps,
            feeds,
            routes.tobytes(),
            _Senders(self._host, group, layout, self._responses),
            0,
            model.contract,
            self._arrival,
            deadline_after(self._arrival, layout.timeout_milliseconds),
            num_requests=len(group),
        )


class _Senders:
    """The streams of a coalesced chunk, row by row (`chunk.Source`)."""

    # A stream that has ended owns its session no more, which its row is refused for.
    is_gone = False

    def __init__(self, host: Host, group: Group, layout: StepLayout, responses: StepResponses) -> None:
        self._host = host
        self._group = group
        self._layout = layout
        self._responses = responses

    def deliver(self, chunk: Chunk, result: ChunkResult) -> None:
        """Each row's result to its stream."""
        num_bytes = chunk.num_bytes // chunk.num_rows
        outputs = result.outputs
        if len(outputs) != 1 or result.errors or result.replayed:
            self._deliver_rows(chunk, result, num_bytes)
            return
        (block,) = outputs
        size = len(block) // chunk.num_rows
        if self._host.durability is not None:
            positions = self._host.persistence.durable_news(chunk.handles, result)
            if positions:
                self._deliver_durable(chunk, block, size, num_bytes, positions)
                return
        head = self._responses.head(chunk.contract, 1, chunk.num_steps)
        first, last = self._layout.tag
        key = TAG_KEY if first < last else b""
        for row, (sender, data) in enumerate(self._group):
            sender.answer(num_bytes, key + data[first:last] + head + block[row * size : (row + 1) * size])

    def _deliver_durable(self, chunk: Chunk, block: bytes, size: int, num_bytes: int, positions: bytes) -> None:
        """Each row of `block`, of `size` bytes, with its durable position, int64 [B] raw."""
        before, head = self._responses.durable_head(chunk.contract, 1, chunk.num_steps)
        first, last = self._layout.tag
        key = TAG_KEY if first < last else b""
        for row, (sender, data) in enumerate(self._group):
            durable = positions[8 * row : 8 * row + 8]
            mine = block[row * size : (row + 1) * size]
            sender.answer(num_bytes, key + data[first:last] + before + durable + head + mine)

    def _deliver_rows(self, chunk: Chunk, result: ChunkResult, num_bytes: int) -> None:
        """The same, where the rows' results differ in kind."""
        sizes = [len(block) // chunk.num_rows for block in result.outputs]
        is_durable = self._host.durability is not None
        positions = self._host.persistence.durable_news(chunk.handles, result) if is_durable else b""
        for row, (sender, data) in enumerate(self._group):
            mine = [block[row * size : (row + 1) * size] for block, size in zip(result.outputs, sizes, strict=True)]
            errors = {0: result.errors[row]} if row in result.errors else {}
            alone = ChunkResult(mine, errors, (0,) if row in result.replayed else (), result.failure)
            tag, durable = self._layout.read_tag(data), positions[8 * row : 8 * row + 8]
            sender.answer_result(num_bytes, tag, chunk.contract, 1, chunk.num_steps, alone, durable)


def submit_coalesced(host: Host, model: ServedModel, chunk: Chunk) -> None:
    """Queues a chunk whose rows are messages of several streams; where that fails, each is told."""
    try:
        host.submit(model, chunk)
    except EddyError as error:
        chunk.reply(ChunkResult(failure=error))
    except Exception:  # noqa: BLE001  the chunk's root: its messages fail, the server goes on
        _LOG.exception("%d coalesced messages failed", chunk.num_rows)
        chunk.reply(ChunkResult(failure=ServerBug(Reason.INTERNAL, "the server failed to carry out this request")))


def _give_back(messages: Group) -> None:
    for sender, data in messages:
        sender.receive_alone(data)
