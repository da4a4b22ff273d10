"""`eddy models`, `eddy bench` and `eddy config` as they are typed, on real folders and a real server."""

import asyncio
import json
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from authority import Authority
from graphs import family
from loopback import configure, write_model

from eddy.cli import main
from eddy.commands.bench import random_inputs
from eddy.service.certificates import CertificateFiles
from eddy.service.host import Host
from eddy.service.server import Server

MODELS = Path(__file__).parents[2] / "models"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two models that load and one that is cut off."""
    for name in ("history", "lstm", "two-inputs"):
        write_model(tmp_path / "models", name)
    path = write_model(tmp_path / "models", "broken", "7", family("lstm").model())
    path.write_bytes(path.read_bytes()[:100])
    return tmp_path / "models"


@contextmanager
def _serving(repository: Path, files: CertificateFiles | None = None) -> Iterator[str]:
    """A server on a thread's event loop, for commands that have their own; gives its target."""
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()

        def call(work: Coroutine[Any, Any, None]) -> None:
            asyncio.run_coroutine_threadsafe(work, loop).result(60)

        host = Host(configure(repository))
        host.load()
        server = Server(configure(repository), host, files)
        call(server.start())
        try:
            yield f"127.0.0.1:{server.port}"
        finally:
            call(server.drain())
            loop.call_soon_threadsafe(loop.stop)
            thread.join()


def test_the_models_of_a_folder(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each version with its sizes; one that a server would refuse with the reason."""
    assert main(["models", "--model-repository", str(repository), "--json"]) == 0
    models = {model["name"]: model for model in json.loads(capsys.readouterr().out)}
    assert list(models) == ["broken", "history", "lstm", "two-inputs"]
    assert models["broken"]["version"] == "7"
    assert "not an ONNX file" in models["broken"]["refusal"]
    assert not models["history"]["refusal"]
    assert models["history"]["state_bytes"] == 8
    assert models["history"]["file_bytes"] == (repository / "history" / "1" / "model.onnx").stat().st_size
    assert main(["models", "--model-repository", str(repository)]) == 0
    lines = capsys.readouterr().out.splitlines()
    [line] = [line for line in lines if "broken" in line]
    assert "not served: model.onnx is not an ONNX file" in line


def test_the_shipped_models(capsys: pytest.CaptureFixture[str]) -> None:
    """Their tasks, families, parameters and figures come from the contracts."""
    assert main(["models", "--model-repository", str(MODELS), "--json"]) == 0
    models = {model["name"]: model for model in json.loads(capsys.readouterr().out)}
    assert sorted(models) == sorted(path.name for path in MODELS.iterdir() if path.is_dir())
    gru = models["forecast-gru"]
    assert (gru["task"], gru["family"], gru["parameters"], gru["state_bytes"]) == ("forecast", "gru", 13_839, 256)
    assert gru["figures"]["mae"].endswith(" mg/dL")


@pytest.mark.parametrize(("folder", "complaint"), [("nowhere", "No such file"), ("", "holds no models")])
def test_no_models(tmp_path: Path, folder: str, complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that is missing or empty: one line, exit code 1."""
    assert main(["models", "--model-repository", str(tmp_path / folder)]) == 1
    said = capsys.readouterr().err
    assert complaint in said
    assert said.count("\n") == 1


def test_the_models_of_a_server(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ready or why not, sessions, slots, provider; as a table and as JSON."""
    with _serving(repository) as target:
        assert main(["models", "--target", target]) == 0
        lines = capsys.readouterr().out.splitlines()
        [broken], [history] = ([line for line in lines if name in line] for name in ("broken", "history"))
        assert "no: model 'broken' version '7'" in broken
        assert "CPUExecutionProvider" in history
        assert main(["models", "--target", target, "--json"]) == 0
        models = {model["name"]: model for model in json.loads(capsys.readouterr().out)}
        assert models["history"]["ready"] is True
        assert models["history"]["num_slots"] == 256
        assert models["history"]["num_sessions"] == 0
        assert models["history"]["state_bytes_per_session"] == 8
        assert models["broken"]["error"]["reason"] == "ERROR_REASON_MODEL_NOT_READY"
    assert main(["models", "--target", target]) == 1
    said = capsys.readouterr().err
    assert f"no answer from {target}" in said
    assert said.count("\n") == 1


def test_a_server_with_tls(repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The TLS flags reach a server that asks for client certificates; without them there is no answer."""
    authority = Authority(tmp_path / "authority")
    server, client = authority.sign("server"), authority.sign("client")
    files = CertificateFiles(server.certificate, server.key, authority.certificate)
    flags = ["--tls-ca", str(authority.certificate), "--tls-certificate", str(client.certificate)]
    with _serving(repository, files) as target:
        assert main(["models", "--target", target, *flags, "--tls-key", str(client.key)]) == 0
        assert "history" in capsys.readouterr().out
        assert main(["models", "--target", target]) == 1
        assert "with TLS or not?" in capsys.readouterr().err
        assert main(["models", "--target", target, *flags]) == 1
        assert "tls.key: got none" in capsys.readouterr().err
        assert main(["models", "--target", target, "--tls-ca", str(tmp_path / "none")]) == 1
        assert "tls.ca: got" in capsys.readouterr().err


@pytest.mark.parametrize("model", ["history", "lstm", "two-inputs"])
@pytest.mark.parametrize("form", [[], ["--batch"], ["--steps", "3"]])
def test_a_load(repository: Path, model: str, form: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Sessions of any model are stepped; the figures agree with each other, and no session stays open."""
    with _serving(repository) as target:
        words = ["bench", "--target", target, "--model", model, "--sessions", "4", "--seconds", "0.2", *form]
        assert main([*words, "--json"]) == 0
        figures = json.loads(capsys.readouterr().out)
        rows = 4 if form == ["--batch"] else 1
        steps = figures["calls"] * rows * figures["steps_per_call"]
        assert figures["steps_per_second"] == pytest.approx(steps / figures["seconds"])
        assert 0 < figures["p50_us"] <= figures["p90_us"] <= figures["p99_us"] <= figures["max_us"]
        assert main(["models", "--target", target, "--json"]) == 0
        assert not any(status["num_sessions"] for status in json.loads(capsys.readouterr().out))
        assert main(words) == 0
        assert "latency p99" in capsys.readouterr().out


def test_a_load_on_nothing(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model that the server does not have, and a server that is not there: one line each, exit code 1."""
    with _serving(repository) as target:
        assert main(["bench", "--target", target, "--model", "nope"]) == 1
        assert "this server has" in capsys.readouterr().err
    assert main(["bench", "--target", target, "--model", "history"]) == 1
    assert "no answer from" in capsys.readouterr().err


def test_random_inputs_are_in_range() -> None:
    """Inputs keep to the contract's ranges and shapes, and are the same at every run."""
    contract = family("two-inputs").contract()
    first, second = (random_inputs(contract, (3, 2)) for _ in range(2))
    for name, values in first.items():
        [spec] = [spec for spec in contract.inputs if spec.name == name]
        assert values.shape == (3, 2, *spec.shape)
        assert (values == second[name]).all()
        if spec.HasField("range"):
            assert spec.range.minimum <= values.min() <= values.max() <= spec.range.maximum


def test_the_configuration_in_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`eddy config` shows every key with its value and where it comes from, as a table and as JSON."""
    path = tmp_path / "eddy.toml"
    path.write_text("[model]\nmax_rows = 5\n")
    monkeypatch.setenv("EDDY_SERVER_GRPC_PORT", "6")
    words = ["config", "--config", str(path), "--provider", "One"]
    assert main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["model.max_rows"] == {"value": 5, "origin": str(path)}
    assert document["server.grpc_port"] == {"value": 6, "origin": "EDDY_SERVER_GRPC_PORT"}
    assert document["server.providers"] == {"value": ["One"], "origin": "--provider"}
    assert document["server.host"] == {"value": "127.0.0.1", "origin": "default"}
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    [line] = [line for line in lines if "server.grpc_port" in line]
    assert [cell.strip() for cell in line.strip("│").split("│")] == ["server.grpc_port", "6", "EDDY_SERVER_GRPC_PORT"]
    monkeypatch.setenv("EDDY_SERVER_GRPC_PORT", "x")
    assert main(words) == 2
    assert capsys.readouterr().err.startswith("eddy: EDDY_SERVER_GRPC_PORT: got 'x'")


def test_load_and_unload_on_a_server(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model is unloaded and loaded again; a broken one says why; JSON; a server that does not know it."""
    with _serving(repository) as target:
        assert main(["models", "unload", "history", "--target", target]) == 0
        assert "unloaded by request" in capsys.readouterr().out
        assert main(["models", "load", "history", "--target", target, "--json"]) == 0
        [model] = json.loads(capsys.readouterr().out)
        assert (model["name"], model["ready"], model["state"]) == ("history", True, "MODEL_STATE_READY")
        assert main(["models", "load", "broken", "--target", target]) == 1
        assert "not an ONNX file" in capsys.readouterr().err
        assert main(["models", "unload", "nobody", "--target", target]) == 1
        assert "'nobody'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:secret@host:1/0", "redis://user:***@host:1/0"),
        ("rediss://:secret@host", "rediss://:***@host"),
        ("redis://user:se@cret@host/0", "redis://user:***@host/0"),
        ("redis://us@er:secret@host/0", "redis://us@er:***@host/0"),
        ("redis://user:se/cret@host/0", "redis://user:***@host/0"),
        ("redis://host/0?password=secret&prefix=a", "redis://host/0?password=***&prefix=a"),
        ("redis://host:1/0?prefix=a", "redis://host:1/0?prefix=a"),
        ("sqlite:state.db", "sqlite:state.db"),
    ],
)
def test_the_state_stores_password_is_not_shown(url: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`eddy config` says where the state store is, and `***` for its password, wherever in the URL that stands."""
    assert main(["config", "--state-store", url, "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["state.store"]["value"] == shown
    assert main(["config", "--state-store", url]) == 0
    said = capsys.readouterr()
    assert shown[:12] in said.out
    assert not [part for part in ("secret", "cret@", "se/", "se@") if part in said.out]


def test_a_wrong_state_store_is_refused_without_its_password(capsys: pytest.CaptureFixture[str]) -> None:
    """What came is in the message, but for the password."""
    assert main(["config", "--state-store", "redi://user:secret@host"]) == 2
    said = capsys.readouterr()
    assert "redi://user:***@host" in said.err and "secret" not in said.out + said.err
