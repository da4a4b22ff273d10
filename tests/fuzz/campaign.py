"""A campaign: attackers and oracles on one server for a given time, and what must hold during it and after.

Owns the order of a run and the judgement of the server as a whole. Must not know what single requests look like.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import grpc
from attack import CallAttack, SocketAttack, StreamAttack, Tally
from material import Session
from oip_attack import SequenceAttack, SequenceOracle
from oracle import HistoryOracle, TextOracle
from target import Target, running

from eddy.v1 import sessions_pb2

_MAX_GROWN_BYTES = 96 << 20
_MAX_GROWN_DESCRIPTORS = 8
_END_SECONDS = 60.0


@dataclass(frozen=True)
class Report:
    """What a run was."""

    seconds: float
    tally: Tally
    num_checked_steps: int
    num_checked_texts: int
    num_checked_sequence_steps: int
    warm_bytes: int
    most_bytes: int
    last_bytes: int

    def __str__(self) -> str:
        return "\n".join(
            (
                f"{self.tally.num_thrown} requests thrown in {self.seconds:.0f} s: {dict(self.tally.thrown)}",
                f"what came back: {dict(self.tally.reasons.most_common())}",
                f"the oracles checked {self.num_checked_steps} steps, {self.num_checked_texts} texts and",
                f"{self.num_checked_sequence_steps} steps of sequences",
                f"resident memory in MiB: {self.warm_bytes >> 20} warm, {self.most_bytes >> 20} at most",
                f"and {self.last_bytes >> 20} at the end",
            )
        )


def run(folder: Path, seconds: float, seed: int, tell: Callable[[str], None] = lambda _: None) -> Report:
    """Fuzzes a fresh server in `folder` for so long.

    Raises:
        AssertionError: something that must hold did not.
    """
    with running(folder) as target:
        num_descriptors = target.num_descriptors
        try:
            report = asyncio.run(_campaign(target, seconds, seed, num_descriptors, tell))
        except BaseException:
            tell(target.complaints())
            raise
        assert target.stop() == 0, "the server did not end well"
        complaints = target.complaints()
        assert not complaints, complaints
        return report


async def _campaign(
    target: Target, seconds: float, seed: int, num_descriptors: int, tell: Callable[[str], None]
) -> Report:
    random = Random(seed)
    tally, shared = Tally(), list[Session]()
    history, text = HistoryOracle(target, Random(random.getrandbits(64))), TextOracle(target)
    attackers = [StreamAttack(target, Random(random.getrandbits(64)), tally, shared) for _ in range(3)]
    callers = [CallAttack(target, Random(random.getrandbits(64)), tally, shared) for _ in range(2)]
    sequences = SequenceOracle(target, Random(random.getrandbits(64)))
    rivals = [SequenceAttack(target, Random(random.getrandbits(64)), tally) for _ in range(2)]
    sockets = SocketAttack(target, Random(random.getrandbits(64)), tally)
    everybody = (history, text, sequences, *attackers, *callers, *rivals, sockets)
    stop = asyncio.Event()
    begin = time.monotonic()
    tasks = [asyncio.create_task(each.run(stop)) for each in everybody]
    warm = most = 0
    told = -30.0
    try:
        while (passed := time.monotonic() - begin) < seconds:
            done, _ = await asyncio.wait(tasks, timeout=min(1.0, seconds - passed), return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
            assert target.process.poll() is None, "the server ended"
            resident = target.resident_bytes
            most = max(most, resident)
            if passed < seconds / 4:
                warm = most
            if passed >= told + 30:
                told = passed
                tell(f"{passed:.0f} s: {tally.num_thrown} thrown, {history.num_checked} steps, {resident >> 20} MiB")
        stop.set()
        await asyncio.wait_for(asyncio.gather(*tasks), _END_SECONDS)
    finally:
        stop.set()  # A cancellation alone may get lost where a wait ends at the same moment.
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await _until_empty(target, num_descriptors)
    last = target.resident_bytes
    assert last < warm + _MAX_GROWN_BYTES, f"{warm} bytes when warm, {last} at the end"
    seconds = time.monotonic() - begin
    checked = (history.num_checked, text.num_checked, sequences.num_checked)
    return Report(seconds, tally, *checked, warm, most, last)


async def _until_empty(target: Target, num_descriptors: int) -> None:
    """Sessions expire, and connections are let go."""
    deadline = time.monotonic() + _END_SECONDS
    while True:
        async with grpc.aio.insecure_channel(target.address) as channel:
            method = channel.unary_unary(
                "/eddy.v1.SessionService/ListSessions", None, sessions_pb2.ListSessionsResponse.FromString
            )
            left = await method(b"")
        num_grown = target.num_descriptors - num_descriptors
        if left.total == 0 and num_grown <= _MAX_GROWN_DESCRIPTORS:
            return
        assert time.monotonic() < deadline, f"left: {num_grown} descriptors more, {target.peers}, sessions {left}"
        await asyncio.sleep(0.1)
