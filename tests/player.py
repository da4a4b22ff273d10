"""A client that steps its sessions to their ends over a real server, losing replies and connections on the way.

Owns what a client knows: what it sent, what was answered, and the judgement of the answers against the plain graph.

Dimension key: B rows, T steps.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import numpy as np
from graphs import Family, Start
from loopback import Loopback, StreamClient, array, chunk, column, end_chunk, tensor
from schedule import plain_graph
from simulation import assert_same

from eddy.service.errors import Reason
from eddy.v1 import inference_pb2, sessions_pb2


@dataclass
class Session:
    """A client's side of one session: what it will send, and what it got.

    `inputs` are feeds: with the marks of ends, where the model has them; positions count those as steps.
    """

    session_id: bytes
    resume_token: bytes
    handle: int
    inputs: list[np.ndarray]
    start: Start | None = None
    sent: int = 0
    answered: int = 0
    outputs: dict[int, list[np.ndarray]] = field(default_factory=dict)
    unanswered: dict[int, int] = field(default_factory=dict)
    steps: dict[int, int] = field(default_factory=dict)
    has_ends: bool = False

    @property
    def length(self) -> int:
        """Steps in all."""
        return len(self.inputs[0])

    def take(self, position: int, steps: int, outputs: list[np.ndarray]) -> None:
        """An answer to a chunk of so many steps; the same chunk is answered with the same bits however often."""
        for old, new in zip(self.outputs.get(position, outputs), outputs, strict=True):
            np.testing.assert_array_equal(old, new)
        self.outputs[position], self.steps[position] = outputs, steps
        self.unanswered.pop(position, None)
        self.answered = max(self.answered, position + steps)

    def room(self, most: int) -> int:
        """Steps of the next chunk, at most: an end goes alone."""
        marks = self.inputs[-1][self.sent : self.sent + most]
        ends = np.flatnonzero(marks) if self.has_ends else np.empty(0, np.int64)
        if not len(ends):
            return min(most, self.length - self.sent)
        return max(1, int(ends[0]))

    def is_end(self, position: int) -> bool:
        """The step at `position` is an end."""
        return self.has_ends and bool(self.inputs[-1][position])


class Player:
    """One client: steps its sessions to their ends, in random cuts and groups, over connections that break."""

    def __init__(self, loopback: Loopback, spec: Family, generator: np.random.Generator, max_in_flight: int) -> None:
        self._loopback = loopback
        self._spec = spec
        self._generator = generator
        self._max_in_flight = max_in_flight
        self._num_forks = 0
        self.sessions: list[Session] = []

    async def play(
        self, num_sessions: int, max_length: int, num_breaks: int, num_forks: int = 0, num_moves: int = 0
    ) -> None:
        """Opens sessions and steps them to their ends, and those that are forked off them on the way to theirs.

        Now and then a session goes on as what is restored of its snapshot.
        """
        self._num_forks = num_forks
        client = StreamClient(self._loopback.channel)
        starts = [self._spec.start(self._generator) for _ in range(num_sessions)]
        opened = await client.open(
            self._spec.name, num_sessions, max_in_flight=self._max_in_flight, prime=self.prime(starts)
        )
        handles = np.frombuffer(opened.handles, "<u8").tolist()
        tokens = [opened.resume_tokens[at : at + 16] for at in range(0, 16 * num_sessions, 16)]
        for session_id, token, handle, start in zip(opened.session_ids, tokens, handles, starts, strict=True):
            length = int(self._generator.integers(1, max_length + 1))
            has_ends = self._spec.ends is not None
            self.sessions.append(Session(session_id, token, handle, self._feeds(length), start, has_ends=has_ends))
        while any(session.answered < session.length for session in self.sessions):
            breaks = num_breaks > 0 and self._generator.random() < 0.3
            await self._round(client, is_last=breaks)
            if breaks:
                num_breaks -= 1
                client.cancel()
                await client.close()
                client = StreamClient(self._loopback.channel)
                await self._reattach(client)
            elif num_moves and self._can_move and self._generator.random() < 0.5:
                num_moves -= 1
                await self._move(client, self.sessions[int(self._generator.integers(len(self.sessions)))])
        await client.close()

    @property
    def _can_move(self) -> bool:
        """No integers of any value are in the states: of such a snapshot may not be believed."""
        return not any(np.dtype(state.dtype).kind in "iu" and state.values is None for state in self._spec.states)

    async def _move(self, client: StreamClient, session: Session) -> None:
        """The session's snapshot is restored as another one, which answers the last chunk again as the first did."""
        taking = sessions_pb2.SnapshotSessionRequest(session_id=session.session_id)
        unary = self._loopback.unary
        taken = await unary("SessionService/SnapshotSession", taking, sessions_pb2.SnapshotSessionResponse)
        assert taken.session.next_position == session.sent
        assert session.session_id not in taken.snapshot and session.resume_token not in taken.snapshot
        restoring = sessions_pb2.RestoreSessionRequest(snapshot=taken.snapshot)
        response = await unary("SessionService/RestoreSession", restoring, sessions_pb2.RestoreSessionResponse)
        assert not response.notes, "it was taken here"
        restored = response.session
        closing = sessions_pb2.CloseSessionRequest(session_id=session.session_id)
        await unary("SessionService/CloseSession", closing, sessions_pb2.CloseSessionResponse)
        session.session_id, session.resume_token = restored.session_id, restored.resume_token
        attach = inference_pb2.AttachSession(session_id=session.session_id, resume_token=session.resume_token)
        session.handle = (await client.send(attach=attach)).attached.handle
        assert restored.next_position == session.sent and restored.max_in_flight == self._max_in_flight
        kept = [position for position in session.outputs if session.steps[position] + position == session.sent]
        for position in kept:
            steps = session.steps[position]
            future = await self._post(client, [session], [position], steps)
            response = await asyncio.wait_for(future, 30)
            assert response.step.replayed_rows, "the reply was not kept"
            self._collect([session], [position], steps, response)

    def _feeds(self, length: int) -> list[np.ndarray]:
        """A session's steps; a model that knows ends is told of some, the last thing being one."""
        feeds = self._spec.feeds(self._spec.example(self._generator, length))
        if self._spec.ends is None:
            return feeds
        *inputs, marks = feeds
        *blank, mark = self._spec.end()
        places = np.sort(self._generator.integers(0, length + 1, int(self._generator.integers(0, 3))))
        places = np.append(places, length)
        whole = [np.insert(values, places, end[0], axis=0) for values, end in zip(inputs, blank, strict=True)]
        return [*whole, np.insert(marks, places, mark[0])]

    def prime(self, starts: list[Start | None]) -> inference_pb2.Prime | None:
        """The starts of several sessions, padded to the longest."""
        prime, given = self._spec.prime, [start for start in starts if start is not None]
        if prime is None:
            return None
        most = max(len(start.inputs[0]) for start in given)
        message = inference_pb2.Prime(lengths=np.array([start.length for start in given], "<u4").tobytes())
        for number, port in enumerate(prime.inputs):
            blank = np.full((most, *port.shape), max(0, (port.values or (0, 0))[0]), port.dtype)
            rows = [np.concatenate([start.inputs[number], blank])[:most] for start in given]
            message.inputs.append(tensor(port.name, np.stack(rows)))
        return message

    async def _round(self, client: StreamClient, *, is_last: bool) -> None:
        """Posts some chunks, up to what may be in flight, and collects the answers, or hangs up on them."""
        pending = []
        for _ in range(int(self._generator.integers(1, self._max_in_flight + 1))):
            group = [s for s in self.sessions if s.sent < s.length and self._generator.random() < 0.7]
            if not group:
                continue
            # An end goes alone, and so with other ends only.
            group = [s for s in group if s.is_end(s.sent) == group[0].is_end(group[0].sent)]
            most = min(s.room(s.length - s.sent) for s in group)
            steps = int(self._generator.integers(1, most + 1))
            positions = [session.sent for session in group]
            pending.append((group, positions, steps, await self._post(client, group, positions, steps)))
            for session in group:
                session.unanswered[session.sent] = steps
                session.sent += steps
        forks = []
        if self._num_forks and self._generator.random() < 0.5:
            self._num_forks -= 1
            parents = [s for s in self.sessions if self._generator.random() < 0.5] or self.sessions[:1]
            request = inference_pb2.ForkSessions(handles=column([s.handle for s in parents]))
            forks.append((parents, [s.sent for s in parents], await client.post(fork=request)))
            # One more chunk of the parents right behind it, which the new sessions must not feel.
            ready = [s for s in parents if s.sent < s.length and len(s.unanswered) < self._max_in_flight][:1]
            for session in ready:
                position, steps = session.sent, session.room(1)
                session.unanswered[position] = steps
                session.sent += steps
                pending.append(([session], [position], steps, await self._post(client, [session], [position], steps)))
        if is_last:
            return
        if pending and self._generator.random() < 0.4:  # The last chunk again, before or after it is answered.
            group, positions, steps, _ = pending[-1]
            pending.append((group, positions, steps, await self._post(client, group, positions, steps)))
        for group, positions, steps, future in pending:
            self._collect(group, positions, steps, await asyncio.wait_for(future, 30))
        for parents, positions, future in forks:
            self._add_forks(parents, positions, (await asyncio.wait_for(future, 30)).forked)

    def _add_forks(self, parents: list[Session], positions: list[int], forked: inference_pb2.SessionsForked) -> None:
        """New sessions, with their parents' past and a future of their own."""
        assert not forked.errors, forked.errors
        assert np.frombuffer(forked.next_positions, "<u8").tolist() == positions
        handles = np.frombuffer(forked.handles, "<u8").tolist()
        for number, (parent, position) in enumerate(zip(parents, positions, strict=True)):
            future = self._feeds(int(self._generator.integers(1, 12)))
            past = {at: outputs for at, outputs in parent.outputs.items() if at < position}
            self.sessions.append(
                Session(
                    forked.session_ids[number],
                    forked.resume_tokens[16 * number : 16 * number + 16],
                    handles[number],
                    [np.concatenate((old[:position], new)) for old, new in zip(parent.inputs, future, strict=True)],
                    parent.start,
                    position,
                    position,
                    past,
                    steps={at: parent.steps[at] for at in past},
                    has_ends=parent.has_ends,
                )
            )

    async def _post(
        self, client: StreamClient, group: list[Session], positions: list[int], steps: int
    ) -> asyncio.Future[inference_pb2.StreamResponse]:
        handles = [s.handle for s in group]
        if group[0].is_end(positions[0]):
            return await client.post(step=end_chunk(handles, positions))
        inputs = [
            np.stack([s.inputs[port][at : at + steps] for s, at in zip(group, positions, strict=True)])
            for port in range(len(self._spec.inputs))
        ]
        return await client.post(step=chunk(self._spec, handles, positions, *inputs))

    async def _reattach(self, client: StreamClient) -> None:
        """Takes every session over and sends again what was not answered: applied or not, it takes effect once."""
        for session in self.sessions:
            request = inference_pb2.AttachSession(session_id=session.session_id, resume_token=session.resume_token)
            response = await client.send(attach=request)
            old, session.handle = session.handle, response.attached.handle
            detail = await client.refusal(step=chunk(self._spec, [old], [session.answered], *self._some_step(session)))
            assert Reason(detail.reason) in (Reason.FENCED, Reason.UNKNOWN_SESSION)
            assert session.answered <= response.attached.next_position <= session.sent
            for position, steps in sorted(session.unanswered.items()):
                future = await self._post(client, [session], [position], steps)
                self._collect([session], [position], steps, await asyncio.wait_for(future, 30))

    def _some_step(self, session: Session) -> list[np.ndarray]:
        return [values[None, :1] for values in session.inputs[: len(self._spec.inputs)]]

    def _num_ticks(self) -> str:
        """What the server has run, for messages."""
        dispatcher = self._loopback.host.dispatcher
        sizes = [
            f"{model.file.name} {model.scheduler.num_row_steps} row-steps in {model.scheduler.num_ticks} ticks"
            for model in self._loopback.host.catalog.served
        ]
        return f"{dispatcher.num_inline_ticks} ticks inline, {dispatcher.num_thread_ticks} on the thread; {sizes}"

    def _collect(
        self, group: list[Session], positions: list[int], steps: int, response: inference_pb2.StreamResponse
    ) -> None:
        asked = f"chunk of {steps} steps at {positions} of sessions {[self.sessions.index(each) for each in group]}"
        assert response.WhichOneof("event") == "step", f"{asked}: {response}; {self._num_ticks()}"
        assert not response.step.errors, f"{asked}: {response.step.errors}; {self._num_ticks()}"
        blocks = [array(output) for output in response.step.outputs]
        emitted = np.frombuffer(response.step.emitted, "<i8") if self._spec.ends is not None else [steps] * len(group)
        assert len(blocks[0][0]) == max(emitted), "a message has as many steps as its longest row"
        for row, (session, position) in enumerate(zip(group, positions, strict=True)):
            assert not any(block[row, emitted[row] :].any() for block in blocks), "values beyond what was emitted"
            session.take(position, steps, [block[row, : emitted[row]] for block in blocks])

    def check(self) -> int:
        """What was answered is what the plain graph gives; returns the number of steps compared."""
        for number, session in enumerate(self.sessions):
            whole, _ = plain_graph(self._spec).whole(session.inputs, session.start)
            answers = sorted(session.outputs.items())
            for port, (spec, expected) in enumerate(zip(self._spec.outputs, whole, strict=True)):
                got = np.concatenate([outputs[port] for _, outputs in answers])
                try:
                    assert_same(got, expected, self._spec.tolerance)
                except AssertionError as error:
                    raise AssertionError(
                        f"model {self._spec.name!r}, session {number} of {len(self.sessions)}, output {spec.name!r}: "
                        f"{_difference(got, expected)}\nanswers as (position, steps): "
                        f"{[(at, session.steps[at]) for at, _ in answers]}; {self._num_ticks()}"
                    ) from error
        return sum(session.length for session in self.sessions)


def _difference(got: np.ndarray, expected: np.ndarray) -> str:
    """Where two arrays [T, ...] differ first, and by what."""
    if got.shape != expected.shape:
        return f"shape {got.shape}, the plain graph gives {expected.shape}"
    differs = got != expected
    places = np.argwhere(differs)
    first = tuple(places[0]) if len(places) else ()
    return (
        f"{len(places)} of {got.size} values differ, the first at step and place {[int(at) for at in first]}: "
        f"got {got[first]!r}, the plain graph gives {expected[first]!r}; steps {np.unique(places[:, :1]).tolist()}"
    )
