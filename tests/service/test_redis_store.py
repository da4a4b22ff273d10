"""The state store in Redis: away, hung, full, restarted, and shared."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from authority import Authority
from records import NEVER, batch
from redis_server import RedisServer, needs_redis, redis_server

from eddy.service.store import Outcome, StateStore, StoreError
from eddy.service.stores import open_store

IDS = [bytes([number]) * 16 for number in range(8)]
pytestmark = needs_redis


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of the test's own."""
    with redis_server(tmp_path, "--appendonly", "yes") as running:
        yield running


@pytest.fixture
def admin(server: RedisServer) -> Iterator[Any]:
    """A client that turns its knobs."""
    with redis.Redis(port=server.port) as client:
        yield client


def _open(url: str) -> StateStore:
    store = open_store(url)
    assert store is not None
    return store


def test_nobody_there_is_an_error_without_the_password() -> None:
    """At once, and with where it was looked for."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(StoreError, match="cannot be reached") as caught:
            open_store(f"redis://user:secret@127.0.0.1:{port}/2")
    assert f"redis://127.0.0.1:{port}/2" in caught.value.message
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("password", ["se/cret", "se?cret", "se#cret", "1/cret"])
def test_a_url_that_cannot_be_read_is_an_error_without_the_password(password: str) -> None:
    """What stands in it as it is and ends the host's part is told how to write."""
    with pytest.raises(StoreError, match="its URL is wrong") as caught:
        open_store(f"redis://user:{password}@127.0.0.1:1/0")
    assert not [part for part in ("cret", "se/", "'se'") if part in caught.value.message]


def test_who_never_answers_is_an_error() -> None:
    """After the time that the URL's query allows."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(StoreError, match="does not answer in time"):
            open_store(f"redis://127.0.0.1:{silent.getsockname()[1]}?socket_timeout=0.1")


def test_a_setting_that_there_is_not_is_an_error() -> None:
    """In the URL's query."""
    with pytest.raises(StoreError, match=r"its URL is wrong.*sock_timeout"):
        open_store("redis://127.0.0.1:1?sock_timeout=1")


def test_without_the_library_it_is_said_how_to_install_it() -> None:
    """The server runs without redis-py unless it is asked for a Redis."""
    code = (
        "import sys; sys.modules['redis'] = None\nfrom eddy.service.stores import open_store\nopen_store(sys.argv[1])"
    )
    run = [sys.executable, "-c", code]
    assert subprocess.run([*run, "memory"], check=False).returncode == 0  # noqa: S603
    told = subprocess.run([*run, "redis://127.0.0.1:1"], check=False, capture_output=True, text=True)  # noqa: S603
    assert "pip install 'eddy-serve[redis]'" in told.stderr.splitlines()[-1]


def test_a_hung_server_is_an_error_until_it_goes_on(server: RedisServer) -> None:
    """A write to a stopped process fails in time, and can be repeated when the process runs again."""
    store = _open(server.url() + "&socket_timeout=0.2")
    server.process.send_signal(signal.SIGSTOP)
    records = batch(IDS, [1] * 8, [0] * 8)
    for call in (lambda: store.write(records), lambda: store.read(IDS), store.count):
        with pytest.raises(StoreError, match="does not answer in time"):
            call()
    server.process.send_signal(signal.SIGCONT)
    assert not store.write(records).any(), "whether or not the first one arrived"
    assert store.read(IDS) == [records.record(row) for row in range(8)]
    store.close()


def test_what_comes_late_takes_nothing_back(server: RedisServer) -> None:
    """A write that timed out, carried out after a later one of the same process: the later one stays.

    Another process takes a session where it stands and nowhere else: its owner may have gone on since it was read.
    """
    store = _open(server.url())
    written = [batch(IDS, [1] * 8, [0] * 8, position=position, seed=position) for position in (300, 2, 70_000)]
    late = batch(IDS, [1] * 8, [1] * 8, position=69_999)
    for records in (*written, late):
        assert not store.write(records).any()
    assert store.read(IDS) == [written[2].record(row) for row in range(8)]
    for position in (0, 2, 69_999, 70_001, 1 << 40):
        taken = batch(IDS, [2] * 8, [1] * 8, position=position, writer=5)
        assert (store.write(taken) == Outcome.FENCED).all()
        assert store.read(IDS) == [written[2].record(row) for row in range(8)]
    for again in (
        batch(IDS, [1] * 8, [1] * 8, position=70_000, seed=5),
        batch(IDS, [2] * 8, [1] * 8, position=70_000, seed=6, writer=5),
        batch(IDS, [3] * 8, [2] * 8, position=0, seed=7, writer=5),
    ):
        assert not store.write(again).any()
        assert store.read(IDS) == [again.record(row) for row in range(8)]
    store.close()


def test_a_full_server_is_an_error(server: RedisServer, admin: Any) -> None:
    """What is there can be read and deleted; with room it can be written."""
    store = _open(server.url())
    records = batch(IDS, [1] * 8, [0] * 8)
    store.write(records)
    admin.config_set("maxmemory", "1")
    with pytest.raises(StoreError, match="it is full"):
        store.write(batch(IDS, [2] * 8, [1] * 8))
    assert store.read(IDS) == [records.record(row) for row in range(8)]
    assert store.delete(IDS[:1], np.ones(1, np.uint32)) == 1
    admin.config_set("maxmemory", "0")
    assert not store.write(batch(IDS[1:], [2] * 7, [1] * 7)).any()
    store.close()


def test_a_server_that_evicts_is_refused(server: RedisServer, admin: Any) -> None:
    """Sessions would vanish silently."""
    admin.config_set("maxmemory-policy", "allkeys-lru")
    with pytest.raises(StoreError, match=r"maxmemory-policy is allkeys-lru.*set it to noeviction"):
        open_store(server.url())


def test_a_replica_is_refused(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> None:
    """It cannot be written."""
    of = ("--replicaof", f"127.0.0.1 {server.port}")
    with (
        redis_server(tmp_path_factory.mktemp("replica"), *of) as replica,
        pytest.raises(StoreError, match="it is a replica"),
    ):
        open_store(replica.url())


def test_a_node_of_a_cluster_is_refused(tmp_path: Path) -> None:
    """Keys would be somewhere else."""
    with (
        redis_server(tmp_path, "--cluster-enabled", "yes") as server,
        pytest.raises(StoreError, match="it is part of a cluster"),
    ):
        open_store(server.url())


def test_a_server_behind_tls_and_a_password(tmp_path: Path) -> None:
    """Each side proves who it is; who cannot, or does not know the password, is told so, without the password."""
    authority = Authority(tmp_path / "authority")
    own, ours = authority.sign("server"), authority.sign("client")
    files = ("--tls-cert-file", str(own.certificate), "--tls-key-file", str(own.key))
    options = (*files, "--tls-ca-cert-file", str(authority.certificate), "--appendonly", "yes")
    users = ("--user", "eddy", "on", ">hush", "~eddy:*", "+@all", "--user", "default", "off")
    with redis_server(tmp_path, *options, *users, has_tls=True) as server:
        told = f"&ssl_ca_certs={authority.certificate}&ssl_certfile={ours.certificate}&ssl_keyfile={ours.key}"
        store = _open(server.url().replace("://", "://eddy:hush@") + told)
        records = batch(IDS, [1] * 8, [0] * 8)
        assert not store.write(records).any()
        assert store.read(IDS) == [records.record(row) for row in range(8)]
        store.close()
        for user, settings, why in (
            ("eddy:hush", "", "CERTIFICATE_VERIFY_FAILED"),
            ("eddy:hush", f"&ssl_ca_certs={authority.certificate}", "cannot be reached"),
            ("eddy:hush-hush", told, "password"),
        ):
            with pytest.raises(StoreError, match=why) as caught:
                open_store(server.url().replace("://", f"://{user}@") + settings)
            assert "hush" not in caught.value.message


def test_without_an_append_only_file_it_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Sessions survive the server, but not the loss of such a Redis."""
    with redis_server(tmp_path) as server:
        _open(server.url()).close()
    assert "no append-only file" in caplog.text


def test_scripts_that_were_forgotten_are_loaded_again(server: RedisServer, admin: Any) -> None:
    """As after a failover."""
    store = _open(server.url())
    admin.script_flush()
    records = batch(IDS, [1] * 8, [0] * 8)
    assert not store.write(records).any()
    admin.script_flush()
    assert store.delete(IDS, np.ones(8, np.uint32)) == 8
    store.close()


def test_a_restarted_server_is_used_again(tmp_path: Path) -> None:
    """What it had acknowledged is there after SIGKILL, and the same store goes on."""
    records = batch(IDS, [1] * 8, [0] * 8)
    with redis_server(tmp_path, "--appendonly", "yes") as server:
        store = _open(server.url())
        store.write(records)
        server.process.kill()
        server.process.wait()
        with pytest.raises(StoreError, match="cannot be reached"):
            store.read(IDS)
    with redis_server(tmp_path, "--appendonly", "yes", port=server.port):
        assert store.read(IDS) == [records.record(row) for row in range(8)]
        assert not store.write(batch(IDS, [2] * 8, [1] * 8)).any()
    store.close()


def test_a_key_expires_with_its_session(server: RedisServer, admin: Any) -> None:
    """At the record's time, to the millisecond; its prefix is the URL's."""
    store = _open(server.url("my-sessions"))
    store.write(batch(IDS[:1], [1], [0], expires_at=NEVER + 0.125))
    assert admin.keys() == [b"my-sessions:" + IDS[0].hex().encode()]
    assert admin.pexpiretime(admin.keys()[0]) == int(NEVER * 1000) + 125
    store.close()


def test_of_two_servers_one_gets_each_epoch(server: RedisServer) -> None:
    """Both take over the same sessions at once, again and again: each epoch is one server's alone."""
    ids = [number.to_bytes(16, "big") for number in range(700)]
    stores = [_open(server.url()) for _ in range(2)]
    stores[0].write(batch(ids, [1] * 700, [0] * 700))
    with ThreadPoolExecutor(2) as pool:
        for epoch in range(2, 12):
            batches = [batch(ids, [epoch] * 700, [epoch - 1] * 700, seed=epoch, writer=1 + mine) for mine in range(2)]
            both = list(pool.map(lambda store, each: store.write(each), stores, batches))
            assert np.array_equal(both[0] == Outcome.WRITTEN, both[1] == Outcome.FENCED)
            assert np.array_equal(both[1] == Outcome.WRITTEN, both[0] == Outcome.FENCED)
            winners = [int(outcome != Outcome.WRITTEN) for outcome in both[0]]
            assert stores[0].read(ids) == [batches[winner].record(row) for row, winner in enumerate(winners)]
    for store in stores:
        store.close()
