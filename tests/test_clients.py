"""The table of clients names tests that are there, and all files of clients' tests are in it."""

import os
import subprocess
import sys
from pathlib import Path

import clients
from obedient_clients import PLAYERS

ROOT = Path(__file__).parent.parent


def test_every_test_that_the_table_names_is_there() -> None:
    named = {f"tests/{test}" for each in clients.CLIENTS for test in each.tests.values()}
    files = sorted({test.partition("::")[0] for test in named})
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *files]
    # With which core does not matter here, and it would be the plain one.
    environ = {name: value for name, value in os.environ.items() if name != "MEMTUNNEL_CORE"}
    found = subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60
    )
    assert named - set(found.stdout.splitlines()) == set(), found.stderr


def test_every_file_of_clients_is_in_the_table() -> None:
    files = {path.name for path in (ROOT / "tests").glob("test_clients_*.py")}
    named = {test.partition("::")[0] for each in clients.CLIENTS for test in each.tests.values()}
    assert files <= named


def test_every_client_that_lives_through_faults_is_as_the_table_says() -> None:
    table = {
        f"{each.language} {each.name} {each.protocol}": "a set in an outage" in each.remark
        for each in clients.CLIENTS
        if "faults" in each.tests
    }
    assert table == {str(player): player.raises for player in PLAYERS}


def test_every_client_tells_its_version() -> None:
    for client in clients.CLIENTS:
        assert client.version()[0].isdigit(), client.name
