"""What is done when files change: every state of an entry with every event, and with everything that may lie there."""

import itertools
from pathlib import Path

import pytest

from eddy.service.changes import Change, Deed, Key, Known, plan
from eddy.service.entry import EntryEvent, IllegalEntryEvent, State, next_state
from eddy.service.inventory import Found, Inventory, Stamp

# Written out, not taken from the module: the whole table, illegal pairs included.
_ALLOWED = {
    (None, EntryEvent.BEGIN): State.LOADING,
    (State.READY, EntryEvent.BEGIN): State.READY,
    (State.REFUSED, EntryEvent.BEGIN): State.LOADING,
    (State.RETIRING, EntryEvent.BEGIN): State.LOADING,
    (State.UNLOADED, EntryEvent.BEGIN): State.LOADING,
    (State.LOADING, EntryEvent.LOADED): State.READY,
    (State.READY, EntryEvent.LOADED): State.READY,
    (State.LOADING, EntryEvent.FAIL): State.REFUSED,
    (State.READY, EntryEvent.FAIL): State.READY,
    (State.READY, EntryEvent.REMOVE): State.RETIRING,
    (State.REFUSED, EntryEvent.REMOVE): State.RETIRING,
    (State.UNLOADED, EntryEvent.REMOVE): State.RETIRING,
    (State.READY, EntryEvent.UNLOAD): State.UNLOADED,
    (State.REFUSED, EntryEvent.UNLOAD): State.UNLOADED,
    (State.UNLOADED, EntryEvent.UNLOAD): State.UNLOADED,
}


@pytest.mark.parametrize(("state", "event"), list(itertools.product([None, *State], EntryEvent)))
def test_every_pair_of_the_transition_table(state: State | None, event: EntryEvent) -> None:
    """A legal event leads to one state; an illegal one raises and names both."""
    if (state, event) in _ALLOWED:
        assert next_state(state, event) is _ALLOWED[state, event]
    else:
        with pytest.raises(IllegalEntryEvent, match=f"{event.name} in state {state.name if state else 'none'}"):
            next_state(state, event)


_KEY: Key = ("m", "1")


def _stamp(number: int, path: str = "model.onnx") -> Stamp:
    return Stamp(path, 100, number, number, number, is_regular=True)


def _found(*files: Stamp, name: str = "m", version: str = "1") -> Found:
    return Found(name, version, Path(name, version), files, has_graph=any(file.path == "model.onnx" for file in files))


def _lying(*found: Found) -> Inventory:
    return Inventory({(each.name, each.version): each for each in found})


_OLD, _NEW = _found(_stamp(1)), _found(_stamp(2))
_BARE = _found(_stamp(3, "notes.txt"))
_EMPTY = _found()
_CLOSED = Found("m", "1", Path("m/1"), problem="Permission denied", is_unreadable=True)
_NO_VERSION = Found("m", "", Path("m"), problem="no version")
_CLOSED_MODEL = Found("m", "", Path("m"), problem="Permission denied", is_unreadable=True)
_LOAD, _REMOVE, _REFUSE, _NOTHING = Deed.LOAD, Deed.REMOVE, Deed.REFUSE, None

# What settled files call for, by what lies there and the state of an entry that was made of `_OLD`.
_STATES = (None, State.READY, State.REFUSED, State.RETIRING, State.UNLOADED)
_TABLE = {
    "as it was": (_OLD, (_LOAD, _NOTHING, _NOTHING, _LOAD, _NOTHING)),
    "changed": (_NEW, (_LOAD, _LOAD, _LOAD, _LOAD, _LOAD)),
    "without a graph": (_BARE, (_LOAD, _REMOVE, _LOAD, _NOTHING, _REMOVE)),
    "empty": (_EMPTY, (_LOAD, _REMOVE, _LOAD, _NOTHING, _REMOVE)),
    "not readable": (_CLOSED, (_REFUSE, _NOTHING, _NOTHING, _NOTHING, _NOTHING)),
    "model without versions": (_NO_VERSION, (_REFUSE, _REMOVE, _REMOVE, _NOTHING, _REMOVE)),
    "model not readable": (_CLOSED_MODEL, (_REFUSE, _NOTHING, _NOTHING, _NOTHING, _NOTHING)),
    "gone": (None, (_NOTHING, _REMOVE, _REMOVE, _NOTHING, _REMOVE)),
}


@pytest.mark.parametrize(
    ("lies", "state", "deed"),
    [
        pytest.param(lies, state, deed, id=f"{name}, {state.name if state else 'unknown'}")
        for name, (lies, deeds) in _TABLE.items()
        for state, deed in zip(_STATES, deeds, strict=True)
    ],
)
def test_what_settled_files_call_for(lies: Found | None, state: State | None, deed: Deed | None) -> None:
    """Every state with everything that may lie there: at the second look that finds it, not at the first."""
    other = _found(_stamp(9), name="other")
    known = {("other", "1"): Known(State.READY, other.files)}
    if state is not None:
        known[_KEY] = Known(state, _OLD.files)
    now = _lying(other) if lies is None else _lying(other, lies)
    changes = plan(now, now, known)
    assert [change.deed for change in changes] == ([] if deed is None else [deed])
    assert all(change.key[0] == "m" for change in changes)
    before = _lying(other, _found(_stamp(7)))
    at_once = plan(before, now, known)
    assert at_once == (changes if deed is Deed.REFUSE else [])


def test_what_keeps_changing_is_never_loaded() -> None:
    """Only two equal looks in a row settle a change."""
    known = {_KEY: Known(State.READY, _OLD.files)}
    looks = [_lying(_found(_stamp(number))) for number in range(2, 20)]
    for before, now in itertools.pairwise(looks):
        assert plan(before, now, known) == []
    assert plan(looks[-1], looks[-1], known) == [Change(Deed.LOAD, _KEY, looks[-1].found[_KEY])]


@pytest.mark.parametrize("state", list(State))
def test_a_repository_that_is_not_there(state: State) -> None:
    """Nothing is done while it is gone, nor at the first look at it after that."""
    gone, back = Inventory(problem="gone"), _lying(_NEW)
    known = {_KEY: Known(state, _OLD.files), ("n", "1"): Known(State.READY, _OLD.files)}
    assert plan(gone, gone, known) == []
    assert plan(back, gone, known) == []
    assert plan(gone, back, known) == []


def test_removals_come_last() -> None:
    """While one version is replaced by another, one of them is served."""
    newer = _found(_stamp(5), version="2")
    now = _lying(newer)
    assert [change.deed for change in plan(now, now, {_KEY: Known(State.READY, _OLD.files)})] == [_LOAD, _REMOVE]


def test_a_model_that_gets_its_first_version() -> None:
    """The entry that said there was none goes."""
    known = {("m", ""): Known(State.REFUSED, ())}
    now = _lying(_OLD)
    assert plan(now, now, known) == [Change(Deed.LOAD, _KEY, _OLD), Change(Deed.REMOVE, ("m", ""))]
