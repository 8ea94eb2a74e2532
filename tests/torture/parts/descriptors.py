"""No file descriptors left: clients that are there, and the pool, go on; others are closed at once.

Two tunnels with a low limit. One has a pool that fits: it takes as many clients as it has room for.
The other has been promised more connections than it may have files, and really runs out.
"""

from __future__ import annotations

import contextlib
import time

import servers

from memtunnel.wire.binary import Opcode
from torture.scorecard import Options, Row
from torture.stage import Stage, Vitals, staged

#: Descriptors that the tunnel may have in all.
LIMIT = 120
#: Clients that come beside those that there is room for.
TOO_MANY = 100


def run(options: Options) -> list[Row]:
    with staged(options, count=2) as stage:
        return [*_more_clients(stage), *_more_connections(stage)]


def _limited(stage: Stage, *flags: str) -> servers.Tunnel:
    prefix = ("prlimit", f"--nofile={LIMIT}:{LIMIT}")
    tunnel = stage.make_tunnel(*flags, servers.PATIENT, "--failover=off", prefix=prefix)
    return tunnel.start()


class Crowd:
    """Clients that come one after the other, and stay if they are let."""

    def __init__(self, port: int, count: int) -> None:
        self.served: list[servers.Wire] = []
        self.closed = 0
        self.unclear = 0
        """Neither answered nor closed."""
        for _ in range(count):
            wire = None
            try:
                wire = servers.Wire(port, timeout=5.0)
                wire.ask(Opcode.NOOP)
                self.served.append(wire)
                continue
            except TimeoutError:
                self.unclear += 1
            except (OSError, ValueError):
                self.closed += 1  # no answer, and the end of the connection
            if wire is not None:
                wire.close()

    def all_served(self) -> int:
        """How many of them still have their answers."""
        good = 0
        for wire in self.served:
            with contextlib.suppress(OSError, ValueError):
                good += wire.ask(Opcode.NOOP).status == 0 and wire.set(b"k", b"v").status == 0
        return good

    def close(self) -> None:
        for wire in self.served:
            wire.close()


def _more_clients(stage: Stage) -> list[Row]:
    """As many clients as there is room for, and more; then the servers are restarted."""
    tunnel = _limited(stage, "--pool-size=4")
    tunnel.wait_ready()
    room = int(tunnel.metric("memtunnel_client_connections_max"))
    crowd = Crowd(tunnel.port, room + TOO_MANY)
    served = crowd.all_served()
    for memcached in stage.memcacheds:
        memcached.stop()
        stage.start_server(memcached)
    tunnel.wait_ready()

    def warm() -> bool:
        target = tunnel.metric("memtunnel_upstream_connections_target")
        return tunnel.metric("memtunnel_upstream_connections", state="warm") == target

    servers.wait_until(warm, "the pool is whole again")
    after = crowd.all_served()
    files = Vitals(tunnel).descriptors()
    crowd.close()
    log = tunnel.log()
    tunnel.stop()
    return _rows(
        "more clients than files",
        [
            ("clients served, of the room for them", room, len(crowd.served)),
            ("clients beyond that closed at once", TOO_MANY, crowd.closed),
            ("clients left waiting", 0, crowd.unclear),
            ("clients served on", room, served),
            ("the same after the pool had to reconnect", room, after),
            ("tracebacks in the log", 0, log.count("Traceback")),
        ],
        f"{files} descriptors of {LIMIT} a process",
    )


def _more_connections(stage: Stage) -> list[Row]:
    """A pool larger than the limit."""
    tunnel = _limited(stage, "--pool-size=100")
    early = Crowd(tunnel.port, 5)
    servers.wait_until(lambda: Vitals(tunnel).descriptors() >= LIMIT - 5, "the files are used up")
    time.sleep(1.0)  # it goes on trying
    began = time.monotonic()
    crowd = Crowd(tunnel.port, 10)
    took = time.monotonic() - began
    served = crowd.all_served()
    early_served = early.all_served()
    files = Vitals(tunnel).descriptors()
    crowd.close()
    early.close()
    assert tunnel.process is not None
    lives = tunnel.process.poll() is None
    log = tunnel.log()
    tunnel.stop()
    return _rows(
        "more connections than files",
        [
            ("clients served on that came before", 5, early_served),
            ("clients left waiting", 0, crowd.unclear),
            ("clients that were taken and not served on", 0, len(crowd.served) - served),
            ("processes that ended", 0, int(not lives)),
            ("tracebacks in the log", 0, log.count("Traceback")),
            ("lines in the log, thousands", 0, len(log.splitlines()) // 1000),
        ],
        f"{crowd.closed} of 10 closed at once, {len(crowd.served)} served, {took:.1f} s; "
        f"{files} descriptors of {LIMIT} a process",
    )


def _rows(what: str, figures: list[tuple[str, int, int]], more: str) -> list[Row]:
    part = "descriptors"
    rows = [
        Row(
            part=part,
            name=f"{what}: {name}",
            target=str(target),
            figure=str(figure),
            ok=figure == target,
        )
        for name, target, figure in figures
    ]
    return [*rows, Row(part=part, name=what, figure=more)]
