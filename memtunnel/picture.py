"""The picture that `memtunnel top` shows: a document of ``/status`` for a terminal, with `rich`.

It takes the width and, while it is live, the height that there is: connections are left out before
servers, servers that are well before others. Whatever stands in the document is shown as text.
Left to others: where the document comes from, and that it has the shape that it should have.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import ceil
from typing import Any, Final

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from memtunnel.net.tls import printable

Row = Mapping[str, Any]

BARS: Final = "▁▂▃▄▅▆▇█"
UNKNOWN: Final = "-"
#: Columns from which on there is room for everything, and lines from which on blocks stand apart.
WIDE: Final = 110
TALL: Final = 24
#: Lines that many servers leave to what comes below: slow requests, and their heading.
SLOW: Final = 4
#: Slow requests of one picture, where there is no end to its lines.
MOST: Final = 50
#: Days before the end of a certificate: when to look after it, and when to run.
SOON: Final = 14
NOW: Final = 3

GOOD, WORSE, BAD, QUIET = "green", "yellow", "bold red", "dim"


class Picture:
    """A document with its whole history.

    `trouble` says why there is none that is newer, and `age` how many seconds old it then is.
    """

    def __init__(self, document: Row, trouble: str = "", age: float = 0.0) -> None:
        self._document = document
        self._trouble = trouble
        self._age = age

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = options.max_width >= WIDE
        whole = options.height is None
        # What is cut off at the end was too much in any case.
        room = 1 << 20 if options.height is None else options.height
        apart = [Text()] if room >= TALL else []
        listeners = self._document["clients"]["listeners"]
        slow = [one for one in self._document["slow"] if one["why"] != "sample"][:MOST]
        head = [*self._headline(), *apart]
        yield from head
        yield self._figures(options.max_width, heading=bool(apart))
        room -= len(head) + len(apart) * 3 + len(_TRENDS) + bool(apart)
        below = 1 + len(listeners) + (1 + len(slow) if whole else min(SLOW, 1 + len(slow)))
        servers = self._servers(wide, max(room - below, 2))
        yield from apart
        yield servers
        room -= 1 + servers.row_count
        clients = self._listeners(listeners, max(room - min(SLOW, 1 + len(slow)), 2))
        yield from apart
        yield clients
        room -= 1 + clients.row_count
        yield from apart
        yield self._slow(slow[: max(room - 1, 0)], wide)

    # The head

    def _headline(self) -> Iterator[Text]:
        told = self._document
        if told["draining"]:
            state = _text("draining", WORSE)
        else:
            state = _text("ready", f"bold {GOOD}") if told["ready"] else _text("NOT READY", BAD)
        parts = [_text(f"memtunnel {told['version']}", "bold"), state]
        parts.append(_text(f"up {age(told['uptime'])}"))
        if told["workers"] > 1:
            parts.append(_text(f"{told['workers']} workers"))
        parts.append(_text(f"pid {told['pid']}", QUIET))
        yield Text("  ", no_wrap=True, overflow="ellipsis").join(parts)
        if self._trouble:
            yield _text(f"this is {age(self._age)} old: {self._trouble}", BAD)
        notices = []
        if not told["reloaded"]:
            notices.append("the settings read last are not in use")
        if paused := told["clients"]["paused"]:
            notices.append(f"{paused:,} clients not read from")
        if held := told["clients"]["buffered_bytes"]:
            notices.append(f"{size(held)} held for clients")
        if notices:
            yield _text(", ".join(notices), WORSE)

    # Figures

    def _figures(self, width: int, heading: bool) -> Table:
        """What is measured now, and how that came."""
        history = self._document["history"]
        # The rest is what the other columns take.
        cells = min(max(width - 56, 8), 60)
        lasted = len(history["time"]) * history["interval"]
        table = _table(show_header=heading)
        table.add_column("", min_width=10)
        table.add_column("now", justify="right", min_width=7)
        heading_of_bars = f"last {age(lasted)}" if lasted else ""
        table.add_column(heading_of_bars, justify="right", min_width=cells)
        table.add_column("peak", justify="right", min_width=7)
        table.add_column("", min_width=10)
        table.add_column("", justify="right")
        for (label, name, shown), other in zip(_TRENDS, self._others(), strict=True):
            column = history[name]
            known = [value for value in column if value is not None]
            now = column[-1] if column else None
            alarm = name == "degraded"
            table.add_row(
                label,
                _text(shown(now), BAD if alarm and now else "bold"),
                _text(spark(column, history["first"], cells), "red" if alarm else "cyan"),
                _text(shown(max(known, default=None)), QUIET),
                *other,
            )
        return table

    def _others(self) -> list[tuple[str, Text]]:
        def last(name: str) -> Any:
            column = self._document["history"][name]
            return column[-1] if column else None

        clients = self._document["clients"]
        hits = last("hit_rate")
        return [
            (" hit rate", _text(UNKNOWN if hits is None else f"{hits:.1%}")),
            (" p50", _text(span(last("p50")))),
            (" sent", _text(f"{size(last('sent_bytes'))}/s")),
            (" received", _text(f"{size(last('received_bytes'))}/s")),
            (" clients", _text(f"{clients['connected']:,} of {clients['max']:,}")),
        ]

    # Servers

    def _servers(self, wide: bool, room: int) -> Table:
        """As many of them as go into `room` lines, and their connections if these do, too."""
        servers = self._document["servers"]
        table = _table()
        table.add_column("server", min_width=10)
        table.add_column("state", min_width=9)
        table.add_column("in flight" if wide else "flight", justify="right")
        table.add_column("round trip" if wide else "trip", justify="right", min_width=7)
        table.add_column("queued", justify="right")
        table.add_column("oldest", justify="right", min_width=6)
        table.add_column("certificate" if wide else "cert", justify="right")
        table.add_column("last lost")
        detailed = 1 + sum(1 + len(each["connections"]) for each in servers) <= room
        left_out: Sequence[Row] = ()
        if 1 + len(servers) > room:
            servers = sorted(servers, key=_is_well)
            servers, left_out = servers[: room - 2], servers[room - 2 :]
        for server in servers:
            self._add_server(table, server, wide)
            for connection in server["connections"] if detailed else ():
                self._add_connection(table, connection)
        if left_out:
            down = sum(not _is_well(each) for each in left_out)
            words = f"{down} not up" if down else "all up"
            table.add_row(_text(f"and {len(left_out)} more", QUIET), _text(words, QUIET))
        return table

    def _add_server(self, table: Table, server: Row, wide: bool) -> None:
        warm = sum(each["state"] == "warm" for each in server["connections"])
        trips = [each["round_trip"] for each in server["connections"]]
        word = "refusing" if server["refusing"] else "up" if server["up"] else "down"
        state = f"{word} {warm}/{server['connections_target']}" if word == "up" else word
        name, address = server["name"], server["address"]
        lost = server["last_lost"]
        if lost and server["last_lost_age"] is not None:
            lost = f"{age(server['last_lost_age'])}{' ago' if wide else ''}: {lost}"
        table.add_row(
            _text(f"{name} ({address})" if wide and name != address else name, "bold"),
            _text(state, GOOD if _is_well(server) else BAD),
            _text(f"{server['in_flight']:,}"),
            _text(span(max((trip for trip in trips if trip is not None), default=None))),
            _text(f"{server['queued']:,}", WORSE if server["queued"] else ""),
            _text(span(server["queue_oldest"]) if server["queued"] else UNKNOWN),
            self._certificate(server["certificate_not_after"]),
            _text(lost or UNKNOWN, "" if _is_well(server) else BAD),
        )

    def _certificate(self, end: float | None) -> Text:
        if end is None:
            return _text(UNKNOWN)
        days = (end - self._document["now"]) / 86400
        words = age(days * 86400) if days > 0 else "expired"
        return _text(words, BAD if days < NOW else WORSE if days < SOON else "")

    def _add_connection(self, table: Table, connection: Row) -> None:
        warm = connection["state"] == "warm"
        name = _connection(connection["worker"], connection["number"])
        table.add_row(
            _text(f"  {name}  {age(connection['age'])}", QUIET),
            _text(connection["state"], GOOD if warm else WORSE),
            _text(f"{connection['in_flight']:,}"),
            _text(span(connection["round_trip"])),
        )

    # Clients, and what was slow

    def _listeners(self, listeners: Sequence[Row], room: int) -> Table:
        table = _table()
        table.add_column("listener", min_width=10)
        for heading in ("clients", "opened", "rejected", "errors", "received", "sent"):
            table.add_column(heading, justify="right", min_width=7)
        shown = listeners if 1 + len(listeners) <= room else listeners[: room - 2]
        for one in shown:
            table.add_row(
                _text(one["address"], "bold"),
                _text(f"{one['connected']:,}"),
                _text(f"{one['opened']:,}"),
                _text(f"{one['rejected']:,}", WORSE if one["rejected"] else ""),
                _text(f"{one['protocol_errors']:,}", WORSE if one["protocol_errors"] else ""),
                _text(size(one["received_bytes"])),
                _text(size(one["sent_bytes"])),
            )
        if len(shown) < len(listeners):
            table.add_row(_text(f"and {len(listeners) - len(shown)} more", QUIET))
        return table

    def _slow(self, slow: Sequence[Row], wide: bool) -> RenderableType:
        limit = self._document["slow_ms"]
        what = "failed" if limit is None else f"failed, or slower than {limit:g} ms"
        if not slow:
            return _text(f"no request {what} lately", QUIET)
        table = _table()
        table.add_column("ago", justify="right", min_width=6)
        table.add_column("why")
        table.add_column("command")
        table.add_column("status")
        for heading in ("total", "queue", "wire"):
            table.add_column(heading, justify="right", min_width=7)
        table.add_column("size", justify="right", min_width=8)
        table.add_column("server")
        if wide:
            table.add_column("connection", justify="right")
            table.add_column("key")
        for one in slow:
            failed = one["why"] == "failed"
            number = one["connection"]
            sent_on = UNKNOWN if number is None else _connection(one["worker"], number)
            table.add_row(
                _text(age(max(self._document["now"] - one["time"], 0.0)), QUIET),
                _text(one["why"], "red" if failed else WORSE),
                _text(one["command"]),
                _text(one["status"], "red" if failed else ""),
                _text(span(one["total"]), "bold"),
                _text(span(one["queue"])),
                _text(span(one["wire"])),
                _text(size(one["bytes"])),
                _text(one["server"]),
                *((_text(sent_on), _text(one["key"], QUIET)) if wide else ()),
            )
        return table


def _is_well(server: Row) -> bool:
    return bool(server["up"]) and not server["refusing"]


def _connection(worker: str, number: int) -> str:
    """What a connection is called; `worker` is empty where there is one process."""
    return f"w{worker} #{number}" if worker else f"#{number}"


def _text(words: str, style: str = "") -> Text:
    """As it stands, on one line."""
    return Text(printable(words), style=style, no_wrap=True, overflow="ellipsis")


def _table(show_header: bool = True) -> Table:
    return Table(
        box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style=QUIET, show_header=show_header
    )


# Numbers for people


def _short(value: float) -> str:
    """With three digits that count, or all of them before the point."""
    return (
        f"{value:,.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
    )


def rate(value: float | None) -> str:
    """So many a second."""
    if value is None:
        return UNKNOWN
    return _short(value) if value else "0"


def span(seconds: float | None) -> str:
    """How long something took."""
    if seconds is None:
        return UNKNOWN
    if seconds < 0.0009995:
        return f"{seconds * 1e6:.0f} µs"
    return f"{_short(seconds * 1e3)} ms" if seconds < 0.9995 else f"{_short(seconds)} s"


def age(seconds: float) -> str:
    """How long ago something was, or will have been."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:,.0f} {unit}"
    return f"{seconds // 1:.0f} s"


def size(count: float | None) -> str:
    """So many bytes."""
    if count is None:
        return UNKNOWN
    if count < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if count < 1000:
            return f"{_short(count)} {unit}"
    return f"{_short(count / 1024)} TiB"


def spark(values: Sequence[float | None], first: int, width: int) -> str:
    """The values, of which the first is numbered, in at most `width` bars from 0 to the highest.

    Where there are more of them a bar shows the highest of several: always of the same ones, or the
    whole line would tremble with each value that comes. The lowest bar is 0; there is none where
    nothing is known.
    """
    share = max(1, ceil(len(values) / max(width - 1, 1)))
    bars: dict[int, float | None] = {}
    for number, value in enumerate(values, first):
        place = number // share
        before = bars.get(place)
        bars[place] = before if value is None else max(value, before or 0.0)
    top = max((value for value in bars.values() if value), default=1.0)
    return "".join(
        " " if value is None else BARS[ceil(value / top * 7)] for value in bars.values()
    ).rjust(width)


#: What has a line of its own: label, column of the history, how it is written.
_TRENDS: Final[tuple[tuple[str, str, Callable[[float | None], str]], ...]] = (
    ("requests/s", "requests", rate),
    ("p99", "p99", span),
    ("queue p99", "queue_p99", span),
    ("wire p99", "wire_p99", span),
    ("degraded/s", "degraded", rate),
)
