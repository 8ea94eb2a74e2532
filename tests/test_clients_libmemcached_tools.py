"""libmemcached's command line tools, in both protocols."""

import subprocess
from pathlib import Path

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


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(("--binary",), id="binary"),
        pytest.param(("--binary", *LOGIN), id="binary-login"),
        pytest.param((), id="text"),
    ],
)
def test_copy_show_look_for_touch_and_remove_a_file(
    served: servers.Tunnel, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    tools = Tools(served, *flags)
    file = tmp_path / "greeting"
    file.write_text("hello\n" * 1000)
    assert tools.run("memccat", "greeting").returncode != 0
    assert tools.run("memccp", str(file)).returncode == 0
    shown = tools.run("memccat", "greeting")
    assert (shown.returncode, shown.stdout.strip()) == (0, file.read_text().strip())
    assert tools.run("memcexist", "greeting").returncode == 0
    assert tools.run("memctouch", "--expire=100", "greeting").returncode == 0
    assert tools.run("memcrm", "greeting").returncode == 0
    assert tools.run("memcexist", "greeting").returncode != 0
    statistics = tools.run("memcstat")
    assert statistics.returncode == 0
    assert "curr_items" in statistics.stdout
    assert tools.run("memccp", str(file)).returncode == 0
    assert tools.run("memcflush").returncode == 0
    assert tools.run("memccat", "greeting").returncode != 0
    assert served.metric("memtunnel_client_protocol_errors_total") == 0


@pytest.mark.parametrize(
    "flags", [pytest.param(LOGIN, id="binary-login"), pytest.param((), id="text")]
)
def test_memcping_is_answered(served: servers.Tunnel, flags: tuple[str, ...]) -> None:
    # It has no switch for the binary protocol; with a login it speaks it.
    assert Tools(served, *flags).run("memcping").returncode == 0
    assert served.metric("memtunnel_commands_total", command="version") >= 1
