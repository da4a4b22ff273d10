"""Many small clients: 64 streams of one session each, against an echo server of the same message sizes.

`singles_cpu_ratio` compares the CPU that the two server processes take a message. `oip_cpu_ratio` compares what Eddy
takes a step by the Open Inference Protocol, a sequence a stream, with what it takes by eddy.v1. `coalescing_gain`
compares the steps/s of 256 coroutines of one client process, whose steps the client library packs by itself, with the
singles'. Order of a repetition: singles, Open Inference Protocol, echo, coalesced; in every other one the first three
are turned round.

Every stream has a connection of its own, as 64 devices have. The ratio for 64 streams that share one connection is
printed beside: frames of many streams then share system calls, which makes the echo cheaper. So is the ratio to an echo
whose gRPC waits for its sockets as Eddy's does (`eddy.service.polling`); the yardstick is gRPC as it comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.figure import Figure, Measurement, Note, figure
from benchmarks.plan import Plan
from benchmarks.server import EchoServer, EddyServer
from benchmarks.shape import LSTM_128
from benchmarks.worker import Worker

NUM_STREAMS = 64
NUM_COROUTINES = 256
# Repetitions that are also measured over one connection.
_NUM_SHARED = 3

# What the load generator answers to one command, and to all of a kind.
Answer = dict[str, float]
Answers = list[Answer]


def measure(repository: Path, names: Sequence[str], plan: Plan) -> Measurement:
    """`singles_cpu_ratio`, `oip_cpu_ratio` and `coalescing_gain`, as asked for."""
    wants_ratio, wants_gain = "singles_cpu_ratio" in names, "coalescing_gain" in names
    wants_oip = "oip_cpu_ratio" in names
    answers: dict[str, Answers] = {
        "eddy": [],
        "oip": [],
        "echo": [],
        "alike": [],
        "coalesced": [],
        "shared eddy": [],
        "shared echo": [],
    }
    with (
        EddyServer(repository) as eddy,
        EchoServer() as echo,
        EchoServer(is_like_eddy=True) as alike,
        Worker("benchmarks.load", str(repository)) as load,
    ):
        servers: list[tuple[str, EddyServer | EchoServer]] = [("eddy", eddy)]
        if wants_oip:
            servers.append(("oip", eddy))
        if wants_ratio:
            servers += [("echo", echo), ("alike", alike)]
        for number in range(plan.repetitions):
            for kind, server in servers[:: -1 if number % 2 else 1]:
                answers[kind].append(_singles(load, kind, server, plan))
                if wants_ratio and number < _NUM_SHARED and kind in ("eddy", "echo"):
                    answers[f"shared {kind}"].append(_singles(load, kind, server, plan, one_connection=True))
            if wants_gain:
                answers["coalesced"].append(_coalesced(load, eddy, plan))
    found = []
    if wants_ratio:
        found.append(_cpu_ratio(answers))
    if wants_oip:
        found.append(_oip_ratio(answers["oip"], answers["eddy"]))
    if wants_gain:
        found.append(_gain(answers["coalesced"], answers["eddy"]))
    return Measurement(tuple(each for each, _ in found), tuple(note for _, note in found))


def _singles(
    load: Worker, kind: str, server: EddyServer | EchoServer, plan: Plan, *, one_connection: bool = False
) -> Answer:
    return load.ask(
        "throughput",
        server=kind,
        target=server.target,
        pid=server.pid,
        model=LSTM_128.name,
        streams=NUM_STREAMS,
        rows=1,
        warm_up_seconds=plan.warm_up_seconds,
        seconds=plan.singles_seconds,
        one_connection=one_connection,
    )


def _coalesced(load: Worker, server: EddyServer, plan: Plan) -> Answer:
    return load.ask(
        "coalescing",
        target=server.target,
        pid=server.pid,
        model=LSTM_128.name,
        sessions=NUM_COROUTINES,
        warm_up_seconds=plan.warm_up_seconds,
        seconds=plan.singles_seconds,
    )


def _cpu_ratio(answers: dict[str, Answers]) -> tuple[Figure, Note]:
    singles, echoes, alikes = answers["eddy"], answers["echo"], answers["alike"]
    ratios = _ratios(singles, echoes, "server_cpu_seconds_per_message")
    to_alikes = _ratios(singles, alikes, "server_cpu_seconds_per_message")
    shared = _ratios(answers["shared eddy"], answers["shared echo"], "server_cpu_seconds_per_message")
    text = (
        f"server CPU {_median(singles, 'server_cpu_seconds_per_message') * 1e6:.1f} us a step at "
        f"{_median(singles, 'messages_per_second'):,.0f} steps/s, "
        f"echo {_median(echoes, 'server_cpu_seconds_per_message') * 1e6:.1f} us a message at "
        f"{_median(echoes, 'messages_per_second'):,.0f} messages/s; "
        f"{median(to_alikes):.2f} to an echo that waits for its sockets as Eddy does, "
        f"{_median(alikes, 'server_cpu_seconds_per_message') * 1e6:.1f} us; "
        f"{median(shared):.2f} when all share one connection"
    )
    return figure("singles_cpu_ratio", ratios), Note("singles_cpu_ratio", text)


def _oip_ratio(oip: Answers, singles: Answers) -> tuple[Figure, Note]:
    text = (
        f"server CPU {_median(oip, 'server_cpu_seconds_per_message') * 1e6:.1f} us a step at "
        f"{_median(oip, 'messages_per_second'):,.0f} steps/s, eddy.v1 "
        f"{_median(singles, 'server_cpu_seconds_per_message') * 1e6:.1f} us at "
        f"{_median(singles, 'messages_per_second'):,.0f} steps/s"
    )
    return figure("oip_cpu_ratio", _ratios(oip, singles, "server_cpu_seconds_per_message")), Note("oip_cpu_ratio", text)


def _gain(coalesced: Answers, singles: Answers) -> tuple[Figure, Note]:
    text = (
        f"{_median(coalesced, 'steps_per_second'):,.0f} steps/s coalesced, "
        f"{_median(singles, 'steps_per_second'):,.0f} as singles; while coalesced, client "
        f"{_median(coalesced, 'load_cpu_share'):.2f} cores, server {_median(coalesced, 'server_cpu_share'):.2f}"
    )
    return figure("coalescing_gain", _ratios(coalesced, singles, "steps_per_second")), Note("coalescing_gain", text)


def _ratios(above: Answers, below: Answers, key: str) -> list[float]:
    return [one[key] / other[key] for one, other in zip(above, below, strict=True)]


def _median(answers: Answers, key: str) -> float:
    return median(answer[key] for answer in answers)
