"""The catalog: every version of every model that is known, and what became of it.

Owns the entries, and the models behind them: loading one, putting it in another's place, retiring and freeing it. A
model that does not load is listed with its reason and never stops the others. Must not know the wire, nor when files
are looked at.

Ordering rules: everything happens on the event loop (before there is one: on the main thread), but `carry_out`, which
reads files and builds a model, and may run on any thread. Between a `begin` and its `finish` nothing else may happen to
that version. A model's number is given back, and its memory freed, only once nothing refers to it: it has no session,
nothing waits for it and nothing runs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from eddy.service.cells import HostMemory
from eddy.service.changes import Deed, Key, Known, plan
from eddy.service.config import Config
from eddy.service.entry import Entry, EntryEvent, State, next_state
from eddy.service.errors import ClientError, Detail, EddyError, ModelError, Reason
from eddy.service.inventory import Found, digest_of, stamps_of, take_inventory
from eddy.service.model import Backing, ModelFile, ServedModel
from eddy.service.package import Package, Unreadable, read_package
from eddy.service.repository import RepositoryError, version_key
from eddy.service.roster import Roster
from eddy.service.runtime import available_providers
from eddy.service.sessions import SessionTable
from eddy.service.stats import ModelHistory

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Loading:
    """A version that is being loaded.

    Attributes:
        index: the number that its model will have; history: what it goes on counting.
        known: package digests of its models in memory, one of which may be what lies there.
    """

    found: Found
    index: int
    history: ModelHistory
    known: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it: a model, or the reason why there is none, or neither: the files are those of a known model."""

    file: ModelFile
    seconds: float
    model: ServedModel | None = None
    problem: str = ""
    warnings: tuple[str, ...] = ()


class Catalog:
    """The models of one server.

    Args:
        config: everything; table: the server's sessions.
        on_ended: see `ServedModel`.
    """

    def __init__(
        self,
        config: Config,
        table: SessionTable,
        on_ended: Callable[[int, np.ndarray, EddyError], None],
    ) -> None:
        self._config = config
        self._table = table
        self._on_ended = on_ended
        # Changed only by the methods below. Versions by number, the latest last. Replaced, not changed, because
        # /metrics reads on a thread of its own.
        self._entries: dict[str, dict[str, Entry]] = {}
        self._histories: dict[Key, ModelHistory] = {}
        # What was refused at the start, and has been neither repaired nor taken away since.
        self._awaited: set[Key] = set()
        # Between `begin` and `finish`: none of their models is freed, because it may be taken back.
        self._loading: set[Key] = set()
        self.served = Roster()
        # Set by the host before anything is loaded: the state store, where there is one.
        self.backing: Backing | None = None
        # For the states of sessions that have no slot, of all models.
        self.host_memory = HostMemory(config.state.host_bytes)

    def load(self) -> None:
        """Loads every model of the repository.

        Raises:
            RepositoryError: the folder is missing, empty or not readable.
        """
        inventory = take_inventory(self.root)
        if inventory.problem:
            raise RepositoryError(inventory.problem)
        for change in plan(inventory, inventory, {}):
            assert change.found is not None, "nothing is known that could be removed"
            if change.deed is Deed.REFUSE:
                self.refuse(change.found)
            else:
                loading = self.begin(change.found)
                self.finish(loading, self.carry_out(loading))
        self._awaited = {self._key(entry) for entry in self if entry.state is State.REFUSED}

    @property
    def root(self) -> Path:
        """The repository folder."""
        return Path(self._config.server.model_repository)

    def __iter__(self) -> Iterator[Entry]:
        for versions in list(self._entries.values()):
            yield from list(versions.values())

    @property
    def provider(self) -> str | None:
        """The execution provider that models run on; None when none of those wanted is available."""
        available = available_providers()
        return next((name for name in self._config.server.providers or available if name in available), None)

    @property
    def refusals_at_start(self) -> list[str]:
        """Why the server does not serve all that it was started for.

        What is refused later takes nothing away from clients, and is no reason to send them elsewhere.
        """
        return [
            entry.error.message
            for entry in self
            if self._key(entry) in self._awaited and entry.model is None and entry.error is not None
        ]

    def history(self, entry: Entry) -> ModelHistory:
        """What the models of an entry have done."""
        return self._histories.get(self._key(entry)) or ModelHistory()

    # Finding

    def find(self, name: str, version: str) -> Entry:
        """The entry of a model; an empty version means the latest that is ready, else the latest.

        Raises:
            ClientError: UNKNOWN_MODEL or UNKNOWN_VERSION.
        """
        versions = self.versions(name)
        if not version:
            return next((entry for entry in reversed(versions.values()) if entry.model), [*versions.values()][-1])
        if version not in versions:
            known = ", ".join(versions)
            raise ClientError(
                Reason.UNKNOWN_VERSION,
                f"version: got {version!r}, model {name!r} has {known}",
                Detail("version", version, known),
            )
        return versions[version]

    def versions(self, name: str) -> dict[str, Entry]:
        """The entries of a model by version, the latest last.

        Raises:
            ClientError: UNKNOWN_MODEL.
        """
        versions = self._entries.get(name)
        if not versions:
            known = ", ".join(sorted(self._entries)) or "none"
            raise ClientError(
                Reason.UNKNOWN_MODEL, f"model: got {name!r}, this server has {known}", Detail("model", name, known)
            )
        return versions

    def ready(self, name: str, version: str, package: str = "") -> ServedModel:
        """The model to serve.

        Args:
            package: digest of the files that the caller takes it to be of; empty: of any.

        Raises:
            ClientError: unknown, or of other files; ModelError: known, but not ready.
        """
        entry = self.find(name, version)
        model = entry.model
        if model is None:
            assert entry.error is not None
            raise entry.error
        if package not in ("", model.file.package):
            message = f"package_digest: got {package!r}, the version's files are of {model.file.package!r} now"
            raise ClientError(Reason.UNKNOWN_VERSION, message, Detail("package_digest", package, model.file.package))
        return model

    def known(self) -> dict[Key, Known]:
        """What `changes.plan` compares the folder with."""
        return {self._key(entry): Known(entry.state, entry.files) for entry in self}

    # Loading

    def begin(self, found: Found) -> Loading:
        """A version is about to be loaded; what is served of it goes on meanwhile.

        Raises:
            CapacityError: too many models are in memory.
        """
        key = (found.name, found.version)
        old = self._get(key)
        state = next_state(old.state if old else None, EntryEvent.BEGIN)
        index = self.served.reserve()
        if old is not None and old.model is not None:
            entry = replace(old, state=state)
        else:
            file = ModelFile(found.name, found.version, "")
            entry = Entry(file, state, None, _why(file, "it is being loaded"), 0.0, old.retiring if old else ())
        self._put(entry)
        self._loading.add(key)
        models = [*entry.retiring, *([entry.model] if entry.model else [])]
        history = self._histories.setdefault(key, ModelHistory())
        return Loading(found, index, history, tuple(model.file.package for model in models))

    def carry_out(self, loading: Loading) -> Outcome:
        """Reads a version's files and builds its model, unless it is there already. On any thread; raises nothing."""
        found = loading.found
        start = time.monotonic()
        file = ModelFile(found.name, found.version, "")
        try:
            file = replace(file, package=digest_of(found))
            if file.package in loading.known:
                return Outcome(file, time.monotonic() - start)
            package = read_package(found.place, self._config.inspection)
            file = replace(file, digest=package.digest)
            _refuse_if_changed(found, package.digest)
            model = self._build(loading, file, package)
        except Unreadable as error:
            return Outcome(replace(file, digest=error.digest), time.monotonic() - start, problem=str(error))
        except OSError as error:
            name = Path(error.filename).name if error.filename else found.place.name
            problem = f"{name} cannot be read: {error.strerror or error}"
            return Outcome(file, time.monotonic() - start, problem=problem)
        except ModelError as error:
            return Outcome(file, time.monotonic() - start, problem=error.message)
        except Exception as error:  # noqa: BLE001  the root of one model's loading: the others are served
            _LOG.exception("model %s version %s does not load", found.name, found.version)
            why = f"it does not load: {type(error).__name__}: {error}"
            return Outcome(file, time.monotonic() - start, problem=why)
        return Outcome(file, time.monotonic() - start, model, warnings=(*package.warnings, *model.warnings))

    def _build(self, loading: Loading, file: ModelFile, package: Package) -> ServedModel:
        provider = self.provider
        if provider is None:
            wanted, available = self._config.server.providers, available_providers()
            raise ModelError(
                Reason.MODEL_NOT_READY,
                f"none of the execution providers {', '.join(wanted)} is available, only {', '.join(available)}",
            )
        return ServedModel(
            file,
            loading.index,
            package.graphs,
            package.contract,
            self._table,
            self._config.model,
            provider,
            self._on_ended,
            loading.history.stats,
            self.host_memory,
            self.backing,
        )

    def finish(self, loading: Loading, outcome: Outcome, now: float = 0.0) -> Entry:
        """New sessions get what was loaded, and those that are open keep what they have; returns the entry.

        Cases:
        1. refused: what was served of it still is;
        2. the files are those that are served: somebody touched them;
        3. the files are those of a model that is retiring: it is taken back;
        4. another model.

        Args:
            now: monotonic seconds.
        """
        found, file = loading.found, outcome.file
        key = (found.name, found.version)
        old = self._entries[found.name][found.version]
        self._loading.discard(key)
        if outcome.problem:  # 1.
            self.served.give_back(loading.index)
            loading.history.num_failed_loads += 1
            return self._fail(old, found, outcome)
        state = next_state(old.state, EntryEvent.LOADED)
        self._awaited.discard(key)
        model = outcome.model
        retiring = list(old.retiring)
        if model is None:
            self.served.give_back(loading.index)
            if old.model is not None and old.model.file.package == file.package:  # 2.
                entry = replace(old, state=state, error=None, files=found.files)
                self._put(entry)
                return entry
            model = next(each for each in retiring if each.file.package == file.package)  # 3.
            retiring.remove(model)
            model.retired_at = None
        else:  # 4.
            self.served.put(model)
            loading.history.num_loads += 1
        if old.model is not None:
            old.model.retired_at = now
            retiring.append(old.model)
        entry = Entry(model.file, state, model, None, outcome.seconds, tuple(retiring), found.files)
        self._put(entry)
        for warning in outcome.warnings:
            _LOG.warning("model %s version %s: %s", found.name, found.version, warning)
        _LOG.info(
            "model %s version %s is ready after %.3f s, package %s%s",
            found.name,
            found.version,
            outcome.seconds,
            file.package[:8],
            _staying(entry),
        )
        return entry

    def _fail(self, old: Entry, found: Found, outcome: Outcome) -> Entry:
        state = next_state(old.state, EntryEvent.FAIL)
        goes_on = f"; package {old.file.package[:8]}, loaded before, is still served" if old.model else ""
        _LOG.error("model %s version %s is not served: %s%s", found.name, found.version, outcome.problem, goes_on)
        error = _why(outcome.file, outcome.problem)
        if old.model is not None:
            entry = replace(old, state=state, error=error, files=found.files)
        else:
            entry = Entry(outcome.file, state, None, error, outcome.seconds, old.retiring, found.files)
        self._put(entry)
        return entry

    def refuse(self, found: Found) -> Entry:
        """A folder that gives nothing to load is listed with its reason."""
        loading = self.begin(found)
        outcome = Outcome(ModelFile(found.name, found.version, ""), 0.0, problem=found.problem)
        return self.finish(loading, outcome)

    # Retiring

    def remove(self, key: Key, now: float) -> None:
        """The files of a version are gone; `now`: monotonic seconds."""
        self._awaited.discard(key)
        old = self._entries[key[0]][key[1]]
        self._retire(old, EntryEvent.REMOVE, "its files are gone; sessions that are open go on", now)

    def unload(self, key: Key, now: float) -> None:
        """Somebody asked that a version be unloaded; `now`: monotonic seconds."""
        old = self._entries[key[0]][key[1]]
        if old.state is State.RETIRING:
            return
        self._awaited.discard(key)
        self._retire(old, EntryEvent.UNLOAD, "it was unloaded by request; sessions that are open go on", now)

    def _retire(self, old: Entry, event: EntryEvent, why: str, now: float) -> None:
        state = next_state(old.state, event)
        retiring = old.retiring
        if old.model is not None:
            old.model.retired_at = now
            retiring = (*retiring, old.model)
        entry = Entry(old.file, state, None, _why(old.file, why), old.load_seconds, retiring, old.files)
        self._put(entry)
        _LOG.info("model %s version %s: %s%s", old.file.name, old.file.version, why, _staying(entry))

    def release(self, is_unused: Callable[[ServedModel], bool]) -> list[ServedModel]:
        """Frees retired models that have neither sessions nor, as `is_unused` says, work; returns them.

        Who calls forgets their numbers before another model is loaded.
        """
        released = []
        for entry in [*self]:
            if self._key(entry) in self._loading or not (entry.retiring or entry.state is State.RETIRING):
                continue
            victims = [model for model in entry.retiring if not model.num_sessions and is_unused(model)]
            for model in victims:
                scheduler = model.scheduler
                self.history(entry).add(
                    scheduler.num_ticks, scheduler.num_row_steps, scheduler.num_replayed, model.replies.num_forgotten
                )
                self.served.give_back(model.index)
                model.close()
                _LOG.info("model %s version %s: package %s is freed", *_names(model))
            entry = replace(entry, retiring=tuple(model for model in entry.retiring if model not in victims))
            if entry.state is State.RETIRING and not entry.retiring:
                self._drop(entry)
            elif victims:
                self._put(entry)
            released.extend(victims)
        return released

    # Entries

    @staticmethod
    def _key(entry: Entry) -> Key:
        return entry.file.name, entry.file.version

    def _get(self, key: Key) -> Entry | None:
        return self._entries.get(key[0], {}).get(key[1])

    def _put(self, entry: Entry) -> None:
        name, version = self._key(entry)
        versions = self._entries.get(name, {}) | {version: entry}
        if version and "" in versions and versions[""].state is State.REFUSED:
            del versions[""]  # There is something to load now.
        self._entries[name] = {key: versions[key] for key in sorted(versions, key=version_key)}

    def _drop(self, entry: Entry) -> None:
        name, version = self._key(entry)
        left = {key: each for key, each in self._entries[name].items() if key != version}
        self._histories.pop((name, version), None)
        if left:
            self._entries[name] = left
        else:
            del self._entries[name]


def _why(file: ModelFile, why: str) -> ModelError:
    return ModelError(Reason.MODEL_NOT_READY, f"model {file.name!r} version {file.version!r}: {why}")


def _refuse_if_changed(found: Found, digest: str) -> None:
    """Raises Unreadable where the files are no longer those that were found: what was read may be some of each."""
    if stamps_of(found.place) != found.files:
        raise Unreadable("its files were changed while they were read", digest)


def _staying(entry: Entry) -> str:
    sessions = sum(model.num_sessions for model in entry.retiring)
    return f"; {sessions} sessions stay on what they opened" if sessions else ""


def _names(model: ServedModel) -> tuple[str, str, str]:
    return model.file.name, model.file.version, model.file.package[:8]
