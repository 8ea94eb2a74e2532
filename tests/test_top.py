"""``memtunnel top``: the picture, where it comes from, and what a terminal goes through with it."""

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import servers
from rich.cells import cell_len
from rich.console import Console

from memtunnel import top
from memtunnel.addresses import endpoint
from memtunnel.net.blocking import Trouble
from memtunnel.picture import Picture, age, rate, size, span, spark
from memtunnel.wire.sasl import Secret

NOW = 1764180000.0
DAY = 86400.0
TOKEN = "token-canary-4711"


def history(first: int = 1, rows: int = 3, **columns: list[Any]) -> dict[str, Any]:
    one = {
        "time": NOW, "requests": 1234.0, "degraded": 0.0, "hit_rate": 0.932, "p50": 0.00042,
        "p99": 0.0042, "queue_p99": 0.000012, "wire_p50": 0.0003, "wire_p99": 0.0039,
        "clients": 12, "sent_bytes": 2048.0, "received_bytes": 3e6,
    }  # fmt: skip
    return {
        "interval": 2.0,
        "first": first,
        **{name: [one[name]] * rows for name in one},
        **columns,
    }


def connection(**changes: Any) -> dict[str, Any]:
    return {"worker": "", "number": 7, "state": "warm", "age": 61.9, "in_flight": 2,
            "round_trip": 0.00042, **changes}  # fmt: skip


def server(name: str = "mc1.example.com", **changes: Any) -> dict[str, Any]:
    return {
        "name": name, "address": "mc1.example.com:11219", "up": True, "refusing": False,
        "in_flight": 3, "queued": 0, "tombstones": 0, "queue_oldest": 0.0,
        "connections_target": 2, "requests": 123456, "verify": "full",
        "tls": "TLSv1.3 TLS_AES_256_GCM_SHA384", "certificate_not_after": NOW + 87.5 * DAY,
        "last_lost": "", "last_lost_age": None,
        "connections": [connection(), connection(number=8, state="login", round_trip=None)],
        **changes,
    }  # fmt: skip


def down(name: str = "mc2.example.com", **changes: Any) -> dict[str, Any]:
    gone = {"up": False, "refusing": True, "connections": [], "certificate_not_after": None,
            "queued": 4, "queue_oldest": 0.08, "last_lost": "certificate_chain",
            "last_lost_age": 62.1}  # fmt: skip
    return server(name, **{**gone, **changes})


def request(**changes: Any) -> dict[str, Any]:
    return {
        "time": NOW - 5, "worker": "", "command": "get", "status": "timeout", "why": "failed",
        "server": "mc1.example.com", "connection": 7, "total": 0.4003, "queue": 0.0002,
        "wire": None, "bytes": 1034, "key": "9f31c2aa", **changes,
    }  # fmt: skip


def document(**changes: Any) -> dict[str, Any]:
    return {
        "version": "0.1.0", "now": NOW, "uptime": 4321.5, "pid": 123, "ready": True,
        "draining": False, "workers": 1, "silent": [], "reloaded": True, "slow_ms": 50.0,
        "slow_sample": None, "slow_untold": 0, "servers": [server()], "history": history(),
        "slow": [request()],
        "clients": {
            "connected": 12, "max": 10000, "paused": 0, "buffered_bytes": 0,
            "listeners": [{
                "address": "127.0.0.1:11211", "connected": 12, "opened": 991, "rejected": 0,
                "protocol_errors": 0, "received_bytes": 12345, "sent_bytes": 5 << 20,
            }],
        }, **changes,
    }  # fmt: skip


MANY = [server(f"mc{number}.example.com") for number in range(30)]
MANY[17] = down("mc17.example.com")
EMPTY = {"servers": [down(last_lost="", last_lost_age=None)], "history": history(rows=0),
         "slow": [], "ready": False}  # fmt: skip
HOSTILE = "[bold]x[/] \x1b[2J\x1b]0;title\x07\r\n\x9b31m \u202e \ud800 [/nothing] :smile:"


def draw(width: int = 80, height: int | None = None, shown: Any = None, *more: Any) -> list[str]:
    """The lines of a picture, without colours."""
    told = io.StringIO()
    console = Console(file=told, width=width, force_terminal=True, color_system=None)
    console.print(Picture(shown or document(), height, *more))
    return [line.rstrip() for line in told.getvalue().split("\n")][:-1]


def line_of(lines: list[str], beginning: str) -> str:
    """The only line that begins so, with single spaces."""
    (line,) = [line for line in lines if line.startswith(beginning)]
    return " ".join(line.split())


# --- the picture


def test_it_shows_what_is_going_on() -> None:
    lines = draw()
    for told in (
        "memtunnel 0.1.0 ready up 72 min pid 123",
        "requests/s 1,234 ███ 1,234 hit rate 93.2%",
        "p99 4.20 ms ███ 4.20 ms p50 420 µs",
        "queue p99 12 µs ███ 12 µs to servers 2.00 KiB/s",
        "wire p99 3.90 ms ███ 3.90 ms from servers 2.86 MiB/s",
        "degraded/s 0 ▁▁▁ 0 clients 12 of 10,000",
        "mc1.example.com up 1/2 3 420 µs 0 - 87 d -",
        "127.0.0.1:11211 12 991 0 0 12.1 KiB 5.00 MiB",
    ):
        assert line_of(lines, told.split()[0]) == told
    assert line_of(lines, "  #7") == "#7 61 s warm 2 420 µs"
    assert line_of(lines, "  #8") == "#8 61 s login 2 -"
    told = "5 s failed get timeout 400 ms 200 µs - mc1.example.com"
    assert line_of(lines, "   5 s") == told


def test_what_is_wrong_stands_out_in_words() -> None:
    clients = {**document()["clients"], "paused": 1, "buffered_bytes": 5 << 20}
    lines = draw(shown=document(ready=False, reloaded=False, workers=4, clients=clients))
    assert "  NOT READY  " in lines[0]
    assert "4 workers" in lines[0]
    assert lines[1] == (
        "the settings read last are not in use, 1 client not read from, 5.00 MiB held fo…"
    )
    silent = draw(shown=document(ready=False, workers=2, silent=["2"]))
    assert silent[1] == "worker 2 does not answer"
    assert "draining" in draw(shown=document(draining=True))[0]


def test_an_old_picture_says_how_old_it_is() -> None:
    lines = draw(100, None, None, "there: refused", 12.4)
    assert lines[1] == "this is 12 s old: there: refused"
    assert "requests/s" in "".join(lines)


def test_at_the_start_there_is_little_to_show() -> None:
    lines = draw(shown=document(**EMPTY))
    assert "  NOT READY  " in lines[0]
    assert line_of(lines, "requests/s") == "requests/s - - hit rate -"
    assert line_of(lines, "mc2") == "mc2.example.com down 3 - 4 80.0 ms - -"
    assert lines[-1] == "no request has failed, or taken 50 ms, lately"
    assert draw(shown=document(slow=[], slow_ms=None))[-1] == "no request has failed lately"


@pytest.mark.parametrize(
    ("width", "told"), [(80, "62 s: certi"), (140, "62 s ago: certificate_chain")]
)
def test_a_server_that_is_down_says_why(width: int, told: str) -> None:
    lines = draw(width, shown=document(servers=[server(), down()]))
    (line,) = [line for line in lines if line.startswith("mc2")]
    assert " down " in line
    assert told in line
    for state, word in (({"up": False}, "connecting"), ({"refusing": True}, "not used")):
        lines = draw(shown=document(servers=[server(**state)]))
        assert f"mc1.example.com {word} 3" in line_of(lines, "mc1")


def test_samples_are_neither_slow_nor_failed() -> None:
    slow = [request(why="sample", status="hit"), request(why="slow", status="miss", wire=0.06)]
    lines = draw(140, shown=document(slow=slow))
    assert "sample" not in "".join(lines)
    told = "5 s slow get miss 400 ms 200 µs 60.0 ms mc1.example.com 1.01 KiB #7 9f31c2aa"
    assert line_of(lines, "   5 s") == told


def test_connections_tell_their_worker() -> None:
    shown = document(
        servers=[server(connections=[connection(worker="2")])],
        slow=[request(worker="2"), request(connection=None, time=NOW - 9)],
    )
    lines = draw(140, shown=shown)
    assert line_of(lines, "  w2 #7").startswith("w2 #7 61 s warm")
    assert line_of(lines, "   5 s").endswith("1.01 KiB w2 #7 9f31c2aa")
    assert line_of(lines, "   9 s").endswith("1.01 KiB - 9f31c2aa")


@pytest.mark.parametrize(
    ("days", "words", "style"),
    [(87.5, "87 d", ""), (13, "13 d", "yellow"), (1.5, "36 h", "bold red"),
     (-1, "expired", "bold red")],
)  # fmt: skip
def test_certificates_run_out(days: float, words: str, style: str) -> None:
    text = Picture(document())._certificate(NOW + days * DAY)
    assert (text.plain, text.style) == (words, style)


@pytest.mark.parametrize("height", [24, 40])
def test_of_many_servers_those_in_trouble_are_shown_first(height: int) -> None:
    lines = draw(80, height, document(servers=MANY, slow=[request()] * 9))
    assert len(lines) == height
    first = next(number for number, line in enumerate(lines) if line.startswith("server "))
    assert lines[first + 1].startswith("mc17")
    left_out = 30 - sum(line.startswith("mc") for line in lines)
    assert line_of(lines, "and ") == f"and {left_out} more all up"
    assert lines[-1].startswith("   5 s failed")


def test_servers_that_are_not_shown_are_told_of() -> None:
    for servers_, told in ((MANY[:17] * 2, "more all up"), ([down()] * 30, "more 23 not up")):
        assert told in line_of(draw(80, 24, document(servers=servers_)), "and ")


def test_connections_are_left_out_before_servers() -> None:
    shown = document(servers=[server(f"mc{number}") for number in range(4)])
    assert any(line.startswith("  #7") for line in draw(80, 40, shown))
    lines = draw(80, 24, shown)
    assert sum(line.startswith("mc") for line in lines) == 4
    assert not any(line.startswith("  #7") for line in lines)


def test_listeners_have_an_end_too() -> None:
    one = document()["clients"]["listeners"]
    shown = document(clients={**document()["clients"], "listeners": one * 40})
    lines = draw(80, 24, shown)
    assert len(lines) == 24
    assert line_of(lines, "and ").endswith(" more")


@pytest.mark.parametrize("width", [80, 140])
@pytest.mark.parametrize("changes", [{}, EMPTY, {"servers": MANY}, {"slow": [request()] * 100}])
@pytest.mark.parametrize("height", [24, 50])
def test_it_fits(width: int, height: int, changes: dict[str, Any]) -> None:
    lines = draw(width, height, document(**changes))
    assert len(lines) <= height
    assert max(map(cell_len, lines)) <= width


def test_in_few_lines_servers_come_first() -> None:
    lines = draw(80, 15, document(servers=MANY[15:18], slow=[request()] * 9))
    assert sum(line.startswith("mc") for line in lines) == 3
    assert len(lines) == 15
    assert lines[-1].startswith("   5 s failed")


@pytest.mark.parametrize(("width", "height"), [(1, 1), (20, 5), (61, 12), (300, 100)])
def test_no_size_is_too_odd(width: int, height: int) -> None:
    lines = draw(width, height, document(servers=MANY))
    assert max(map(cell_len, lines)) <= width


@pytest.mark.parametrize("width", [80, 300])
def test_text_is_shown_as_text(width: int) -> None:
    listener = {**document()["clients"]["listeners"][0], "address": HOSTILE}
    shown = document(
        version=HOSTILE,
        servers=[server(HOSTILE, address=HOSTILE, last_lost=HOSTILE, last_lost_age=1.0,
                        connections=[connection(worker=HOSTILE, state=HOSTILE)])],
        clients={**document()["clients"], "listeners": [listener]},
        slow=[request(worker=HOSTILE, command=HOSTILE, status=HOSTILE, why=HOSTILE, server=HOSTILE,
                      key=HOSTILE)],
    )  # fmt: skip
    lines = draw(width, None, shown, HOSTILE)
    assert lines[0].startswith(
        r"memtunnel [bold]x[/] \x1b[2J\x1b]0;title\x07\r\n\x9b31m \u202e \ud800"
    )
    assert not [one for line in lines for one in line if not one.isprintable()]
    assert len(lines) == len(draw(width, None, None, "trouble")) - 1


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("0 µs", span(0.0)), ("420 µs", span(0.00042)), ("1.00 ms", span(0.0009999)),
        ("42.5 ms", span(0.0425)), ("400 ms", span(0.4)), ("1.00 s", span(0.9999)),
        ("12.0 s", span(12)), ("-", span(None)), ("0 s", age(0)), ("119 s", age(119.9)),
        ("2 min", age(120)), ("119 min", age(7199)), ("2 h", age(7200)),
        ("87 d", age(87.5 * DAY)),
        ("0 B", size(0)), ("1023 B", size(1023)), ("1.00 KiB", size(1024)),
        ("0.98 MiB", size(1000 << 10)),
        ("5.00 GiB", size(5 << 30)), ("2.00 TiB", size(2 << 40)), ("-", size(None)),
        ("0", rate(0)), ("0.50", rate(0.5)), ("12.5", rate(12.5)), ("1,234", rate(1234.4)),
        ("-", rate(None)),
    ],
)  # fmt: skip
def test_numbers_are_for_people(words: str, shown: str) -> None:
    assert shown == words


def test_bars_go_from_nothing_to_the_highest() -> None:
    assert spark([0.0, 1.0, 3.5, None, 7.0], 1, 8) == "   ▁▂▅ █"
    assert spark([], 1, 4) == "    "
    assert spark([0.0, 0.0], 1, 2) == "▁▁"


def test_bars_of_several_rows_show_the_peak_and_stand_still() -> None:
    values = [0.0] * 300
    values[123] = 5.0
    line = spark(values, 1, 24)
    assert len(line) == 24
    assert line.count("█") == 1
    # One row on; a bar is of 14 rows, and none is of other rows than before.
    assert spark([*values[1:], 0.0], 2, 24).index("█") == line.index("█")


# --- asking


class Site:
    """An HTTP server that answers each request by calling `answer` with its path."""

    def __init__(self, answer: Callable[[str], Any], port: int = 0) -> None:
        self.asked: list[str] = []
        self.tokens: list[str | None] = []
        self.hosts: list[str | None] = []
        site = self

        class Visit(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append(self.path)
                site.tokens.append(self.headers["Authorization"])
                site.hosts.append(self.headers["Host"])
                status, body = 200, answer(self.path)
                if isinstance(body, tuple):
                    status, body = body
                if not isinstance(body, bytes):
                    body = json.dumps(body).encode()
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Visit)
        self.port: int = self._server.server_address[1]
        self.where = f"127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def tunnel(self, token: str | None = None) -> top.Tunnel:
        where = top.place(endpoint(self.where).description)
        return top.Tunnel(where, None if token is None else Secret(token))

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join(servers.PATIENCE)
        self._server.server_close()


@pytest.fixture
def make_site(started: list[Any]) -> Callable[..., Site]:
    def make(*answers: Any) -> Site:
        """One that gives these answers, and then the last one again and again."""
        left = list(answers)
        site = Site(lambda _: left.pop(0) if len(left) > 1 else left[0])
        started.append(site)
        return site

    return make


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("MEMTUNNEL_METRICS"):
            monkeypatch.delenv(name)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """The only line of what was said of a problem; nothing else was printed."""
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert told.err.startswith("memtunnel top: ")
    return told.err.removeprefix("memtunnel top: ").strip()


@pytest.mark.parametrize(
    ("metrics", "where", "host"),
    [
        ("127.0.0.1:9152", ("127.0.0.1", 9152), "127.0.0.1:9152"),
        (":9152", ("127.0.0.1", 9152), "127.0.0.1:9152"),
        ("0.0.0.0:9152", ("127.0.0.1", 9152), "127.0.0.1:9152"),
        ("localhost:9152", ("127.0.0.1", 9152), "127.0.0.1:9152"),
        ("10.0.0.5:9152", ("10.0.0.5", 9152), "10.0.0.5:9152"),
        ("[::1]:9152", ("::1", 9152), "[::1]:9152"),
        ("[::]:9152", ("::1", 9152), "[::1]:9152"),
        ("tcp:9152", ("127.0.0.1", 9152), "127.0.0.1:9152"),
        ("tcp:9152:backlog=5:interface=localhost", ("127.0.0.1", 9152), "127.0.0.1:9152"),
        (r"tcp:9152:interface=\:\:1", ("::1", 9152), "[::1]:9152"),
        ("unix:/run/a", "/run/a", "localhost"),
        (r"unix:/run/a\:b\\c:mode=600:lockfile=0", r"/run/a:b\c", "localhost"),
    ],
)
def test_an_endpoint_to_listen_on_is_one_to_ask(metrics: str, where: Any, host: str) -> None:
    place = top.place(endpoint(metrics).description)
    assert (place.where, place.host) == (where, host)
    families = {str: socket.AF_UNIX}
    six = socket.AF_INET6 if "::1" in where else socket.AF_INET
    assert place.family == families.get(type(where), six)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--metrics=systemd:domain=INET:index=0"], "--metrics systemd:domain=INET"),
        (["--metrics=127.0.0.1:0"], "--metrics tcp:0:interface=127.0.0.1 does not say where"),
        (["--metrics=http://x/"], "--metrics: expected ADDRESS:PORT, unix:/path, or a tcp:, unix:"),
        (["--interval=0"], "--interval: expected seconds, above 0 and at most 3600"),
        (["--often"], "unrecognized arguments: --often"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_a_line(
    arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert top.main(arguments) == 1
    assert said(capsys).startswith(problem)


def test_without_rich_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert top.main(["--once"]) == 1
    assert said(capsys) == "it needs rich: pip install rich"


def test_the_admin_port_is_set_as_for_the_tunnel(
    make_site: Callable[..., Site],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    by_variable, by_flag = make_site(document(version="1")), make_site(document(version="2"))
    monkeypatch.setenv("MEMTUNNEL_METRICS", by_variable.where)
    assert top.main(["--once"]) == 0
    assert capsys.readouterr().out.startswith("memtunnel 1  ready")
    assert top.main(["--once", f"--metrics={by_flag.where}"]) == 0
    assert capsys.readouterr().out.startswith("memtunnel 2  ready")
    assert by_flag.hosts == [by_flag.where]


def test_the_token_comes_from_the_environment(
    make_site: Callable[..., Site],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    site = make_site(document(), document(), (401, b"the token is missing or wrong\n"))
    assert top.main(["--once", "--metrics", site.where]) == 0
    monkeypatch.setenv("MEMTUNNEL_METRICS_TOKEN", TOKEN)
    assert top.main(["--once", "--metrics", site.where]) == 0
    assert site.tokens == [None, f"Bearer {TOKEN}"]
    capsys.readouterr()
    assert top.main(["--once", "--metrics", site.where]) == 1
    problem = said(capsys)
    assert (
        problem
        == f"{site.where}: the token is missing or wrong: MEMTUNNEL_METRICS_TOKEN has to hold it"
    )
    monkeypatch.setenv("MEMTUNNEL_METRICS_TOKEN", f"{TOKEN}\r\nX: y")
    assert top.main(["--once", "--metrics", site.where]) == 1
    problem = said(capsys)
    assert problem.startswith("MEMTUNNEL_METRICS_TOKEN: expected printable")
    assert TOKEN not in problem
    assert len(site.asked) == 3


def numbered(first: int, rows: int, **changes: Any) -> dict[str, Any]:
    """A document with rows whose requests are their numbers."""
    requests = [float(number) for number in range(first, first + rows)]
    return document(history=history(first, rows, requests=requests), **changes)


def test_only_what_is_new_of_the_history_is_asked_for(make_site: Callable[..., Site]) -> None:
    site = make_site(numbered(1, 3), numbered(4, 2), numbered(6, 0), numbered(6, 297))
    tunnel = site.tunnel()
    assert tunnel.ask()["history"]["requests"] == [1, 2, 3]
    whole = tunnel.ask()["history"]
    assert whole["requests"] == [1, 2, 3, 4, 5]
    assert (whole["first"], len(whole["p99"])) == (1, 5)
    assert tunnel.ask()["history"]["requests"] == [1, 2, 3, 4, 5]
    whole = tunnel.ask()["history"]
    assert whole["requests"] == list(range(3, 303))
    assert whole["first"] == 3
    assert site.asked == [f"/status?after={number}" for number in (0, 3, 5, 5)]


def test_rows_that_do_not_follow_take_the_place_of_all(make_site: Callable[..., Site]) -> None:
    tunnel = make_site(numbered(1, 3), numbered(10, 2)).tunnel()
    tunnel.ask()
    assert tunnel.ask()["history"]["requests"] == [10, 11]


@pytest.mark.parametrize("changes", [{"pid": 124, "uptime": 9999.0}, {"uptime": 12.0}])
def test_another_process_has_a_history_of_its_own(
    make_site: Callable[..., Site], changes: dict[str, Any]
) -> None:
    site = make_site(numbered(1, 3), numbered(4, 1, **changes), numbered(1, 4, **changes))
    tunnel = site.tunnel()
    tunnel.ask()
    assert tunnel.ask()["history"]["requests"] == [1, 2, 3, 4]
    assert site.asked == [f"/status?after={number}" for number in (0, 3, 0)]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"<html>", b"[]", b"{}", b"\xff", b"[" * 100_000, document(ready=None),
        document(uptime="long"), document(uptime=True), document(pid=1.5),
        document(servers={}), document(servers=[server(connections=[{}])]),
        document(slow=[request(wire="fast")]), document(history=history(p99=[0.1])),
        document(history={}), document(uptime=10**400),
        json.dumps(document()).replace("4321.5", "1e999").encode(),
        json.dumps(document(uptime=float("nan"))).encode(),
    ],
)  # fmt: skip
def test_nonsense_is_told(
    make_site: Callable[..., Site], body: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    site = make_site(body)
    assert top.main(["--metrics", site.where]) == 1
    assert said(capsys).startswith(f"{site.where}: what answers there is no tunnel")


def test_a_refusal_is_told_in_the_words_it_came_in(
    make_site: Callable[..., Site], capsys: pytest.CaptureFixture[str]
) -> None:
    site = make_site((403, b"not \x1b[2Jhere\n"))
    assert top.main(["--metrics", site.where]) == 1
    assert said(capsys) == rf"{site.where}: answered 403: not \x1b[2Jhere"


def test_an_answer_without_end_is_not_read(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(top, "LIMIT", 100)
    with pytest.raises(Trouble, match="no tunnel"):
        make_site(document()).tunnel().ask()


@contextlib.contextmanager
def listener(speak: Callable[[socket.socket], None]) -> Iterator[top.Place]:
    """Something that accepts one connection, and speaks no HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with contextlib.suppress(OSError), listening.accept()[0] as connected:
                connected.settimeout(servers.PATIENCE)
                speak(connected)

        thread = threading.Thread(target=serve)
        thread.start()
        yield top.place(f"tcp:{listening.getsockname()[1]}")
        thread.join(servers.PATIENCE)
        assert not thread.is_alive()


def trickle(connected: socket.socket) -> None:
    """A header, byte by byte, until nobody listens or for some seconds."""
    connected.sendall(b"HTTP/1.1 200 OK\r\nA: ")
    connected.settimeout(0.02)
    for _ in range(100):
        with contextlib.suppress(TimeoutError):
            if not connected.recv(1 << 16):
                return
        connected.sendall(b"a")


def silent(connected: socket.socket) -> None:
    while connected.recv(1 << 16):
        pass


@pytest.mark.parametrize("speak", [trickle, silent])
def test_an_answer_has_to_come_in_time(speak: Callable[[socket.socket], None]) -> None:
    with listener(speak) as place, pytest.raises(Trouble, match=r"no answer within 0\.2 s"):
        top.Tunnel(place, None, timeout=0.2).ask()


@pytest.mark.parametrize(
    "answer", [b"", b"SSH-2.0\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"]
)
def test_what_is_no_http_is_told(answer: bytes) -> None:
    def speak(connected: socket.socket) -> None:
        connected.recv(1 << 16)
        connected.sendall(answer)

    with listener(speak) as place, pytest.raises(Trouble, match="no HTTP server, or was cut off"):
        top.Tunnel(place, None).ask()


@pytest.mark.parametrize("unix", [False, True])
def test_nobody_there_is_told(
    unix: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = f"unix:{tmp_path}/none" if unix else f"127.0.0.1:{servers.free_port()}"
    assert top.main(["--metrics", where]) == 1
    words = "No such file or directory" if unix else "refused: nothing listens there"
    assert said(capsys) == f"{where}: {words}"


# --- a running tunnel


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "memtunnel", "top", *arguments]


def test_it_shows_a_running_tunnel(
    make_memcached: Callable[..., servers.Memcached],
    make_tunnel: Callable[..., servers.Tunnel],
    connect: Callable[..., servers.Wire],
) -> None:
    tunnel = make_tunnel(make_memcached())
    connect(tunnel).get(b"key")
    done = subprocess.run(
        command("--metrics", f"127.0.0.1:{tunnel.admin}"),  # standard output is no terminal
        capture_output=True,
        text=True,
        timeout=servers.PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert "  ready  " in lines[0]
    assert line_of(lines, "server0").startswith("server0 up 2/2")
    assert line_of(lines, f"127.0.0.1:{tunnel.port}").startswith(f"127.0.0.1:{tunnel.port} 1 ")
    assert "\x1b" not in done.stdout


def test_it_asks_over_a_unix_socket(
    tmp_path: Path, started: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    where = f"unix:{tmp_path}/admin"
    tunnel = servers.Tunnel("--demo", f"--metrics={where}", f"--listen=unix:{tmp_path}/clients")
    tunnel.command = [
        part
        for part in tunnel.command
        if str(tunnel.port) not in part and str(tunnel.admin) not in part
    ]
    started.append(tunnel)
    tunnel.process = subprocess.Popen(tunnel.command, env=tunnel.environ, stdout=subprocess.DEVNULL)

    def ready() -> bool:
        return (
            top.main(["--once", "--metrics", where]) == 0 and "  ready  " in capsys.readouterr().out
        )

    servers.wait_until(ready, "it is ready")


# --- live


class Terminal:
    """A terminal in which it runs."""

    def __init__(self, *arguments: str) -> None:
        self._ours, self._its = pty.openpty()
        self.resize(80, 24)
        self.settings = termios.tcgetattr(self._its)
        environ = {
            name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")
        }
        self.process = subprocess.Popen(
            command(*arguments),
            stdin=self._its,
            stdout=self._its,
            stderr=self._its,
            env={**environ, "TERM": "xterm-256color"},
            start_new_session=True,
        )
        self.shown = ""

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self._its, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def wait_for(self, pattern: str) -> str:
        """Read until this is shown, after all that was waited for before; returns all of it."""
        until = time.monotonic() + servers.PATIENCE
        while not (found := re.search(pattern, self.shown)):
            ready, _, _ = select.select([self._ours], [], [], max(until - time.monotonic(), 0))
            if not ready or time.monotonic() > until:
                pytest.fail(f"not shown: {pattern}, but {self.shown[-4000:]!r}")
            self.shown += os.read(self._ours, 1 << 16).decode(errors="replace")
        shown, self.shown = self.shown[: found.end()], self.shown[found.end() :]
        return shown

    def press(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def ended(self) -> int:
        """Its exit status; the terminal is as it was before."""
        status = self.process.wait(servers.PATIENCE)
        assert termios.tcgetattr(self._its) == self.settings
        self.wait_for(r"\x1b\[\?1049l")  # the other screen again
        assert "\x1b[?25l" not in self.shown  # nor is the cursor hidden once more
        return status

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(servers.PATIENCE)
        os.close(self._ours)
        os.close(self._its)


@pytest.fixture
def make_terminal(started: list[Any]) -> Callable[..., Terminal]:
    def make(*arguments: str) -> Terminal:
        terminal = Terminal(*arguments)
        started.append(terminal)
        return terminal

    return make


def test_q_ends_it(make_site: Callable[..., Site], make_terminal: Callable[..., Terminal]) -> None:
    terminal = make_terminal("--metrics", make_site(document()).where)
    terminal.wait_for(r"\x1b\[\?1049h")
    terminal.wait_for("mc1.example.com")
    now = termios.tcgetattr(terminal._its)
    assert now[3] & termios.ICANON == 0
    assert now[6][termios.VSUSP] == b"\0"
    terminal.press(b"x")
    terminal.wait_for("mc1.example.com")
    terminal.press(b"q")
    assert terminal.ended() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it(
    make_site: Callable[..., Site], make_terminal: Callable[..., Terminal], number: int
) -> None:
    terminal = make_terminal("--metrics", make_site(document()).where)
    terminal.wait_for("mc1.example.com")
    terminal.process.send_signal(number)
    assert terminal.ended() == 0


def test_the_picture_stays_while_the_tunnel_is_away(
    started: list[Any], make_terminal: Callable[..., Terminal]
) -> None:
    site = Site(lambda _: document())
    started.append(site)
    terminal = make_terminal("--interval=0.05", "--metrics", site.where)
    terminal.wait_for("mc1.example.com")
    site.stop()
    terminal.wait_for(f"this is 1 s old: {site.where}: refused: nothing listens there")
    terminal.wait_for("mc1.example.com")
    started.append(Site(lambda _: document(version="0.2.0"), site.port))
    terminal.wait_for(r"memtunnel 0\.2\.0")
    assert " old: " not in terminal.wait_for("listener")
    terminal.press(b"q")
    assert terminal.ended() == 0


def test_it_follows_the_size_of_the_terminal(
    make_site: Callable[..., Site], make_terminal: Callable[..., Terminal]
) -> None:
    terminal = make_terminal("--interval=3600", "--metrics", make_site(document()).where)
    terminal.wait_for("trip")
    terminal.resize(140, 50)
    terminal.wait_for("round trip")
    terminal.press(b"q")
    assert terminal.ended() == 0


def test_it_keeps_to_the_height_of_the_terminal(
    make_site: Callable[..., Site], make_terminal: Callable[..., Terminal]
) -> None:
    terminal = make_terminal("--metrics", make_site(document(servers=MANY)).where)
    terminal.wait_for("mc17.example.com")
    terminal.wait_for("and [0-9]+ more")
    terminal.wait_for("listener")
    terminal.wait_for("failed")
    terminal.press(b"q")
    assert terminal.ended() == 0


def test_once_it_is_not_live(
    make_site: Callable[..., Site], make_terminal: Callable[..., Terminal]
) -> None:
    terminal = make_terminal("--once", "--metrics", make_site(document()).where)
    shown = terminal.wait_for("mc1.example.com")
    assert terminal.process.wait(servers.PATIENCE) == 0
    assert "\x1b[?" not in shown + terminal.shown


def test_it_is_not_live_where_the_tunnel_was_never_there(
    make_terminal: Callable[..., Terminal],
) -> None:
    terminal = make_terminal("--metrics", f"127.0.0.1:{servers.free_port()}")
    terminal.wait_for("memtunnel top: .*: refused: nothing listens there")
    assert terminal.process.wait(servers.PATIENCE) == 1
