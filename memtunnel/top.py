"""``memtunnel top``: the state of a running tunnel in a terminal, again and again.

It asks the admin port for ``/status`` and shows what comes. While it is live it goes on asking when
the tunnel is away, and says how old the picture is. Left to others: the picture (`picture`), for
which `rich` has to be installed.
"""

import argparse
import json
import os
import re
import select
import signal
import socket
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, IncompleteRead
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from memtunnel.addresses import host_port
from memtunnel.net.blocking import Deadline, Trouble
from memtunnel.net.tls import printable, words_of
from memtunnel.ops.history import KEPT
from memtunnel.settings import SETTINGS, time_in
from memtunnel.wire.sasl import Secret

if TYPE_CHECKING:
    from rich.console import Console

#: Seconds that an answer may take, from dialling to its last byte.
TIMEOUT: Final = 3.0
#: Bytes of the largest answer that is read.
LIMIT: Final = 16 << 20
#: Seconds after which the picture is drawn again in any case: the terminal may have another size.
REDRAW: Final = 1.0

_SETTINGS: Final = {setting.name: setting for setting in SETTINGS}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Trouble(message)


def _parser() -> _Parser:
    words = "Show the state of a running tunnel, until q is pressed."
    parser = _Parser(prog="memtunnel top", description=words, allow_abbrev=False)
    metrics = _SETTINGS["metrics"]
    parser.add_argument(
        metrics.flag,
        metavar=metrics.metavar,
        default=os.environ.get(metrics.variable) or metrics.default,
        help="the tunnel's admin port, as it is set there (default: %(default)s)",
    )
    parser.add_argument(
        "--interval",
        metavar="SECONDS",
        default="1",
        help="how often to ask (default: %(default)s)",
    )
    parser.add_argument(
        "--once",
        action="store_true",
        help="print one picture and end, as always where standard output is no terminal",
    )
    return parser


def main(arguments: list[str]) -> int:
    """The exit status: 1 where there is nothing to show from the start."""
    try:
        options = _parser().parse_args(arguments)
        metrics = _parsed(_SETTINGS["metrics"].flag, _SETTINGS["metrics"].parse, options.metrics)
        interval = _parsed("--interval", time_in("seconds", 3600), options.interval)
        token = os.environ.get(_SETTINGS["metrics-token"].variable) or None
        if token is not None:
            variable = _SETTINGS["metrics-token"].variable
            token = _parsed(variable, _SETTINGS["metrics-token"].parse, token)
        try:
            from rich.console import Console

            from memtunnel.picture import Picture
        except ModuleNotFoundError:
            raise Trouble("it needs rich: pip install rich") from None
        tunnel = Tunnel(place(metrics.description), token)
        document = tunnel.ask()
    except KeyboardInterrupt:
        return 1
    except Trouble as problem:
        print(f"memtunnel top: {printable(str(problem))}", file=sys.stderr)
        return 1
    # A terminal that has no such bars gets something else in their place.
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    console = Console()
    if options.once or not sys.stdout.isatty() or console.is_dumb_terminal:
        console.print(Picture(document))
    else:
        watch(tunnel, document, console, interval)
    return 0


def _parsed(name: str, parse: Callable[[str], Any], text: str) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise Trouble(f"{name}: expected {error}") from None


# Where to ask


class Place(NamedTuple):
    """Where something listens."""

    family: socket.AddressFamily
    where: Any
    """As `socket.connect` takes it."""
    words: str
    host: str
    """What an HTTP client calls it."""


def place(description: str) -> Place:
    """Where to reach what listens by one of Twisted's endpoint descriptions. Raises `Trouble`."""
    parts = re.findall(r"(?:^|:)((?:[^\\:]|\\.)*)", description)
    kind, first, *more = (re.sub(r"\\(.)", r"\1", part) for part in parts)
    if kind == "unix":
        return Place(socket.AF_UNIX, first, f"unix:{first}", "localhost")
    if kind != "tcp" or int(first) == 0:
        flag = _SETTINGS["metrics"].flag
        raise Trouble(f"{flag} {description} does not say where: give ADDRESS:PORT or unix:/path")
    options = dict(one.split("=", 1) for one in more)
    interface = options.get("interface", "").strip("[]") or "0.0.0.0"
    ip = ip_address("127.0.0.1" if interface.lower() == "localhost" else interface)
    if ip.is_unspecified:
        ip = ip_address("127.0.0.1" if ip.version == 4 else "::1")
    host = host_port(str(ip), int(first))
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    return Place(family, (str(ip), int(first)), host, host)


# Asking


class _Socket(socket.socket):
    """One that reads up to its deadline, however little comes at a time."""

    deadline: Deadline

    def recv_into(self, *arguments: Any) -> int:
        self.settimeout(self.deadline.left())
        return super().recv_into(*arguments)


class _Connection(HTTPConnection):
    def __init__(self, place: Place, deadline: Deadline) -> None:
        super().__init__("localhost")
        self._place = place
        self._deadline = deadline

    def connect(self) -> None:
        connected = self.sock = _Socket(self._place.family, socket.SOCK_STREAM)
        connected.deadline = self._deadline
        connected.settimeout(self._deadline.left())
        connected.connect(self._place.where)


class Tunnel:
    """The admin port of one. Only what is new of the history is asked for."""

    def __init__(self, place: Place, token: Secret | None, timeout: float = TIMEOUT) -> None:
        self._place = place
        self._headers = {"Host": place.host, "Accept": "application/json", "Connection": "close"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token.reveal().decode()}"
        self._timeout = timeout
        self._last: dict[str, Any] | None = None

    def ask(self) -> dict[str, Any]:
        """The document as it is now, with its whole history. Raises `Trouble`."""
        if self._last is None:
            document = self._get(0)
        else:
            known = self._last["history"]
            last = known["first"] + len(known["time"]) - 1
            document = self._get(last)
            one = document["pid"] == self._last["pid"]
            if not one or document["uptime"] < self._last["uptime"]:
                # It is another process, whose rows have their own numbers.
                document = self._get(0)
            elif document["history"]["first"] == last + 1:
                document["history"] = _joined(known, document["history"])
        self._last = document
        return document

    def _get(self, after: int) -> dict[str, Any]:
        deadline = Deadline(self._timeout)
        connection = _Connection(self._place, deadline)
        try:
            connection.request("GET", f"/status?after={after}", headers=self._headers)
            answer = connection.getresponse()
            body = answer.read(LIMIT)
            if answer.length:
                raise IncompleteRead(body)
        except TimeoutError:
            raise self._trouble(deadline.missed) from None
        except ConnectionRefusedError:
            raise self._trouble("refused: nothing listens there") from None
        except (HTTPException, ValueError):
            raise self._trouble("what answers there is no HTTP server, or was cut off") from None
        except OSError as error:
            raise self._trouble(words_of(error)) from None
        finally:
            connection.close()
        if answer.status == 401:
            variable = _SETTINGS["metrics-token"].variable
            raise self._trouble(f"the token is missing or wrong: {variable} has to hold it")
        if answer.status != 200:
            words = body[:200].decode(errors="replace").strip()
            raise self._trouble(f"answered {answer.status}: {words}")
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            raise self._trouble("what answers there is no tunnel") from None
        try:
            check(document)
        except ValueError as error:
            words = f"what answers there is no tunnel of this version: {error}"
            raise self._trouble(words) from None
        return document  # type: ignore[no-any-return]

    def _trouble(self, words: str) -> Trouble:
        return Trouble(f"{self._place.words}: {words}")


def _joined(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Both of these histories, as far as they are kept; the second follows the first."""
    whole = {name: (before[name] + after[name])[-KEPT:] for name in COLUMNS}
    gone = len(before["time"]) + len(after["time"]) - len(whole["time"])
    return {**after, **whole, "first": before["first"] + gone}


# What a document has

_number, _flag, _word = (float, int), (bool,), (str,)
_maybe = (float, int, type(None))
#: The columns of the history.
COLUMNS: Final = {
    "time": [_number], "requests": [_number], "degraded": [_number], "hit_rate": [_maybe],
    "p50": [_maybe], "p99": [_maybe], "queue_p99": [_maybe], "wire_p99": [_maybe],
    "sent_bytes": [_number], "received_bytes": [_number],
}  # fmt: skip
#: All of it that is shown: tuples hold the types of a value, a list that of its members.
SHAPE: Final = {
    "version": _word, "now": _number, "uptime": _number, "pid": (int,), "ready": _flag,
    "draining": _flag, "workers": (int,), "silent": [_word], "reloaded": _flag, "slow_ms": _maybe,
    "clients": {
        "connected": (int,), "max": (int,), "paused": (int,), "buffered_bytes": (int,),
        "listeners": [{
            "address": _word, "connected": (int,), "opened": (int,), "rejected": (int,),
            "protocol_errors": (int,), "received_bytes": (int,), "sent_bytes": (int,),
        }],
    },
    "servers": [{
        "name": _word, "address": _word, "up": _flag, "refusing": _flag, "in_flight": (int,),
        "queued": (int,), "queue_oldest": _number, "connections_target": (int,),
        "certificate_not_after": _maybe, "last_lost": _word, "last_lost_age": _maybe,
        "connections": [{
            "worker": _word, "number": (int,), "state": _word, "age": _number,
            "in_flight": (int,), "round_trip": _maybe,
        }],
    }],
    "history": {"interval": _number, "first": (int,), **COLUMNS},
    "slow": [{
        "time": _number, "worker": _word, "command": _word, "status": _word, "why": _word,
        "server": _word, "connection": (int, type(None)), "total": _number, "queue": _number,
        "wire": _maybe, "bytes": (int,), "key": _word,
    }],
}  # fmt: skip


def check(document: Any) -> None:
    """Raises `ValueError` for what does not have the shape, told by the place in it."""
    _check(document, SHAPE, "it")
    if len({len(document["history"][name]) for name in COLUMNS}) > 1:
        raise ValueError("history has columns of different lengths")


def _check(value: Any, shape: Any, where: str) -> None:
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            raise ValueError(f"{where} is no object")
        for name, inner in shape.items():
            if name not in value:
                raise ValueError(f"{where} has no {name}")
            _check(value[name], inner, name)
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise ValueError(f"{where} is no list")
        for each in value:
            _check(each, shape[0], where)
    elif type(value) not in shape:
        raise ValueError(f"{where} is not what it should be")
    elif isinstance(value, int | float) and not abs(value) < 1e18:
        raise ValueError(f"{where} is no number to be shown")


# Showing it, again and again


def watch(tunnel: Tunnel, document: dict[str, Any], console: "Console", interval: float) -> None:
    """Show the document, and what the tunnel says from then on, until q is pressed or Ctrl-C."""
    from rich.live import Live

    from memtunnel.picture import Picture

    # Ended in whatever way, the terminal is left as it was.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    trouble = ""
    answered = asked = time.monotonic()
    try:
        with (
            _pressed() as pressed,
            Live(
                console=console,
                screen=True,
                auto_refresh=False,
                redirect_stdout=False,
                redirect_stderr=False,
            ) as live,
        ):
            while True:
                old = time.monotonic() - answered
                live.update(Picture(document, console.height, trouble, old), refresh=True)
                wait = asked + interval - time.monotonic()
                if b"q" in pressed(min(max(wait, 0.0), REDRAW)):
                    return
                if time.monotonic() < asked + interval:
                    continue
                asked = time.monotonic()
                try:
                    document = tunnel.ask()
                    trouble, answered = "", time.monotonic()
                except Trouble as problem:
                    trouble = str(problem)
    except KeyboardInterrupt:
        return


@contextmanager
def _pressed() -> Iterator[Callable[[float], bytes]]:
    """Gives what waits so many seconds for keys, and returns those pressed.

    Where standard input is no terminal there are none.
    """
    if not sys.stdin.isatty():

        def sleep(seconds: float) -> bytes:
            time.sleep(seconds)
            return b""

        yield sleep
        return
    keys = sys.stdin.fileno()
    before = termios.tcgetattr(keys)

    def wait(seconds: float) -> bytes:
        ready, _, _ = select.select([keys], [], [], seconds)
        return (os.read(keys, 64) or b"q") if ready else b""  # none: the terminal is gone

    try:
        tty.setcbreak(keys)
        settings = termios.tcgetattr(keys)
        # Stopped by Ctrl-Z the picture would stay on the shell's screen.
        settings[6][termios.VSUSP] = b"\0"
        termios.tcsetattr(keys, termios.TCSADRAIN, settings)
        yield wait
    finally:
        termios.tcsetattr(keys, termios.TCSADRAIN, before)
