"""A session as a caller sees it.

Owns what may be asked of it: steps, the end of a stream, a reset, its end, and its lending to a generation. Must not
know how steps are sent, and sent again: `lane` does.

Ordering rules: as in `lane`; a reset, and a generation, has the session to itself.

Dimension key: T steps, E outputs emitted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import pairwise
from types import TracebackType

import numpy as np

from eddy.clients.errors import Disconnected, EddyError, Fenced, ServerBusy, SessionEnded, from_detail, invalid
from eddy.clients.group import END, PendingStep
from eddy.clients.lane import Lane
from eddy.clients.tensors import Inputs, Outputs
from eddy.v1 import inference_pb2

# Tokens that a generation fed are fed again so many at a time: each is answered with its scores.
_FED_STEPS = 256


class Session(Lane):
    """One session. Made by `Client.session`, `Client.open` or `Client.attach`, not directly."""

    async def step(self, inputs: Inputs) -> np.ndarray:
        """Steps the session and returns the output of a model that has one.

        Args:
            inputs: for a model with one input its values: one step, [F], or T steps, [T, F]; scalars where the
                contract's shape is empty. Otherwise a mapping by input name.

        Returns:
            [...] for one step, [T, ...] for T. Of a model that looks ahead what it has emitted by now, [E, ...], where
            E may be 0, also for one step.

        Raises:
            InvalidInput: refused here or by the server; nothing was applied and the session goes on.
            SessionEnded, Fenced, OutOfOrder, ServerBusy, ModelUnavailable, Disconnected: see `eddy.errors`.
        """
        self._group.signature.check_single_output()
        return (await self._step(inputs))[0]

    async def step_outputs(self, inputs: Inputs) -> Outputs:
        """As `step`, for models with any number of outputs: each by its name."""
        return self._group.signature.by_name(await self._step(inputs))

    async def _step(self, inputs: Inputs) -> Sequence[np.ndarray]:
        self._check()
        arrays, is_single = self._group.signature.arrays(inputs, 0)
        num_steps = 1 if is_single else len(arrays[0])
        if not num_steps:
            raise invalid("ZERO_STEPS", "inputs", "T = 0 steps", "at least 1")
        self._group.check_size(num_steps)
        outputs = await self._send(arrays, num_steps)
        is_row = is_single and not self._group.signature.is_ahead
        return [output[0] for output in outputs] if is_row else outputs

    async def flush(self) -> np.ndarray:
        """Ends the stream: a model that looks ahead emits what it holds back, and what follows is a new stream.

        It takes one position, as a step does, and takes effect exactly once, in the order asked for. Closing the
        session does not do it.

        Returns:
            What was held back, [E, ...], where E may be 0.

        Raises:
            InvalidInput: the model holds nothing back.
            SessionEnded, Fenced, OutOfOrder, ServerBusy, ModelUnavailable, Disconnected: see `eddy.errors`.
        """
        self._group.signature.check_single_output("flush")
        return (await self._flush())[0]

    async def flush_outputs(self) -> Outputs:
        """As `flush`, for models with any number of outputs: each by its name."""
        return self._group.signature.by_name(await self._flush())

    async def _flush(self) -> Sequence[np.ndarray]:
        self._check()
        self._group.signature.check_flush()
        return await self._send([], END)

    async def reset(self) -> None:
        """Back to position 0 and the model's initial state, after the steps before it."""
        self._check()
        await self._turns.take(self.max_in_flight)
        # Carried out whether or not its caller waits for it.
        await asyncio.shield(self._link.begin(self._reset()))

    async def _reset(self) -> None:
        self._is_resetting = True
        try:
            self._check_end()

            def build() -> inference_pb2.StreamRequest:
                self._check_end()
                return inference_pb2.StreamRequest(reset=inference_pb2.ResetSessions(handles=self.handle))

            response, _ = await self._link.request(build, self, self._reset_done)
            for error in response.reset.errors:
                raise from_detail(error.error)
        except (SessionEnded, Fenced) as error:
            self.end(error)
            raise
        finally:
            self._is_resetting = False
            if self._is_unchecked and self._end is None:  # Taken back meanwhile, and then it was not reset.
                self._link.recover(self)
            self._turns.release(self.max_in_flight)

    def _reset_done(self, response: inference_pb2.StreamResponse) -> None:
        if not response.reset.errors:
            self._is_unchecked = False
            self._log.clear()
            self._log.durable_position = 0
            self.sent_position = 0
            self._renew(int.from_bytes(response.reset.handles, "little"))

    def check(self) -> None:
        """Raises what ended the session, if it has ended."""
        self._check_end()

    def let_go(self) -> EddyError | None:
        """Leaves the session open at the server, to whoever takes it; returns what has ended it, if it has ended."""
        found = self._end
        self.end(SessionEnded("the session was let go", "SESSION_CLOSED"))
        return found

    async def lend(self) -> None:
        """Gives somebody the session to himself, after the steps before, until `take_back` or `recover`.

        Steps are refused meanwhile. The server has the session then where its callers have brought it.

        Raises:
            OutOfOrder: somebody else has it.
            SessionEnded, Disconnected: it is no longer of use.
        """
        self._check()
        await self._turns.take(self.max_in_flight)
        try:
            self._check()
            self._is_lent = True
            await self.settled()
        except BaseException:
            self._is_lent = False
            self._turns.release(self.max_in_flight)
            raise

    def hand_over(self) -> None:
        """Whoever it is lent to moves it from now on: where the server has it, is for him to find out."""
        self._is_handed_over = True

    async def settle_anew(self) -> None:
        """The server was found to have the session elsewhere than its callers have brought it: it is taken anew.

        Raises:
            EddyError: another client has moved it, or it has ended.
        """
        self._link.recover(self)
        await self.settled()

    def take_back(self, position: int, begin: int = 0, fed: Sequence[int] = ()) -> None:
        """The generation has ended, and the session stands at `position`; `fed`, `begin`: as for `recover`."""
        self._log_fed(begin, fed[: max(0, position - begin)], position)
        self._is_lent = self._is_handed_over = False
        self.sent_position = position
        self._turns.release(self.max_in_flight)

    def began_anew(self) -> None:
        """It was reset without the stream, or perhaps was: nothing of before is sent again."""
        self._log.clear()
        self._log.durable_position = 0
        self.sent_position = 0

    async def retake(self) -> None:
        """Takes the session over anew while it is lent: what of the generation is still under way is fenced.

        Raises:
            EddyError: it is gone, or somebody else's, or there was no server for it.
        """
        await asyncio.shield(self._link.begin(self._attach_anew(self._retaken)))

    def _retaken(self, response: inference_pb2.StreamResponse) -> None:
        self._renew(response.attached.handle)

    async def recover(self, begin: int = 0, fed: Sequence[int] = ()) -> None:
        """The generation has ended nobody knows where.

        The session is taken over anew: what of the generation is still under way is fenced, and the server says where
        the session stands. Where that fails, so does the next step, and says why.

        Args:
            fed: tokens that are the session's, from position `begin` on; it is fed those that it misses.
        """
        await asyncio.shield(self._link.begin(self._recover(begin, fed)))

    async def _recover(self, begin: int, fed: Sequence[int]) -> None:
        missing: list[PendingStep] = []
        try:
            if self._end is None:

                def recovered(response: inference_pb2.StreamResponse) -> None:
                    self._renew(response.attached.handle)
                    missing.extend(self._level(response.attached.next_position, begin, fed))

                await self._attach_anew(recovered)
                await asyncio.gather(*[step.done for step in missing])
        except ServerBusy:
            pass
        except EddyError as error:
            self.end(error)
        finally:
            self._is_lent = self._is_handed_over = False
            self._turns.release(self.max_in_flight)

    async def _attach_anew(self, on_response: Callable[[inference_pb2.StreamResponse], None]) -> None:
        def build() -> inference_pb2.StreamRequest:
            self._check_end()
            return inference_pb2.StreamRequest(attach=self._attachment())

        _, connection = await self._link.request(build, self, on_response)
        if self._is_closing:  # By the handle of before, which is fenced.
            connection.discard(self.handle)

    def _level(self, position: int, begin: int, fed: Sequence[int]) -> list[PendingStep]:
        """The server stands at `position`: the steps that feed it what it misses, each under way."""
        missing = self._log_fed(begin, fed, position)
        self._is_handed_over = False
        self.sent_position = max(self.sent_position, position, begin + len(fed) if fed else 0)
        self._send_again(position)
        self._give()
        return missing

    def _log_fed(self, begin: int, fed: Sequence[int], position: int) -> list[PendingStep]:
        """Keeps what was fed, as far as it could be lost; returns what is behind `position`, still to be fed."""
        missing = []
        places = [*range(0, len(fed), _FED_STEPS), len(fed)]
        if begin < position < begin + len(fed):
            places = sorted({*places, position - begin})
        for first, end in pairwise(places):
            arrays, _ = self._group.signature.arrays(np.array(fed[first:end], np.int64), 0)
            done: asyncio.Future[list[np.ndarray]] = asyncio.get_running_loop().create_future()
            step = PendingStep(self, [array.tobytes() for array in arrays], end - first, done, self.num_rewinds)
            step.position, step.holds_turn, step.is_fed = begin + first, False, True
            step.is_answered = begin + end <= position
            if not step.is_answered:
                missing.append(step)
            elif not self._log.is_durable:
                continue
            self._log.add(step)
        return missing

    async def close(self) -> None:
        """Ends the session; ending it twice is fine. While there is no stream, it ends once there is."""
        if self._end is not None:
            return
        self._is_closing = True
        self._end = SessionEnded("the session was closed", "SESSION_CLOSED")
        closing = self._link.begin(self._close())
        if not self._link.is_away(self):
            await asyncio.shield(closing)

    async def _close(self) -> None:
        def build() -> inference_pb2.StreamRequest:
            return inference_pb2.StreamRequest(close=inference_pb2.CloseSessions(handles=self.handle))

        try:
            await self._link.request(build, self)
        except Disconnected:
            pass  # It ends once it is idle for too long.
        finally:
            self.end(SessionEnded("the session was closed", "SESSION_CLOSED"))

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
