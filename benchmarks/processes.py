"""What the kernel knows of a process and its children: their time, memory and connections."""

import contextlib
import os
import re
from pathlib import Path

TICK = 1 / os.sysconf("SC_CLK_TCK")
ESTABLISHED = "01"


def tree(root: int) -> list[int]:
    """A process, its children, and theirs, as far as they are there."""
    found = [root]
    for process in found:  # grows while it is walked
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{process}/task").glob("*/children"):
                found += map(int, task.read_text().split())
    return found


def cpu_seconds(processes: list[int]) -> float:
    """What they have used so far, with what their ended children had."""
    ticks = 0
    for process in processes:
        with contextlib.suppress(OSError):
            # The name in parentheses may hold spaces: user, system, and the same of children
            # that have ended are the 14th to 17th field, counted with it.
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks * TICK


def memory(processes: list[int]) -> int:
    """Bytes in use, with what is shared among processes divided by their number."""
    return sum(map(_memory, processes))


def _memory(process: int) -> int:
    for name, field in (("smaps_rollup", "Pss"), ("status", "VmRSS")):
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{process}/{name}").read_text()
            if found := re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE):
                return int(found[1]) * 1024
    return 0


def connections(processes: list[int], port: int) -> int:
    """How many connections to a port of this machine they have established."""
    far = f"0100007F:{port:04X}"
    sockets = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[2] == far and fields[3] == ESTABLISHED:
            sockets.add(f"socket:[{fields[9]}]")
    return len(sockets & {name for process in processes for name in _open(process)})


def _open(process: int) -> set[str]:
    """What its descriptors stand for. One that two processes share counts once."""
    names = set()
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{process}/fd"):
            with contextlib.suppress(OSError):
                names.add(os.readlink(entry.path))
    return names
