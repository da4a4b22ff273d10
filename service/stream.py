"""One `Stream` call of eddy.v1: reads requests, hands them to the host, writes responses.

Owns what its messages ask for. Must not know how chunks are run; what a connection does whatever its messages are is
`connection`'s.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Any

import numpy as np

from eddy.service import codec, restarts
from eddy.service.chunk import Chunk, ChunkResult, deadline_after
from eddy.service.coalescer import Coalescer
from eddy.service.connection import Connection
from eddy.service.contract import Contract
from eddy.service.errors import EddyError, Reason, ServerBug, invalid
from eddy.service.forks import Forked, fork
from eddy.service.host import Host
from eddy.service.layout import Layouts, StepLayout
from eddy.service.mixed import submit_apart
from eddy.service.model import ServedModel
from eddy.service.opening import Opened
from eddy.service.sessions import EPOCH_SHIFT, MODEL_BITS, MODEL_MASK, ROW_MASK, SESSION_ID_BYTES, cannot_reset
from eddy.service.start import read_start
from eddy.v1 import inference_pb2

_LOG = logging.getLogger(__name__)


class StreamConnection(Connection):
    """One client's stream.

    Args:
        host: sessions and models; context: the call's `grpc.aio.ServicerContext`.
        layouts, responses, coalescer: of all streams of the server: what one stream taught them, the next one finds.
    """

    def __init__(
        self, host: Host, context: Any, layouts: Layouts, responses: codec.StepResponses, coalescer: Coalescer
    ) -> None:
        super().__init__(host, context)
        self._layouts = layouts
        self._responses = responses
        self._coalescer = coalescer

    def _receive(self, data: bytes) -> None:
        if not self._coalescer.add(self, data):
            self.receive_alone(data)

    def tell_draining(self, grace_seconds: float) -> None:
        """Sends the notice that the server is shutting down."""
        notice = inference_pb2.StreamResponse(draining=inference_pb2.Draining(grace_seconds=grace_seconds))
        self._send(notice, num_answered=0)

    def _send(self, response: inference_pb2.StreamResponse, num_answered: int = 1) -> None:
        if not self.is_gone:
            self._put(response.SerializeToString(), num_answered)

    # Requests

    def receive_alone(self, data: bytes) -> None:
        """Acts on one message (`coalescer.Sender`)."""
        tag = 0
        try:
            known = self._layouts.find(data)
            if known is not None:
                tag = known.read_tag(data)
                if self._step_known(tag, known, data):
                    return
            tag = codec.tag_of(data)
            codec.check_size(data, self._max_bytes)
            request = codec.parse(inference_pb2.StreamRequest, data)
            tag = request.tag
            self._act(tag, request, data)
        except EddyError as error:
            self._refuse(tag, error)
        except Exception:  # noqa: BLE001  the request's root: it fails, with its traceback in the log; the stream goes on
            _LOG.exception("a request of stream %d failed", self.number)
            self._refuse(tag, ServerBug(Reason.INTERNAL, "the server failed to carry out this request"))

    def _act(self, tag: int, request: inference_pb2.StreamRequest, data: bytes) -> None:
        action = request.WhichOneof("action")
        if action == "step":
            self._step(tag, request.step, data)
        elif action == "open":
            self._open(tag, request.open)
        elif action == "attach":
            self._attach(tag, request.attach)
        elif action == "close":
            self._close(tag, request.close)
        elif action == "reset":
            self._reset(tag, request.reset)
        elif action == "fork":
            self._fork(tag, request.fork)
        else:
            raise invalid(Reason.MISSING_FIELD, "action", "none", "one of step, open, attach, close, reset, fork")

    def _refuse(self, tag: int, error: EddyError) -> None:
        self._host.count_refusal(error)
        self._send(inference_pb2.StreamResponse(tag=tag, error=codec.error_detail(error)))

    def _step_known(self, tag: int, known: StepLayout, data: bytes) -> bool:
        """Submits a step message of a known layout; False when it must be parsed to say what is wrong with it."""
        begin, end = known.handles
        handles = data[begin:end]
        model = self._model_of(handles)
        if model is None or model.index not in known.models:
            return False
        begin, end = known.positions
        feeds = tuple([data[first:last] for first, last in known.inputs])
        feeds = model.contract.feed(feeds, len(handles) // 8, known.num_steps)
        self._submit(model, tag, handles, data[begin:end], known.num_steps, feeds, known.timeout_milliseconds)
        return True

    def _step(self, tag: int, step: inference_pb2.StepChunk, data: bytes) -> None:
        host = self._host
        handles = step.handles
        positions = step.positions
        num_steps = step.num_steps
        limits = host.config.model
        is_end = step.flush
        num_rows = codec.check_columns(handles, positions, num_steps, limits.max_rows, limits.max_steps, is_end=is_end)
        model = self._model_of(handles)
        if model is None:
            self._refuse_all_rows(tag, handles)
            return
        codec.check_answer(model.contract, num_rows, num_steps, self._max_bytes, "step.num_steps")
        feeds = codec.read_feeds(model.contract, step.inputs, num_rows, num_steps, is_end=is_end)
        if not is_end:
            self._layouts.learn(data, step, model.index, model.contract.inputs)
        self._submit(model, tag, handles, positions, 1 if is_end else num_steps, feeds, step.timeout_milliseconds)

    def _submit(
        self,
        model: ServedModel,
        tag: int,
        handles: bytes,
        positions: bytes,
        num_steps: int,
        feeds: tuple[bytes, ...],
        timeout_milliseconds: int,
    ) -> None:
        host = self._host
        now = host.clock()
        deadline = deadline_after(now, timeout_milliseconds)
        route = self.number << MODEL_BITS | model.index
        chunk = Chunk(handles, positions, num_steps, feeds, route, self, tag, model.contract, now, deadline)
        self._chunk_bytes += chunk.num_bytes
        try:
            if host.has_handed_over and chunk.num_rows > 1 and submit_apart(host, model, chunk, self.number):
                return
            host.submit(model, chunk)
        except EddyError:
            self._chunk_bytes -= chunk.num_bytes
            raise

    def deliver(self, chunk: Chunk, result: ChunkResult) -> None:
        """Takes a chunk's result (`chunk.Source`)."""
        host = self._host
        durable = b"" if host.durability is None else host.persistence.durable_news(chunk.handles, result)
        self.answer_result(chunk.num_bytes, chunk.tag, chunk.contract, chunk.num_rows, chunk.num_steps, result, durable)

    def answer_result(
        self,
        num_bytes: int,
        tag: int,
        contract: Contract,
        num_rows: int,
        num_steps: int,
        result: ChunkResult,
        durable_positions: bytes = b"",
    ) -> None:
        """Answers one request of `num_bytes` (`coalescer.Sender`)."""
        if result.failure is not None:
            self._host.count_refusal(result.failure)
        elif result.errors:
            for error in result.errors.values():
                self._host.count_refusal(error)
        data = self._responses.encode(contract, tag, num_rows, num_steps, result, durable_positions)
        self.answer(num_bytes, data)

    def _model_of(self, raw_handles: bytes) -> ServedModel | None:
        """The model of the first handle that is good and this stream's, None when none is."""
        table, served = self._host.table, self._host.catalog.served
        first = int.from_bytes(raw_handles[:8], "little")
        row = first & ROW_MASK
        if row < len(table.handle) and table.handle.item(row) == first:
            owner = table.route.item(row)
            if owner >> MODEL_BITS == self.number:
                return served[owner & MODEL_MASK]
        rows = self._own_rows(np.frombuffer(raw_handles, "<u8"))[0]
        return served[table.model_of(int(rows[0]))] if len(rows) else None

    def _refuse_all_rows(self, tag: int, raw_handles: bytes) -> None:
        handles = np.frombuffer(raw_handles, "<u8").tolist()
        errors = {row: self._host.table.explain(handle) for row, handle in enumerate(handles)}
        for error in errors.values():
            self._host.count_refusal(error)
        self._send(
            inference_pb2.StreamResponse(tag=tag, step=inference_pb2.StepResult(errors=codec.row_errors(errors)))
        )

    def _open(self, tag: int, request: inference_pb2.OpenSessions) -> None:
        model = self._host.catalog.ready(request.model, request.version, request.package_digest)
        start = read_start(model.contract, request.prime, request.initial_states, request.count, "open.")
        opened = self._host.opening.open(
            request.model,
            request.version,
            request.count,
            request.max_in_flight,
            request.idle_timeout_seconds,
            self.number,
            start,
            is_durable=True,
        )
        self._host.table.holder[opened.rows] = request.holder
        if opened.ready is None:
            self._send_opened(tag, opened)
        else:
            opened.ready.add_done_callback(partial(self._tell_begun, tag, opened))

    def _tell_begun(self, tag: int, opened: Opened, ready: asyncio.Future[None]) -> None:
        """The sessions' first states are written, or could not be."""
        error = ready.exception()
        if error is None:
            self._send_opened(tag, opened)
        else:
            assert isinstance(error, EddyError), "the host tells typed errors"
            self._refuse(tag, error)

    def _send_opened(self, tag: int, opened: Opened) -> None:
        message = inference_pb2.SessionsOpened(
            session_ids=opened.session_ids,
            resume_tokens=b"".join(opened.resume_tokens),
            handles=opened.handles.astype("<u8").tobytes(),
            epochs=(opened.handles >> np.uint64(32)).astype("<u4").tobytes(),
            model=opened.model.file.name,
            version=opened.model.file.version,
            max_in_flight=opened.max_in_flight,
            idle_timeout_seconds=opened.idle_timeout_seconds,
            limits=codec.limits_message(opened.model.config, self._max_bytes),
            package_digest=opened.model.file.package,
            durable=self._host.persistence.are_stored(opened.handles),
        )
        self._send(inference_pb2.StreamResponse(tag=tag, opened=message))

    def _attach(self, tag: int, request: inference_pb2.AttachSession) -> None:
        def attached(row: int | EddyError) -> None:
            if isinstance(row, EddyError):
                self._refuse(tag, row)
                return
            info = self._host.table.info(row)
            model = self._host.catalog.served[info.model]
            message = inference_pb2.SessionAttached(
                handle=info.handle,
                epoch=info.epoch,
                next_position=info.next_position,
                model=model.file.name,
                version=model.file.version,
                max_in_flight=info.max_in_flight,
                limits=codec.limits_message(model.config, self._max_bytes),
                package_digest=model.file.package,
                durable_position=info.durable_position,
                durable=self._host.persistence.are_stored(np.array([info.handle], np.uint64)),
            )
            self._send(inference_pb2.StreamResponse(tag=tag, attached=message))

        self._host.takeover.attach(
            request.session_id,
            request.resume_token,
            self.number,
            attached,
            request.holder,
            resumes=request.resumes,
        )

    def _close(self, tag: int, request: inference_pb2.CloseSessions) -> None:
        handles = codec.read_handles(request.handles, "close.handles")
        rows, errors = self._own_rows(handles)

        def closed(missed: np.ndarray) -> None:
            self._explain_missed(handles, missed, errors)
            message = inference_pb2.SessionsClosed(errors=codec.row_errors(errors))
            self._send(inference_pb2.StreamResponse(tag=tag, closed=message))

        self._host.endings.close(rows, closed)

    def _reset(self, tag: int, request: inference_pb2.ResetSessions) -> None:
        handles = codec.read_handles(request.handles, "reset.handles")
        rows, errors = self._own_rows(handles)
        table = self._host.table
        own_start = table.has_own_start[rows]
        if own_start.any():
            refused = np.isin(table.rows_of(handles), rows[own_start])
            errors |= dict.fromkeys(np.flatnonzero(refused).tolist(), cannot_reset("handles"))
            rows = rows[~own_start]

        def reset(missed: np.ndarray) -> None:
            self._explain_missed(handles, missed, errors)
            fresh = table.handle[table.rows_of(handles)]
            fresh[list(errors)] = 0
            message = inference_pb2.SessionsReset(
                handles=fresh.astype("<u8").tobytes(), errors=codec.row_errors(errors)
            )
            self._send(inference_pb2.StreamResponse(tag=tag, reset=message))

        restarts.reset(self._host, rows, reset)

    def _fork(self, tag: int, request: inference_pb2.ForkSessions) -> None:
        handles = codec.read_handles(request.handles, "fork.handles")
        parents, errors = self._own_rows(handles)
        is_own = np.ones(len(handles), np.bool_)
        is_own[list(errors)] = False
        places = np.flatnonzero(is_own)

        def forked(outcome: Forked) -> None:
            self._explain_missed(handles, parents[outcome.missed], errors)
            errors.update({int(places[place]): error for place, error in outcome.errors.items()})
            rows = np.zeros(len(handles), np.int64)
            rows[places] = outcome.rows
            self._send(inference_pb2.StreamResponse(tag=tag, forked=self._forked_message(rows, errors)))

        fork(self._host, parents, self.number, forked)

    def _forked_message(self, rows: np.ndarray, errors: dict[int, EddyError]) -> inference_pb2.SessionsForked:
        """`rows` int64 [B]: 0 where there is no new session, whose columns are zero."""
        table = self._host.table
        is_new = rows > 0
        handles = np.where(is_new, table.handle[rows], np.uint64(0))
        ids, tokens = table.ids_of(rows), table.tokens_of(rows)
        nothing = bytes(SESSION_ID_BYTES)
        return inference_pb2.SessionsForked(
            session_ids=[each if new else nothing for each, new in zip(ids, is_new, strict=True)],
            handles=handles.astype("<u8").tobytes(),
            epochs=(handles >> EPOCH_SHIFT).astype("<u4").tobytes(),
            resume_tokens=b"".join([each if new else nothing for each, new in zip(tokens, is_new, strict=True)]),
            next_positions=np.where(is_new, table.next_position[rows], 0).astype("<u8").tobytes(),
            errors=codec.row_errors(errors),
            durable=bool(is_new.any()) and self._host.persistence.are_stored(handles[is_new]),
        )

    def _explain_missed(self, handles: np.ndarray, missed: np.ndarray, errors: dict[int, EddyError]) -> None:
        """Adds to `errors` why the table rows in `missed` could not be served."""
        if len(missed):
            table = self._host.table
            for row in np.flatnonzero(np.isin(table.rows_of(handles), missed)).tolist():
                errors[row] = table.explain(int(handles[row]))

    def _own_rows(self, handles: np.ndarray) -> tuple[np.ndarray, dict[int, EddyError]]:
        """Table rows of the handles that are good and this stream's, and why the others are not.

        Raises:
            ClientError: TOO_MANY_ROWS, of handles that are not.
        """
        table = self._host.table
        rows = table.rows_of(handles)
        good = (table.handle[rows] == handles) & (table.route[rows] >> MODEL_BITS == self.number)
        num_bad, most = len(good) - int(np.count_nonzero(good)), self._host.config.model.max_rows
        if num_bad > most:  # Each would be explained.
            raise invalid(
                Reason.TOO_MANY_ROWS, "handles", f"{num_bad} that are not this stream's sessions", f"at most {most}"
            )
        errors = {row: table.explain(int(handles[row])) for row in np.flatnonzero(~good).tolist()}
        return rows[good], errors

    def _tell_ended(self, handles: np.ndarray, error: EddyError) -> None:
        message = inference_pb2.SessionsEnded(handles=handles.astype("<u8").tobytes(), error=codec.error_detail(error))
        self._send(inference_pb2.StreamResponse(ended=message), num_answered=0)
