"""What a scrape costs, and the longest that it holds up the reactor.

    pytest benchmarks/micro/test_exposition.py

The times are those of a whole scrape. A scrape is rendered over several turns of the reactor,
so that requests get their turns between: `extra_info` has the longest one of a scrape, in
milliseconds, as the median and the most of all scrapes. Garbage is collected as in the tunnel.
"""

import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import succeed
from twisted.web.test.requesthelper import DummyRequest

from memtunnel.core.outcomes import STATUS_WORDS
from memtunnel.ops import admin
from memtunnel.ops.metrics import PHASES, Metrics, ServerState, State
from memtunnel.wire.binary import Opcode

#: What Prometheus asks for, and what others get.
FORMATS = {
    "OpenMetrics": "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;q=0.5",
    "text": "",
}
SERVERS = (1, 3, 10)
USED = (Opcode.GET, Opcode.SET, Opcode.ADD, Opcode.DELETE, Opcode.INCR, Opcode.NOOP)
OUTCOMES = ("hit", "miss", "stored", "timeout")
SCRAPES = 300


def loaded(servers: int) -> Metrics:
    """The metrics of a tunnel to so many servers that has worked for long, and met trouble."""
    metrics = Metrics(
        version="1.0", python="3.11.7", twisted="26.10", openssl="3.5", reactor="EPollReactor"
    )
    names = [f"mc{number}.c1.eu.example.com:11211" for number in range(servers)]
    for name in names:
        server = metrics.server(name)
        for opcode in USED:
            for place, word in enumerate(STATUS_WORDS):
                if word in OUTCOMES:
                    server.answered(opcode, place, 10.0, 10.0001, 10.0002, 10.0003)
        for counts in (server.connects, server.disconnects, server.retries):
            counts.update(dict.fromkeys(("ok", "timeout", "closed"), 3))
        for phase in PHASES:
            server.phase(phase, 0.002)
        server.sent_bytes = server.received_bytes = 1 << 40
    listener = metrics.listener("127.0.0.1:11211")
    listener.opened = listener.connections = 200
    listener.received_bytes = listener.sent_bytes = 1 << 40
    for opcode in USED:
        metrics.degraded(opcode, "timeout")
    metrics.event_loop_lag.observe(0.0001)
    well = ServerState(
        up=True,
        connections={"warm": 2, "draining": 0},
        connections_target=2,
        in_flight=30,
        queued=4,
        tombstones=0,
        queue_oldest_seconds=0.001,
        breaker_open=False,
        verify="full",
        tls=("TLSv1.3", "TLS_AES_256_GCM_SHA384"),
        certificate_not_after=2e9,
    )
    state = State(
        ready=True,
        draining=False,
        client_paused=0,
        buffered_bytes=4096,
        client_connections_max=10_000,
        config_last_reload_successful=True,
        servers=dict.fromkeys(names, well),
    )
    metrics.watch(lambda: state)
    return metrics


class Reactor:
    """Calls at the next turn what is to be called later."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], object]] = []

    def callLater(self, delay: float, call: Callable[[], object]) -> None:
        assert not delay
        self.calls.append(call)

    def turn(self) -> None:
        calls, self.calls = self.calls, []
        for call in calls:
            call()


class Scrape(DummyRequest):
    """A request for the metrics from this machine."""

    clientproto = b"HTTP/1.1"

    def __init__(self, accept: str) -> None:
        super().__init__([])
        self.path = b"/metrics"
        self.requestHeaders.addRawHeader("accept", accept)
        self.requestHeaders.addRawHeader("host", "localhost")

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 9152)


@pytest.mark.parametrize("accept", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("servers", SERVERS)
def test_scrape(benchmark: Any, servers: int, accept: str) -> None:
    metrics = loaded(servers)
    reactor = Reactor()
    site = admin.site(lambda: succeed(metrics), lambda: True, token=None, reactor=reactor)
    longest = []
    turns = []

    def scrape() -> None:
        request = Scrape(accept)
        began = perf_counter()
        request.render(site.resource)  # type: ignore[no-untyped-call]
        took = [perf_counter() - began]
        while reactor.calls:
            began = perf_counter()
            reactor.turn()
            took.append(perf_counter() - began)
        assert request.responseCode == 200
        assert request.finished == 1
        longest.append(max(took))
        turns.append(len(took))

    benchmark.group = f"a scrape, {servers} servers"
    benchmark.pedantic(scrape, rounds=SCRAPES, warmup_rounds=20)
    if benchmark.stats is not None:  # measured, not only tried out
        median, most = statistics.median(longest) * 1e3, max(longest) * 1e3
        benchmark.extra_info.update(
            turns=max(turns), longest_ms=round(median, 3), longest_of_all_ms=round(most, 3)
        )
        print(
            f"\n{benchmark.name}: {max(turns)} turns, "
            f"the longest {median:.2f} ms (median), {most:.2f} ms (most)"
        )
