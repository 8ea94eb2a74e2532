"""What being watched costs, in instructions: `make instructions`.

Seconds differ by a tenth from round to round. What the processor is told to do for a request
differs by some thousandths, as long as the load comes in the same way: with nothing else on the
machine. valgrind counts it, of a tunnel that runs some fifty times slower meanwhile, without the
kernel's part. So the tunnel has time limits that do not matter, and looks that are taken at it are
counted by themselves: how many requests each is worth.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import servers

from benchmarks.contenders import Memtunnel, Watched
from benchmarks.hosted import Hosted
from benchmarks.memtier import PROGRAM

CLIENTS = 200
#: Requests of each client: until all is warm, and to be counted.
WARM_UP, COUNTED = 10, 100
LOOKS = 20
#: Seconds that a tunnel may take which is that slow.
PATIENCE = 120.0
#: Requests a second that looks are compared with: fewer than one core carries.
RATE = 20_000


def main(arguments: list[str]) -> int:
    """Measure and print; the exit status is 1 where something is missing."""
    parser = argparse.ArgumentParser(prog="make instructions", description=__doc__.split(":")[0])
    parser.add_argument("--rounds", type=int, default=2, metavar="N", help="default: 2")
    rounds = parser.parse_args(arguments).rounds
    try:
        for program in ("valgrind", "callgrind_control", PROGRAM, "memcached"):
            servers.need(program)
    except pytest.skip.Exception as missing:
        print(missing, file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as place:
        hosted = Hosted(Path(place))
        hosted.memcached.start("-m", "256")
        try:
            for number in range(1, rounds + 1):
                _tell(number, _Counted(Memtunnel, hosted), _Counted(Watched, hosted))
        finally:
            hosted.memcached.stop()
    return 0


def _tell(number: int, plain: "_Counted", watched: "_Counted") -> None:
    ratio = watched.request / plain.request
    looks = (watched.scrape + watched.document / 2) / (RATE * plain.request)
    print(
        f"round {number}: instructions for a request: {plain.request:,.0f}, "
        f"watched {watched.request:,.0f}, which is {ratio:.4f} times as many; "
        f"for a scrape as many as for {watched.scrape / plain.request:.0f} requests, "
        f"for the page's document {watched.document / plain.request:.0f}. "
        f"With {RATE:,} requests, a scrape and half a document in each second: "
        f"{ratio + looks:.4f} times as many in all",
        flush=True,
    )


class _Counted:
    """Instructions of a tunnel of that kind."""

    def __init__(self, kind: type[Memtunnel], hosted: Hosted) -> None:
        self._folder = Path(tempfile.mkdtemp(dir=hosted.ca_file.parent))
        contender = kind(kind.__name__, hosted, hosted.port, self._folder)
        self._tunnel = contender.tunnel
        # Everything is slow here: what is noted is left to the samples.
        slow = ["--slow-ms=60000"] if "--slow-ms=50" in contender.FLAGS else []
        limits = ["--request-timeout=60", "--connect-timeout=60"]
        out = f"--callgrind-out-file={self._folder}/counted"
        valgrind = ["valgrind", "-q", "--tool=callgrind", out]
        self._tunnel.command = [*valgrind, *self._tunnel.command, *limits, *slow]
        self._tunnel.environ |= {"PYTHONHASHSEED": "0"}
        self._tunnel.start(patience=PATIENCE)
        try:
            self._tunnel.wait_ready(patience=PATIENCE)
            self._ask(WARM_UP)
            self._look("/metrics", "/status")
            self._so_far()
            self._ask(COUNTED)
            self.request = self._so_far() / (CLIENTS * COUNTED)
            self._look("/metrics")
            self.scrape = self._so_far() / LOOKS
            self._look("/status")
            self.document = self._so_far() / LOOKS
        finally:
            self._tunnel.stop()

    def _ask(self, count: int) -> None:
        command = [PROGRAM, "--server=127.0.0.1", f"--port={self._tunnel.port}", "--threads=2"]
        command += [f"--clients={CLIENTS // 2}", f"--requests={count}", "--hide-histogram"]
        command += ["--protocol=memcache_binary", "--data-size=100", "--ratio=1:10"]
        subprocess.run(command, check=True, capture_output=True, timeout=600)

    def _look(self, *pages: str) -> None:
        for page in pages * LOOKS:
            assert self._tunnel.get(page)[0] == 200

    def _so_far(self) -> int:
        """How many since it was asked last."""
        assert self._tunnel.process is not None
        command = ["callgrind_control", "--dump", str(self._tunnel.process.pid)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        newest = max(self._folder.glob("counted.*"), key=_number)
        (total,) = re.findall(r"(?m)^(?:summary|totals): ([0-9]+)", newest.read_text())[:1]
        return int(total)


def _number(dump: Path) -> int:
    return int(dump.suffix[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
