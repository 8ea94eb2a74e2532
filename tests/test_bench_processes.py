"""What the kernel says of real processes."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from benchmarks import processes

#: Works for 0.2 s of processor time, connects, has a child, and says its number.
PROGRAM = """
import socket, subprocess, sys, time
while time.process_time() < 0.2:
    pass
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
held = bytearray(b"x") * (50 << 20)
child = subprocess.Popen(["sleep", "60"])
print(child.pid, flush=True)
sys.stdin.read()
child.kill()
child.wait()
"""


@pytest.fixture(scope="module")
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture(scope="module")
def family(listening: socket.socket) -> Iterator[list[int]]:
    """A process and its child."""
    command = [sys.executable, "-c", PROGRAM, str(listening.getsockname()[1])]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        yield [process.pid, int(process.stdout.readline())]
        process.communicate("")


def test_a_tree_has_the_children(family: list[int]) -> None:
    assert processes.tree(family[0]) == family
    assert set(family) < set(processes.tree(os.getpid()))


def test_time(family: list[int]) -> None:
    assert 0.1 <= processes.cpu_seconds(family[:1]) < 10
    assert processes.cpu_seconds(family) >= processes.cpu_seconds(family[:1])


def test_time_of_ended_children_counts() -> None:
    before = processes.cpu_seconds([os.getpid()])
    work = "import time\nwhile time.process_time() < 0.2: pass"
    subprocess.run([sys.executable, "-c", work], check=True)
    assert processes.cpu_seconds([os.getpid()]) - before >= 0.15


def test_memory(family: list[int]) -> None:
    assert 50 << 20 <= processes.memory(family[:1]) < 200 << 20
    assert processes.memory(family) > processes.memory(family[:1])


def test_connections(family: list[int], listening: socket.socket) -> None:
    port = listening.getsockname()[1]
    assert processes.connections(family, port) == 1
    assert processes.connections(family[1:], port) == 0
    assert processes.connections(family, 1) == 0
    with socket.create_connection(("127.0.0.1", port)):
        assert processes.connections([*family, os.getpid()], port) == 2


def test_those_who_have_gone_have_nothing() -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    assert processes.tree(gone.pid) == [gone.pid]
    assert processes.cpu_seconds([gone.pid]) == 0
    assert processes.memory([gone.pid]) == 0
    assert processes.connections([gone.pid], 1) == 0
