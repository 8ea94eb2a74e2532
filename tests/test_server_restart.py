"""memcached is killed under load and started again: clients see misses, and nothing else."""

import random
import signal
import threading
import time
import zlib
from collections.abc import Callable
from typing import Any

import servers

from memtunnel.wire import binary
from memtunnel.wire.binary import Opcode, Status

WRITERS = 6
KEYS = 5
#: Seconds: no measure of speed, but proof that nobody hangs.
HANG = 2.0


def value_of(key: bytes, writer: int, sequence: int) -> bytes:
    text = b"%s|%d|%d" % (key, writer, sequence)
    return b"%s|%08x" % (text, zlib.crc32(text))


def parse(value: bytes) -> tuple[bytes, int, int]:
    """Key, writer and sequence of a value; fails where it is not one."""
    text, _, crc = value.rpartition(b"|")
    assert int(crc, 16) == zlib.crc32(text), "a value that nobody wrote"
    key, writer, sequence = text.split(b"|")
    return key, int(writer), int(sequence)


class Writer(threading.Thread):
    """Writes keys of its own, and reads them and those of others."""

    def __init__(self, number: int, port: int) -> None:
        super().__init__(name=f"writer {number}")
        self._number = number
        self._client = servers.Wire(port, timeout=HANG)
        self._random = random.Random(number)
        self._sequence = 0
        self._possible: dict[bytes, set[int]] = {}
        self.stopping = False
        self.problem: BaseException | None = None
        self.slowest = 0.0
        self.refused = 0
        self.misses = 0
        self.hits = 0

    def run(self) -> None:
        try:
            while not self.stopping:
                self._write_and_read()
                self._read_of_others()
        except BaseException as problem:
            self.problem = problem
        finally:
            self._client.close()

    def _ask(self, opcode: int, key: bytes, **parts: Any) -> binary.Frame:
        opaque = self._random.randbytes(4)
        began = time.monotonic()
        frame = self._client.ask(opcode, key, opaque=opaque, **parts)
        self.slowest = max(self.slowest, time.monotonic() - began)
        assert (frame.opcode, frame.opaque) == (opcode, opaque)
        return frame

    def _write_and_read(self) -> None:
        key = b"key-%d-%d" % (self._number, self._random.randrange(KEYS))
        self._sequence += 1
        value = value_of(key, self._number, self._sequence)
        possible = self._possible.setdefault(key, set())
        stored = self._ask(Opcode.SET, key, extras=bytes(8), value=value)
        if stored.status == Status.OK:
            possible.clear()
        else:
            # Not known to be stored: it may be, all the same.
            assert stored.status == Status.NOT_STORED
            self.refused += 1
        possible.add(self._sequence)
        found = self._ask(Opcode.GETK, key)
        if found.status == Status.OK:
            assert found.key == key
            assert parse(found.value)[:2] == (key, self._number)
            assert parse(found.value)[2] in possible, "not what was written last"
            self.hits += 1
        else:
            assert found.status == Status.NOT_FOUND
            self.misses += 1

    def _read_of_others(self) -> None:
        key = b"key-%d-%d" % (self._random.randrange(WRITERS), self._random.randrange(KEYS))
        found = self._ask(Opcode.GET, key)
        if found.status == Status.OK:
            assert parse(found.value)[0] == key, "an answer that is another's"
        else:
            assert found.status == Status.NOT_FOUND


def nothing_is_left(tunnel: servers.Tunnel) -> bool:
    """Whether no request and no byte is thought to be under way any more."""
    gauges = ("in_flight", "queued", "tombstones")
    return tunnel.metric("memtunnel_buffered_bytes") == 0 and all(
        tunnel.metric(f"memtunnel_upstream_requests_{gauge}") == 0 for gauge in gauges
    )


def test_p1_clients_outlive_a_restart_and_every_answer_is_their_own(
    make_memcached: Callable[..., Any], make_tunnel: Callable[..., Any], started: list[Any]
) -> None:
    memcached = make_memcached()
    tunnel = make_tunnel(memcached)
    writers = [Writer(number, tunnel.port) for number in range(WRITERS)]

    def all_have(what: str, since: list[int]) -> bool:
        return all(
            writer.problem or getattr(writer, what) > before
            for writer, before in zip(writers, since, strict=True)
        )

    def wait_for_more(what: str) -> None:
        since = [getattr(writer, what) for writer in writers]
        servers.wait_until(lambda: all_have(what, since), f"all clients have more {what}")

    def warm() -> bool:
        warm: int = tunnel.state()["servers"]["server0"]["connections"]["warm"]
        return warm == 2

    for writer in writers:
        writer.start()
    try:
        for _ in range(3):
            wait_for_more("hits")
            memcached.stop()
            wait_for_more("refused")
            wait_for_more("misses")
            tunnel.wait_ready(ready=False)
            memcached.start()
            wait_for_more("hits")
            servers.wait_until(warm, "the pool is warm again")
    finally:
        for writer in writers:
            writer.stopping = True
        for writer in writers:
            writer.join(servers.PATIENCE)
    for writer in writers:
        assert writer.problem is None, f"{writer.name}: {writer.problem!r}"
        assert writer.slowest < HANG
    servers.wait_until(lambda: nothing_is_left(tunnel), "all requests are accounted for")
    assert tunnel.metric("memtunnel_upstream_desync_total") == 0
    assert tunnel.metric("memtunnel_upstream_disconnects_total") >= 3


def test_p1_a_pipeline_is_answered_in_order_across_a_loss(
    make_memcached: Callable[..., Any],
    make_tunnel: Callable[..., Any],
    connect: Callable[..., servers.Wire],
) -> None:
    memcached = make_memcached()
    tunnel = make_tunnel(memcached)
    client = connect(tunnel)
    count = 20_000
    sent: list[bytes] = []
    for number in range(count):
        opcode, parts = Opcode.GETK, {}
        if number % 2:
            opcode, parts = Opcode.SET, {"extras": bytes(8), "value": b"v"}
        sent.append(
            binary.request(opcode, b"k%d" % (number % 7), opaque=number.to_bytes(4, "big"), **parts)
        )
    # It is stopped halfway, or else it might have answered all before it is killed.
    first, second = sent[: count // 2], sent[count // 2 :]
    sender = threading.Thread(target=client.send, args=first)
    sender.start()
    answers = client.read(2000)
    memcached.process.send_signal(signal.SIGSTOP)
    sender.join(servers.PATIENCE)
    sender = threading.Thread(target=client.send, args=second)
    sender.start()
    memcached.stop()
    answers += client.read(count - len(answers))
    sender.join(servers.PATIENCE)
    assert [int.from_bytes(frame.opaque, "big") for frame in answers] == list(range(count))
    for number, frame in enumerate(answers):
        if number % 2:
            assert (frame.opcode, frame.key) == (Opcode.SET, b"")
            assert frame.status in (Status.OK, Status.NOT_STORED)
        else:
            assert (frame.opcode, frame.key) == (Opcode.GETK, b"k%d" % (number % 7))
            assert frame.status in (Status.OK, Status.NOT_FOUND)
    assert {frame.status for frame in answers} >= {Status.OK, Status.NOT_STORED}
    client.socket.settimeout(HANG)
    assert client.ask(Opcode.NOOP).status == Status.OK
    servers.wait_until(lambda: nothing_is_left(tunnel), "all requests are accounted for")
