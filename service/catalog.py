"""The catalog: the models of a repository folder, loaded or refused.

Owns loading the models that `repository` finds, one by one, and looking them up. A model that does not load is listed
with its reason and never stops the others. Must not know the wire.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from eddy.service.config import Config
from eddy.service.entry import Entry, State
from eddy.service.errors import ClientError, Detail, EddyError, ModelError, Reason
from eddy.service.model import ModelFile, ServedModel
from eddy.service.package import Package, Unreadable, read_package
from eddy.service.repository import model_folders, model_name, version_folders, version_name
from eddy.service.runtime import available_providers
from eddy.service.sessions import SessionTable

_LOG = logging.getLogger(__name__)


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
        # Changed only by `load`. Versions by number, the latest last.
        self._entries: dict[str, dict[str, Entry]] = {}
        self._served: list[ServedModel] = []

    def load(self) -> None:
        """Loads every model of the repository.

        Raises:
            RepositoryError: the folder is missing, empty or not readable.
        """
        for folder in model_folders(Path(self._config.server.model_repository)):
            self._entries[model_name(folder)] = {entry.file.version: entry for entry in self._load_versions(folder)}

    def __iter__(self) -> Iterator[Entry]:
        for versions in list(self._entries.values()):  # /metrics may ask while models load.
            yield from versions.values()

    @property
    def served(self) -> list[ServedModel]:
        """Models that are ready; the position is the model's index in the session table."""
        return self._served

    @property
    def provider(self) -> str | None:
        """The execution provider that models run on; None when none of those wanted is available."""
        available = available_providers()
        return next((name for name in self._config.server.providers or available if name in available), None)

    def find(self, name: str, version: str) -> Entry:
        """The entry of a model; an empty version means the latest that is ready, else the latest.

        Raises:
            ClientError: UNKNOWN_MODEL or UNKNOWN_VERSION.
        """
        versions = self._entries.get(name)
        if not versions:
            known = ", ".join(sorted(self._entries)) or "none"
            raise ClientError(
                Reason.UNKNOWN_MODEL, f"model: got {name!r}, this server has {known}", Detail("model", name, known)
            )
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

    def ready(self, name: str, version: str) -> ServedModel:
        """The model to serve.

        Raises:
            ClientError: unknown; ModelError: known, but not ready.
        """
        entry = self.find(name, version)
        if entry.model is None:
            assert entry.error is not None
            raise entry.error
        return entry.model

    def _load_versions(self, folder: Path) -> Iterator[Entry]:
        name = model_name(folder)
        try:
            versions = version_folders(folder)
        except OSError as error:
            yield self._refused(ModelFile(name, "", ""), f"the folder cannot be read: {error.strerror or error}")
            return
        if not versions:
            yield self._refused(ModelFile(name, "", ""), "the folder holds no version, expected 1/model.onnx")
        for version in versions:
            yield self._load(name, version)

    @staticmethod
    def _refused(file: ModelFile, why: str, seconds: float = 0.0) -> Entry:
        _LOG.error("model %s version %s is not served: %s", file.name, file.version, why)
        refusal = ModelError(Reason.MODEL_NOT_READY, f"model {file.name!r} version {file.version!r}: {why}")
        return Entry(file, State.REFUSED, None, refusal, seconds)

    def _load(self, name: str, place: Path) -> Entry:
        start = time.monotonic()
        digest, version = "", version_name(place)
        try:
            package = read_package(place, self._config.inspection)
            digest = package.digest
            served = self._serve(ModelFile(name, version, digest), package)
        except Unreadable as error:
            return self._refused(ModelFile(name, version, error.digest), str(error), time.monotonic() - start)
        except ModelError as error:
            return self._refused(ModelFile(name, version, digest), error.message, time.monotonic() - start)
        except Exception as error:  # noqa: BLE001  the root of one model's loading: the others are served
            _LOG.exception("model %s version %s does not load", name, version)
            why = f"it does not load: {type(error).__name__}: {error}"
            return self._refused(ModelFile(name, version, digest), why, time.monotonic() - start)
        self._served.append(served)
        seconds = time.monotonic() - start
        for warning in package.warnings:
            _LOG.warning("model %s version %s: %s", name, version, warning)
        _LOG.info("model %s version %s is ready after %.3f s", name, version, seconds)
        return Entry(served.file, State.READY, served, None, seconds)

    def _serve(self, file: ModelFile, package: Package) -> ServedModel:
        provider = self.provider
        if provider is None:
            wanted, available = self._config.server.providers, available_providers()
            raise ModelError(
                Reason.MODEL_NOT_READY,
                f"none of the execution providers {', '.join(wanted)} is available, only {', '.join(available)}",
            )
        return ServedModel(
            file,
            len(self._served),
            package.graphs,
            package.contract,
            self._table,
            self._config.model,
            provider,
            self._on_ended,
        )
