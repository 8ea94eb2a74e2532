"""Fixtures for tests against real parts; what they are made of is in `servers` and `authority`."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import authority
import pytest
import servers
from website import Site

from memtunnel.core import mux

CORE = "plain" if mux.__file__.endswith(".py") else "compiled"


def pytest_configure() -> None:
    if os.environ.get("MEMTUNNEL_CORE", CORE) != CORE:
        raise pytest.UsageError(f"this is the {CORE} core: {mux.__file__}")


def pytest_report_header() -> str:
    return f"core: {CORE}, {mux.__file__}"


@pytest.fixture(scope="session")
def root() -> authority.Pair:
    """The authority whose certificates the tunnels of tests trust."""
    return authority.authority()


@pytest.fixture(scope="session")
def ca_file(root: authority.Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    path.write_bytes(root.pem)
    return path


@pytest.fixture(scope="session")
def good_pair(root: authority.Pair) -> authority.Pair:
    return authority.issue("localhost", "127.0.0.1", issuer=root)


@pytest.fixture
def started() -> Iterator[list[Any]]:
    """What is put here is stopped when the test ends."""
    with servers.closing_all([]) as things:
        yield things


@pytest.fixture
def make_memcached(
    started: list[Any], tmp_path: Path, good_pair: authority.Pair
) -> Callable[..., servers.Memcached]:
    """Starts a memcached with SASL and TLS, as hosted ones are."""

    def make(pair: authority.Pair | None = good_pair, sasl: bool = True) -> servers.Memcached:
        folder = tmp_path / f"memcached{len(started)}"
        memcached = servers.Memcached(folder, pair=pair, sasl=sasl)
        started.append(memcached)
        return memcached.start()

    return make


@pytest.fixture
def site(started: list[Any], tmp_path: Path, good_pair: authority.Pair) -> Site:
    """A website over HTTPS, by the same authority."""
    folder = tmp_path / "site"
    folder.mkdir()
    site = Site(good_pair, folder)
    started.append(site)
    return site


@pytest.fixture
def make_tunnel(started: list[Any], ca_file: Path) -> Callable[..., servers.Tunnel]:
    """Starts a tunnel to these memcacheds, with the login that they know."""

    def make(
        *memcacheds: servers.Memcached,
        flags: tuple[str, ...] = (),
        ready: bool = True,
        folder: Path = Path("/tmp"),
    ) -> servers.Tunnel:
        dial = [f"--server=127.0.0.1:{each.port}=server{n}" for n, each in enumerate(memcacheds)]
        tunnel = servers.Tunnel(
            *dial,
            f"--ca-file={ca_file}",
            f"--username={servers.USERNAME}",
            *flags,
            environ={"MEMTUNNEL_PASSWORD": servers.PASSWORD},
        )
        started.append(tunnel)
        tunnel.folder = folder
        tunnel.start()
        if ready:
            tunnel.wait_ready()
            assert (", compiled: " in tunnel.log()) == (CORE == "compiled")
        return tunnel

    return make


@pytest.fixture
def connect(started: list[Any]) -> Callable[..., servers.Wire]:
    """Connects a client to a tunnel, or to a memcached without TLS."""

    def make(server: Any, kind: type[servers.Wire] = servers.Wire) -> servers.Wire:
        client = kind(server.port)
        started.append(client)
        return client

    return make


@pytest.fixture
def served(
    make_memcached: Callable[..., servers.Memcached], make_tunnel: Callable[..., servers.Tunnel]
) -> Iterator[servers.Tunnel]:
    """A tunnel for a client's commands, none of which may be answered without the server."""
    tunnel = make_tunnel(make_memcached(), flags=(servers.PATIENT,))
    yield tunnel
    assert tunnel.metric("memtunnel_degraded_replies_total") == 0


@pytest.fixture
def outage(
    make_memcached: Callable[..., servers.Memcached], make_tunnel: Callable[..., servers.Tunnel]
) -> servers.Outage:
    """A tunnel whose memcached is stopped and started by the test."""
    memcached = make_memcached()
    return servers.Outage(memcached, make_tunnel(memcached))
