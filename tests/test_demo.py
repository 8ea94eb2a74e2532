"""``memtunnel --demo``: the tunnel with a server of its own, for those who have none."""

import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import pytest_twisted
import servers
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.protocol import Factory, Protocol

from memtunnel.demo import DemoServer
from memtunnel.wire.binary import Opcode, Status


def test_the_demo_serves_and_says_what_to_try(
    started: list[Any], connect: Callable[..., servers.Wire]
) -> None:
    tunnel = servers.Tunnel("--demo")
    started.append(tunnel)
    tunnel.start().wait_ready()
    client = connect(tunnel)
    assert client.set(b"k", b"hello").status == Status.OK
    found = client.get(b"k")
    assert (found.status, found.value) == (Status.OK, b"hello")
    assert client.get(b"absent").status == Status.NOT_FOUND
    assert client.ask(Opcode.DELETE, b"k").status == Status.OK
    assert client.get(b"k").status == Status.NOT_FOUND
    assert tunnel.get("/readyz")[0] == 200
    assert tunnel.metric("memtunnel_degraded_replies_total") == 0
    _, _, hints = tunnel.log().partition("Try:\n")
    first, ready, metrics, page = hints.splitlines()[:4]
    assert first.endswith(f"| nc 127.0.0.1 {tunnel.port}")
    assert ready.strip() == f"curl http://127.0.0.1:{tunnel.admin}/readyz"
    assert metrics.strip() == f"curl http://127.0.0.1:{tunnel.admin}/metrics"
    assert page.strip() == f"http://127.0.0.1:{tunnel.admin}/ in a browser"
    assert tunnel.get("/")[0] == 200
    servers.need("nc")
    told = subprocess.run(first, shell=True, capture_output=True, timeout=servers.PATIENCE)
    assert told.stdout == b"STORED\r\nVALUE a 0 5\r\nhello\r\nEND\r\n"


@pytest.mark.parametrize("tls", [True, False])
@pytest_twisted.ensureDeferred
async def test_no_answer_waits_until_the_one_before_it_is_acknowledged(tls: bool) -> None:
    from twisted.internet import reactor

    clock: Any = reactor
    server = DemoServer(tls=tls)
    server.start(reactor)
    try:
        endpoint = HostnameEndpoint(reactor, "127.0.0.1", server.port)
        client: Any = await endpoint.connect(Factory.forProtocol(Protocol))
        while not server._factory.connections:
            turn: Deferred[None] = Deferred()
            clock.callLater(0, turn.callback, None)
            await turn
        (connection,) = server._factory.connections
        assert connection.transport.getTcpNoDelay()
        client.transport.abortConnection()
    finally:
        await server.stop()
