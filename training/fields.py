"""Fields: plain tables, as TOML and checkpoints hold them, into validated dataclasses.

Owns: the check that each value has its field's kind, and that no key is unknown, so that a misspelt option cannot
silently do nothing. Must not know what the fields mean.
"""

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from eddy.training.errors import RecipeError

_Part = TypeVar("_Part")


def require(ok: object, field: str, came: object, expected: str) -> None:
    """Raise RecipeError that names the field, what came and what was expected, unless `ok` is true."""
    if not ok:
        raise RecipeError(f"{field}: got {came!r}, expected {expected}")


def build(cls: type[_Part], table: Mapping[str, Any], where: str, ready: Mapping[str, Any] | None = None) -> _Part:
    """One dataclass from one table: unknown, missing and wrongly typed keys are refused by name.

    ready: fields that do not come from the table.
    """
    ready = ready or {}
    known = {f.name: f for f in fields(cls) if f.name not in ready}  # type: ignore[arg-type]  # always a dataclass
    refuse_unknown(table, known, where)
    missing = [name for name, f in known.items() if f.default is MISSING and name not in table]
    if missing:
        raise RecipeError(f"{where}: missing {', '.join(missing)}")
    hints = get_type_hints(cls)
    return cls(**{name: typed(value, hints[name], f"{where}.{name}") for name, value in table.items()}, **ready)


def refuse_unknown(table: Mapping[str, Any], allowed: Iterable[str], where: str) -> None:
    """Raise RecipeError where the table has a key that is not allowed."""
    allowed = list(allowed)
    unknown = sorted(set(table) - set(allowed))
    if unknown:
        raise RecipeError(f"{where}: unknown key {', '.join(map(repr, unknown))}; allowed: {', '.join(allowed)}")


def typed(value: object, hint: Any, where: str) -> object:
    """The value if it fits the hint, else RecipeError.

    An int fits a float, a list fits a tuple of its items' kind, a table fits a dataclass, None fits an optional.
    """
    # 1. Optional: X | None.
    if get_origin(hint) is UnionType:
        (kind,) = (part for part in get_args(hint) if part is not NoneType)
        return None if value is None else typed(value, kind, where)
    # 2. Lists: tuple[X, ...].
    if get_origin(hint) is tuple:
        item = get_args(hint)[0]
        kind = "tables" if is_dataclass(item) else item.__name__
        require(isinstance(value, list | tuple), where, value, f"a list of {kind}")
        assert isinstance(value, list | tuple)
        return tuple(typed(entry, item, where) for entry in value)
    # 3. Tables.
    if is_dataclass(hint):
        assert isinstance(hint, type)
        if isinstance(value, hint):
            return value
        require(isinstance(value, Mapping), where, value, f"a table [{where}]")
        assert isinstance(value, Mapping)
        return build(hint, value, where)
    # 4. Plain values.
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    require(type(value) is hint, where, value, f"a value of type {hint.__name__}")
    return value
