"""An entry: one version of one model of the repository, and what the server makes of it.

Owns the entry's states, its events and the transition table. Must not know files, threads or the wire. Entries are
values: whoever changes one puts another in its place, so that a thread that reads sees the one or the other.

A model whose files were replaced or removed, or that was unloaded, is **retired**: it opens no sessions any more, and
goes when its last one has ended.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from eddy.service.errors import ClientError, Detail, EddyError, Reason
from eddy.service.inventory import Stamp
from eddy.service.model import ModelFile, ServedModel


class State(IntEnum):
    """What an entry is; numbers as in `eddy.v1.ModelState`."""

    # It is being read and tested for the first time.
    LOADING = 1
    # New sessions are opened on it. Another one may be loading to take its place.
    READY = 2
    # What lies in the folder cannot be served.
    REFUSED = 3
    # Its files are gone; sessions that were open go on.
    RETIRING = 4
    # Unloaded by request; sessions that were open go on.
    UNLOADED = 5


class EntryEvent(IntEnum):
    """What happens to an entry."""

    # Its files are about to be loaded.
    BEGIN = 0
    # They are loaded, or cannot be served.
    LOADED = 1
    FAIL = 2
    # They are gone.
    REMOVE = 3
    # Somebody asked that it be unloaded.
    UNLOAD = 4


_TRANSITIONS: dict[tuple[State | None, EntryEvent], State] = {
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


class IllegalEntryEvent(Exception):
    """An event came in a state that does not allow it; nothing was changed."""


def next_state(state: State | None, event: EntryEvent) -> State:
    """The state after `event`; None is the state of an entry that is not there yet.

    Raises:
        IllegalEntryEvent: the event is not allowed there.
    """
    after = _TRANSITIONS.get((state, event))
    if after is None:
        raise IllegalEntryEvent(f"event {event.name} in state {state.name if state else 'none'}")
    return after


@dataclass(frozen=True, slots=True)
class Entry:
    """One version of one model.

    Attributes:
        file: of the model that is served, or of what was refused or unloaded.
        state: see `State`.
        model: what new sessions are opened on; None unless READY.
        error: why what lies in the folder is not served. Beside a model: its files were replaced by others that are
            not good, and it goes on.
        load_seconds: time to load and test it.
        retiring: models of this version that go when their last session has ended, the latest last.
        files: those that were last loaded, refused or unloaded.
    """

    file: ModelFile
    state: State
    model: ServedModel | None
    error: EddyError | None
    load_seconds: float
    retiring: tuple[ServedModel, ...] = ()
    files: tuple[Stamp, ...] = ()

    def model_of_package(self, digest: str) -> ServedModel:
        """The model of this version, served or retiring, whose files have the digest.

        Raises:
            ClientError: UNKNOWN_VERSION.
        """
        models = [*self.retiring, *([self.model] if self.model else [])]
        for model in models:
            if model.file.package == digest:
                return model
        known = ", ".join(model.file.package for model in models) or "none"
        message = f"package_digest: got {digest!r}, version {self.file.version!r} of {self.file.name!r} has {known}"
        raise ClientError(Reason.UNKNOWN_VERSION, message, Detail("package_digest", digest, known))
