"""50,000 times: connect, set a value, and reset the connection.

Half of them do it at once, so that most of these are gone before they are accepted; the others a
moment later, with the answer on its way. Nothing of it may stay: no descriptor, no request, no byte
in a buffer, no memory. The collector of garbage comes seldom, and the memory that is reused between
its visits is taken once: so there are two storms, and the second may take no more.
"""

from __future__ import annotations

import socket
import struct
from collections import deque

import servers

from memtunnel.wire.binary import Opcode, request
from torture.scorecard import Options, Row
from torture.stage import Vitals, staged

TIMES = 50_000
RESET = struct.pack("ii", 1, 0)
#: Connections between two looks at whether the tunnel follows: its queue of new ones is short.
TOGETHER = 40


def run(options: Options) -> list[Row]:
    times = options.times or TIMES
    with staged(options, count=2) as stage:
        tunnel = stage.make_tunnel().start()
        tunnel.wait_ready()
        vitals = Vitals(tunnel)
        calm = vitals.memory()
        _rage(tunnel, times)
        vitals.left_at_rest()
        before = vitals.memory(), vitals.descriptors()
        _rage(tunnel, times)
        left = vitals.left_at_rest()
        after = vitals.memory(), vitals.descriptors()
        clients = tunnel.metric("memtunnel_client_connections")
        opened = tunnel.metric("memtunnel_client_connections_opened_total")
        stored = tunnel.metric("memtunnel_commands_total", command="set")
        wire = servers.Wire(tunnel.port)
        alive = wire.set(b"after", b"the storm").status == 0
        wire.close()
        log = tunnel.log()
    growth = (after[0] - before[0]) / before[0]
    rows = [
        ("file descriptors", "as before", f"{before[1]} / {after[1]}", after[1] <= before[1]),
        ("clients that are thought to be there", "0", f"{clients:.0f}", clients == 0),
        ("requests in flight, queued, tombstones, buffered bytes", "0", f"{left:.0f}", left == 0),
        ("memory", "within 3%", f"{growth:+.1%} of {before[0] / 2**20:.1f} MiB", growth < 0.03),
        ("served afterwards", "yes", "yes" if alive else "no", alive),
        ("tracebacks in the log", "0", str(log.count("Traceback")), "Traceback" not in log),
    ]
    found = [
        Row(part="storm", name=name, target=target, figure=figure, ok=ok)
        for name, target, figure, ok in rows
    ]
    done = f"twice {times:,}, {opened:,.0f} seen, {stored:,.0f} sets taken"
    first = f"{(before[0] - calm) / calm:+.1%} of {calm / 2**20:.1f} MiB"
    return [
        *found,
        Row(part="storm", name="memory, in the first storm", figure=first),
        Row(part="storm", name="connections", figure=done),
    ]


def _rage(tunnel: servers.Tunnel, times: int) -> None:
    frame = request(Opcode.SET, b"storm", extras=bytes(8), value=b"x" * 100)
    lingering: deque[socket.socket] = deque()
    for number in range(times):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        client.bind((f"127.0.1.{1 + number % 8}", 0))
        client.connect(("127.0.0.1", tunnel.port))
        client.send(frame)
        lingering.append(client)
        if number % 2 or len(lingering) > TOGETHER + 10:
            (lingering.pop() if number % 2 else lingering.popleft()).close()
        if number % TOGETHER == 0:
            # One that is answered: all before it were accepted.
            wire = servers.Wire(tunnel.port)
            wire.ask(Opcode.NOOP)
            wire.close()
    while lingering:
        lingering.pop().close()
