"""The crash test in short, and proof that its judge sees what it is there to see; the long one is `make chaos`."""

from pathlib import Path

import numpy as np
import pytest
from chaos import Run, run
from journal import Journal
from judge import Judgement, Reference, judge
from proxy import Weather
from redis_server import needs_redis
from workload import Call, Kind, call_of, model_family, workloads

SEED = 3
_CALLS = 12


def test_a_slow_network_changes_nothing(tmp_path: Path) -> None:
    """Delayed bytes and nothing worse: every kind of session gets what an uninterrupted run gives."""
    slow = Weather(refuse_share=0.0, cut_share=0.0, delay_share=0.1)
    report = run(Run("memory", SEED, 0, 5_000, num_clients=2, is_small=True, weather=slow), tmp_path)
    assert report.is_good, str(report)
    assert report.judgement.num_steps >= 5_000


def test_connections_that_break_change_nothing(tmp_path: Path) -> None:
    """Refused, cut in the middle of messages, and all of them at once: clients come back by themselves."""
    report = run(Run("memory", SEED, 0, 30_000, num_clients=2, is_small=True), tmp_path)
    assert report.is_good, str(report)
    assert report.counts["connections cut"] > 0


@pytest.mark.parametrize("store", ["sqlite", pytest.param("redis", marks=needs_redis)])
def test_killed_servers_lose_nothing(tmp_path: Path, store: str) -> None:
    """A few kills at the moments that the long run has; over Redis two servers, whose sessions move between them."""
    report = run(Run(store, SEED, 4, 5_000, num_clients=2, is_small=True), tmp_path)
    assert report.is_good, str(report)
    assert sum(count for name, count in report.counts.items() if name.startswith("kills ")) >= 4


def _judged(folder: Path, calls: list[Call], outputs: list[np.ndarray]) -> Judgement:
    """The judgement of one life of a session whose client saw `outputs`, [1, T] each of `calls`."""
    journal = Journal(folder / "journal")
    position = 0
    for number, (call, output) in enumerate(zip(calls, outputs, strict=True)):
        journal.write((1, 0, number), position, [[output[0]]])
        position += call.num_positions
    journal.close()
    return judge(SEED, [folder / "journal"], {}, is_small=True)


def _calls() -> list[Call]:
    """The calls of a session of the model that spells its history."""
    workload = workloads(0, is_small=True)[1]
    assert (workload.kind, workload.model) == (Kind.SINGLE, "history")
    model = model_family("history")
    return [call_of(model, SEED, 0, workload, 0, number) for number in range(_CALLS)]


def _seen(applied: list[Call]) -> list[np.ndarray]:
    """What a session answers to each of the calls that were applied, [1, T] each."""
    (whole,) = Reference(model_family("history")).outputs(applied, 1)
    ends = np.cumsum([call.num_positions for call in applied])
    return np.split(whole, ends[:-1], axis=1)


def test_the_judge_accepts_an_uninterrupted_run(tmp_path: Path) -> None:
    """Outputs as they must be: nothing is found, and all of them were looked at."""
    calls = _calls()
    judgement = _judged(tmp_path, calls, _seen(calls))
    assert judgement.differences == []
    assert judgement.num_steps == judgement.num_outputs == sum(call.num_positions for call in calls)


@pytest.mark.parametrize("verdict", ["lost", "doubled", "different"])
def test_the_judge_finds(tmp_path: Path, verdict: str) -> None:
    """A call that took no effect, one that took effect twice, and a bit that is another one: each by its name."""
    calls = _calls()
    if verdict == "lost":
        seen = _seen([*calls[:4], *calls[5:]])
        seen.insert(4, _seen(calls)[4])
    elif verdict == "doubled":
        seen = _seen([*calls[:5], *calls[4:]])
        del seen[4]
    else:
        seen = [values.copy() for values in _seen(calls)]
        seen[7].view(np.uint8).flat[0] ^= 1
    (difference,) = _judged(tmp_path, calls, seen).differences or []
    assert difference.verdict == verdict
    assert difference.position == sum(call.num_positions for call in calls[: {"lost": 5, "doubled": 4}.get(verdict, 7)])


def test_an_answer_that_never_came_is_found(tmp_path: Path) -> None:
    """A gap between two answers of one session."""
    calls = _calls()
    journal = Journal(tmp_path / "journal")
    for number in (0, 1, 3):
        position = sum(call.num_positions for call in calls[:number])
        journal.write((1, 0, number), position, [[_seen(calls)[number][0]]])
    journal.close()
    (difference,) = judge(SEED, [tmp_path / "journal"], {}, is_small=True).differences or []
    assert difference.verdict == "lost"
