"""Adoption: which model goes on with the sessions of another.

Owns the rule. Pure: whoever asks knows which models there are. A model **adopts** sessions of another version of its
name, or of other files of its own version, where its contract says so (`adopts`) and both agree in names, dtypes and
shapes of states, inputs and outputs: else a session's state would have no place, or its client would be sent what
it does not expect. That the states mean the same no program can see: the contract's word is taken for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from eddy.service.contract import Contract
from eddy.service.model import ServedModel
from eddy.service.record_model import Model, layout_of, ports_of
from eddy.service.repository import version_key

# In a contract's `adopts`: every version.
ANY_VERSION = "*"


def names_version(adopts: Sequence[str], version: str) -> bool:
    """A contract's list names a version."""
    return ANY_VERSION in adopts or version in adopts


def disagreement(new: Contract, old: Contract) -> str:
    """What keeps sessions of `old` from going on with `new`, whatever the contract says; empty where nothing does."""
    if layout_of(new.states) != layout_of(old.states) or _immutable(new) != _immutable(old):
        return "their states differ in names, dtypes or shapes"
    if _ports(new) != _ports(old):
        return "their inputs or outputs differ in names, dtypes or shapes"
    if new.is_primed != old.is_primed:
        return "one has a prime graph, the other has none"
    return ""


def have_same_ports(one: Contract, other: Contract) -> bool:
    """What is sent to one of them, and what it answers, could as well be the other's."""
    return _ports(one) == _ports(other)


def adopts(new: ServedModel, old: ServedModel) -> bool:
    """Sessions of `old` may go on with `new`."""
    return (
        new.file.name == old.file.name
        and names_version(new.contract.message.adopts, old.file.version)
        and not disagreement(new.contract, old.contract)
    )


def heir(old: ServedModel, ready: Iterable[ServedModel]) -> ServedModel | None:
    """The model, of those that are ready, that sessions of `old` go on with; None where they stay.

    Of a retired model the one of its own version, or else the latest; while it is served, the latest that is later.
    """
    found = [model for model in ready if model is not old and adopts(model, old)]
    if old.retired_at is None:
        found = [model for model in found if version_key(model.file.version) > version_key(old.file.version)]
    same = [model for model in found if model.file.version == old.file.version]
    return max(same or found, key=_by_version, default=None)


def choose(asked: Model, models: Iterable[ServedModel]) -> ServedModel | None:
    """The model that goes on with a session that was stored; None where none of `models` does.

    Args:
        asked: which model the session is of, whose own files are not there.
    """
    found = [
        model
        for model in models
        if model.retired_at is None
        and model.file.name == asked.name
        and names_version(model.contract.message.adopts, asked.version)
        and layout_of(model.contract.states) == asked.layout
        and _ports(model.contract) == asked.ports
    ]
    same = [model for model in found if model.file.version == asked.version]
    return max(same or found, key=_by_version, default=None)


def _by_version(model: ServedModel) -> tuple[int, int, str]:
    return version_key(model.file.version)


def _ports(contract: Contract) -> bytes:
    return ports_of((*contract.feeds, *contract.results))


def _immutable(contract: Contract) -> list[bool]:
    return [not state.next_name for state in contract.states]
