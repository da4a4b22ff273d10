"""Changes: what must be done so that what is served is what lies in the repository folder.

Owns the decision. Pure: no files, no clock, no threads; whoever looked at the folder says what lies there now and what
lay there one look before.

Rules:
* What changes is **settled** once two looks, one interval apart, have found the same: a file that is still being copied
  is not loaded, and a folder that is replaced by another is not seen as gone in between.
* A version without its step graph's file is as good as gone.
* What cannot be looked at stays as it is. A repository folder that is not there, or is empty as an unmounted one is,
  changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from eddy.service.entry import State
from eddy.service.inventory import Found, Inventory, Stamp

Key = tuple[str, str]


class Deed(Enum):
    """What is done to one version."""

    # Read its files, and serve them if they are good.
    LOAD = "load"
    # Say why there is nothing to load.
    REFUSE = "refuse"
    # Its files are gone: open no more sessions.
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class Known:
    """What the server made of a version; `files` are those that it last loaded, refused or unloaded."""

    state: State
    files: tuple[Stamp, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """One thing to do; `found` is None where nothing lies there any more."""

    deed: Deed
    key: Key
    found: Found | None = None


def plan(before: Inventory, now: Inventory, known: Mapping[Key, Known]) -> list[Change]:
    """What to do, removals last: while a version is replaced by another, one of them is served."""
    if now.problem:
        return []
    changes = []
    names = {name for name, _ in known}
    for key, found in now.found.items():
        held = known.get(key)
        if found.problem:
            # What is known is kept, or is gone and found below.
            if held is None and (found.version or found.name not in names):
                changes.append(Change(Deed.REFUSE, key, found))
        elif _calls_for_loading(held, found) and before.found.get(key) == found:
            changes.append(Change(Deed.LOAD, key, found))
    unreadable = {found.name for found in now.found.values() if found.is_unreadable}
    for key, held in known.items():
        if held.state is State.RETIRING or key[0] in unreadable:
            continue
        if _is_gone(key, before, held) and _is_gone(key, now, held):
            changes.append(Change(Deed.REMOVE, key))
    return changes


def _calls_for_loading(held: Known | None, found: Found) -> bool:
    """There are files that nobody has looked into yet.

    Cases:
    1. a version that is not known, though it may not be one: whoever put it there is told why;
    2. refused: whatever changes may be the repair;
    3. gone before, served or unloaded: without its step graph's file it is gone, not changed.
    """
    if held is None:  # 1.
        return True
    if held.state is State.REFUSED:  # 2.
        return held.files != found.files
    return found.has_graph and (held.state is State.RETIRING or held.files != found.files)  # 3.


def _is_gone(key: Key, inventory: Inventory, held: Known) -> bool:
    found = inventory.found.get(key)
    if found is None:
        return not inventory.problem
    return held.state is not State.REFUSED and not found.problem and not found.has_graph
