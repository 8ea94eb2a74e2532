"""libmemcached's conformance program: every binary test passes through the tunnel."""

import re
import subprocess
from collections.abc import Callable

import servers

TESTS = 27


def test_all_binary_tests_pass(
    make_memcached: Callable[..., servers.Memcached], make_tunnel: Callable[..., servers.Tunnel]
) -> None:
    tunnel = make_tunnel(make_memcached())
    command = [servers.need("memccapable"), "-h", "127.0.0.1", "-p", str(tunnel.port), "-b"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
    assert len(re.findall(r"^binary \S+\s+\[pass\]", run.stdout, re.MULTILINE)) == TESTS
    assert tunnel.metric("memtunnel_degraded_replies_total") == 0
