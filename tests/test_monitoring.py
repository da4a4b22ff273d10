"""What `deploy/` gives to those who run a server: a real Prometheus scrapes a real server under load.

Every query of the alert rules and of the dashboard is asked, so that a metric that is renamed or a label that is
dropped shows here and not at night. Prometheus and promtool come from the system's packages (`apt-get install
prometheus`); where they are not installed, what needs them is skipped.
"""

import json
import re
import shutil
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest

from eddy import SyncClient, errors
from examples.server import ServerProcess

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "dashboards" / "eddy.json").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
# Far beyond what it takes: a test that would wait for ever fails instead.
PATIENCE_SECONDS = 60.0

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="prometheus and promtool are not installed: apt-get install prometheus",
)

# What Grafana puts in.
VARIABLES = {"$instance": ".*", "$model": ".*", "$__rate_interval": "1m", "$__range": "1h"}

# Queries, up to the instances that they choose, that have no result here, or none but NaN: why.
EMPTY = {
    'absent(up{job="eddy"})': "the server is scraped",
    "rate(eddy_grpc_finished_calls_total"
    '{method="eddy.v1.InferenceService/Stream", code!~"OK|CANCELLED"}[5m])': "none failed",
}


def _panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def dashboard_queries() -> list[str]:
    """Every query of the dashboard, variables filled in."""
    queries = []
    for panel in _panels():
        for target in panel["targets"]:
            query = target["expr"]
            for name, value in VARIABLES.items():
                query = query.replace(name, value)
            assert "$" not in query, query
            queries.append(query)
    return queries


class Prometheus:
    """A running Prometheus.

    Args:
        folder: for its configuration and data; target: what the job `eddy` scrapes.
    """

    def __init__(self, folder: Path, target: str) -> None:
        # The configuration that is deployed, at another address and in a hurry.
        text = (DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8")
        assert "eddy:8501" in text
        text = text.replace("eddy:8501", target)
        text = re.sub(r"(scrape_interval|evaluation_interval|scrape_timeout): \d+s", r"\1: 200ms", text)
        (folder / "prometheus.yml").write_text(text, encoding="utf-8")
        shutil.copy(DEPLOY / "prometheus" / "eddy.rules.yml", folder)
        self._process = subprocess.Popen(  # noqa: S603  no shell
            [  # noqa: S607  found by `needs_prometheus`
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                "--web.listen-address=127.0.0.1:0",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._drain: threading.Thread | None = None
        self._address = self._wait_until_ready()
        # Nobody reads what it logs from here on, and a full pipe would hold it up.
        assert self._process.stderr is not None
        self._drain = threading.Thread(target=self._process.stderr.read, daemon=True)
        self._drain.start()

    def _wait_until_ready(self) -> str:
        assert self._process.stderr is not None
        overdue = threading.Timer(PATIENCE_SECONDS, self._process.kill)
        overdue.start()
        log, address = [], ""
        try:
            for line in self._process.stderr:
                log.append(line)
                if found := re.search(r'msg="Listening on" address=(\S+)', line):
                    address = found[1]
                if address and "Server is ready" in line:
                    return address
        finally:
            overdue.cancel()
        self.stop()
        raise AssertionError(f"Prometheus did not start:\n{''.join(log)}")

    def ask(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer of its HTTP interface; an error of the query is raised."""
        with urlopen(
            f"http://{self._address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}", timeout=10
        ) as answer:
            return json.load(answer)["data"]

    def query(self, query: str) -> list[float]:
        """The values of an instant query's result."""
        return [float(sample["value"][1]) for sample in self.ask("query", query=query)["result"]]

    def stop(self) -> None:
        """Ends the process."""
        self._process.terminate()
        self._process.wait(PATIENCE_SECONDS)
        if self._drain is not None:
            self._drain.join()
        assert self._process.stderr is not None
        self._process.stderr.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A real server with a state store, with two models that it serves and one that it refuses."""
    repository, store = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("state") / "store"
    for name in ("forecast-gru", "text-rnn"):
        shutil.copytree(ROOT / "models" / name, repository / name)
    (repository / "broken" / "1").mkdir(parents=True)
    (repository / "broken" / "1" / "model.onnx").write_bytes(b"not a model")
    # Sessions of the load live for a few milliseconds: some are to be there when a checkpoint is due.
    often = ("--set", "state.checkpoint_seconds=0.02")
    with ServerProcess(repository, ("--state-store", f"sqlite:{store}", *often)) as process:
        yield process


def load(server: ServerProcess) -> None:
    """One round of what clients do: a connection, sessions, steps, a mistake, an end."""
    with SyncClient(server.target) as client:
        with client.batch("forecast-gru", 50) as sensors:
            for _ in range(10):
                sensors.step(np.full((50, 1), 7.1))
        with client.session("forecast-gru") as session:
            session.step([110])
        client.complete("text-rnn", "The ", max_tokens=20)
        with pytest.raises(errors.NotFound), client.session("no-such-model"):  # A mistake.
            pass


@pytest.fixture(scope="module")
def prometheus(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has scraped the server often enough, while it worked."""
    process = Prometheus(tmp_path_factory.mktemp("prometheus"), server.http)
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        # The load goes on until rates can be told from it: what it takes is scrapes before, within and after.
        while process.query('sum_over_time(up{job="eddy"}[1m]) >= 8') == []:
            load(server)
            assert time.monotonic() < deadline, f"too few scrapes: {process.ask('targets')}"
        # A scrape that falls between a tick's commit and its counts sees one without the other: one after the load.
        ended = time.time()
        while process.query('timestamp(up{job="eddy"})')[0] <= ended:
            assert time.monotonic() < deadline, f"no scrape after the load: {process.ask('targets')}"
        yield process
    finally:
        process.stop()


def _promtool(*arguments: str, stdin: str = "") -> str:
    """What promtool says, which must be content."""
    run = subprocess.run(  # noqa: S603  no shell
        ["promtool", *arguments],  # noqa: S607  found by `needs_prometheus`
        input=stdin,
        capture_output=True,
        text=True,
        cwd=DEPLOY / "prometheus",
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout + run.stderr


@needs_prometheus
def test_configuration_and_rules_are_valid() -> None:
    """Promtool accepts the scrape configuration and the rules."""
    assert "valid prometheus config" in _promtool("check", "config", "prometheus.yml")
    assert "rules found" in _promtool("check", "rules", "eddy.rules.yml")


@needs_prometheus
def test_alerts_fire_when_they_should() -> None:
    """The rules' own tests pass, and have a case for every alert."""
    _promtool("test", "rules", "eddy.rules.test.yml")
    rules = (DEPLOY / "prometheus" / "eddy.rules.yml").read_text(encoding="utf-8")
    tests = (DEPLOY / "prometheus" / "eddy.rules.test.yml").read_text(encoding="utf-8")
    alerts = re.findall(r"alert: (\w+)", rules)
    assert len(alerts) == len(set(alerts)) > 8
    assert [alert for alert in alerts if alert not in tests] == []


@needs_prometheus
def test_the_text_of_metrics_is_clean(server: ServerProcess) -> None:
    """Promtool finds nothing to say about names, units, types and help of a server that has worked."""
    load(server)
    with urlopen(f"http://{server.http}/metrics", timeout=10) as response:
        text = response.read().decode()
    assert _promtool("check", "metrics", stdin=text) == ""
    assert 'provider="CPUExecutionProvider"' in text


@needs_prometheus
def test_a_scrape_is_whole(prometheus: Prometheus) -> None:
    """The target is up, without an error, and what was scraped agrees with itself."""
    [target] = prometheus.ask("targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    [steps] = prometheus.query('eddy_steps_total{model="forecast-gru"}')
    [rows] = prometheus.query('eddy_tick_rows_sum{model="forecast-gru"}')
    assert steps == rows > 500
    [ticks] = prometheus.query('eddy_ticks_total{model="forecast-gru"}')
    for histogram in ("eddy_tick_rows", "eddy_onnxruntime_run_seconds"):
        assert prometheus.query(f'{histogram}_count{{model="forecast-gru"}}') == [ticks]
        assert prometheus.query(f'{histogram}_bucket{{model="forecast-gru", le="+Inf"}}') == [ticks]
    [delay], [latency] = (
        prometheus.query(f'eddy_{name}_seconds_sum{{model="forecast-gru"}}') for name in ("queue_delay", "step_latency")
    )
    assert 0.0 < delay < latency
    assert prometheus.query('eddy_model_ready{model="broken"}') == [0.0]


@needs_prometheus
def test_every_alert_has_something_to_compare(prometheus: Prometheus) -> None:
    """Each alert's quantity exists on a server that works; each alert has a summary, a runbook and a severity."""
    groups = prometheus.ask("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) > 8
    for rule in rules:
        assert rule["health"] == "ok", rule
        assert set(rule["annotations"]) == {"summary", "runbook"}, rule["name"]
        assert rule["labels"]["severity"] in ("page", "ticket")
        quantity, comparison, threshold = re.split(r" (>|==) (?=[0-9.]+$)", rule["query"])
        assert float(threshold) >= 0
        assert comparison
        _check(prometheus, quantity)
    begun = {rule["name"] for rule in rules if rule["state"] != "inactive"}
    assert {"EddyNotReady", "EddyModelNotServed"} <= begun
    # Whether refusals rise depends on how fast the load's mistakes came.
    assert begun <= {"EddyNotReady", "EddyModelNotServed", "EddyRefusalsRising"}


@needs_prometheus
def test_every_query_of_the_dashboard_has_a_result(prometheus: Prometheus) -> None:
    """Each panel shows something when the server works."""
    for query in dashboard_queries():
        _check(prometheus, query)


def page_queries() -> list[str]:
    """The queries that the page of metrics shows."""
    page = PAGE.partition("## Queries")[2].partition("```text\n")[2].partition("```")[0]
    return [line.split(maxsplit=1)[1] for line in re.sub(r"^.*?  +", "- ", page, flags=re.MULTILINE).splitlines()]


@needs_prometheus
def test_every_query_of_the_page_has_a_result(prometheus: Prometheus) -> None:
    """What the page of metrics tells people to ask has an answer."""
    assert len(page_queries()) > 8
    for query in page_queries():
        _check(prometheus, query)


def test_the_page_names_every_metric_and_alert() -> None:
    """The page of metrics has every metric of the README's table, and the alerts with their severities."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    metrics = re.findall(r"^\| `(eddy_\w+)` \| (?:gauge|counter|histogram) ", readme, re.MULTILINE)
    assert len(metrics) > 20
    assert [name for name in metrics if f"`{name}`" not in PAGE] == []
    rules = (DEPLOY / "prometheus" / "eddy.rules.yml").read_text(encoding="utf-8")
    alerts = re.findall(r"alert: (\w+)\n.*\n.*\n +labels: \{severity: (\w+)\}", rules)
    assert alerts == re.findall(r"^\| `(Eddy\w+)` \| (\w+) \|", PAGE, re.MULTILINE)


def _check(prometheus: Prometheus, query: str) -> None:
    """A query parses, and has a number as its result unless `EMPTY` says why not."""
    values = prometheus.query(query)
    is_empty = not values or bool(np.isnan(values).all())
    if query.partition("{instance")[0] in EMPTY:
        assert is_empty, f"no longer empty: {query}"
    else:
        assert not is_empty, f"no result: {query}"


def test_the_dashboard_is_well_made() -> None:
    """Panels have titles, descriptions and numbers of their own, and do not overlap; the data source is provisioned."""
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)
    for panel in _panels():
        assert panel["description"].endswith("."), panel["title"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references) > 0
        for target in (panel, *panel["targets"]):
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for one, other in combinations([panel["gridPos"] for panel in panels], 2):
        assert one["x"] + one["w"] <= 24
        apart = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert apart or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
    provisioning = DEPLOY / "grafana" / "provisioning"
    uid = DASHBOARD["templating"]["list"][0]["current"]["value"]
    assert f"uid: {uid}\n" in (provisioning / "datasources" / "prometheus.yml").read_text(encoding="utf-8")
    assert "/var/lib/grafana/dashboards" in (provisioning / "dashboards" / "eddy.yml").read_text(encoding="utf-8")
