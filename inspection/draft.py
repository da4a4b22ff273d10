"""A draft of `model.toml`: what inspection found, as a file that its user can go on from.

Owns the text. Must not know graphs. Everything that was found without being told is a comment, so that the draft as it
stands means what no file means.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from eddy.inspection.report import Origin, Report
from eddy.inspection.settings import Settings


def draft(report: Report, settings: Settings, file: str) -> str:
    """The text of a `model.toml` for the model `file`: `settings` as they are, and what else could be said."""
    explicit = {state.input: state.output for state in report.states if state.origin is Origin.EXPLICIT}
    idle = settings.idle_timeout_seconds
    lines = [
        f"# How {file} is served. Every key is optional; what begins with # is what holds without this file, or an",
        "# example. docs/bring-your-own.md describes the keys. `eddy inspect` shows what they lead to.",
        "",
        "# What the model is, for a person.",
        f"description = {_value(settings.description)}" if settings.description else '# description = ""',
        "",
        "# Sessions without a step for so long end, unless their client asks for less.",
        f"idle_timeout_seconds = {_value(idle)}" if idle is not None else "# idle_timeout_seconds = 600.0",
        "",
        "# Versions of this model whose open sessions go on with this one, where the states agree.",
        f"adopts = {_value(settings.adopts)}" if settings.adopts else '# adopts = ["1"]',
        "",
        "# States: an input and the output that replaces it after every step.",
        *_table("states", settings.states, explicit),
        "",
        "# Inputs whose last values must stand before each step's new ones: how many. The server keeps them.",
        *_table("context_steps", settings.context_steps, {port.name: 64 for port in report.inputs}),
        "",
        "# Inputs that clients do not give, and their values.",
        *_table("constants", settings.constants, {port.name: 1 for port in report.inputs}),
        "",
        "# Inputs and outputs as clients shall call them.",
        *_table("names", settings.names, {port.name: port.name for port in (*report.inputs, *report.outputs)}),
        "",
        '# What the axes of an input are: "batch", "time", or a size.',
        *_table("axes", settings.axes, {port.name: port.shape for port in report.inputs}),
    ]
    return "\n".join(lines) + "\n"


def _table(name: str, said: Mapping[str, Any], found: Mapping[str, Any]) -> Iterable[str]:
    """A table with what was said, and the rest as comments."""
    yield f"[{name}]"
    for key, value in said.items():
        yield f"{_value(key)} = {_value(value)}"
    for key, value in found.items():
        if key not in said:
            yield f"# {_value(key)} = {_value(value)}"


def _value(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, str):
        # TOML's basic strings are JSON's, but for the one control character that JSON leaves as it is.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    if isinstance(value, tuple | list):
        return f"[{', '.join(_value(each) for each in value)}]"
    if hasattr(value, "tolist"):
        return _value(value.tolist())
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value)
