"""A client that steps its sessions to their ends over a real server, losing replies and connections on the way.

Owns what a client knows: what it sent, what was answered, and the judgement of the answers against the plain graph.

Dimension key: B rows, T steps.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import numpy as np
from graphs import Family
from loopback import Loopback, StreamClient, array, chunk
from schedule import plain_graph
from simulation import assert_same

from eddy.service.errors import Reason
from eddy.v1 import inference_pb2


@dataclass
class Session:
    """A client's side of one session: what it will send, and what it got."""

    session_id: bytes
    handle: int
    inputs: list[np.ndarray]
    sent: int = 0
    answered: int = 0
    outputs: dict[int, list[np.ndarray]] = field(default_factory=dict)
    unanswered: dict[int, int] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Steps in all."""
        return len(self.inputs[0])

    def take(self, position: int, outputs: list[np.ndarray]) -> None:
        """An answer; the same chunk is answered with the same bits however often."""
        for old, new in zip(self.outputs.get(position, outputs), outputs, strict=True):
            np.testing.assert_array_equal(old, new)
        self.outputs[position] = outputs
        self.unanswered.pop(position, None)
        self.answered = max(self.answered, position + len(outputs[0]))


class Player:
    """One client: steps its sessions to their ends, in random cuts and groups, over connections that break."""

    def __init__(self, loopback: Loopback, spec: Family, generator: np.random.Generator, max_in_flight: int) -> None:
        self._loopback = loopback
        self._spec = spec
        self._generator = generator
        self._max_in_flight = max_in_flight
        self.sessions: list[Session] = []

    async def play(self, num_sessions: int, max_length: int, num_breaks: int) -> None:
        """Opens sessions and steps them to their ends."""
        client = StreamClient(self._loopback.channel)
        opened = await client.open(self._spec.name, num_sessions, max_in_flight=self._max_in_flight)
        handles = np.frombuffer(opened.handles, "<u8").tolist()
        for session_id, handle in zip(opened.session_ids, handles, strict=True):
            length = int(self._generator.integers(1, max_length + 1))
            self.sessions.append(Session(session_id, handle, self._spec.example(self._generator, length)))
        while any(session.answered < session.length for session in self.sessions):
            breaks = num_breaks > 0 and self._generator.random() < 0.3
            await self._round(client, is_last=breaks)
            if breaks:
                num_breaks -= 1
                client.cancel()
                await client.close()
                client = StreamClient(self._loopback.channel)
                await self._reattach(client)
        await client.close()

    async def _round(self, client: StreamClient, *, is_last: bool) -> None:
        """Posts some chunks, up to what may be in flight, and collects the answers, or hangs up on them."""
        pending = []
        for _ in range(int(self._generator.integers(1, self._max_in_flight + 1))):
            group = [s for s in self.sessions if s.sent < s.length and self._generator.random() < 0.7]
            if not group:
                continue
            steps = int(self._generator.integers(1, min(s.length - s.sent for s in group) + 1))
            positions = [session.sent for session in group]
            pending.append((group, positions, steps, await self._post(client, group, positions, steps)))
            for session in group:
                session.unanswered[session.sent] = steps
                session.sent += steps
        if is_last:
            return
        if pending and self._generator.random() < 0.4:  # The last chunk again, before or after it is answered.
            group, positions, steps, _ = pending[-1]
            pending.append((group, positions, steps, await self._post(client, group, positions, steps)))
        for group, positions, _, future in pending:
            self._collect(group, positions, await asyncio.wait_for(future, 30))

    async def _post(
        self, client: StreamClient, group: list[Session], positions: list[int], steps: int
    ) -> asyncio.Future[inference_pb2.StreamResponse]:
        inputs = [
            np.stack([s.inputs[port][at : at + steps] for s, at in zip(group, positions, strict=True)])
            for port in range(len(self._spec.inputs))
        ]
        return await client.post(step=chunk(self._spec, [s.handle for s in group], positions, *inputs))

    async def _reattach(self, client: StreamClient) -> None:
        """Takes every session over and sends again what was not answered: applied or not, it takes effect once."""
        for session in self.sessions:
            response = await client.send(attach=inference_pb2.AttachSession(session_id=session.session_id))
            old, session.handle = session.handle, response.attached.handle
            detail = await client.refusal(
                step=chunk(self._spec, [old], [session.answered], *[v[None, :1] for v in session.inputs])
            )
            assert Reason(detail.reason) in (Reason.FENCED, Reason.UNKNOWN_SESSION)
            assert session.answered <= response.attached.next_position <= session.sent
            for position, steps in sorted(session.unanswered.items()):
                future = await self._post(client, [session], [position], steps)
                self._collect([session], [position], await asyncio.wait_for(future, 30))

    def _collect(self, group: list[Session], positions: list[int], response: inference_pb2.StreamResponse) -> None:
        assert response.WhichOneof("event") == "step", response
        assert not response.step.errors, response.step.errors
        blocks = [array(output) for output in response.step.outputs]
        for row, (session, position) in enumerate(zip(group, positions, strict=True)):
            session.take(position, [block[row] for block in blocks])

    def check(self) -> int:
        """What was answered is what the plain graph gives; returns the number of steps compared."""
        for session in self.sessions:
            whole, _ = plain_graph(self._spec).whole(session.inputs)
            answers = [outputs for _, outputs in sorted(session.outputs.items())]
            for port, expected in enumerate(whole):
                got = np.concatenate([outputs[port] for outputs in answers])
                assert_same(got, expected, self._spec.tolerance)
        return sum(session.length for session in self.sessions)
