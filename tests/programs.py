"""Clients of other languages: scripts that take a port, and fail where a check of theirs does."""

import functools
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

import clients
import servers

SECONDS = 60.0


def run(command: Sequence[str | Path], port: int, *more: str) -> str:
    """Run a client's script to its end; what it printed."""
    whole = [*map(str, command), str(port), *more]
    done = subprocess.run(whole, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def live_through(command: Sequence[str | Path], outage: servers.Outage, *more: str) -> None:
    """Run a client's script over an outage.

    It prints a line and waits for one before the outage, and once more in it. What it prints
    else, it prints to its errors.
    """
    process = subprocess.Popen(
        [*map(str, command), str(outage.port), *more],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    timer = threading.Timer(SECONDS, process.kill)
    timer.start()
    try:
        for step in (outage.begin, outage.end):
            if process.stdout.readline() != "ready\n":
                break
            step()
            process.stdin.write("go\n")
            process.stdin.flush()
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    finally:
        timer.cancel()
        process.kill()
        process.wait()


#: Of a script in Ruby: what ends it where a check fails, and what waits for a step of an outage.
RUBY = """
def check(right, words)
  abort(words) unless right
end
def ready
  puts "ready"
  $stdout.flush
  $stdin.gets
end
"""


def php(file: Path, script: str) -> list[str | Path]:
    """The command that runs this script, which is put into a file."""
    program = servers.need("php")
    modules = subprocess.run([program, "-m"], capture_output=True, text=True, timeout=30).stdout
    if "memcached" not in modules.split():
        servers.skip("PHP's memcached extension is not installed")
    file.write_text(script)
    return [program, file]


@functools.cache
def node_packages(base: Path) -> Path:
    """The folder with Node's clients, in one that is kept as long as the tests run."""
    folder = base / "node"
    folder.mkdir()
    (folder / "package.json").write_text('{"private": true}')
    command = [servers.need("npm"), "install", "--no-audit", "--no-fund", "--ignore-scripts"]
    command += ["--no-package-lock"]
    command += [f"{name}@{version}" for name, version in clients.NODE_PACKAGES.items()]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    if done.returncode:
        servers.skip(f"npm did not install Node's clients: {done.stderr}")
    return folder
