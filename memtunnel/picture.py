"""The picture that `memtunnel top` shows: a document of ``/status`` for a terminal, with `rich`.

It takes the width that there is and, on a screen, the height: connections are left out before
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
#: Slow requests of one picture.
MOST: Final = 50
#: More lines than any picture has.
ENDLESS: Final = 1 << 20
#: Days before the end of a certificate: when to look after it, and when to run.
SOON: Final = 14
NOW: Final = 3

GOOD, WORSE, BAD, QUIET = "green", "yellow", "bold red", "dim"


class Picture:
    """A document with its whole history, in `height` lines; None for as many as it takes.

    `trouble` says why there is none that is newer, and `age` how many seconds old it then is.
    """

    def __init__(
        self, document: Row, height: int | None = None, trouble: str = "", age: float = 0.0
    ) -> None:
        self._document = document
        self._height = ENDLESS if height is None else height
        self._trouble = trouble
        self._age = age

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Block by block. What is too much even so is for the screen to cut off at the end."""
        width = options.max_width
        tall = self._height >= TALL
        apart = [Text()] if tall else []
        slow = [one for one in self._document["slow"] if one["why"] != "sample"][:MOST]
        listeners = self._document["clients"]["listeners"]
        head = [*self._headline(), *apart]
        figures = self._figures(width, heading=tall)
        least = ENDLESS if self._height == ENDLESS else 4 if tall else 2
        below = min(1 + len(slow), least)
        room = self._height - len(head) - _lines(figures) - 3 * len(apart)
        servers = self._servers(width >= WIDE, room - below - min(1 + len(listeners), least))
        room -= _lines(servers)
        clients = self._listeners(listeners, room - below)
        room -= _lines(clients)
        yield from head
        for block in (figures, servers, clients):
            yield block
            yield from apart
        yield self._slow(slow[: max(room - 1, 0)], width >= WIDE)

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
        if silent := told["silent"]:
            notices.append(f"worker {', '.join(silent)} does not answer")
        if not told["reloaded"]:
            notices.append("the settings read last are not in use")
        if paused := told["clients"]["paused"]:
            notices.append(f"{_several(paused, 'client')} not read from")
        if held := told["clients"]["buffered_bytes"]:
            notices.append(f"{size(held)} held for clients")
        if notices:
            yield _text(", ".join(notices), WORSE)

    # Figures

    def _figures(self, width: int, heading: bool) -> Table:
        """What is measured now, and how that came."""
        history = self._document["history"]
        # The rest is what the other columns take.
        cells = min(max(width - 64, 8), 60)
        lasted = len(history["time"]) * history["interval"]
        table = _table(gap=2, show_header=heading)
        _column(table, "", 10)
        _column(table, "now", 7, right=True)
        _column(table, f"last {age(lasted)}" if lasted else "", cells, right=True)
        _column(table, "peak", 7, right=True)
        _column(table, "", 12)
        _column(table, "", right=True)
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
            ("hit rate", _text(UNKNOWN if hits is None else f"{hits:.1%}")),
            ("p50", _text(span(last("p50")))),
            ("to servers", _text(f"{size(last('sent_bytes'))}/s")),
            ("from servers", _text(f"{size(last('received_bytes'))}/s")),
            ("clients", _text(f"{clients['connected']:,} of {clients['max']:,}")),
        ]

    # Servers

    def _servers(self, wide: bool, room: int) -> Table:
        """As many of them as go into `room` lines, and their connections if these do, too."""
        servers = self._document["servers"]
        table = _table(gap=2 if wide else 1)
        _column(table, "server", 10)
        _column(table, "state", 9)
        _column(table, "in flight" if wide else "flight", right=True)
        _column(table, "round trip" if wide else "trip", 7, right=True)
        _column(table, "queued", right=True)
        _column(table, "oldest", right=True)
        _column(table, "certificate" if wide else "cert", right=True)
        _column(table, "last lost")
        detailed = 1 + sum(1 + len(each["connections"]) for each in servers) <= room
        left_out: Sequence[Row] = ()
        if 1 + len(servers) > room:
            servers = sorted(servers, key=_is_well)
            some = max(room - 2, 0)
            servers, left_out = servers[:some], servers[some:]
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
        state = _verdict(server)
        if _is_well(server):
            state += f" {warm}/{server['connections_target']}"
        name, address = server["name"], server["address"]
        if wide:
            name = address if address.startswith(f"{name}:") else f"{name} ({address})"
        lost = server["last_lost"]
        if lost and server["last_lost_age"] is not None:
            lost = f"{age(server['last_lost_age'])}{' ago' if wide else ''}: {lost}"
        table.add_row(
            _text(name, "bold"),
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
        _column(table, "listener", 10)
        for heading in ("clients", "opened", "rejected", "errors", "received", "sent"):
            _column(table, heading, 8, right=True)
        shown = listeners if 1 + len(listeners) <= room else listeners[: max(room - 2, 0)]
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
        if not slow:
            what = "failed" if limit is None else f"failed, or taken {limit:g} ms,"
            return _text(f"no request has {what} lately", QUIET)
        table = _table(gap=2 if wide else 1)
        _column(table, "ago", 6, right=True)
        for heading in ("why", "command", "status"):
            _column(table, heading, 6)
        for heading in ("total", "queue", "wire"):
            _column(table, heading, 7, right=True)
        _column(table, "server")
        if wide:
            _column(table, "size", 8, right=True)
            _column(table, "connection", right=True)
            _column(table, "key")
        for one in slow:
            failed = one["why"] == "failed"
            number = one["connection"]
            sent_on = UNKNOWN if number is None else _connection(one["worker"], number)
            more = _text(size(one["bytes"])), _text(sent_on), _text(one["key"], QUIET)
            table.add_row(
                _text(age(max(self._document["now"] - one["time"], 0.0)), QUIET),
                _text(one["why"], "red" if failed else WORSE),
                _text(one["command"]),
                _text(one["status"], "red" if failed else ""),
                _text(span(one["total"]), "bold"),
                _text(span(one["queue"])),
                _text(span(one["wire"])),
                _text(one["server"]),
                *(more if wide else ()),
            )
        return table


def _verdict(server: Row) -> str:
    """As the status page has it."""
    if server["up"]:
        return "not used" if server["refusing"] else "up"
    return "down" if server["refusing"] else "connecting"


def _several(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _is_well(server: Row) -> bool:
    return bool(server["up"]) and not server["refusing"]


def _connection(worker: str, number: int) -> str:
    """What a connection is called; `worker` is empty where there is one process."""
    return f"w{worker} #{number}" if worker else f"#{number}"


def _text(words: str, style: str = "") -> Text:
    """As it stands, on one line."""
    return Text(printable(words), style=style, no_wrap=True, overflow="ellipsis")


def _table(gap: int = 1, show_header: bool = True) -> Table:
    return Table(
        box=None,
        pad_edge=False,
        padding=(0, gap, 0, 0),
        header_style=QUIET,
        show_header=show_header,
    )


def _column(table: Table, heading: str, width: int | None = None, right: bool = False) -> None:
    """One more column; with a `width` it does not tremble with what is in it."""
    table.add_column(_text(heading), justify="right" if right else "left", min_width=width)


def _lines(table: Table) -> int:
    return table.row_count + table.show_header


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
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
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
    share = max(1, ceil(len(values) / (width - 1)))
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
