"""The state store in Redis or Valkey: shared between servers, each of which can go on with the others' sessions.

Owns the only import of redis, the keys and the scripts. Must not know what is in a record, but for the bytes at which
every version of the format has epoch, writer and position. A key holds a record as it is. A script takes a piece of a
batch as a few strings and cuts them itself, so that thousands of records cost a few commands; pieces go out in one
pipeline.
A script runs as a whole or not at all, so comparing an epoch and writing under it is one step for all servers.

Dimension key: B records of a call.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any
from urllib.parse import SplitResult, parse_qs, urlencode, urlsplit, urlunsplit

import numpy as np
import redis
from redis import exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from eddy.service.record_format import HEAD, Batch
from eddy.service.store import StoreError

_LOGGER = logging.getLogger(__name__)
_PREFIX = "eddy"
# An absent or hung server is told within a few seconds; `socket_timeout` and others in the URL's query say otherwise.
_TIMEOUT_SECONDS = 3.0
_OLDEST = (6, 2)
# Of one script's call: other clients wait while it runs, about a millisecond.
_PIECE_ROWS = 500
_PIECE_BYTES = 1 << 20
# Characters of the client's own words in an error.
_MAX_TOLD = 200

_EPOCH = HEAD.fields["epoch"][1]  # type: ignore[index]  # numpy's stub: it may have none
_WRITER = HEAD.fields["writer"][1]  # type: ignore[index]
_POSITION = HEAD.fields["next_position"][1]  # type: ignore[index]
# Answers one byte a record: 0 written, 1 fenced, 2 missing. A call that timed out may be carried out later than those
# that came after it, over another connection: within an epoch of one writer nothing goes back. Whoever takes a session
# from another writer has read where it stood: where that one has written it again since, it has to be read again.
_WRITE = f"""
local prefix, ids, expected, expiries, sizes, data = unpack(ARGV)
local outcomes, at = {{}}, 1
for i = 0, #ids / 32 - 1 do
  local key = prefix .. string.sub(ids, i * 32 + 1, i * 32 + 32)
  local size = struct.unpack('<I4', sizes, i * 4 + 1)
  local record = string.sub(data, at, at + size - 1)
  at = at + size
  local found = redis.call('GETRANGE', key, 0, {_POSITION + 7})
  local epoch, wanted = string.sub(found, {_EPOCH + 1}, {_EPOCH + 4}), string.sub(expected, i * 4 + 1, i * 4 + 4)
  local fits, is_late = false, false
  if found == '' then
    fits = wanted == '\\0\\0\\0\\0'
  else
    local by = string.sub(record, {_WRITER + 1}, {_WRITER + 8})
    local is_writer = string.sub(found, {_WRITER + 1}, {_WRITER + 8}) == by
    local is_own = is_writer and epoch == string.sub(record, {_EPOCH + 1}, {_EPOCH + 4})
    local is_there = string.sub(found, {_POSITION + 1}) == string.sub(record, {_POSITION + 1}, {_POSITION + 8})
    fits = is_own or (epoch == wanted and (is_writer or is_there))
    is_late = is_own and #found == {_POSITION + 8}
      and struct.unpack('<i8', found, {_POSITION + 1}) > struct.unpack('<i8', record, {_POSITION + 1})
  end
  if is_late then
    outcomes[i + 1] = '\\0'
  elseif fits then
    local expiry = string.format('%.0f', struct.unpack('<d', expiries, i * 8 + 1))
    redis.call('SET', key, record, 'PXAT', expiry)
    outcomes[i + 1] = '\\0'
  else
    outcomes[i + 1] = found == '' and '\\2' or '\\1'
  end
end
return table.concat(outcomes)
"""
_DELETE = f"""
local prefix, ids, epochs, writer = unpack(ARGV)
local deleted = 0
for i = 0, #ids / 32 - 1 do
  local key = prefix .. string.sub(ids, i * 32 + 1, i * 32 + 32)
  local found = redis.call('GETRANGE', key, 0, {_WRITER + 7})
  if string.sub(found, {_EPOCH + 1}, {_EPOCH + 4}) == string.sub(epochs, i * 4 + 1, i * 4 + 4)
    or string.sub(found, {_WRITER + 1}) == writer then
    deleted = deleted + redis.call('DEL', key)
  end
end
return deleted
"""


class RedisStore:
    """A `StateStore` in the database that a URL names.

    Args:
        url: `redis://[user:password@]host:port/db`, `rediss://` for TLS; the query may name a `prefix` of the keys, and
            settings of the client, such as `socket_timeout` or `ssl_ca_certs`.
        clock: unix seconds; of Redis' own clock the store knows nothing, and they should agree.

    Raises:
        StoreError: nobody answers, it is a replica, too old, or would evict sessions for want of memory.
    """

    def __init__(self, url: str, clock: Callable[[], float]) -> None:
        parts = urlsplit(url)
        query = parse_qs(parts.query)
        prefix = query.pop("prefix", [_PREFIX])[-1]
        self._prefix = f"{prefix}:".encode()
        # For people: never with the password.
        self._name = f"{parts.scheme}://{_place(parts)}"
        try:
            self._redis: Any = redis.Redis.from_url(
                urlunsplit(parts._replace(query=urlencode(query, doseq=True))),
                socket_timeout=_TIMEOUT_SECONDS,
                socket_connect_timeout=_TIMEOUT_SECONDS,
                # A connection that Redis has closed meanwhile is opened again, once.
                retry=Retry(NoBackoff(), 1, supported_errors=(exceptions.ConnectionError,)),
            )
            with self._failing():
                self._check()
                # Digests of the scripts; changed by `_run`.
                self._write, self._delete = self._load()
        except (ValueError, TypeError) as error:  # What the client makes of a URL that it cannot read.
            raise self._error(f"its URL is wrong: {error}") from error

    def _check(self) -> None:
        told = self._redis.info("server") | self._redis.info("memory") | self._redis.info("replication")
        version = tuple(int(part) for part in str(told["redis_version"]).split(".")[:2])
        if version < _OLDEST:
            raise self._error(f"it is of version {told['redis_version']}, 6.2 or later is needed")
        if told["role"] != "master":
            raise self._error("it is a replica, which cannot be written")
        if self._redis.info("cluster")["cluster_enabled"]:
            raise self._error("it is part of a cluster, which has only some of the keys")
        policy = told["maxmemory_policy"]
        if policy != "noeviction":
            raise self._error(f"its maxmemory-policy is {policy}: sessions would vanish; set it to noeviction")
        if not self._redis.info("persistence")["aof_enabled"]:
            _LOGGER.warning(
                "state store %s has no append-only file: sessions survive this server, not the loss of Redis",
                self._name,
            )

    def _load(self) -> tuple[str, str]:
        return self._redis.script_load(_WRITE), self._redis.script_load(_DELETE)

    def write(self, batch: Batch) -> np.ndarray:
        """See `StateStore`."""
        if not len(batch):
            return np.zeros(0, np.int8)
        ids = batch.session_ids.tobytes().hex()
        expiries = np.clip(batch.expires_at * 1000, 1, 1e15)
        data = batch.data.data
        pieces = []
        for first, last in _pieces(batch):
            start, end = batch.offsets.item(first), batch.offsets.item(last - 1) + batch.sizes.item(last - 1)
            pieces.append(
                (
                    self._prefix,
                    ids[first * 32 : last * 32],
                    batch.expected_epochs[first:last].astype("<u4").tobytes(),
                    expiries[first:last].astype("<f8").tobytes(),
                    batch.sizes[first:last].astype("<u4").tobytes(),
                    data[start:end],
                )
            )
        with self._failing():
            return np.frombuffer(b"".join(self._run(lambda: self._write, pieces)), np.int8).copy()

    def read(self, session_ids: Sequence[bytes]) -> list[bytes | None]:
        """See `StateStore`."""
        if not session_ids:
            return []
        with self._failing():
            return list(self._redis.mget([self._prefix + each.hex().encode() for each in session_ids]))

    def delete(self, session_ids: Sequence[bytes], epochs: np.ndarray, writer: int = 0) -> int:
        """See `StateStore`."""
        ids, raw = b"".join(session_ids).hex(), epochs.astype("<u4").tobytes()
        # Nobody is of no record's length.
        mine = writer.to_bytes(8, "little") if writer else b"nobody"
        pieces = [
            (
                self._prefix,
                ids[first * 32 : (first + _PIECE_ROWS) * 32],
                raw[first * 4 : (first + _PIECE_ROWS) * 4],
                mine,
            )
            for first in range(0, len(session_ids), _PIECE_ROWS)
        ]
        with self._failing():
            return sum(self._run(lambda: self._delete, pieces))

    def purge(self, now: float) -> int:
        """See `StateStore`: Redis forgets what has expired by itself."""
        return 0

    def generation(self) -> str:
        """See `StateStore`: a Redis that was started again, or another one after a failover, has another run id."""
        with self._failing():
            return str(self._redis.info("server")["run_id"])

    def count(self) -> int:
        """See `StateStore`: all keys of the database, which is best left to sessions alone."""
        with self._failing():
            return int(self._redis.dbsize())

    def size_bytes(self) -> int:
        """See `StateStore`: the memory of the whole Redis."""
        with self._failing():
            return int(self._redis.info("memory")["used_memory"])

    def close(self) -> None:
        """See `StateStore`."""
        with self._failing():
            self._redis.close()

    def _run(self, script: Callable[[], str], pieces: Sequence[tuple[object, ...]]) -> list[Any]:
        """A script's answer to each of `pieces`, in one pipeline; it is loaded again where Redis has forgotten it."""
        try:
            return self._pipe(script(), pieces)
        except exceptions.NoScriptError:
            # After a restart, a failover or SCRIPT FLUSH. What was written already is taken again: same epoch, same
            # writer.
            self._write, self._delete = self._load()
            return self._pipe(script(), pieces)

    def _pipe(self, digest: str, pieces: Sequence[tuple[object, ...]]) -> list[Any]:
        with self._redis.pipeline(transaction=False) as pipeline:
            for piece in pieces:
                pipeline.evalsha(digest, 0, *piece)
            answers: list[Any] = pipeline.execute()
        return answers

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Turns the client's errors into `StoreError`."""
        try:
            yield
        except (exceptions.RedisError, OSError) as error:
            raise self._error(_why(error)) from error

    def _error(self, why: str) -> StoreError:
        return StoreError(f"state store {self._name}: {why}")


def _place(parts: SplitResult) -> str:
    """Host, port and database of a URL.

    Raises:
        StoreError: what there is in their places may be a part of a password.
    """
    try:
        port = parts.port
    except ValueError:
        port = -1
    if port == -1 or "@" in parts.path:
        why = "expected HOST:PORT/DB; write the characters / ? # @ of a name or password as %2F %3F %23 %40"
        raise StoreError(f"state store {parts.scheme}://...: its URL is wrong: {why}")
    return f"{parts.hostname or 'localhost'}:{port or 6379}{parts.path}"


def _why(error: Exception) -> str:
    """What went wrong, for whoever runs the server."""
    # The client puts a pipeline's command before its error, with all that was to be written.
    told = str(error).rpartition(" caused error: ")[2][:_MAX_TOLD]
    if "used memory > 'maxmemory'" in told:
        return "it is full: it uses as much memory as its maxmemory allows"
    if isinstance(error, exceptions.ReadOnlyError):
        return "it is a replica, which cannot be written"
    if isinstance(error, exceptions.BusyLoadingError):
        return "it is still loading its data"
    if isinstance(error, exceptions.AuthenticationError):
        return f"it does not let this server in ({told})"
    if isinstance(error, exceptions.TimeoutError):
        return f"it does not answer in time ({told})"
    if isinstance(error, exceptions.ConnectionError | OSError):
        return f"it cannot be reached ({told})"
    return told


def _pieces(batch: Batch) -> Iterator[tuple[int, int]]:
    """Rows [first, last) that go to one call of the script."""
    turns = batch.offsets // _PIECE_BYTES
    turns = turns * len(batch) + np.arange(len(batch)) // _PIECE_ROWS
    cuts = [0, *(np.flatnonzero(np.diff(turns)) + 1).tolist(), len(batch)]
    yield from pairwise(cuts)
