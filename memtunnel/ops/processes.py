"""``process_*`` and ``python_gc_*``, as prometheus_client names them, over all processes.

With one process they are what the client's own collectors say; those of workers are added.
"""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import cast

from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector

from memtunnel.ops.metrics import Metrics
from memtunnel.ops.totals import garbage


class Processes:
    """The client's own ``process_*``, summed over this process and the workers'."""

    #: Of these a sum says nothing, and the least is told: the tunnel has run since its first
    #: process, and the first to lack files will be the one that may have the fewest.
    _SMALLEST = ("process_start_time_seconds", "process_max_fds")

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        state = self._metrics.state()
        pids = [] if state is None else [worker.pid for worker in state.workers.values()]
        families = {metric.name: metric for metric in _process("self")}
        for pid in pids:
            for metric in _process(str(pid)):
                _merge(families[metric.name], metric, metric.name in self._SMALLEST)
        # A worker that has ended leaves what it used to its parent.
        gone = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = families["process_cpu_seconds"]
        (sample,) = cpu.samples
        cpu.samples = [sample._replace(value=sample.value + gone.ru_utime + gone.ru_stime)]
        yield from families.values()


def _process(pid: str) -> list[Metric]:
    """Of one process; none where it has just ended."""
    collector = ProcessCollector(registry=None, pid=lambda: cast(int, pid))
    return list(collector.collect())


def _merge(into: Metric, metric: Metric, smallest: bool) -> None:
    pairs = zip(into.samples, metric.samples, strict=True)
    into.samples = [
        one._replace(value=min(one.value, other.value) if smallest else one.value + other.value)
        for one, other in pairs
    ]


class GarbageCollection:
    """``python_gc_*`` as the client names them, summed over this process and the workers."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        numbers = Counter(garbage())
        numbers.update(self._metrics.garbage)
        for name, help, what in (
            ("python_gc_objects_collected", "Objects collected during gc", "collected"),
            ("python_gc_objects_uncollectable", "Uncollectable objects found", "uncollectable"),
            ("python_gc_collections", "Times that a generation was collected", "collections"),
        ):
            family = CounterMetricFamily(name, help, labels=["generation"])
            for generation in range(3):
                family.add_metric([str(generation)], numbers[f"{generation}:{what}"])
            yield family
