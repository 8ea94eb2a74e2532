"""Writes the dashboard, `memtunnel.json`, from the table of rows and panels below.

``python grafana/generate.py`` writes the file anew. What is drawn stands in `ROWS`; how Grafana
wants it said, in the functions before it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DASHBOARD = Path(__file__).with_name("memtunnel.json")
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24

# Expressions

Target = tuple[str, str]
"""An expression, and the legend of what it yields."""

CHOSEN = 'job=~"$job", instance=~"$instance"'
#: Beginnings of the names of metrics that have a label `server`.
BY_SERVER = tuple(
    "memtunnel_" + name
    for name in ("commands", "failovers", "queue", "request_duration", "tls", "upstream")
)
#: What clients ask of servers: all but what the tunnel always answers itself.
DATA = 'command!~"noop|quit|sasl|unknown|version"'
GETS = 'command=~"get|gat"'
HITS = 'command=~"get|gat", status="hit"'
#: What the tunnel answers itself takes no time, and would hide how long servers take.
SERVERS = 'server!="local"'


def chosen(metric: str, where: str = "") -> str:
    """The series of a metric that the variables choose, and `where` of them."""
    server = 'server=~"$server"' if metric.startswith(BY_SERVER) else ""
    return f"{metric}{{{', '.join(filter(None, (CHOSEN, server, where)))}}}"


def together(function: str, expression: str, by: str = "") -> str:
    return f"{function} by ({by}) ({expression})" if by else f"{function}({expression})"


def rate(metric: str, by: str = "", where: str = "") -> str:
    """What a counter counts in a second."""
    return together("sum", f"rate({chosen(metric, where)}[$__rate_interval])", by)


def quantile(share: float, metric: str, by: str = "", where: str = "") -> str:
    """Of a histogram, named without `_bucket`."""
    buckets = rate(metric + "_bucket", ", ".join(filter(None, ("le", by))), where)
    return f"histogram_quantile({share:g}, {buckets})"


def quantiles(metric: str, *shares: float, where: str = "") -> tuple[Target, ...]:
    return tuple((quantile(one, metric, where=where), f"p{100 * one:g}") for one in shares)


def gauge(function: str, metric: str, by: str = "", where: str = "") -> str:
    """A gauge over all tunnels, their workers and servers, by what is named."""
    return together(function, chosen(metric, where), by)


def where_time_goes(share: float) -> tuple[Target, ...]:
    """The whole of a request, and its two parts."""
    return (
        (quantile(share, "memtunnel_request_duration_seconds", where=SERVERS), "whole"),
        (quantile(share, "memtunnel_upstream_duration_seconds"), "on the wire"),
        (quantile(share, "memtunnel_queue_duration_seconds"), "in the queue"),
    )


COMMANDS = "memtunnel_commands_total"
REQUEST = "memtunnel_request_duration_seconds"
#: What is told of a request that got a degraded reply. Of what was too large that is not told: a
#: server says so, too.
LOST = 'status=~"timeout|upstream_lost|no_upstream|overloaded|refused|error"'
CERTIFICATE = "memtunnel_tls_certificate_not_after_timestamp_seconds"
# What was never counted has no series: 0 is said where 0 is what there was.
HIT_RATE = f"({rate(COMMANDS, where=HITS)} or vector(0)) / ({rate(COMMANDS, where=GETS)} > 0)"
HIT_RATE_BY_SERVER = (
    f"({rate(COMMANDS, 'server', HITS)} or 0 * {rate(COMMANDS, 'server', GETS)})"
    f" / ({rate(COMMANDS, 'server', GETS)} > 0)"
)
DEGRADED = (
    f"{rate(COMMANDS, where=f'{DATA}, {LOST}')} / ({rate(COMMANDS, where=DATA)} > 0)"
    f" or 0 * {gauge('count', 'memtunnel_build_info')}"
)

# Panels

Thresholds = tuple[tuple[float | None, str], ...]
PLAIN: Thresholds = ((None, "green"),)
LATENCY: Thresholds = ((None, "green"), (0.025, "yellow"), (0.1, "red"))
ALL: Thresholds = ((None, "red"), (1, "green"))
DAYS: Thresholds = ((None, "red"), (3, "yellow"), (14, "green"))
YES_OR_NO = [
    {
        "type": "value",
        "options": {
            "0": {"text": "no", "color": "red", "index": 0},
            "1": {"text": "yes", "color": "green", "index": 1},
        },
    }
]
#: A line with one of these legends is a bound of the others.
BOUNDS = "^(target|limit)$"


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One panel. `kind` is Grafana's word for it, `size` its width and height in the grid."""

    title: str
    description: str
    targets: tuple[Target, ...]
    unit: str
    size: tuple[int, int] = (8, 8)
    kind: str = "timeseries"
    thresholds: Thresholds = PLAIN
    stacked: bool = False
    defaults: dict[str, Any] = field(default_factory=dict)

    def json(self, identity: int, x: int, y: int) -> dict[str, Any]:
        width, height = self.size
        at_once = self.kind in ("table", "bargauge")
        panel = {
            "id": identity,
            "type": self.kind,
            "title": self.title,
            "description": self.description,
            "datasource": DATASOURCE,
            "gridPos": {"x": x, "y": y, "w": width, "h": height},
            "targets": [
                {
                    "datasource": DATASOURCE,
                    "refId": chr(ord("A") + place),
                    "expr": expression,
                    "legendFormat": legend,
                    "format": {"table": "table", "heatmap": "heatmap"}.get(
                        self.kind, "time_series"
                    ),
                    "instant": at_once,
                    "range": not at_once,
                }
                for place, (expression, legend) in enumerate(self.targets)
            ],
            "fieldConfig": {
                "defaults": {
                    "unit": self.unit,
                    "color": {"mode": "palette-classic" if self._is_graph else "thresholds"},
                    "thresholds": {
                        "mode": "absolute",
                        "steps": [{"color": color, "value": at} for at, color in self.thresholds],
                    },
                    "custom": self._lines() if self._is_graph else {},
                    **({"min": 0} if self._is_graph else {}),
                    **self.defaults,
                },
                "overrides": [BOUND] if self._is_graph else [],
            },
            "options": OPTIONS.get(self.kind, {}),
        }
        if self.kind == "table":
            silent = dict.fromkeys(("Time", "Value", "__name__"), True)
            panel["transformations"] = [{"id": "organize", "options": {"excludeByName": silent}}]
        return panel

    @property
    def _is_graph(self) -> bool:
        return self.kind == "timeseries"

    def _lines(self) -> dict[str, Any]:
        return {
            "lineWidth": 1,
            "fillOpacity": 30 if self.stacked else 10,
            "showPoints": "never",
            "stacking": {"mode": "normal" if self.stacked else "none", "group": "A"},
        }


BOUND = {
    "matcher": {"id": "byRegexp", "options": BOUNDS},
    "properties": [
        {"id": "color", "value": {"mode": "fixed", "fixedColor": "text"}},
        {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [8, 6]}},
        {"id": "custom.fillOpacity", "value": 0},
        {"id": "custom.stacking", "value": {"mode": "none", "group": "B"}},
    ],
}
LAST = {"calcs": ["lastNotNull"], "fields": "", "values": False}
OPTIONS: dict[str, dict[str, Any]] = {
    "stat": {"reduceOptions": LAST, "graphMode": "area", "colorMode": "value", "textMode": "value"},
    "bargauge": {"reduceOptions": LAST, "orientation": "horizontal", "displayMode": "basic"},
    "timeseries": {
        "legend": {
            "displayMode": "table",
            "placement": "bottom",
            "showLegend": True,
            "calcs": ["lastNotNull", "max"],
        },
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "state-timeline": {"mergeValues": True, "showValue": "never", "rowHeight": 0.8},
    "heatmap": {
        "calculate": False,
        "cellGap": 1,
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5},
        "yAxis": {"unit": "s"},
        "filterValues": {"le": 1e-9},
        "tooltip": {"mode": "single", "yHistogram": True},
        "legend": {"show": True},
    },
}


def number(title: str, unit: str, expression: str, description: str, **more: Any) -> Panel:
    """One number, large."""
    return Panel(
        kind="stat",
        size=(3, 4),
        title=title,
        unit=unit,
        targets=((expression, title),),
        description=description,
        **more,
    )


def graph(title: str, unit: str, *targets: Target, description: str, **more: Any) -> Panel:
    """Lines over time."""
    return Panel(title=title, unit=unit, targets=targets, description=description, **more)


def states(title: str, *targets: Target, description: str, **more: Any) -> Panel:
    """Bars over time: green for 1, and red for 0."""
    return Panel(
        kind="state-timeline",
        title=title,
        unit="bool_yes_no",
        targets=targets,
        description=description,
        thresholds=ALL,
        defaults={"mappings": YES_OR_NO},
        **more,
    )


def table(title: str, expression: str, *, description: str, size: tuple[int, int]) -> Panel:
    """The labels of what is now."""
    return Panel(
        kind="table",
        title=title,
        unit="none",
        targets=((expression, ""),),
        description=description,
        size=size,
    )


# What is drawn

ROWS: dict[str, tuple[Panel, ...]] = {
    "Overview": (
        number(
            "Requests", "reqps", rate(COMMANDS, where=DATA),
            "What clients ask of the servers, each second.",
        ),
        number(
            "Hit rate", "percentunit", HIT_RATE,
            "Of all gets, those that were hits; a get without an answer is a miss, as it is to the"
            " client. If it falls, look at degraded replies first, then at the servers' memory.",
            defaults={"min": 0, "max": 1},
        ),
        number(
            "p50", "s", quantile(0.5, REQUEST, where=SERVERS),
            "Half of all requests were answered within this time. Where it grows, the row Latency"
            " tells whether it is the wire or the queue.",
            thresholds=LATENCY,
        ),
        number(
            "p99", "s", quantile(0.99, REQUEST, where=SERVERS),
            "99 of 100 requests were answered within this time. As it comes near --request-timeout,"
            " requests get degraded replies.",
            thresholds=LATENCY,
        ),
        number(
            "Degraded replies", "percentunit", DEGRADED,
            "Of all requests, those that the tunnel had to answer itself, as a miss or as not"
            " stored, since no server did. Anything but 0: see below for which reason, and in the"
            " row Traffic of which server.",
            thresholds=((None, "green"), (0.001, "yellow"), (0.01, "red")),
        ),
        number(
            "Servers up", "percentunit",
            f"avg({gauge('min', 'memtunnel_upstream_up', 'job, instance, server')})",
            "Of the servers of all tunnels, those that every worker has a warm connection to. Less"
            " than 100%: see under Servers which, and under Connects by result why.",
            thresholds=ALL,
        ),
        number(
            "Tunnels ready", "percentunit", gauge("avg", "memtunnel_ready"),
            "Of the tunnels, those whose /readyz says yes. One that is not has no warm connection"
            " to what it needs, or is about to stop.",
            thresholds=ALL,
        ),
        number(
            "Certificates expire in", "d", f"({gauge('min', CERTIFICATE)} - time()) / 86400",
            "Days until the first of the servers' certificates expires: from then on no connection"
            " is made. Ask the provider to renew it.",
            thresholds=DAYS,
        ),
        graph(
            "Requests by server", "reqps",
            (rate(COMMANDS, "server", f"{DATA}, {SERVERS}"), "{{server}}"),
            description="What clients ask of each server. One that gets nothing is down, or no key"
            " is its own.",
        ),
        graph(
            "Latency", "s", *quantiles(REQUEST, 0.5, 0.99, where=SERVERS),
            description="From a complete request to its answer, as clients see it. The row Latency"
            " tells where the time goes.",
        ),
        graph(
            "Degraded replies by reason", "reqps",
            (rate("memtunnel_degraded_replies_total", "reason"), "{{reason}}"),
            description="Answers that the tunnel made up, by why; empty if there were none."
            " no_upstream: the server is down; timeout: it is slow, or --request-timeout is short;"
            " overloaded: a bound of the tunnel was reached.",
            stacked=True,
        ),
        states(
            "Servers", (gauge("min", "memtunnel_upstream_up", "server"), "{{server}}"),
            description="Whether each server has a warm connection, in every worker of every"
            " tunnel. Where there is none, its keys are served by another server, or missed.",
            size=(24, 5),
        ),
    ),
    "Latency": (
        graph(
            "Whole request", "s", *quantiles(REQUEST, 0.5, 0.9, 0.99, 0.999, where=SERVERS),
            description="From the complete request to its answer handed to the client's connection."
            " Only the upper ones grow: a few requests wait; all of them: server or network.",
        ),
        graph(
            "Median: wire and queue", "s", *where_time_goes(0.5),
            description="The half of requests that are quick, in their two parts. On the wire:"
            " network and server. In the queue: waiting in the tunnel, which more connections"
            " (--pool-size) or workers shorten.",
        ),
        graph(
            "p99: wire and queue", "s", *where_time_goes(0.99),
            description="The slow ones, in their two parts, which do not add up. A slow wire: look"
            " at the server; a slow queue: at connections that come and go, and at the event loop.",
        ),
        graph(
            "p99 by command", "s",
            (quantile(0.99, REQUEST, "command", SERVERS), "{{command}}"),
            description="Which commands are slow. Large values make gets and sets slow; stat and"
            " flush ask every server, and wait for the slowest.",
        ),
        graph(
            "p99 on the wire by server", "s",
            (quantile(0.99, "memtunnel_upstream_duration_seconds", "server"), "{{server}}"),
            description="From a request written to its answer parsed. One server alone is slow: it"
            " is the server; all of them: the network, or this machine.",
        ),
        Panel(
            kind="heatmap", title="Requests by duration", unit="s",
            targets=((rate(REQUEST + "_bucket", "le", SERVERS), "{{le}}"),),
            description="How many requests took how long. Two bands where there was one: some"
            " requests go a slower way, such as another server or a retry.",
        ),
    ),
    "Traffic": (
        graph(
            "Commands", "reqps", (rate(COMMANDS, "command", SERVERS), "{{command}}"),
            description="What is asked of the servers. A command that surprises you tells of a"
            " client that was changed.",
            stacked=True,
        ),
        graph(
            "Outcomes", "reqps", (rate(COMMANDS, "status", DATA), "{{status}}"),
            description="What became of it. timeout, upstream_lost, no_upstream and overloaded are"
            " the tunnel's: there was no answer from a server. The others are what a server said.",
            stacked=True,
        ),
        graph(
            "Hit rate by server", "percentunit", (HIT_RATE_BY_SERVER, "{{server}}"),
            description="Of the gets asked of each server, those that were hits. One server alone"
            " is low: it was restarted, or is short of memory.",
            defaults={"max": 1},
        ),
        graph(
            "Answered by the tunnel itself", "reqps",
            (rate(COMMANDS, "command", 'server="local"'), "{{command}}"),
            description="What no server is asked: no-ops that end a client's batch, versions,"
            " logins. Many logins or versions: clients that connect anew again and again.",
            stacked=True,
        ),
        graph(
            "Degraded replies by command", "reqps",
            (rate("memtunnel_degraded_replies_total", "command"), "{{command}}"),
            description="Which requests got an answer made up by the tunnel; empty if none did. A"
            " get is then a miss; of anything else the client was told that it failed.",
            stacked=True,
        ),
        graph(
            "Without an answer, by server", "reqps",
            (rate(COMMANDS, "server", f"{LOST}, {SERVERS}"), "{{server}}"),
            description="Requests that this server did not answer in time, or at all; empty if it"
            " answered all of them. Its connections in the row Upstream pool tell why.",
        ),
        graph(
            "Bytes to and from servers", "Bps",
            (rate("memtunnel_upstream_sent_bytes_total", "server"), "to {{server}}"),
            (rate("memtunnel_upstream_received_bytes_total", "server"), "from {{server}}"),
            description="Before encryption. Near what the network or the server's plan allows,"
            " requests become slow: store smaller values, or compress them.",
            size=(12, 8),
        ),
        graph(
            "Bytes to and from clients", "Bps",
            (rate("memtunnel_client_received_bytes_total", "listener"), "from {{listener}}"),
            (rate("memtunnel_client_sent_bytes_total", "listener"), "to {{listener}}"),
            description="By listener. About as many as to and from the servers; far fewer to"
            " clients than from servers: answers came too late.",
            size=(12, 8),
        ),
    ),
    "Upstream pool": (
        graph(
            "Connections by state", "short",
            (gauge("sum", "memtunnel_upstream_connections", "state"), "{{state}}"),
            (gauge("sum", "memtunnel_upstream_connections_target"), "target"),
            description="As many as the target should be warm. Stuck in dialling: the network or"
            " the port; in handshake: TLS; in login or probe: the server.",
            stacked=True,
        ),
        graph(
            "Warm connections, of the target", "percentunit",
            (
                gauge("sum", "memtunnel_upstream_connections", "server", 'state="warm"')
                + " / "
                + gauge("sum", "memtunnel_upstream_connections_target", "server"),
                "{{server}}",
            ),
            description="Less than 100% for long: connections are lost as soon as they are made, or"
            " cannot be made. A little more than 100% is a connection being replaced.",
        ),
        states(
            "Breaker closed",
            (f"1 - {gauge('max', 'memtunnel_upstream_breaker_open', 'server')}", "{{server}}"),
            description="No: some worker knows that the server is down or stalled, and lets no"
            " request wait for it. It is probed, and comes back by itself.",
        ),
        graph(
            "In flight and queued", "short",
            *(
                (gauge("sum", f"memtunnel_upstream_requests_{word}", "server"), legend)
                for word, legend in (
                    ("in_flight", "in flight, {{server}}"), ("queued", "queued, {{server}}"),
                )
            ),
            description="Requests sent and not answered yet, and those that wait for a connection."
            " Queued ones that stay: no connection is warm, or all of them are busy.",
        ),
        graph(
            "Oldest in the queue", "s",
            (gauge("max", "memtunnel_queue_oldest_seconds", "server"), "{{server}}"),
            description="How long the request that waits longest has waited, in the worst worker."
            " At --request-timeout it gets a degraded reply.",
        ),
        graph(
            "Late answers owed", "short",
            (gauge("sum", "memtunnel_upstream_requests_tombstones", "server"), "{{server}}"),
            description="Requests given up, by timeout or because the client left, whose answers"
            " are still to come (tombstones). Many that stay: the server answers too late.",
        ),
        graph(
            "Connects by result", "cps",
            (rate("memtunnel_upstream_connects_total", "result"), "{{result}}"),
            description="Attempts to connect: ok, or why not. A few ok each hour are connections"
            " being replaced. login_refused: check user name and password; certificate_*: run"
            " memtunnel check.",
            stacked=True,
        ),
        graph(
            "p99 of the phases of connecting", "s",
            (quantile(0.99, "memtunnel_upstream_connect_duration_seconds", "phase"), "{{phase}}"),
            description="How long name, TCP, TLS, login and first answer take. Together they have"
            " --connect-timeout. Nothing was connected where there is no line.",
        ),
        graph(
            "Disconnects by reason", "cps",
            (rate("memtunnel_upstream_disconnects_total", "reason"), "{{reason}}"),
            description="Warm connections that ended. retired and shutdown are meant; silent: the"
            " server stopped answering; closed and reset: the server or something between.",
            stacked=True,
        ),
        graph(
            "Retries by reason", "cps",
            (rate("memtunnel_upstream_retries_total", "reason"), "{{reason}}"),
            description="Requests sent again when their connection was lost, which saved a miss;"
            " empty if there were none. Look for the lost connections under Disconnects.",
            size=(6, 8),
        ),
        graph(
            "Flaps", "cps", (rate("memtunnel_upstream_flaps_total", "server"), "{{server}}"),
            description="Connections lost within 10 s of being warm; empty if there were none. The"
            " server, or a balancer before it, takes connections and does not keep them.",
            size=(6, 8),
        ),
        graph(
            "Failovers", "reqps", (rate("memtunnel_failovers_total", "server"), "{{server}}"),
            description="Requests for keys of this server that another one was asked, since it was"
            " down; empty if there were none. Until it is back its keys are colder.",
            size=(6, 8),
        ),
        graph(
            "Answers to no request", "cps",
            (rate("memtunnel_upstream_desync_total", "kind"), "{{kind}}"),
            description="Connections aborted because the server said what was not asked (desync);"
            " never seen with a sound server. Something between changes the stream: find out what.",
            size=(6, 8),
        ),
        table(
            "TLS in use", gauge("count", "memtunnel_tls_info", "server, version, cipher"),
            description="What TLS agreed on with each server. More than one line for a server:"
            " tunnels differ in what they were built of, or it is being changed.",
            size=(9, 7),
        ),
        table(
            "Checked of certificates", gauge("count", "memtunnel_tls_verify_info", "server, mode"),
            description="full: chain and name. chain: any certificate of that authority would do;"
            " use --tls-name or --tls-pin, and --verify full.",
            size=(6, 7),
        ),
        Panel(
            kind="bargauge", title="Certificates expire in", unit="d",
            targets=((f"({gauge('min', CERTIFICATE, 'server')} - time()) / 86400", "{{server}}"),),
            description="Days left of each server's certificate, as seen at the connection that"
            " was made last; not told while none is warm.",
            size=(9, 7), thresholds=DAYS,
        ),
    ),
    "Clients": (
        graph(
            "Clients", "short",
            (gauge("sum", "memtunnel_client_connections", "listener"), "{{listener}}"),
            (gauge("sum", "memtunnel_client_connections_max"), "limit"),
            description="Clients that are connected. At the limit new ones are closed at once:"
            " raise --max-clients, or find the clients that do not close.",
            stacked=True,
        ),
        graph(
            "Connections opened", "cps",
            (rate("memtunnel_client_connections_opened_total", "listener"), "{{listener}}"),
            description="Clients that connect, each second. Applications that keep their"
            " connections make next to none.",
        ),
        graph(
            "Requests for each connection", "short",
            (
                f"{rate(COMMANDS, where=DATA)} /"
                f" ({rate('memtunnel_client_connections_opened_total')} > 0)",
                "requests",
            ),
            description="Requests to the servers that are chosen per connection that was opened"
            " meanwhile; no line where none was. About 1: let clients keep their connections.",
        ),
        graph(
            "Clients turned away", "cps",
            (rate("memtunnel_client_connections_rejected_total", "reason"), "{{reason}}"),
            description="Clients that were closed at once, since the limit was reached; empty if"
            " there were none.",
            stacked=True,
        ),
        graph(
            "Logins by result", "cps",
            (rate("memtunnel_client_logins_total", "result"), "{{result}}"),
            description="Logins of clients. refused: an application has another user name or"
            " password than the tunnel; unjudged: no server could be asked in time.",
            stacked=True,
        ),
        graph(
            "Protocol errors", "cps",
            (rate("memtunnel_client_protocol_errors_total", "reason"), "{{reason}}"),
            description="Clients that broke the protocol; empty if there were none. magic and"
            " framing: not a memcache client; unread: one that does not read its answers.",
            stacked=True,
        ),
        graph(
            "Paused clients", "short",
            (gauge("sum", "memtunnel_client_paused", "instance"), "{{instance}}"),
            description="Clients that are not read from, because they do not read what they asked"
            " for. They ask for more than they can take: look at those applications.",
            size=(12, 8),
        ),
        graph(
            "Buffered", "bytes",
            (gauge("sum", "memtunnel_buffered_bytes", "instance"), "{{instance}}"),
            description="Bytes in all buffers that --max-buffer bounds. At the bound hits are"
            " answered as misses (overloaded).",
            size=(12, 8),
        ),
    ),
    "Process": (
        graph(
            "CPU", "percentunit", (rate("process_cpu_seconds_total", "instance"), "{{instance}}"),
            description="Of one core, all workers together. Each worker uses one core at most: near"
            " 100% for each of them requests begin to queue, and --workers adds more.",
        ),
        graph(
            "Memory", "bytes",
            (gauge("sum", "process_resident_memory_bytes", "instance"), "{{instance}} resident"),
            (gauge("sum", "process_virtual_memory_bytes", "instance"), "{{instance}} virtual"),
            description="All workers together. Resident memory grows with clients and buffers; if"
            " it grows for days with neither, tell us.",
        ),
        graph(
            "Files", "short",
            (gauge("sum", "process_open_fds", "instance"), "{{instance}}"),
            (gauge("min", "process_max_fds"), "limit"),
            description="Open file descriptors, one for each connection, and how many a process may"
            " have. --max-clients is lowered at the start where they are too few.",
        ),
        graph(
            "Event loop lag", "s",
            (quantile(0.5, "memtunnel_event_loop_lag_seconds", "instance"), "{{instance}} p50"),
            (quantile(0.99, "memtunnel_event_loop_lag_seconds", "instance"), "{{instance}} p99"),
            description="How late the event loop comes to a timer: so long any request may have to"
            " wait. Where it grows the process lacks CPU.",
        ),
        graph(
            "Garbage collections", "cps",
            (rate("python_gc_collections_total", "generation"), "generation {{generation}}"),
            description="Runs of Python's garbage collector. The oldest generation takes longest,"
            " and should be rare.",
        ),
        graph(
            "Garbage", "cps",
            (rate("python_gc_objects_collected_total", "generation"), "generation {{generation}}"),
            (rate("python_gc_objects_uncollectable_total"), "uncollectable"),
            description="Objects that the collector found each second. Uncollectable ones are"
            " lost memory: tell us.",
        ),
        states(
            "Tunnels",
            (gauge("min", "memtunnel_ready", "instance"), "{{instance}} is ready"),
            (f"1 - {gauge('max', 'memtunnel_draining', 'instance')}", "{{instance}} stays"),
            (
                gauge("min", "memtunnel_config_last_reload_successful", "instance"),
                "{{instance}} has its settings",
            ),
            description="Ready: it can serve. Stays: it is not about to stop. Has its settings: the"
            " configuration in use is the one read last; if not, the log says what is wrong.",
            size=(12, 8),
        ),
        graph(
            "Uptime", "s",
            (f"time() - {gauge('min', 'process_start_time_seconds', 'instance')}", "{{instance}}"),
            description="Since the tunnel was started. One that starts again and again: its log"
            " has the last words of the one before.",
            size=(12, 8),
        ),
        table(
            "Built of", chosen("memtunnel_build_info"),
            description="What each tunnel was built of. The version of OpenSSL is the one in use,"
            " which may not be the system's.",
            size=(24, 6),
        ),
    ),
}  # fmt: skip

# The dashboard


def variable(name: str, label: str, query: str) -> dict[str, Any]:
    """One of many, or all, of the values of a label."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".+",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "hide": 0,
        "options": [],
        "regex": "",
        "skipUrlSync": False,
    }


VARIABLES = [
    {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "current": {},
        "hide": 0,
        "includeAll": False,
        "multi": False,
        "options": [],
        "refresh": 1,
        "regex": "",
        "skipUrlSync": False,
    },
    variable("job", "job", "label_values(memtunnel_build_info, job)"),
    variable("instance", "instance", 'label_values(memtunnel_build_info{job=~"$job"}, instance)'),
    variable("server", "server", f"label_values(memtunnel_upstream_up{{{CHOSEN}}}, server)"),
]


def panels() -> Iterator[dict[str, Any]]:
    """All rows and panels: side by side as far as there is room, then in the next line."""
    identity = y = 0
    for title, row in ROWS.items():
        identity += 1
        place = {"x": 0, "y": y, "w": WIDTH, "h": 1}
        yield {
            "id": identity,
            "type": "row",
            "title": title,
            "collapsed": False,
            "gridPos": place,
            "panels": [],
        }
        y += 1
        x = tallest = 0
        for panel in row:
            width, height = panel.size
            if x + width > WIDTH:
                y += tallest
                x = tallest = 0
            identity += 1
            yield panel.json(identity, x, y)
            x += width
            tallest = max(tallest, height)
        y += tallest


def dashboard() -> dict[str, Any]:
    return {
        "uid": "memtunnel",
        "title": "memtunnel",
        "description": "Requests, latency, connections and clients of memtunnel.",
        "tags": ["memtunnel", "memcached"],
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": VARIABLES},
        "annotations": {"list": []},
        "links": [],
        "panels": list(panels()),
    }


def render() -> str:
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    DASHBOARD.write_text(render())
