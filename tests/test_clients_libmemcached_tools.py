"""libmemcached's command line tools, in the binary protocol."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import servers

LOGIN = (f"--username={servers.USERNAME}", f"--password={servers.PASSWORD}")


class Tools:
    """Runs them against a tunnel."""

    def __init__(self, tunnel: servers.Tunnel, *flags: str) -> None:
        self._flags = (f"--servers=127.0.0.1:{tunnel.port}", *flags)

    def run(self, tool: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [servers.need(tool), *self._flags, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize("login", [(), LOGIN], ids=["open", "login"])
def test_copy_show_look_for_and_remove_a_file(
    make_memcached: Callable[..., Any],
    make_tunnel: Callable[..., Any],
    tmp_path: Path,
    login: tuple[str, ...],
) -> None:
    tunnel = make_tunnel(make_memcached())
    tools = Tools(tunnel, "--binary", *login)
    file = tmp_path / "greeting"
    file.write_text("hello\n" * 1000)
    assert tools.run("memccat", "greeting").returncode != 0
    assert tools.run("memccp", str(file)).returncode == 0
    shown = tools.run("memccat", "greeting")
    assert (shown.returncode, shown.stdout.strip()) == (0, file.read_text().strip())
    assert tools.run("memcexist", "greeting").returncode == 0
    assert tools.run("memcrm", "greeting").returncode == 0
    assert tools.run("memcexist", "greeting").returncode != 0
    statistics = tools.run("memcstat")
    assert statistics.returncode == 0
    assert "curr_items" in statistics.stdout
    assert tunnel.metric("memtunnel_client_protocol_errors_total") == 0
    assert tunnel.metric("memtunnel_degraded_replies_total") == 0


def test_memcping_is_answered(
    make_memcached: Callable[..., Any], make_tunnel: Callable[..., Any]
) -> None:
    # It has no switch for the binary protocol; with a login it speaks it.
    tunnel = make_tunnel(make_memcached())
    assert Tools(tunnel, *LOGIN).run("memcping").returncode == 0
    assert tunnel.metric("memtunnel_commands_total", command="version") >= 1
