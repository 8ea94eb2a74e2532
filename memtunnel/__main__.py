"""The console script: ``memtunnel`` runs the tunnel in the foreground, or one of its tools."""

import sys
from collections.abc import Callable
from typing import Final

#: By word: the module of the tool, each with a ``main(arguments) -> exit status``.
TOOLS: Final = ("check", "ca", "top")
#: What the tunnel itself starts.
WORKER: Final = "worker"


def main() -> None:
    """Run what the command line asks for; ends the process."""
    arguments = sys.argv[1:]
    if arguments and arguments[0] in (*TOOLS, WORKER):
        sys.exit(tool(arguments[0])(arguments[1:]))
    from twisted.python import usage
    from twisted.scripts.twistd import run

    from memtunnel.service import Options

    try:
        # Once before twistd does, whose word on a mistake begins with all flags there are.
        Options().parseOptions(arguments)  # type: ignore[no-untyped-call]
    except usage.UsageError as mistake:
        print(f"memtunnel: {mistake}; memtunnel --help lists all options", file=sys.stderr)
        sys.exit(1)
    sys.argv[1:] = ["--nodaemon", "--pidfile=", "memtunnel", *arguments]
    run()


def tool(word: str) -> Callable[[list[str]], int]:
    """The entry point of a tool, imported only when it is asked for."""
    if word == "check":
        from memtunnel.check import main as check

        return check
    if word == "top":
        from memtunnel.top import main as top

        return top
    if word == WORKER:
        from memtunnel.worker_process import main as worker

        return worker
    from memtunnel.ca import main as ca

    return ca


if __name__ == "__main__":
    main()
