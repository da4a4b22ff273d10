"""Where the configuration's values come from: a TOML file, environment variables, flags; the later ones win.

Owns reading the sources, their names in messages, and the record of which source gave which value. Must not know what
the keys mean (`config`).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from eddy.service.config import KEYS, SECTIONS, VARIABLE_PREFIX, Config, ConfigError, Key

CONFIG_VARIABLE = "EDDY_CONFIG"
# Where training keeps its data packages; a server on the same machine does not mind.
DATA_VARIABLE = "EDDY_DATA"
DEFAULT = "default"

_INTEGER = re.compile(r"[+-]?[0-9]+(_[0-9]+)*")
_BOOLEANS = {"true": True, "false": False}
# What a container platform sets for a service called "eddy" or "eddy-…": EDDY_PORT=tcp://10.0.0.7:8500 and its kin.
_SERVICE_LINK = re.compile(r"(EDDY_(?:[A-Z0-9_]+_)?)PORT")


@dataclass(frozen=True, slots=True)
class Flag:
    """One setting from the command line.

    Attributes:
        label: the flag as it was written, "--grpc-port"; key: "server.grpc_port"; text: the value.
    """

    label: str
    key: str
    text: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """The configuration in force.

    Attributes:
        origins: "section.key" -> where its value comes from: "default", the file, the variable or the flag.
    """

    config: Config
    origins: Mapping[str, str]

    def value(self, name: str) -> Any:
        """The value of "section.key"."""
        section, _, key = name.partition(".")
        return getattr(getattr(self.config, section), key)


@dataclass(frozen=True, slots=True)
class _Given:
    """A value from one source; `place` names it in messages, `origin` in `Loaded`."""

    place: str
    origin: str
    key: str
    value: Any


def load_config(
    path: Path | None = None, environment: Mapping[str, str] | None = None, flags: Sequence[Flag] = ()
) -> Loaded:
    """Reads every source.

    Args:
        path: TOML file with a table a section; by default the one that EDDY_CONFIG names, if it does.
        environment: variables; those that do not begin with EDDY_ are not looked at.
        flags: in the order of the command line; of two for one key the later wins.

    Raises:
        ConfigError: a source cannot be read, or has an unknown key or a wrong value; the message names the place.
    """
    environment = environment or {}
    if path is None and environment.get(CONFIG_VARIABLE):
        path = Path(environment[CONFIG_VARIABLE])
    given: dict[str, _Given] = {}
    for source in (_of_file(path), _of_environment(environment), _of_flags(flags)):
        for item in source:
            try:
                KEYS[item.key].check(item.value)
            except ConfigError as error:
                raise ConfigError(item.place, error.problem) from error
            given[item.key] = item
    try:
        config = _build({name: item.value for name, item in given.items()})
    except ConfigError as error:  # Keys that do not go together.
        raise ConfigError(given[error.key].place if error.key in given else error.key, error.problem) from error
    return Loaded(config, {name: given[name].origin if name in given else DEFAULT for name in KEYS})


def _build(values: Mapping[str, Any]) -> Config:
    sections: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    for name, value in values.items():
        section, _, key = name.partition(".")
        sections[section][key] = float(value) if KEYS[name].kind is float else value
    return Config(**{name: SECTIONS[name](**section) for name, section in sections.items()})


def _of_file(path: Path | None) -> Iterator[_Given]:
    if path is None:
        return
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(str(path), f"{error.strerror or error}; name a TOML file with --config") from error
    except ValueError as error:
        raise ConfigError(str(path), f"not a TOML file: {error}; `eddy config --default` writes one") from error
    for section, values in document.items():
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: {section}", f"got a value outside of a section{_hint(section, KEYS)}")
        if section not in SECTIONS:
            hint = _hint(section, SECTIONS) or f", expected one of {', '.join(SECTIONS)}"
            raise ConfigError(f"{path}: [{section}]", f"unknown section{hint}")
        for key, value in values.items():
            name = f"{section}.{key}"
            _refuse_unknown(name, f"{path}: {name}")
            yield _Given(f"{path}: {name}", str(path), name, tuple(value) if isinstance(value, list) else value)


def _of_environment(environment: Mapping[str, str]) -> Iterator[_Given]:
    names = {key.variable: key for key in KEYS.values()}
    links = [
        found[1] for name, text in environment.items() if (found := _SERVICE_LINK.fullmatch(name)) and "://" in text
    ]
    for variable in sorted(environment):
        if not variable.startswith(VARIABLE_PREFIX) or variable in (CONFIG_VARIABLE, DATA_VARIABLE):
            continue
        if variable in names and not (variable.endswith("_PORT") and "://" in environment[variable]):
            key = names[variable]
            yield _Given(variable, variable, key.name, _parse(key, environment[variable], variable))
        elif not any(_is_link(variable, prefix) for prefix in links):
            close = get_close_matches(variable, [*names, CONFIG_VARIABLE], 1)
            hint = f", did you mean {close[0]}?" if close else "; `eddy config` lists the variables"
            raise ConfigError(variable, f"unknown variable{hint}")


def _is_link(variable: str, prefix: str) -> bool:
    return variable.startswith((f"{prefix}PORT", f"{prefix}SERVICE_HOST", f"{prefix}SERVICE_PORT"))


def _of_flags(flags: Sequence[Flag]) -> Iterator[_Given]:
    for flag in flags:
        _refuse_unknown(flag.key, f"{flag.label} {flag.key}" if flag.label == "--set" else flag.label)
        place = f"--set {flag.key}" if flag.label == "--set" else flag.label
        yield _Given(place, place, flag.key, _parse(KEYS[flag.key], flag.text, place))


def _parse(key: Key, text: str, place: str) -> Any:
    """The value that `text` writes for `key`: as in TOML, strings without quotes, lists with commas."""
    if key.kind is str:
        return text
    if key.kind is tuple:
        return tuple(item.strip() for item in text.split(",") if item.strip())
    if key.kind is bool and text.lower() in _BOOLEANS:
        return _BOOLEANS[text.lower()]
    try:
        if key.kind is int and _INTEGER.fullmatch(text):
            return int(text)
        if key.kind is float:
            return float(text)
    except ValueError:
        pass
    raise ConfigError(place, f"got {text!r}, expected {key.expected}")


def _refuse_unknown(name: str, place: str) -> None:
    if name not in KEYS:
        section = name.partition(".")[0]
        mine = [key.partition(".")[2] for key in KEYS if key.startswith(f"{section}.")]
        hint = _hint(name, KEYS) or (f", expected one of {', '.join(mine)}" if mine else "; `eddy config` lists all")
        raise ConfigError(place, f"unknown key{hint}")


def _hint(name: str, known: Mapping[str, Any]) -> str:
    """A ", did you mean …?" when something known is near: the same key of another section first."""
    last = name.rpartition(".")[2]
    same = [other for other in known if other.rpartition(".")[2] == last]
    close = same or get_close_matches(name, known, 1)
    return f", did you mean {close[0]}?" if close else ""
