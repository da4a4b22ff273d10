"""The configuration's sources: their order, their words for what is wrong, and the record of what came from where."""

import tomllib
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eddy.commands.config import default_toml, toml
from eddy.service.config import KEYS, Config, ConfigError, ModelConfig, ServerConfig
from eddy.service.sources import Flag, load_config


def _file(folder: Path, text: str) -> Path:
    path = folder / "eddy.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_later_sources_win(tmp_path: Path) -> None:
    """File, environment, flags, in this order, key by key; each value's origin is told, and nothing can be changed."""
    path = _file(
        tmp_path, "[server]\nhost = '127.0.0.2'\ngrpc_port = 1\nhttp_port = 2\n[model]\nmax_tick_seconds = 1\n"
    )
    environment = {"EDDY_SERVER_GRPC_PORT": "3", "EDDY_SERVER_HTTP_PORT": "4", "HOME": "/", "ORT_LOGGING": "x"}
    flags = [Flag("--http-port", "server.http_port", "5"), Flag("--set", "server.http_port", "6")]
    loaded = load_config(path, environment, flags)
    server = loaded.config.server
    assert (server.host, server.grpc_port, server.http_port) == ("127.0.0.2", 3, 6)
    assert loaded.config.model == ModelConfig(max_tick_seconds=1.0)
    changed = {name: origin for name, origin in loaded.origins.items() if origin != "default"}
    assert changed == {
        "server.host": str(path),
        "server.grpc_port": "EDDY_SERVER_GRPC_PORT",
        "server.http_port": "--set server.http_port",
        "model.max_tick_seconds": str(path),
    }
    assert list(loaded.origins) == list(KEYS)
    with pytest.raises(FrozenInstanceError):
        server.host = "::1"  # type: ignore[misc]


def test_the_file_that_the_environment_names(tmp_path: Path) -> None:
    """EDDY_CONFIG names the file where no flag does; empty, it names none."""
    path = _file(tmp_path, "[model]\nmax_rows = 7\n")
    assert load_config(None, {"EDDY_CONFIG": str(path)}).config.model.max_rows == 7
    other = tmp_path / "other.toml"
    other.write_text("[model]\nmax_rows = 8\n")
    assert load_config(other, {"EDDY_CONFIG": str(path)}).config.model.max_rows == 8
    assert load_config(None, {"EDDY_CONFIG": ""}).config == Config()


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("server.host", "::1", "::1"),
        ("server.grpc_port", "0", 0),
        ("model.arena_bytes", "1_000", 1000),
        ("server.drain_seconds", "2.5", 2.5),
        ("server.drain_seconds", "1e2", 100.0),
        ("server.allow_plaintext", "true", True),
        ("server.allow_plaintext", "FALSE", False),
        ("server.providers", "One, Two", ("One", "Two")),
        ("server.providers", "", ()),
        ("server.log_level", "DEBUG", "DEBUG"),
    ],
)
def test_texts_become_values(key: str, text: str, value: object) -> None:
    """Variables and flags write values as TOML does, strings without quotes and lists with commas."""
    by_flag = load_config(flags=[Flag("--set", key, text)])
    by_variable = load_config(environment={KEYS[key].variable: text})
    assert by_flag.value(key) == by_variable.value(key) == value
    assert type(by_flag.value(key)) is type(value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[server]\ngrpc_prot = 1\n", "server.grpc_prot: unknown key, did you mean server.grpc_port?"),
        ("[server]\nmax_rows = 1\n", "server.max_rows: unknown key, did you mean model.max_rows?"),
        ("[session]\nzzz = 1\n", "session.zzz: unknown key, expected one of max_sessions, idle_timeout_seconds"),
        ("[servers]\n", r"\[servers\]: unknown section, did you mean server?"),
        ("[zzz]\n", r"\[zzz\]: unknown section, expected one of server, session, model"),
        ("grpc_port = 1\n", "grpc_port: got a value outside of a section, did you mean server.grpc_port?"),
        ("[model]\nmax_rows = 'many'\n", "model.max_rows: got 'many', expected a positive integer"),
        ("[model]\nmax_rows = 1.0\n", "model.max_rows: got 1.0, expected a positive integer"),
        ("[model]\nmax_rows = true\n", "model.max_rows: got True, expected a positive integer"),
        ("[model]\nmax_tick_seconds = inf\n", "model.max_tick_seconds: got inf, expected a positive number"),
        ("[session]\nidle_timeout_seconds = nan\n", "session.idle_timeout_seconds: got nan"),
        ("[server]\ngrpc_port = 65536\n", "server.grpc_port: got 65536, expected an integer, 0 to 65535"),
        ("[server]\ninline_tick_seconds = -1\n", "got -1, expected a number, 0 or more"),
        ("[server]\nproviders = [1]\n", r"server.providers: got \(1,\), expected a list of strings"),
        ("[server]\nproviders = 'one'\n", "server.providers: got 'one', expected a list of strings"),
        ("[server]\nlog_level = 'LOUD'\n", "got 'LOUD', expected one of DEBUG, INFO, WARNING, ERROR"),
        ("[server]\nallow_plaintext = 1\n", "got 1, expected true or false"),
        ("[server]\nhost = '0.0.0.0'\n", "server.host: got '0.0.0.0' without TLS, expected a loopback address"),
        ("[server]\ntls_key = 'k'\n", "server.tls_certificate: got none, expected the file beside server.tls_key"),
        ("[server]\ntls_client_ca = 'c'\n", "server.tls_client_ca: got a file without server.tls_certificate"),
        ("[model\n", "not a TOML file: .*line 1"),
        ("[model]\nmax_rows = 1\nmax_rows = 2\n", "not a TOML file: .*line 3"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    """The message names the file and the key, what came and what was expected."""
    with pytest.raises(ConfigError, match=complaint) as caught:
        load_config(_file(tmp_path, text))
    assert str(tmp_path) in str(caught.value) or caught.value.key == "server.tls_certificate"


@pytest.mark.parametrize(
    ("variable", "text", "complaint"),
    [
        ("EDDY_SERVER_GRPC_PROT", "1", "unknown variable, did you mean EDDY_SERVER_GRPC_PORT?"),
        ("EDDY_CONFG", "x", "unknown variable, did you mean EDDY_CONFIG?"),
        ("EDDY_SERVICE_HOST", "x", "unknown variable, did you mean EDDY_SERVER_HOST?"),
        ("EDDY_ZZZ", "1", "unknown variable; `eddy config` lists the variables"),
        ("EDDY_SERVER_GRPC_PORT", "", "got '', expected an integer, 0 to 65535"),
        ("EDDY_SERVER_GRPC_PORT", "70000", "got 70000, expected an integer, 0 to 65535"),
        ("EDDY_SERVER_ALLOW_PLAINTEXT", "yes", "got 'yes', expected true or false"),
        ("EDDY_SERVER_HOST", "example.org", "got 'example.org' without TLS"),
    ],
)
def test_a_wrong_variable_is_refused(variable: str, text: str, complaint: str) -> None:
    """The message names the variable; one that begins with EDDY_ and is nobody's is refused with the nearest."""
    with pytest.raises(ConfigError, match=complaint) as caught:
        load_config(environment={variable: text})
    assert str(caught.value).startswith(f"{variable}: ")


def test_the_folder_of_data_packages_is_trainings() -> None:
    """EDDY_DATA, which `eddy data fetch` heeds, may be set where a server starts."""
    assert load_config(environment={"EDDY_DATA": "/data"}) == load_config(environment={})


def test_service_links_are_not_ours() -> None:
    """Variables that a container platform sets for a service called "eddy" or "eddy-server" are left alone."""
    links = {
        f"EDDY_{name}{variable}": text
        for name in ("", "SERVER_")
        for variable, text in (
            ("SERVICE_HOST", "10.0.0.7"),
            ("SERVICE_PORT", "8500"),
            ("SERVICE_PORT_GRPC", "8500"),
            ("PORT", "tcp://10.0.0.7:8500"),
            ("PORT_8500_TCP", "tcp://10.0.0.7:8500"),
            ("PORT_8500_TCP_ADDR", "10.0.0.7"),
        )
    }
    assert load_config(environment=links).config == Config()
    links = {"EDDY_SERVER_GRPC_PORT": "tcp://10.0.0.7:8500", "EDDY_SERVER_GRPC_SERVICE_HOST": "10.0.0.7"}
    assert load_config(environment=links).config == Config()


@pytest.mark.parametrize(
    ("flag", "complaint"),
    [
        (Flag("--set", "server.hots", "x"), "--set server.hots: unknown key, did you mean server.host?"),
        (Flag("--set", "max_rows", "1"), "--set max_rows: unknown key, did you mean model.max_rows?"),
        (Flag("--grpc-port", "server.grpc_port", "x"), "--grpc-port: got 'x', expected an integer, 0 to 65535"),
        (Flag("--set", "model.max_rows", "0"), "--set model.max_rows: got 0, expected a positive integer"),
        (Flag("--host", "server.host", "::"), "--host: got '::' without TLS"),
    ],
)
def test_a_wrong_flag_is_refused(flag: Flag, complaint: str) -> None:
    """The message names the flag as it was written."""
    with pytest.raises(ConfigError, match=complaint) as caught:
        load_config(flags=[flag])
    assert str(caught.value).startswith(flag.label)


def test_plaintext_beyond_loopback() -> None:
    """Only TLS or the explicit wish opens a port beyond this machine; HTTP follows, with TLS where gRPC has it."""
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        assert not ServerConfig(host=host).has_http_tls
    for host in ("0.0.0.0", "::", "10.0.0.1", "eddy.example.org", ""):  # noqa: S104  nothing listens there
        with pytest.raises(ConfigError, match=r"server\.host"):
            ServerConfig(host=host)
        assert not ServerConfig(host=host, allow_plaintext=True).has_http_tls
        assert ServerConfig(host=host, tls_certificate="c", tls_key="k").has_http_tls
    with pytest.raises(ConfigError, match=r"server\.http_host"):
        ServerConfig(http_host="10.0.0.1")
    split = ServerConfig(host="10.0.0.1", http_host="127.0.0.1", tls_certificate="c", tls_key="k")
    assert not split.has_http_tls
    assert str(split.http_address) == "127.0.0.1:8501"
    assert str(ServerConfig(host="::1").grpc_address) == "[::1]:8500"


def test_every_key_is_complete() -> None:
    """Every field of every section is a key with a meaning, whose default passes its own check."""
    config = Config()
    names = [f"{part.name}.{item.name}" for part in fields(config) for item in fields(getattr(config, part.name))]
    assert names == list(KEYS)
    for key in KEYS.values():
        assert key.rule.meaning, f"{key.name} has no meaning: declare it with `key`"
        assert key.kind in (int, float, str, bool, tuple)
        key.check(key.default)


def test_the_default_file_is_the_default(tmp_path: Path) -> None:
    """The TOML file of all defaults has every key and loads back to the same configuration."""
    text = default_toml()
    document = tomllib.loads(text)
    assert [f"{section}.{key}" for section, values in document.items() for key in values] == list(KEYS)
    assert load_config(_file(tmp_path, text)).config == Config()
    assert text.count("\n# ") == len(KEYS) + 1


@given(value=st.one_of(st.text(st.characters(exclude_categories=("Cs",))), st.integers()))
def test_values_are_written_as_toml(value: object) -> None:
    """What `eddy config` shows is read back by TOML as the same value."""
    assert tomllib.loads(f"value = {toml(value)}")["value"] == value
