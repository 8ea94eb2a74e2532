"""Every metric, declared once, and its exposition to Prometheus.

`FAMILIES` is the table of all names, types, labels and where the numbers are read. One
collector of a private registry exports it, rendered a few samples at a time so that a scrape
holds nobody up. Who may scrape is the business of `ops.admin`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import accumulate, islice
from typing import Final, Literal, NamedTuple, cast

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from memtunnel.core.outcomes import STATUS_WORDS
from memtunnel.ops.metrics import (
    Build,
    Histogram,
    ListenerMetrics,
    Metrics,
    ServerMetrics,
    ServerState,
    State,
)
from memtunnel.ops.processes import GarbageCollection, Processes


class Exposition:
    """`metrics` in the forms that Prometheus reads, with the process's own beside them."""

    def __init__(self, metrics: Metrics) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Tunnel(metrics))
        self.registry.register(Processes(metrics))
        self.registry.register(GarbageCollection(metrics))

    def render(self, accept: str) -> tuple[str, Iterator[bytes]]:
        """The content type for an Accept header, and the text in pieces.

        OpenMetrics 1.0 to those who ask for it, else Prometheus text 0.0.4. Each piece is
        rendered when it is asked for, and takes a fraction of a millisecond.
        """
        if _accepts_openmetrics(accept):
            return openmetrics.CONTENT_TYPE_LATEST, self._openmetrics()
        return CONTENT_TYPE_PLAIN_0_0_4, _pieces(self.registry, generate_latest)

    def _openmetrics(self) -> Iterator[bytes]:
        encode: Callable[[Collector], bytes] = openmetrics.generate_latest
        for piece in _pieces(self.registry, encode):
            yield piece.removesuffix(_EOF)
        yield _EOF


# Rendering

_EOF: Final = b"# EOF\n"
#: Samples rendered in one piece: about 0.3 ms.
PIECE: Final = 32


def _accepts_openmetrics(accept: str) -> bool:
    for offer in accept.split(","):
        media_type, *parameters = (part.strip() for part in offer.split(";"))
        versions = [each[8:] for each in parameters if each.startswith("version=")]
        if media_type == "application/openmetrics-text" and versions in ([], ["1.0.0"]):
            return True
    return False


class _One:
    """One family, in the place where encoders expect a registry."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterable[Metric]:
        return (self._metric,)


def _pieces(registry: Collector, encode: Callable[[Collector], bytes]) -> Iterator[bytes]:
    """Each family with its samples, a few at a time: one family can have thousands."""
    for metric in registry.collect():
        samples = iter(metric.samples)
        metric.samples = list(islice(samples, PIECE))
        yield encode(_One(metric))
        while more := list(islice(samples, PIECE)):
            metric.samples = more
            _help, _type, text = encode(_One(metric)).split(b"\n", 2)
            yield text


class _Tunnel:
    """The collector of everything in `FAMILIES`."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def describe(self) -> Iterable[Metric]:
        """Nothing: a registry would otherwise collect everything only to learn the names."""
        return ()

    def collect(self) -> Iterator[Metric]:
        state = self._metrics.state()
        for family in FAMILIES:
            metric = Metric(family.name.removesuffix("_total"), family.help, family.type)
            # An iterator where a list is declared: samples are made as they are rendered, and
            # whoever reads a metric does no more than iterate, once.
            metric.samples = cast("list[Sample]", _samples(family, self._metrics, state))
            yield metric


def _samples(family: Family, metrics: Metrics, state: State | None) -> Iterator[Sample]:
    if family.by_worker and state is not None and state.workers:
        for number, worker in state.workers.items():
            for values, value in family.read(metrics, worker):
                labels = dict(zip((*family.labels, "worker"), (*values, number), strict=True))
                yield Sample(family.name, labels, cast(float, value))
        return
    for values, value in family.read(metrics, state):
        labels = dict(zip(family.labels, values, strict=True))
        if isinstance(value, Histogram):
            # Read in one go: it may count on between two pieces.
            yield from _histogram(family.name, labels, value)
        else:
            yield Sample(family.name, labels, value)


def _histogram(name: str, labels: dict[str, str], histogram: Histogram) -> list[Sample]:
    counts = list(accumulate(histogram.counts))
    samples = [
        Sample(name + "_bucket", {**labels, "le": edge}, count)
        for edge, count in zip(_edges(histogram.bounds), counts, strict=True)
    ]
    samples.append(Sample(name + "_count", labels, counts[-1]))
    samples.append(Sample(name + "_sum", labels, histogram.sum))
    return samples


@lru_cache
def _edges(bounds: tuple[float, ...]) -> tuple[str, ...]:
    text: Callable[[float], str] = floatToGoString
    return tuple(text(bound) for bound in (*bounds, float("inf")))


# The table

#: Label values without the first, which names the server or listener, and what they count.
Reading = Iterable[tuple[tuple[str, ...], "float | Histogram"]]
Read = Callable[[Metrics, "State | None"], Reading]


class Family(NamedTuple):
    """A metric: its public name, its type, its labels, its help, and where it is read."""

    name: str
    type: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str
    read: Read
    by_worker: bool = False
    """Of several workers' gauges the sum says nothing: each is told, with a label `worker`."""


def _servers(read: Callable[[ServerMetrics], Reading]) -> Read:
    """Read from the counts of each server. Dicts are copied: a scrape takes several turns."""

    def reading(metrics: Metrics, state: State | None) -> Reading:
        for name, server in list(metrics.servers.items()):
            for labels, value in read(server):
                yield (name, *labels), value

    return reading


def _listeners(read: Callable[[ListenerMetrics], Reading]) -> Read:
    """Read from the counts of each listener."""

    def reading(metrics: Metrics, state: State | None) -> Reading:
        for name, listener in list(metrics.listeners.items()):
            for labels, value in read(listener):
                yield (name, *labels), value

    return reading


def _server_states(read: Callable[[ServerState], Reading]) -> Read:
    """Read from the state of each server."""

    def reading(metrics: Metrics, state: State | None) -> Reading:
        for name, server in state.servers.items() if state is not None else ():
            for labels, value in read(server):
                yield (name, *labels), value

    return reading


def _state(read: Callable[[State], float]) -> Read:
    """Read from the state of the tunnel."""
    return lambda metrics, state: () if state is None else _one(read(state))


def _one(value: float | Histogram) -> Reading:
    """The only child, used or not."""
    return (((), value),)


def _once(value: float) -> Reading:
    """The only child, as soon as it has counted something."""
    return _one(value) if value else ()


def _tally(counts: Mapping[str, int]) -> Reading:
    return [((str(word),), count) for word, count in counts.items()]


def _used(histograms: Mapping[str, Histogram]) -> Reading:
    return [((word,), each) for word, each in histograms.items() if any(each.counts)]


def _used_one(histogram: Histogram) -> Reading:
    return _one(histogram) if any(histogram.counts) else ()


def _commands(server: ServerMetrics) -> Reading:
    for word, command in server.commands.items():
        for status, count in zip(STATUS_WORDS, command.statuses, strict=True):
            if count:
                yield (word, status), count


FAMILIES: Final = (
    Family("memtunnel_build_info", "gauge", Build._fields,
           "What the tunnel was built of; always 1.",
           lambda metrics, state: ((metrics.build, 1),)),
    Family("memtunnel_ready", "gauge", (),
           "Whether the tunnel can serve: what /readyz says.",
           _state(lambda state: state.ready)),
    Family("memtunnel_draining", "gauge", (),
           "Whether the tunnel is about to stop.",
           _state(lambda state: state.draining)),
    Family("memtunnel_config_last_reload_successful", "gauge", (),
           "Whether the configuration in use is the one that was last read.",
           _state(lambda state: state.config_last_reload_successful)),
    Family("memtunnel_event_loop_lag_seconds", "histogram", (),
           "How late the event loop came to a timer.",
           lambda metrics, state: _one(metrics.event_loop_lag)),
    # Requests
    Family("memtunnel_commands_total", "counter", ("server", "command", "status"),
           "Commands that were settled, by outcome.",
           _servers(_commands)),
    Family("memtunnel_request_duration_seconds", "histogram", ("server", "command"),
           "From the complete frame to its answer handed to the client's transport.",
           _servers(lambda server: _used(
               {word: each.duration for word, each in server.commands.items()}))),
    Family("memtunnel_upstream_duration_seconds", "histogram", ("server",),
           "From a request written to its answer parsed.",
           _servers(lambda server: _used_one(server.upstream_duration))),
    Family("memtunnel_queue_duration_seconds", "histogram", ("server",),
           "From a request's complete frame to its being written: waiting in the tunnel.",
           _servers(lambda server: _used_one(server.queue_duration))),
    Family("memtunnel_queue_oldest_seconds", "gauge", ("server",),
           "How long the oldest request that waits has waited.",
           _server_states(lambda server: _one(server.queue_oldest_seconds)),
           by_worker=True),
    Family("memtunnel_degraded_replies_total", "counter", ("command", "reason"),
           "Replies made up by the tunnel for want of a server's answer.",
           lambda metrics, state: list(metrics.degraded_replies.items())),
    # Connections to servers
    Family("memtunnel_upstream_up", "gauge", ("server",),
           "Whether the server has a warm connection.",
           _server_states(lambda server: _one(server.up)),
           by_worker=True),
    Family("memtunnel_upstream_connections", "gauge", ("server", "state"),
           "Connections to the server, by state.",
           _server_states(lambda server: _tally(server.connections))),
    Family("memtunnel_upstream_connections_target", "gauge", ("server",),
           "How many warm connections the pool tries to keep.",
           _server_states(lambda server: _one(server.connections_target))),
    Family("memtunnel_upstream_requests_in_flight", "gauge", ("server",),
           "Requests that were sent and are not answered yet.",
           _server_states(lambda server: _one(server.in_flight))),
    Family("memtunnel_upstream_requests_queued", "gauge", ("server",),
           "Requests that wait in the tunnel.",
           _server_states(lambda server: _one(server.queued))),
    Family("memtunnel_upstream_requests_tombstones", "gauge", ("server",),
           "Requests that were given up and whose late answers are still owed.",
           _server_states(lambda server: _one(server.tombstones))),
    Family("memtunnel_upstream_breaker_open", "gauge", ("server",),
           "Whether the server is known to be down, so that nothing waits for it.",
           _server_states(lambda server: _one(server.breaker_open)),
           by_worker=True),
    Family("memtunnel_upstream_connects_total", "counter", ("server", "result"),
           "Attempts to connect: ok, or why not.",
           _servers(lambda server: _tally(server.connects))),
    Family("memtunnel_upstream_connect_duration_seconds", "histogram", ("server", "phase"),
           "How long each phase of setting up a connection took.",
           _servers(lambda server: _used(server.connect_duration))),
    Family("memtunnel_upstream_disconnects_total", "counter", ("server", "reason"),
           "Connections lost, by reason.",
           _servers(lambda server: _tally(server.disconnects))),
    Family("memtunnel_upstream_desync_total", "counter", ("server", "kind"),
           "Connections aborted because the server said what answers no request.",
           _servers(lambda server: _tally(server.desync))),
    Family("memtunnel_upstream_retries_total", "counter", ("server", "reason"),
           "Requests sent on another connection.",
           _servers(lambda server: _tally(server.retries))),
    Family("memtunnel_upstream_flaps_total", "counter", ("server",),
           "Connections lost soon after they had become warm.",
           _servers(lambda server: _once(server.flaps))),
    Family("memtunnel_failovers_total", "counter", ("server",),
           "Requests for keys of this server that another one was asked.",
           _servers(lambda server: _once(server.failovers))),
    Family("memtunnel_upstream_sent_bytes_total", "counter", ("server",),
           "Bytes sent to the server, before encryption.",
           _servers(lambda server: _once(server.sent_bytes))),
    Family("memtunnel_upstream_received_bytes_total", "counter", ("server",),
           "Bytes received from the server, after decryption.",
           _servers(lambda server: _once(server.received_bytes))),
    Family("memtunnel_tls_verify_info", "gauge", ("server", "mode"),
           "What is checked of the server's certificate; always 1.",
           _server_states(lambda server: (((server.verify,), 1),))),
    Family("memtunnel_tls_info", "gauge", ("server", "version", "cipher"),
           "What TLS agreed on with the server; always 1.",
           _server_states(lambda server: () if server.tls is None else ((server.tls, 1),)),
           by_worker=True),
    Family("memtunnel_tls_certificate_not_after_timestamp_seconds", "gauge", ("server",),
           "When the server's certificate expires, in seconds since the epoch.",
           _server_states(lambda server: () if server.certificate_not_after is None
                          else _one(server.certificate_not_after)),
           by_worker=True),
    # Local clients
    Family("memtunnel_client_connections", "gauge", ("listener",),
           "Clients that are connected.",
           _listeners(lambda listener: _one(listener.connections))),
    Family("memtunnel_client_connections_max", "gauge", (),
           "How many clients may be connected.",
           _state(lambda state: state.client_connections_max)),
    Family("memtunnel_client_connections_opened_total", "counter", ("listener",),
           "Clients that connected.",
           _listeners(lambda listener: _once(listener.opened))),
    Family("memtunnel_client_connections_rejected_total", "counter", ("listener", "reason"),
           "Clients that were closed at once.",
           _listeners(lambda listener: _tally(listener.rejected))),
    Family("memtunnel_client_logins_total", "counter", ("listener", "result"),
           "Logins of clients.",
           _listeners(lambda listener: _tally(listener.logins))),
    Family("memtunnel_client_protocol_errors_total", "counter", ("listener", "reason"),
           "Clients that broke the protocol.",
           _listeners(lambda listener: _tally(listener.protocol_errors))),
    Family("memtunnel_client_received_bytes_total", "counter", ("listener",),
           "Bytes received from clients.",
           _listeners(lambda listener: _once(listener.received_bytes))),
    Family("memtunnel_client_sent_bytes_total", "counter", ("listener",),
           "Bytes sent to clients.",
           _listeners(lambda listener: _once(listener.sent_bytes))),
    Family("memtunnel_client_paused", "gauge", (),
           "Clients that are not read from, because they do not read.",
           _state(lambda state: state.client_paused)),
    Family("memtunnel_buffered_bytes", "gauge", (),
           "Bytes in all buffers that --max-buffer bounds.",
           _state(lambda state: state.buffered_bytes)),
)  # fmt: skip
