"""Python runs this at its start where its folder is on the path of modules, as the tunnel of the
soak has it: SIGUSR2 then makes the process write down what it has in use.

What a process takes from the kernel says how much it once needed together, since holes are kept;
only the process itself knows what it still holds.
"""

import ctypes
import gc
import os
import signal
import sys
from pathlib import Path


class _Mallinfo2(ctypes.Structure):
    """glibc's, from 2.33 on."""

    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in _names.split()]


def _write_down(number: int, frame: object) -> None:
    gc.collect()
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = _Mallinfo2
    info = libc.mallinfo2()
    file = Path(os.environ["TORTURE_WITNESS"], str(os.getpid()))
    new = file.with_suffix(".new")
    new.write_text(f"{sys.getallocatedblocks()} {info.uordblks + info.hblkhd}")
    new.rename(file)


if "TORTURE_WITNESS" in os.environ:
    signal.signal(signal.SIGUSR2, _write_down)
