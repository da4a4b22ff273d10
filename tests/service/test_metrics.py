"""What /metrics says of a real server, against what was done to it: values that can be counted by hand."""

import asyncio
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import onnxruntime
import pytest
from graphs import family
from loopback import chunk, configure, serve, write_model

from eddy import SyncClient, errors
from eddy.service.engine import Engine
from eddy.service.totals import totals
from examples.server import MODELS, ServerProcess

PATIENCE_SECONDS = 30.0
NUM_SLOTS, MAX_ROWS = 64, 32
# Of sessions beyond the slots, half is kept free, to let some in while others leave.
NUM_CELLS = 2 * MAX_ROWS
HOST_BYTES = 8 * NUM_CELLS
# One int64 each: input, output and state of a session's one step.
STEP_BYTES = STATE_BYTES = 8
HISTORY = family("history")
TIERS = ("device", "host", "store", "initial")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A process with `history` and a text model, small arenas, and room for few replies."""
    repository = tmp_path_factory.mktemp("models")
    write_model(repository, "history")
    shutil.copytree(MODELS / "text-rnn", repository / "text-rnn")
    settings = {
        "model.max_slots": NUM_SLOTS,
        "model.max_rows": MAX_ROWS,
        "model.max_kept_reply_bytes": 1000,
        "state.host_bytes": HOST_BYTES,
        "session.sweep_seconds": 0.05,
    }
    flags = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    with ServerProcess(repository, flags) as process:
        yield process


class Scrape:
    """The samples of one scrape."""

    def __init__(self, server: ServerProcess) -> None:
        with urlopen(f"http://{server.http}/metrics", timeout=10.0) as response:
            self.text = response.read().decode()

    def value(self, name: str, **labels: str) -> float:
        """The one sample of that name with these labels among its own; 0 where there is none."""
        found = [
            float(value)
            for text, value in re.findall(rf"^{name}(?:\{{(.*)\}})? (\S+)$", self.text, re.MULTILINE)
            if labels.items() <= dict(re.findall(r'(\w+)="([^"]*)"', text)).items()
        ]
        assert len(found) <= 1, f"{name} {labels}: {found}"
        return found[0] if found else 0.0


def scrape_until(server: ServerProcess, condition: Callable[[Scrape], bool]) -> Scrape:
    """Scrapes until it says so: what the server does by itself, and the ends of calls, are counted a little later."""
    due = time.monotonic() + PATIENCE_SECONDS
    while not condition(scrape := Scrape(server)):
        assert time.monotonic() < due, scrape.text
    return scrape


def test_generated_tokens_and_the_time_to_the_first(server: ServerProcess) -> None:
    """Every token is counted, and each call's wait for its first one; other models' are left alone."""
    before = Scrape(server)
    started = time.monotonic()
    with SyncClient(server.target) as client:
        for num_tokens in (20, 1, 7):
            client.complete("text-rnn", "The ", max_tokens=num_tokens)
        with pytest.raises(errors.InvalidInput):
            client.complete("text-rnn", "The ", temperature=-1.0)
    elapsed = time.monotonic() - started
    after = Scrape(server)

    def grown(name: str, **labels: str) -> float:
        return after.value(name, **labels) - before.value(name, **labels)

    assert grown("eddy_generated_tokens_total", model="text-rnn") == 28
    assert grown("eddy_steps_total", model="text-rnn") == 3 * len("The ") + 28
    assert grown("eddy_time_to_first_token_seconds_count", model="text-rnn") == 3
    assert grown("eddy_time_to_first_token_seconds_bucket", model="text-rnn", le="+Inf") == 3
    assert 0.0 < grown("eddy_time_to_first_token_seconds_sum", model="text-rnn") < elapsed
    assert grown("eddy_refusals_total", reason="out_of_range") == 1
    for name in ("eddy_generated_tokens_total", "eddy_time_to_first_token_seconds_count"):
        assert after.value(name, model="history") == 0
    method = "eddy.v1.GenerationService/Generate"
    assert grown("eddy_grpc_started_calls_total", method=method) == 4
    ended = scrape_until(
        server, lambda scrape: scrape.value("eddy_grpc_finished_calls_total", method=method, code="OK") == 3
    )
    assert ended.value("eddy_grpc_finished_calls_total", method=method, code="INVALID_ARGUMENT") == 1


def test_slots_and_bytes(server: ServerProcess) -> None:
    """Arena slots and bytes, slots in use, bytes of kept replies and replies given up, as sessions come and go."""
    model = {"model": "history"}
    with SyncClient(server.target) as client:
        before = Scrape(server)
        assert before.value("eddy_arena_slots", **model) == NUM_SLOTS
        # Beside the sessions' slots: those of half-done chunks, the initial state and scratch.
        assert before.value("eddy_arena_bytes", **model) == STATE_BYTES * (NUM_SLOTS + MAX_ROWS + 2)
        assert before.value("eddy_arena_used_slots", **model) == before.value("eddy_kept_reply_bytes", **model) == 0
        with client.batch("history", 10) as batch:
            batch.step(np.full(10, 1))
            stepped = Scrape(server)
            assert stepped.value("eddy_arena_used_slots", **model) == 10
            assert stepped.value("eddy_kept_reply_bytes", **model) == 10 * 2 * STEP_BYTES
            assert stepped.value("eddy_forgotten_replies_total", **model) == 0
            # The newest replies are kept, up to the limit of 1000 bytes.
            batch.step(np.full((10, 20), 1))
            stepped = Scrape(server)
            assert stepped.value("eddy_kept_reply_bytes", **model) <= 1000
            assert stepped.value("eddy_forgotten_replies_total", **model) >= 7
        after = Scrape(server)
        assert after.value("eddy_arena_used_slots", **model) == after.value("eddy_kept_reply_bytes", **model) == 0
        assert after.value("eddy_ended_sessions_total", cause="closed", **model) >= 10


def test_pages(server: ServerProcess) -> None:
    """Sessions beyond the slots are counted by where their states are, and so is whoever comes and goes."""
    model = {"model": "history"}
    before = Scrape(server)
    assert before.value("eddy_host_state_limit_bytes") == HOST_BYTES
    with SyncClient(server.target) as client, client.batch("history", NUM_SLOTS) as first:
        first.step(np.full(NUM_SLOTS, 1))
        with client.batch("history", MAX_ROWS) as second:
            waiting = Scrape(server)
            assert [waiting.value("eddy_tier_sessions", tier=tier, **model) for tier in TIERS] == [64, 0, 0, 32]
            second.step(np.full(MAX_ROWS, 1))
            paged = Scrape(server)
            assert [paged.value("eddy_tier_sessions", tier=tier, **model) for tier in TIERS] == [64, 32, 0, 0]
            assert paged.value("eddy_host_state_bytes", **model) == STATE_BYTES * MAX_ROWS
            # Two ticks: the half that was out puts out the other, which has waited for longest, and that the others.
            first.step(np.full(NUM_SLOTS, 2))
        after = Scrape(server)
    counts = [scrape.value("eddy_page_outs_total", **model) for scrape in (before, paged, after)]
    assert counts == [counts[0], counts[0] + 32, counts[0] + 96]
    assert after.value("eddy_page_ins_total", **model) == before.value("eddy_page_ins_total", **model) + 64
    assert after.value("eddy_page_move_seconds_sum", **model) > before.value("eddy_page_move_seconds_sum", **model)


def test_evictions(server: ServerProcess) -> None:
    """A session that expires and one that finds no room are counted, each under its cause."""
    model = {"model": "history"}
    before = Scrape(server)
    with SyncClient(server.target) as client:
        with client.session("history", idle_timeout_seconds=0.1):
            scrape = scrape_until(
                server, lambda scrape: scrape.value("eddy_ended_sessions_total", cause="expired", **model) == 1
            )
        for state in ("attached", "detached"):
            assert scrape.value("eddy_sessions", state=state, **model) == 0
        num_sessions = NUM_SLOTS + NUM_CELLS - MAX_ROWS
        with client.batch("history", num_sessions), pytest.raises(errors.ServerBusy), client.session("history"):
            pass
    reason = {"reason": "too_many_sessions"}
    assert Scrape(server).value("eddy_refusals_total", **reason) == before.value("eddy_refusals_total", **reason) + 1
    assert Scrape(server).value("eddy_ended_sessions_total", cause="expired", **model) == 1


def test_build_and_process(server: ServerProcess) -> None:
    """What runs here, and what the process takes."""
    scrape = Scrape(server)
    build = {
        "version": version("eddy-serve"),
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "provider": "CPUExecutionProvider",
    }
    assert scrape.value("eddy_build_info", **build) == 1
    assert scrape.value("python_info", implementation=platform.python_implementation()) == 1
    if not Path("/proc/self/stat").exists():
        return  # The client library reads a process only there.
    assert scrape.value("process_resident_memory_bytes") > 10 << 20
    assert scrape.value("process_cpu_seconds_total") > 0
    assert 0 < scrape.value("process_open_fds") < scrape.value("process_max_fds")
    assert abs(scrape.value("process_start_time_seconds") - time.time()) < 3600


class Failing(Engine):
    """An engine whose graph fails in every run."""

    def run(self, *arguments: Any) -> list[bytes]:
        """Fails as the runtime does, with an exception of its own."""
        raise RuntimeError("no")


def test_sessions_that_fail_are_counted(tmp_path: Path) -> None:
    """Sessions whose tick broke end as failed, and the refusals say so."""
    write_model(tmp_path, "history")

    async def check() -> None:
        async with serve(configure(tmp_path)) as running, running.stream() as stream:
            handles = await stream.handles("history", 3)
            running.host.catalog.ready("history", "").engine.__class__ = Failing
            await stream.refusal(step=chunk(HISTORY, handles, [0] * 3, [[1]] * 3))
            found = totals(running.host, is_ready=True)
            assert found.models[0].ended_sessions == {
                "closed": 0,
                "expired": 0,
                "failed": 3,
                "retired": 0,
                "quarantined": 0,
                "fenced": 0,
            }
            assert found.models[0].sessions == {"attached": 0, "detached": 0}
            assert found.refusals["internal"] >= 1

    asyncio.run(check())
