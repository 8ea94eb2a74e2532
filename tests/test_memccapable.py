"""libmemcached's conformance program: every test of both protocols passes through the tunnel."""

import re
import subprocess

import pytest
import servers

TESTS = 27


@pytest.mark.parametrize("word", [pytest.param("binary"), pytest.param("ascii", id="text")])
def test_all_tests_pass(served: servers.Tunnel, word: str) -> None:
    command = [servers.need("memccapable"), "-h", "127.0.0.1", "-p", str(served.port)]
    command.append(f"-{word[0]}")
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
    passed = re.findall(rf"^{word} .*\S\s+\[pass\]", run.stdout, re.MULTILINE)
    assert len(passed) == TESTS
