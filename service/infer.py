"""One `Infer` call: whole sequences, each from the initial state.

Owns the cutting of the ragged request into chunks and the putting together of the answer. Without a whole graph the
sequences run as sessions that nobody else ever sees, so they share ticks with everything else, are sliced where they
are long, and give what stepping gives. With one, sequences of equal length run through it together. Must not know how
either is run.

Dimension key: N sequences, T steps of each, U steps of an output, B rows of a chunk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

import numpy as np

from eddy.service import codec
from eddy.service.chunk import NO_DEADLINE, Chunk, ChunkResult
from eddy.service.errors import ClientError, Detail, EddyError, Reason, invalid
from eddy.service.finite import not_finite
from eddy.service.host import Host
from eddy.service.model import ServedModel
from eddy.service.ports import Port
from eddy.service.sessions import NO_STREAM
from eddy.service.start import read_start
from eddy.service.tick import Job
from eddy.service.values import check_rows
from eddy.v1 import inference_pb2


class InferCall:
    """One call.

    Args:
        host: sessions and models; request: what was asked for.

    Raises:
        EddyError: the request is refused; nothing was run.
    """

    def __init__(self, host: Host, request: inference_pb2.InferRequest) -> None:
        self._host = host
        self._model = host.catalog.ready(request.model, request.version, request.package_digest)
        self._lengths = self._read_lengths(request.lengths)
        contract = self._model.contract
        if contract.emits and not contract.has_whole:
            raise invalid(Reason.WRONG_TASK, "model", "one that looks ahead and has no whole graph", "Stream or Step")
        self._is_whole = contract.has_whole
        if self._is_whole:
            self._check_whole_lengths()
        self._start = read_start(contract, request.prime, request.initial_states, len(self._lengths))
        if self._is_whole and self._start is not None:
            raise invalid(Reason.UNKNOWN_INPUT, "initial_states", "some", "none: a whole graph has no states")
        total = int(self._lengths.sum())
        # Bytes of all outputs, at most: a few inputs could ask for gigabytes.
        self._most_bytes = codec.most_answer_bytes(host.config.server.max_message_bytes)
        if contract.is_streamable:
            codec.check_answer(contract, 1, total, host.config.server.max_message_bytes, "lengths")
        raw = codec.read_inputs(contract, request.inputs, (total,))
        self._inputs = [
            np.frombuffer(data, port.dtype).reshape(total, *port.shape)
            for port, data in zip(contract.inputs, raw, strict=True)
        ]
        # Where each sequence begins.
        self._begins = np.cumsum(self._lengths) - self._lengths
        self._outputs = [_Ragged(port, self._lengths) for port in contract.outputs]

    def _check_whole_lengths(self) -> None:
        config, only = self._model.config, self._model.engine.whole_steps
        if (longest := int(self._lengths.max())) > config.max_steps:
            raise invalid(Reason.TOO_MANY_STEPS, "lengths", longest, f"at most {config.max_steps}, for a whole graph")
        wrong = np.flatnonzero(self._lengths != (only or self._lengths))
        if len(wrong):
            place = int(wrong[0])
            expected = f"{only}: the model takes no other number of steps"
            raise invalid(Reason.OUT_OF_RANGE, f"lengths[{place}]", int(self._lengths[place]), expected)

    def _read_lengths(self, raw: bytes) -> np.ndarray:
        if not raw:
            raise invalid(Reason.EMPTY_BATCH, "lengths", "no sequences", "at least one")
        if len(raw) % 4:
            raise invalid(Reason.INVALID_BYTE_LENGTH, "lengths", f"{len(raw)} bytes", "4 bytes a sequence (uint32)")
        lengths = np.frombuffer(raw, "<u4").astype(np.int64)
        most = self._model.config.max_rows
        if len(lengths) > most:
            raise invalid(Reason.TOO_MANY_ROWS, "lengths", f"{len(lengths)} sequences", f"at most {most}")
        if not lengths.all():
            place = int(np.flatnonzero(lengths == 0)[0])
            raise invalid(Reason.ZERO_STEPS, f"lengths[{place}]", 0, "at least 1")
        return lengths

    async def run(self, timeout_seconds: float | None) -> inference_pb2.InferResponse:
        """The outputs of all sequences.

        Args:
            timeout_seconds: chunks that have not begun by then fail the call; None for no limit.

        Raises:
            EddyError: no room, draining, a value is not acceptable, or the model failed; nothing stays.
        """
        host, model = self._host, self._model
        host.gate.refuse_if_draining()
        arrival = host.clock()
        deadline = NO_DEADLINE if timeout_seconds is None else arrival + timeout_seconds
        groups = [np.flatnonzero(self._lengths == length) for length in np.unique(self._lengths)]
        if self._is_whole:
            await self._run_whole(groups, deadline)
        else:
            await self._run_steps(groups, deadline)
        file = model.file
        response = inference_pb2.InferResponse(model=file.name, version=file.version, package_digest=file.package)
        for port, ragged in zip(model.contract.outputs, self._outputs, strict=True):
            values = ragged.joined()
            codec.write_output(port, response.outputs.add(), (len(values),), values.tobytes())
        if any((ragged.lengths != self._lengths).any() for ragged in self._outputs):
            response.output_lengths.extend(ragged.lengths.astype("<u4").tobytes() for ragged in self._outputs)
        if self._is_whole:
            now = host.clock()
            model.stats.observe_whole(now - arrival, now)
        return response

    async def _run_steps(self, groups: list[np.ndarray], deadline: float) -> None:
        """Sequences as sessions, from their first step to their last."""
        host, model = self._host, self._model
        # No client leaves these alone: they idle only while they wait for their turn.
        idle = host.config.session.idle_timeout_seconds
        opened = host.opening.open(
            model.file.name, model.file.version, len(self._lengths), 1, idle, NO_STREAM, self._start
        )
        host.table.is_bound[opened.rows] = True  # All of a call's outputs are one model's.
        runs = [_Run(host, model, self, opened.handles[group], group, deadline) for group in groups]
        try:
            await opened.begun()
            for run in runs:
                run.start()
            await asyncio.gather(*(run.done for run in runs))
        finally:
            for run in runs:
                run.is_gone = True
            present = opened.rows[host.table.handle[opened.rows] == opened.handles]
            host.endings.close(present, lambda _: None)

    async def _run_whole(self, groups: list[np.ndarray], deadline: float) -> None:
        """Sequences of equal length together through the whole graph, as many as a tick takes."""
        model = self._model
        jobs: list[_Whole] = []
        try:
            for group in groups:
                length = self.length_of(int(group[0]))
                most = max(1, model.scheduler.queue.most_rows(length))
                cuts = (group[begin : begin + most] for begin in range(0, len(group), most))
                jobs.extend(_Whole(self._host, model, self, cut, length, deadline) for cut in cuts)
            await asyncio.gather(*(job.done for job in jobs))
        finally:
            for job in jobs:
                job.cancel()

    def length_of(self, sequence: int) -> int:
        """T of a sequence."""
        return int(self._lengths[sequence])

    def cut(self, sequences: np.ndarray, begin: int, end: int) -> tuple[bytes, ...]:
        """Steps `begin` to `end` of `sequences` int64 [B]: raw bytes an input port, [B, T, ...]."""
        places = (self._begins[sequences][:, None] + np.arange(begin, end)).reshape(-1)
        return tuple(values[places].tobytes() for values in self._inputs)

    def put(self, sequences: np.ndarray, begin: int, outputs: Sequence[bytes]) -> None:
        """Takes the outputs of `sequences` int64 [B] from step `begin` on, [B, U, ...] each.

        Raises:
            ClientError: MESSAGE_TOO_LARGE, of all outputs together.
        """
        for ragged, block in zip(self._outputs, outputs, strict=True):
            ragged.put(sequences, begin, block)
        num_bytes = sum(ragged.num_bytes for ragged in self._outputs)
        if num_bytes > self._most_bytes:
            raise invalid(
                Reason.MESSAGE_TOO_LARGE,
                "lengths",
                f"sequences whose outputs have more than {num_bytes} bytes",
                f"outputs of at most {self._most_bytes} bytes",
            )


class _Ragged:
    """One output of all sequences.

    Args:
        port: the output; lengths: its steps of each sequence, int64 [N], where nothing else is put.

    Attributes:
        lengths: int64 [N]; num_bytes: of what was put.
    """

    def __init__(self, port: Port, lengths: np.ndarray) -> None:
        self._port = port
        self.lengths = lengths.copy()
        self.num_bytes = 0
        # (sequences, the first step, values [B, U, ...]), each place of each sequence in one of them.
        self._parts: list[tuple[np.ndarray, int, np.ndarray]] = []

    def put(self, sequences: np.ndarray, begin: int, block: bytes) -> None:
        """Takes the values of `sequences` int64 [B] from step `begin` on: [B, U, ...] raw."""
        values = np.frombuffer(block, self._port.dtype).reshape(len(sequences), -1, *self._port.shape)
        self._parts.append((sequences, begin, values))
        self.lengths[sequences] = begin + values.shape[1]
        self.num_bytes += len(block)

    def joined(self) -> np.ndarray:
        """[sum of U, ...], sequences in their order."""
        begins = np.cumsum(self.lengths) - self.lengths
        joined = np.empty((int(self.lengths.sum()), *self._port.shape), self._port.dtype)
        for sequences, begin, values in self._parts:
            places = begins[sequences][:, None] + np.arange(begin, begin + values.shape[1])
            joined[places] = values
        return joined


class _Whole:
    """Sequences of one length on their way through the whole graph.

    Attributes:
        done: set once their outputs are put together, or the graph failed.
    """

    def __init__(
        self, host: Host, model: ServedModel, call: InferCall, sequences: np.ndarray, length: int, deadline: float
    ) -> None:
        self._call = call
        self._sequences = sequences
        self._length = length
        self._outputs = model.whole_outputs
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        inputs = call.cut(sequences, 0, length)
        for port, raw in zip(model.contract.inputs, inputs, strict=True):
            check_rows(port, port.view(raw, len(sequences), length), f"inputs[{port.name}]")
        run = partial(model.engine.run_whole, inputs, len(sequences), length)
        self._job = Job(run, self._finish, len(sequences), length, deadline, is_run=True)
        host.submit_job(model, self._job)

    def cancel(self) -> None:
        """Nobody waits any more: what has not begun is dropped. Called once, at the end."""
        self._job.is_gone = True
        self.done.cancel()
        del self._job  # Which refers back: in a circle they would keep the model.

    def _finish(self, outcome: list[bytes] | EddyError) -> None:
        if self.done.done():
            return
        if isinstance(outcome, EddyError):
            self.done.set_exception(outcome)
            return
        if not self._outputs.are_finite(outcome):
            bad = np.flatnonzero(self._outputs.bad_rows(outcome, len(self._sequences)))
            if len(bad):
                self.done.set_exception(not_finite(f"sequence {int(self._sequences[int(bad[0])])}: outputs"))
                return
        try:
            self._call.put(self._sequences, 0, outcome)
        except EddyError as error:
            self.done.set_exception(error)
        else:
            self.done.set_result(None)


class _Run:
    """Sequences of one length, stepped together (`chunk.Source`).

    Attributes:
        done: set when the last step is, or the first failure.
    """

    def __init__(
        self,
        host: Host,
        model: ServedModel,
        call: InferCall,
        handles: np.ndarray,
        sequences: np.ndarray,
        deadline: float,
    ) -> None:
        self._host = host
        self._model = model
        self._call = call
        self._handles = handles.astype("<u8").tobytes()
        self._sequences = sequences
        self._length = call.length_of(int(sequences[0]))
        self._deadline = deadline
        self._position = 0
        self.is_gone = False
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def start(self) -> None:
        self._submit()

    def deliver(self, chunk: Chunk, result: ChunkResult) -> None:
        if self.is_gone or self.done.done():
            return
        if result.failure is not None or result.errors:
            self._fail(result)
            return
        end = self._position + chunk.num_steps
        self._call.put(self._sequences, self._position, result.outputs)
        self._position = end
        if end == self._length:
            self.done.set_result(None)
            return
        try:
            self._submit()
        except EddyError as error:
            self.done.set_exception(error)

    def _fail(self, result: ChunkResult) -> None:
        if result.failure is not None:
            self.done.set_exception(result.failure)
            return
        row, error = next(iter(result.errors.items()))
        where = f"sequence {int(self._sequences[row])}, from step {self._position}: "
        detail = error.detail
        self.done.set_exception(
            ClientError(error.reason, where + error.message, Detail(detail.field, detail.received, detail.expected))
        )

    def _submit(self) -> None:
        host, model = self._host, self._model
        end = min(self._length, self._position + model.config.max_steps)
        rows = len(self._sequences)
        steps = end - self._position
        chunk = Chunk(
            self._handles,
            np.full(rows, self._position, "<u8").tobytes(),
            steps,
            model.contract.feed(self._call.cut(self._sequences, self._position, end), rows, steps),
            host.route(NO_STREAM, model),
            self,
            0,
            model.contract,
            host.clock(),
            self._deadline,
        )
        host.submit(model, chunk)
