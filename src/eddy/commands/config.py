"""`eddy config`: what is in force and where it comes from, and all keys as TOML or as a table for documents."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from eddy.commands.parser import MISUSE, fail
from eddy.commands.settings import add_settings, load

if TYPE_CHECKING:
    from eddy.commands.parser import Commands
    from eddy.service.config import Key
    from eddy.service.sources import Loaded

_EXAMPLES = """\
examples:
  eddy config
  eddy config --config eddy.toml --set model.max_rows=256
  eddy config --json
  eddy config --default > eddy.toml
"""
_KINDS = {int: "integer", float: "number", str: "string", bool: "boolean", tuple: "list of strings"}


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "config",
        help="show the configuration in force, and where each value comes from",
        description="Shows every key as `eddy serve` with the same flags would have it: TOML file, then environment, "
        "then flags; the later wins.",
        epilog=_EXAMPLES,
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="as JSON")
    form.add_argument("--default", action="store_true", help="all defaults as a TOML file with comments")
    form.add_argument("--markdown", action="store_true", help="the table of all keys, as the documents have it")
    add_settings(parser)
    parser.set_defaults(func=_run)


def _run(options: argparse.Namespace) -> int:
    from eddy.service.config import ConfigError

    if options.default or options.markdown:
        print(default_toml() if options.default else markdown_table(), end="")
        return 0
    try:
        loaded = load(options)
    except ConfigError as error:
        return fail(error, MISUSE)
    if options.json:
        print(json.dumps(_document(loaded), indent=2))
    else:
        _show(loaded)
    return 0


def default_toml() -> str:
    """A TOML file with every key at its default."""
    from eddy.service.config import KEYS

    lines = ["# Every key of Eddy's configuration, at its default.", "# eddy serve --config FILE"]
    section = ""
    for key in KEYS.values():
        if key.section != section:
            section = key.section
            lines += ["", f"[{section}]"]
        lines += [f"# {key.rule.meaning}", f"{key.name.partition('.')[2]} = {toml(key.default)}"]
    return "\n".join(lines) + "\n"


def markdown_table() -> str:
    """Every key: type, default, environment variable, meaning."""
    from eddy.service.config import KEYS

    lines = ["| key | type | default | environment variable | meaning |", "|---|---|---|---|---|"]
    lines += [
        f"| `{key.name}` | {_kind(key)} | `{toml(key.default)}` | `{key.variable}` | {key.rule.meaning} |"
        for key in KEYS.values()
    ]
    return "\n".join(lines) + "\n"


def toml(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(toml, value))}]"
    if type(value) is int and value >= 100_000:
        return f"{value:_}"
    # As in JSON, where only one character more may stand unescaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _kind(key: Key) -> str:
    return ", ".join(f"`{choice}`" for choice in key.rule.choices) or _KINDS[key.kind]


def _document(loaded: Loaded) -> dict[str, dict[str, Any]]:
    return {name: {"value": _shown(loaded, name), "origin": origin} for name, origin in loaded.origins.items()}


def _shown(loaded: Loaded, name: str) -> Any:
    """A value as people may see it."""
    from eddy.service.config import without_password

    value = loaded.value(name)
    return without_password(value) if name == "state.store" else value


def _show(loaded: Loaded) -> None:
    from rich.table import Table

    from eddy.commands.table import show
    from eddy.service.sources import DEFAULT

    table = Table("key", "value", "from")
    for name, origin in loaded.origins.items():
        table.add_row(name, toml(_shown(loaded, name)), origin, style="dim" if origin == DEFAULT else "")
    show(table)
