"""``memtunnel --demo``: the tunnel with a server of its own, for those who have none."""

from collections.abc import Callable
from typing import Any

import servers

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
    _, _, hints = tunnel.log().partition("Try:")
    assert f"127.0.0.1:{tunnel.port}" in hints
    assert f"http://127.0.0.1:{tunnel.admin}/readyz" in hints
