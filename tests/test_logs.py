"""The log: text for people, or an object a line, where twistd's own options say that it goes."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import servers
from twisted.logger import Logger, LogPublisher

from memtunnel.ops.logs import json_observer


class Written:
    """What a logger's events become."""

    def __init__(self) -> None:
        self._file = io.StringIO()
        self._publisher = LogPublisher(json_observer(self._file))

    def logger(self, namespace: str = "memtunnel") -> Logger:
        return Logger(namespace=namespace, observer=self._publisher)

    @property
    def lines(self) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self._file.getvalue().splitlines()]
        for line in lines:
            assert len(line.pop("time")) == len("2026-11-26T18:07:48.123Z")
        return lines


def test_a_line_has_its_parts_and_the_words() -> None:
    written = Written()
    written.logger().warn("{server}: {_what}", server="mc1", event="lost", _what="connection lost")
    assert written.lines == [
        {"level": "warn", "message": "mc1: connection lost", "server": "mc1", "event": "lost"}
    ]


def test_what_is_not_json_is_told_in_words_and_stays_one_line() -> None:
    written = Written()
    written.logger().info("{path}\n{{}}", path=Path("/a\nb"))
    assert written.lines == [{"level": "info", "message": "/a\nb\n{}", "path": "/a\nb"}]


def test_what_all_lines_have_is_not_taken_for_a_part() -> None:
    written = Written()
    written.logger().info("{time} {message}", time="x", message="y")
    assert written.lines == [{"level": "info", "message": "x y"}]


def test_a_line_is_ascii_whatever_is_in_it() -> None:
    file = io.StringIO()
    publisher = LogPublisher(json_observer(file))
    Logger(namespace="memtunnel", observer=publisher).info("{path}", path="\udcff\u2028")
    assert file.getvalue().isascii()
    assert len(file.getvalue().splitlines()) == 1


def test_others_are_told_by_their_origin_without_their_parts() -> None:
    written = Written()
    written.logger("twisted.web").info("{secret}", secret="x")
    written.logger("twisted.web").info("")
    assert written.lines == [{"level": "info", "message": "x", "origin": "twisted.web"}]


def test_a_traceback_is_part_of_the_message() -> None:
    written = Written()
    try:
        raise ValueError("on purpose")
    except ValueError:
        written.logger().failure("it broke")
    ((_, level), (_, message)) = written.lines[0].items()
    assert level == "critical"
    assert message.startswith("it broke\nTraceback")
    assert "on purpose" in message


def start(folder: Path, *options: str, twistd: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    """The tunnel on the embedded server, as twistd runs it."""
    command = [str(Path(sys.executable).with_name("twistd")), "--nodaemon", "--pidfile=", *twistd]
    ports = [f"--listen=127.0.0.1:{servers.free_port()}", "--metrics=tcp:0:interface=127.0.0.1"]
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    return subprocess.Popen(
        [*command, "memtunnel", "--demo", *ports, *options],
        cwd=folder,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.mark.parametrize("to", ["standard output", "a file"])
def test_the_whole_log_of_a_tunnel_is_json(tmp_path: Path, to: str) -> None:
    log = tmp_path / "tunnel.log"
    twistd = ("--logfile", str(log)) if to == "a file" else ()
    process = start(tmp_path, "--log-format=json", "--workers=2", twistd=twistd)
    assert process.stdout is not None
    told = b""
    try:
        if twistd:
            servers.wait_until(lambda: log.exists() and b"started" in log.read_bytes(), "it starts")
        while not twistd and b'"started"' not in told:
            told += (line := process.stdout.readline())
            assert line, "it has ended"
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert twistd == () or rest == b"", "not even with --demo is there anything beside the log"
    written = log.read_bytes() if twistd else told + rest
    lines = [json.loads(line) for line in written.splitlines()]
    assert {line["level"] for line in lines} <= {"info", "warn"}
    drains = [line for line in lines if line.get("event") == "draining"]
    assert len(drains) <= 2
    assert "Server Shut Down." in [line["message"] for line in lines]


@pytest.mark.parametrize(
    ("twistd", "words"),
    [
        (("--syslog",), "memtunnel: --log-format json: syslog takes text only\n"),
        (("--logfile=/no/such/folder/log",), "/no/such/folder"),
    ],
)
def test_where_it_cannot_be_written_is_told(
    tmp_path: Path, twistd: tuple[str, ...], words: str
) -> None:
    process = start(tmp_path, "--log-format=json", twistd=twistd)
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 1
    assert words in said.decode()
