"""``memtunnel --demo``: the tunnel with a server of its own, for those who have none."""

import subprocess
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
    _, _, hints = tunnel.log().partition("Try:\n")
    first, ready, metrics = hints.splitlines()[:3]
    assert first.endswith(f"| nc 127.0.0.1 {tunnel.port}")
    assert ready.strip() == f"curl http://127.0.0.1:{tunnel.admin}/readyz"
    assert metrics.strip() == f"curl http://127.0.0.1:{tunnel.admin}/metrics"
    servers.need("nc")
    told = subprocess.run(first, shell=True, capture_output=True, timeout=servers.PATIENCE)
    assert told.stdout == b"STORED\r\nVALUE a 0 5\r\nhello\r\nEND\r\n"
