"""Sequences of the Open Inference Protocol: which session a client's own id stands for.

Owns the names of live sequences, the rules of their START and END, and the order of the requests of one sequence. A
sequence is a session of the server's table that belongs to this door, whichever connection its requests come by. Must
not know messages or gRPC.

Ordering rules: the requests of one sequence take effect in the order they came, one at a time: those behind wait here,
and a request's rules (does the sequence live, is it to begin anew) are decided when its turn has come. A request is
answered once, unless its client is gone before its turn.

START on a live sequence begins it anew without a word, as the Triton Inference Server does; it is counted.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import Protocol

import numpy as np

from eddy.service.chunk import Chunk, ChunkResult
from eddy.service.errors import ClientError, Detail, EddyError, ModelError, Reason, ServerBug
from eddy.service.host import Host
from eddy.service.model import ServedModel
from eddy.service.oip_codec import SequenceId

_LOG = logging.getLogger(__name__)

# Of each chunk that carried a request out: T, and raw bytes a result of the contract.
Parts = list[tuple[int, list[bytes]]]
# Model's name, version as requested, id.
_Name = tuple[str, str, SequenceId]


class Caller(Protocol):
    """Who waits for the answer to a request."""

    is_gone: bool

    def expect(self, num_bytes: int) -> None:
        """A request of so many bytes, with its answer, was handed over."""

    def take(self, request: Request, parts: Parts) -> None:
        """The request was carried out."""

    def fail(self, request: Request, error: EddyError) -> None:
        """The request was refused, or failed."""


class Request:
    """One request of a sequence, checked but for the values of its inputs.

    Attributes:
        feeds: raw bytes a feed of the contract, [1, T, ...].
        arrival: monotonic seconds; deadline: it begins before this time or fails.
        context: the caller's own.
    """

    __slots__ = (
        "arrival",
        "caller",
        "context",
        "deadline",
        "feeds",
        "is_end",
        "is_start",
        "num_steps",
        "parts",
        "sequence_id",
    )

    def __init__(
        self,
        sequence_id: SequenceId,
        *,
        is_start: bool,
        is_end: bool,
        feeds: tuple[bytes, ...],
        num_steps: int,
        arrival: float,
        deadline: float,
        caller: Caller,
        context: object,
    ) -> None:
        self.sequence_id = sequence_id
        self.is_start = is_start
        self.is_end = is_end
        self.feeds = feeds
        self.num_steps = num_steps
        self.arrival = arrival
        self.deadline = deadline
        self.caller = caller
        self.context = context
        self.parts: Parts = []


class Sequence:
    """A sequence that lives, or whose requests are under way.

    Attributes:
        row: of its session in the table; handle: that session's, 0 while it has none.
        is_running: a chunk of it is on its way; waiting: requests behind that.
    """

    __slots__ = ("handle", "is_running", "model", "names", "row", "sequence_id", "waiting")

    def __init__(self, model: ServedModel, sequence_id: SequenceId) -> None:
        self.model = model
        self.sequence_id = sequence_id
        self.names: list[_Name] = []
        self.row = 0
        self.handle = 0
        self.is_running = False
        self.waiting: deque[Request] = deque()


class Sequences:
    """All sequences of a server.

    Args:
        host: sessions and models.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._table = host.table
        # The owner of the sessions.
        self.number = host.streams.add_owner(self._tell_ended)
        # Changed only on the event loop.
        self._by_name: dict[_Name, Sequence] = {}
        self._by_handle: dict[int, Sequence] = {}

    def __len__(self) -> int:
        """Sequences that live."""
        return len(self._by_handle)

    def find(self, model: str, version: str, sequence_id: SequenceId) -> Sequence | None:
        """The sequence that a request means, None where there is none."""
        return self._by_name.get((model, version, sequence_id))

    def begin(self, model: ServedModel, version: str, sequence_id: SequenceId) -> Sequence:
        """The sequence that a request with START, which asked for `version`, means from now on."""
        file = model.file
        name = (file.name, version, sequence_id)
        sequence = self._by_name.get(name)
        if sequence is not None and sequence.model is not model:
            # It lives on another version, which requests that name that version still reach.
            self._unname(sequence, name)
            sequence = None
        if sequence is None:
            sequence = self._by_name.get((file.name, file.version, sequence_id)) or Sequence(model, sequence_id)
            if sequence.model is not model:  # A version that was loaded anew.
                self._unname(sequence, (file.name, file.version, sequence_id))
                sequence = Sequence(model, sequence_id)
            names = {name, (file.name, file.version, sequence_id)}
            if model is self._latest(file.name):
                names.add((file.name, "", sequence_id))
            for each in names:
                if (old := self._by_name.get(each)) is not sequence:
                    if old is not None:
                        self._unname(old, each)
                    self._by_name[each] = sequence
                    sequence.names.append(each)
        return sequence

    def _latest(self, name: str) -> ServedModel | None:
        return self._host.catalog.find(name, "").model

    def _unname(self, sequence: Sequence, name: _Name) -> None:
        """`name` no longer means `sequence`; one that nothing means any more ends."""
        sequence.names.remove(name)
        del self._by_name[name]
        if not sequence.names:
            sequence.model.stats.num_restarted_sequences += 1
            if not sequence.is_running:
                self._end(sequence)

    def submit(self, sequence: Sequence, request: Request) -> None:
        """Takes a request, which is answered once its turn has come.

        Raises:
            CapacityError: DRAINING.
        """
        self._host.gate.refuse_if_draining()
        if sequence.is_running:
            sequence.waiting.append(request)
        else:
            self._run(sequence, request)
            self.go_on(sequence)

    # Turns

    def _run(self, sequence: Sequence, request: Request) -> None:
        """A request's turn has come."""
        try:
            if request.is_start:
                self._restart(sequence)
            _refuse_if_not_started(sequence)
            self._submit(sequence, request, request.feeds, request.num_steps)
        except EddyError as error:
            if request.is_start:
                self._end(sequence)
            request.caller.fail(request, error)
        except Exception:  # noqa: BLE001  the request's root: it fails, with its traceback in the log; others go on
            _LOG.exception("a request of a sequence failed")
            self._end(sequence)
            request.caller.fail(request, ServerBug(Reason.INTERNAL, "the server failed to carry out this request"))

    def go_on(self, sequence: Sequence) -> None:
        """Gives those that wait their turns; forgets a sequence that has ended."""
        while sequence.waiting and not sequence.is_running:
            request = sequence.waiting.popleft()
            if not request.caller.is_gone:
                self._run(sequence, request)
        if sequence.is_running:
            return
        if not sequence.names:  # Another one has its name now.
            self._end(sequence)
        if not sequence.handle:
            for name in sequence.names:
                del self._by_name[name]
            sequence.names.clear()

    def _restart(self, sequence: Sequence) -> None:
        """The sequence stands before its first step."""
        if sequence.handle:
            model = sequence.model
            del self._by_handle[sequence.handle]
            model.reset_sessions(np.array([sequence.row]))
            model.stats.num_restarted_sequences += 1
            self._keep(sequence, sequence.row, self._table.handle.item(sequence.row))
            return
        file = sequence.model.file
        opened = self._host.opening.open(file.name, file.version, 1, 1, 0.0, self.number)
        self._table.is_bound[opened.rows] = True  # A sequence is one of a model's version, by its protocol.
        row = int(opened.rows[0])
        if opened.model is not sequence.model:
            opened.model.close_sessions(opened.rows)
            raise ModelError(
                Reason.MODEL_NOT_READY, f"model '{file.name}' version {file.version} was changed; send it again"
            )
        self._keep(sequence, row, int(opened.handles[0]))

    def _keep(self, sequence: Sequence, row: int, handle: int) -> None:
        sequence.row, sequence.handle = row, handle
        self._by_handle[handle] = sequence

    def _end(self, sequence: Sequence) -> None:
        """The sequence's session ends, if it has one. None of its chunks is on its way."""
        if sequence.handle:
            del self._by_handle[sequence.handle]
            sequence.handle = 0
            sequence.model.close_sessions(np.array([sequence.row]))

    def _submit(self, sequence: Sequence, request: Request, feeds: tuple[bytes, ...], num_steps: int) -> None:
        model = sequence.model
        chunk = Chunk(
            sequence.handle.to_bytes(8, "little"),
            self._table.next_position.item(sequence.row).to_bytes(8, "little"),
            num_steps,
            feeds,
            self._host.route(self.number, model),
            _Turn(self, sequence, request),
            0,
            model.contract,
            request.arrival,
            request.deadline,
        )
        # Whoever was taken in is carried out, also while the server drains.
        self._host.submit_accepted(model, chunk)
        sequence.is_running = True

    def deliver(self, sequence: Sequence, request: Request, chunk: Chunk, result: ChunkResult) -> None:
        """A chunk of the sequence has its result."""
        sequence.is_running = False
        error = result.failure or result.errors.get(0)
        if error is None:
            request.parts.append((chunk.num_steps, list(result.outputs)))
            if request.is_end and chunk.contract.emits and len(request.parts) == 1:
                error = self._flush(sequence, request)
                if error is None:
                    return
        self.finish(sequence, request, error)
        self.go_on(sequence)

    def _flush(self, sequence: Sequence, request: Request) -> EddyError | None:
        """The end of a model that looks ahead is a chunk of its own, whose outputs are the request's, too."""
        try:
            self._submit(sequence, request, sequence.model.contract.feed_end(1), 1)
        except EddyError as error:
            return error
        return None

    def finish(self, sequence: Sequence, request: Request, error: EddyError | None) -> None:
        """Answers a request whose chunks are through.

        A START that was refused begins nothing; any other request that was refused leaves its sequence as it was.
        """
        if (request.is_end if error is None else request.is_start) or (error and request.parts):
            self._end(sequence)
        if request.caller.is_gone:
            return
        if error is None:
            request.caller.take(request, request.parts)
        else:
            request.caller.fail(request, error)

    # Many at once

    def places_of(self, sequences: list[Sequence]) -> tuple[bytes, bytes]:
        """Handles and positions of sequences that live and step in one chunk now, uint64 [B] raw each."""
        rows = np.array([sequence.row for sequence in sequences])
        return self._table.handle[rows].tobytes(), self._table.next_position[rows].tobytes()

    def stepped(self, sequence: Sequence) -> None:
        """Its row of such a chunk has its result."""
        sequence.is_running = False
        if sequence.waiting or not sequence.handle or not sequence.names:
            self.go_on(sequence)

    # Ends

    def _tell_ended(self, handles: np.ndarray, _: EddyError) -> None:
        """Sessions have ended by the server's will: idle for too long, or their model failed or left."""
        for handle in handles.tolist():
            sequence = self._by_handle.pop(handle, None)
            if sequence is not None:
                sequence.handle = 0
                self.go_on(sequence)


class _Turn:
    """A request's chunk on its way (`chunk.Source`)."""

    # Whoever is gone by now is not answered, but the sequence goes on behind this chunk.
    is_gone = False
    __slots__ = ("_request", "_sequence", "_sequences")

    def __init__(self, sequences: Sequences, sequence: Sequence, request: Request) -> None:
        self._sequences = sequences
        self._sequence = sequence
        self._request = request

    def deliver(self, chunk: Chunk, result: ChunkResult) -> None:
        """Takes the chunk's result."""
        self._sequences.deliver(self._sequence, self._request, chunk, result)


def _refuse_if_not_started(sequence: Sequence) -> None:
    if not sequence.handle:
        raise not_started(sequence.model.file.name, sequence.sequence_id)


def not_started(model: str, sequence_id: SequenceId) -> ClientError:
    """The error for a step of a sequence that does not live."""
    return ClientError(
        Reason.UNKNOWN_SESSION,
        f"inference request for sequence {sequence_id} to model '{model}' must specify the START flag on the first "
        "request of the sequence",
        Detail("parameters[sequence_start]", "false", "true"),
    )
