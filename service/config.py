"""Configuration of the service, one frozen dataclass a layer.

Owns the keys, their defaults with the reason for each, and their validation. Must not know the layers themselves.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from math import inf
from pathlib import Path
from typing import Any


class ConfigError(ValueError):
    """A configuration value is wrong; the message names the key, what came and what was expected."""


def _positive(owner: str, **values: float) -> None:
    for key, value in values.items():
        if not 0 < value < inf:
            raise ConfigError(f"{owner}.{key}: got {value}, expected a positive number")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes and limits of every served model.

    Attributes:
        arena_bytes: memory for session states, a model. 256 MiB holds 262,144 sessions of LSTM 128.
        max_slots: sessions of one model at most, whatever the memory: small states would otherwise ask for millions.
        max_rows: rows in one message and in one tick. Beyond 1,024 a tick gains nothing and only delays others.
        max_steps: T of one chunk. Longer inputs are sent in several chunks.
        max_tick_seconds: longest tick to form, so that no prefill delays everybody's next token by more.
        max_queued_chunks: chunks that may wait for one model before unary calls are refused.
        max_kept_reply_bytes: memory for kept replies, a model. Beyond it the oldest replies are forgotten.
        max_in_flight: most chunks that a session may pipeline.
        max_generated_tokens: tokens of one Generate call. About a minute of a small model's work; a session that is
            kept goes on in a next call.
        num_threads: threads within one operator. One: streams arrive one tick after the other, and a second core
            is better used by the event loop.
    """

    arena_bytes: int = 256 << 20
    max_slots: int = 262_144
    max_rows: int = 1024
    max_steps: int = 4096
    max_tick_seconds: float = 0.01
    max_queued_chunks: int = 8192
    max_kept_reply_bytes: int = 256 << 20
    max_in_flight: int = 64
    max_generated_tokens: int = 65_536
    num_threads: int = 1

    def __post_init__(self) -> None:
        _positive("model", **{item.name: getattr(self, item.name) for item in fields(self)})

    def num_slots(self, state_bytes: int) -> int:
        """Session slots that the memory budget allows, at least one."""
        return max(1, min(self.max_slots, self.arena_bytes // max(1, state_bytes)))


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """Limits of sessions.

    Attributes:
        max_sessions: open at once over all models.
        idle_timeout_seconds: default and most. Ten minutes: a phone that lost its network comes back; a dead client
            does not hold its slot for hours.
        sweep_seconds: how often idle sessions are looked for.
    """

    max_sessions: int = 1_000_000
    idle_timeout_seconds: float = 600.0
    sweep_seconds: float = 1.0

    def __post_init__(self) -> None:
        _positive("session", **{item.name: getattr(self, item.name) for item in fields(self)})


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """The server's addresses and limits.

    Attributes:
        host: address to listen on. Loopback: there is no TLS yet.
        grpc_port, http_port: 0 picks a free port.
        model_repository: folder of models/<name>/<version>/model.onnx.
        providers: execution providers, best first; empty: whatever is there (CUDA, then CPU).
        max_message_bytes: larger messages are refused with a typed error. Over twice this, the connection's own
            limit ends the call.
        max_stream_requests: requests of one stream that may be unanswered; then the server stops reading it, and
            flow control holds the client back.
        inline_tick_seconds: ticks expected to take less run on the event loop, others on the engine thread; a
            hand-over between threads costs 50 to 100 us.
        keepalive_seconds: silence after which a client is asked for a sign of life; without one within a third as long
            again its connection is closed and its sessions are detached.
        handshake_seconds: how long a connection may take to begin speaking HTTP/2.
        drain_seconds: on SIGTERM, how long accepted requests may take to finish.
        busy_switch_seconds: Python's thread switch interval; see docs/log.md.
    """

    host: str = "127.0.0.1"
    grpc_port: int = 8500
    http_port: int = 8501
    model_repository: str = "models"
    providers: tuple[str, ...] = ()
    max_message_bytes: int = 16 << 20
    max_stream_requests: int = 256
    inline_tick_seconds: float = 200e-6
    keepalive_seconds: float = 30.0
    handshake_seconds: float = 10.0
    drain_seconds: float = 10.0
    busy_switch_seconds: float = 100e-6

    def __post_init__(self) -> None:
        for key in (
            "max_message_bytes",
            "max_stream_requests",
            "keepalive_seconds",
            "handshake_seconds",
            "drain_seconds",
            "busy_switch_seconds",
        ):
            _positive("server", **{key: getattr(self, key)})
        for key in ("grpc_port", "http_port"):
            if not 0 <= getattr(self, key) <= 65535:
                raise ConfigError(f"server.{key}: got {getattr(self, key)}, expected 0 to 65535")


@dataclass(frozen=True, slots=True)
class Config:
    """Everything."""

    server: ServerConfig = field(default_factory=ServerConfig)
    session: SessionConfig = field(default_factory=SessionConfig)
    model: ModelConfig = field(default_factory=ModelConfig)


_SECTIONS: dict[str, type] = {"server": ServerConfig, "session": SessionConfig, "model": ModelConfig}


def load_config(path: Path | None, overrides: Mapping[str, Any]) -> Config:
    """Reads a TOML file with sections [server], [session] and [model], then applies flags.

    Args:
        overrides: "section.key" -> value, None for a flag that was not given.

    Raises:
        ConfigError: the file is not readable, or a section, key or value is wrong.
    """
    sections: dict[str, dict[str, Any]] = {name: {} for name in _SECTIONS}
    if path is not None:
        try:
            document = tomllib.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: {error}") from error
        for name, values in document.items():
            if name not in sections or not isinstance(values, dict):
                raise ConfigError(f"{path}: unknown section {name!r}, expected one of {', '.join(_SECTIONS)}")
            sections[name] |= values
    for key, value in overrides.items():
        if value is not None:
            section, _, name = key.partition(".")
            sections[section][name] = value
    built = {name: _build(name, _SECTIONS[name], values) for name, values in sections.items()}
    return replace(Config(), **built)


def _build(section: str, kind: type, values: Mapping[str, Any]) -> Any:
    defaults = kind()
    checked = {}
    for key, value in values.items():
        if key not in {item.name for item in fields(kind)}:
            allowed = ", ".join(item.name for item in fields(kind))
            raise ConfigError(f"{section}.{key}: unknown key, expected one of {allowed}")
        wanted = type(getattr(defaults, key))
        if wanted is tuple and isinstance(value, list) and all(isinstance(item, str) for item in value):
            value = tuple(value)
        if wanted is float and type(value) is int:
            value = float(value)
        if type(value) is not wanted:
            raise ConfigError(f"{section}.{key}: got {value!r}, expected {wanted.__name__}")
        checked[key] = value
    return kind(**checked)
