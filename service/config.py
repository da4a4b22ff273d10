"""Configuration of the service, one frozen dataclass a section.

Owns the keys: their defaults with the reason for each, what they mean, their types and ranges. Must not know the layers
themselves, nor where values come from (`sources`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import Field, dataclass, field, fields
from math import isfinite
from typing import Any, TypeVar

from eddy.service.address import Address, is_loopback

_T = TypeVar("_T")

VARIABLE_PREFIX = "EDDY_"
# Up to the last @: it may stand in a password as it is. The Redis client takes one from the query, too.
_PASSWORD = re.compile(r"(://[^:/]*:).*@|([?&]password=)[^&#]*", re.IGNORECASE)


class ConfigError(ValueError):
    """A configuration value is wrong; the message names where it stands, what came and what was expected.

    Attributes:
        key: "section.key"; problem: the message without it.
    """

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}")
        self.key = key
        self.problem = problem


@dataclass(frozen=True, slots=True)
class _Rule:
    """What a key means and which values it takes; numbers without bounds must be positive."""

    meaning: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()


def key(
    default: _T,
    meaning: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
) -> _T:
    """A field of a section. Returns a dataclass field; the type is that of the value."""
    declared: Any = field(default=default, metadata={"rule": _Rule(meaning, minimum, maximum, choices)})
    return declared  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the configuration, as documents and sources see it.

    Attributes:
        name: "section.key"; variable: the environment variable that sets it.
        kind: int, float, str, bool, or tuple for a list of strings.
    """

    section: str
    name: str
    default: Any
    rule: _Rule

    @property
    def variable(self) -> str:
        """EDDY_SECTION_KEY."""
        return VARIABLE_PREFIX + self.name.replace(".", "_").upper()

    @property
    def kind(self) -> type:
        """Type of the value."""
        return type(self.default)

    @property
    def expected(self) -> str:
        """The values that it takes, in words."""
        rule = self.rule
        if rule.choices:
            return f"one of {', '.join(rule.choices)}"
        words = {bool: "true or false", str: "a string", tuple: "a list of strings"}
        if self.kind in words:
            return words[self.kind]
        noun = "integer" if self.kind is int else "number"
        if rule.minimum is None:
            return f"a positive {noun}"
        article = "an" if self.kind is int else "a"
        bounds = f"{rule.minimum:g} or more" if rule.maximum is None else f"{rule.minimum:g} to {rule.maximum:g}"
        return f"{article} {noun}, {bounds}"

    def check(self, value: Any) -> None:
        """Raises ConfigError unless `value` has the key's type and lies in its range."""
        is_right = type(value) is self.kind or (self.kind is float and type(value) is int)
        if is_right and self.kind in (int, float):
            minimum, maximum = self.rule.minimum, self.rule.maximum
            is_right = isfinite(value) and (value > 0 if minimum is None else value >= minimum)
            is_right = is_right and (maximum is None or value <= maximum)
        elif is_right and self.rule.choices:
            is_right = value in self.rule.choices
        elif is_right and self.kind is tuple:
            is_right = all(type(item) is str for item in value)
        if not is_right:
            raise ConfigError(self.name, f"got {value!r}, expected {self.expected}")


def _check(section: str, values: Any) -> None:
    for item in fields(values):
        _key(section, item).check(getattr(values, item.name))


def _key(section: str, item: Field[Any]) -> Key:
    return Key(section, f"{section}.{item.name}", item.default, item.metadata.get("rule", _Rule("")))


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """The server's addresses, certificates and limits.

    Why these defaults: it listens on loopback, because sessions are as private as the network they cross. Over twice
    `max_message_bytes` the connection's own limit ends the call. A hand-over between threads costs 50 to 100 us, so
    ticks shorter than a few of these stay on the event loop. For `busy_switch_seconds` see docs/log.md.
    """

    host: str = key("127.0.0.1", "address to listen on; beyond loopback it needs TLS, or `server.allow_plaintext`")
    grpc_port: int = key(8500, "gRPC; 0 picks a free port", minimum=0, maximum=65535)
    http_host: str = key("", "address of the HTTP port; empty: that of `server.host`")
    http_port: int = key(8501, "`/metrics`, `/healthz`, `/readyz`; 0 picks a free port", minimum=0, maximum=65535)
    tls_certificate: str = key("", "PEM file with the server's certificate and its chain; empty: no TLS")
    tls_key: str = key("", "PEM file with the certificate's private key, without a passphrase")
    tls_client_ca: str = key("", "PEM file of authorities; clients must present a certificate signed by one of them")
    allow_plaintext: bool = key(False, "listen beyond loopback without TLS: everyone on the way can read and write")
    model_repository: str = key("models", "folder of `<name>/<version>/model.onnx` or `<name>.onnx`")
    providers: tuple[str, ...] = key(
        (), "ONNX Runtime execution providers, best first; empty: CUDA where there is one, then CPU"
    )
    log_level: str = key("INFO", "least severe message to log", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    max_message_bytes: int = key(
        16 << 20, "larger messages are refused with a typed error; over twice this the call ends"
    )
    max_stream_requests: int = key(
        256, "requests of one stream that may be unanswered; then the server stops reading it"
    )
    inline_tick_seconds: float = key(
        200e-6, "ticks expected to be shorter run on the event loop, others on the engine thread", minimum=0
    )
    busy_poll_seconds: float = key(
        500e-6,
        "while one session steps alone in a closed loop, how long to look for its next step before sleeping: lower "
        "latency for up to one processor; 0 sleeps at once",
        minimum=0,
    )
    keepalive_seconds: float = key(
        30.0, "silence after which a client is asked for a sign of life; it has a third as long to give one"
    )
    handshake_seconds: float = key(10.0, "how long a connection may take to begin speaking HTTP/2")
    drain_seconds: float = key(10.0, "on SIGTERM, how long accepted requests may take to finish")
    busy_switch_seconds: float = key(100e-6, "Python's thread switch interval")

    def __post_init__(self) -> None:
        _check("server", self)
        if bool(self.tls_certificate) != bool(self.tls_key):
            missing, other = ("key", "certificate") if self.tls_certificate else ("certificate", "key")
            raise ConfigError(f"server.tls_{missing}", f"got none, expected the file beside server.tls_{other}")
        if self.tls_client_ca and not self.has_tls:
            raise ConfigError("server.tls_client_ca", "got a file without server.tls_certificate and server.tls_key")
        for name in ("host", "http_host"):
            host = getattr(self, name) or self.host
            if not is_loopback(host) and not self.has_tls and not self.allow_plaintext:
                raise ConfigError(
                    f"server.{name}",
                    f"got {host!r} without TLS, expected a loopback address; set server.tls_certificate and "
                    "server.tls_key, or ask for plaintext with --allow-plaintext (server.allow_plaintext = true)",
                )

    @property
    def has_tls(self) -> bool:
        """Whether gRPC speaks TLS."""
        return bool(self.tls_certificate)

    @property
    def has_http_tls(self) -> bool:
        """Whether the HTTP port speaks TLS: beyond loopback, with the same certificate."""
        return self.has_tls and not is_loopback(self.http_address.host)

    @property
    def grpc_address(self) -> Address:
        """Where gRPC listens."""
        return Address(self.host, self.grpc_port)

    @property
    def http_address(self) -> Address:
        """Where the HTTP port listens."""
        return Address(self.http_host or self.host, self.http_port)


@dataclass(frozen=True, slots=True)
class RepositoryConfig:
    """How the model repository is followed while the server runs.

    Why these defaults: two seconds are soon enough for people, and looking at a hundred models takes a few
    milliseconds of a thread. Who uses a session keeps it: it ends by itself when it is idle for too long. Whoever may
    reach the server may unload models where load control is on, so it is on by itself on loopback only.
    """

    poll_seconds: float = key(
        2.0, "how often the folder is looked at; a change counts once two looks agree; 0: only on request", minimum=0
    )
    retire_seconds: float = key(
        0.0,
        "longest time that sessions may go on with replaced or removed files; 0: as long as they are used",
        minimum=0,
    )
    load_control: str = key(
        "loopback",
        "who may load and unload models over the wire; `loopback`: everybody, if the server listens on loopback",
        choices=("loopback", "on", "off"),
    )

    def __post_init__(self) -> None:
        _check("repository", self)


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """Limits of sessions.

    Ten minutes: a phone that lost its network comes back; a dead client does not hold its slot for hours.
    """

    max_sessions: int = key(1_000_000, "open at once over all models")
    idle_timeout_seconds: float = key(
        600.0, "a session without a step for so long ends, unless its client or its contract asks for another time"
    )
    max_idle_timeout_seconds: float = key(604_800.0, "the most that a client or a contract may ask for")
    sweep_seconds: float = key(1.0, "how often idle sessions are looked for")

    def __post_init__(self) -> None:
        _check("session", self)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes and limits of every served model.

    Why these defaults: 256 MiB holds 262,144 sessions of LSTM 128, and small states would ask for millions of slots.
    Beyond 1,024 rows a tick gains nothing and only delays others. One thread: streams arrive one tick after the other,
    and a second core is better used by the event loop.
    """

    arena_bytes: int = key(256 << 20, "memory for session states, a model")
    max_slots: int = key(262_144, "sessions of one model at most, whatever the memory")
    max_rows: int = key(1024, "rows (sessions) in one message and in one tick")
    max_steps: int = key(4096, "steps of one chunk; longer inputs are sent in several")
    max_tick_seconds: float = key(
        0.01, "longest tick to form: long chunks are sliced, so that they do not delay everybody"
    )
    max_queued_chunks: int = key(8192, "chunks that may wait for one model; then further ones are refused")
    max_kept_reply_bytes: int = key(256 << 20, "memory for kept replies, a model; beyond it the oldest are forgotten")
    max_in_flight: int = key(64, "chunks that one session may pipeline, at most")
    max_generated_tokens: int = key(65_536, "tokens of one `Generate` call, at most")
    num_threads: int = key(1, "threads within one operator of ONNX Runtime")

    def __post_init__(self) -> None:
        _check("model", self)

    def num_slots(self, state_bytes: int) -> int:
        """Session slots that the memory budget allows, at least one."""
        return max(1, min(self.max_slots, self.arena_bytes // max(1, state_bytes)))


def without_password(url: str) -> str:
    """A URL as people may see it: `redis://user:***@host`."""
    return _PASSWORD.sub(lambda found: f"{found[1]}***@" if found[1] else f"{found[2]}***", url)


@dataclass(frozen=True, slots=True)
class StateConfig:
    """Where sessions' states are kept beside the arenas.

    Why these defaults: nothing is needed to run without a store. A second of steps is soon sent again after a crash,
    and more often would only write the same sessions more often. A server that goes on without its store says so in
    every answer; one that must not is told to refuse.
    """

    store: str = key("memory", "`memory`, `sqlite:PATH`, `redis://HOST:PORT/DB` or `rediss://` (also Valkey)")
    checkpoint_seconds: float = key(1.0, "how often what has changed is written to the state store")
    on_failure: str = key(
        "serve",
        "while the store is away, slow or full: `serve` and say what is not durable, or `refuse` steps and openings",
        choices=("serve", "refuse"),
    )
    max_lag_seconds: float = key(10.0, "the store counts as failing once a step has waited so long to become durable")
    host_bytes: int = key(2 << 30, "memory for the states of sessions that have no slot, over all models", minimum=0)
    prefix_cache_bytes: int = key(64 << 20, "memory for the states after known prompts, a model; 0: none", minimum=0)

    def __post_init__(self) -> None:
        _check("state", self)
        scheme = self.store.partition(":")[0]
        is_known = self.store == "memory" or scheme in ("redis", "rediss") or (scheme == "sqlite" and self.store[7:])
        if not is_known:
            shown = without_password(self.store)
            raise ConfigError("state.store", f"got {shown!r}, expected memory, sqlite:PATH, redis:// or rediss://")

    @property
    def is_durable(self) -> bool:
        """Whether sessions survive the process."""
        return self.store != "memory"


@dataclass(frozen=True, slots=True)
class InspectionConfig:
    """Bounds of the process that inspects a model file without a contract.

    Why these defaults: a model of a few megabytes takes two seconds and half a gigabyte; weights are held several times
    while a graph is rewritten and tried.
    """

    max_seconds: float = key(120.0, "time to inspect one model file that brings no contract; then it is refused")
    max_memory_bytes: int = key(4 << 30, "memory of the process that inspects it (Linux only)", minimum=512 << 20)

    def __post_init__(self) -> None:
        _check("inspection", self)


@dataclass(frozen=True, slots=True)
class Config:
    """Everything."""

    server: ServerConfig = field(default_factory=ServerConfig)
    session: SessionConfig = field(default_factory=SessionConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    state: StateConfig = field(default_factory=StateConfig)
    inspection: InspectionConfig = field(default_factory=InspectionConfig)
    repository: RepositoryConfig = field(default_factory=RepositoryConfig)

    @property
    def allows_load_control(self) -> bool:
        """Whether models may be loaded and unloaded over the wire."""
        is_local = self.repository.load_control == "loopback" and is_loopback(self.server.host)
        return is_local or self.repository.load_control == "on"


# Every section by its name.
SECTIONS: dict[str, Any] = {item.name: item.default_factory for item in fields(Config)}


def _keys() -> Iterator[Key]:
    for section, kind in SECTIONS.items():
        for item in fields(kind):
            yield _key(section, item)


# Every key by its name, in the order of the documents.
KEYS: dict[str, Key] = {item.name: item for item in _keys()}
