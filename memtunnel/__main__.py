"""The console script: ``memtunnel`` runs the tunnel in the foreground, or one of its tools."""

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

#: By word: the module of the tool, each with a ``main(arguments) -> exit status``.
TOOLS: Final = ("check", "ca", "top", "start")
#: What the tunnel itself starts.
WORKER: Final = "worker"


def main() -> None:
    """Run what the command line asks for; ends the process."""
    try:
        try:
            _main(sys.argv[1:])
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read has seen enough. What is left would be tried once more at the very end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _main(arguments: list[str]) -> None:
    if arguments and arguments[0] in (*TOOLS, WORKER):
        sys.exit(tool(arguments[0])(arguments[1:]))
    from twisted.python import usage

    from memtunnel.service import Options

    try:
        # Once before twistd does, whose word on a mistake begins with all flags there are.
        Options().parseOptions(arguments)  # type: ignore[no-untyped-call]
    except usage.UsageError as mistake:
        print(f"memtunnel: {mistake}; memtunnel --help lists all options", file=sys.stderr)
        sys.exit(1)
    sys.argv[1:] = ["--nodaemon", "--pidfile=", "memtunnel", *arguments]
    run()


def run() -> None:
    """What `twistd` does, without its search for plugins: this one is here."""
    from twisted.application import app
    from twisted.application.service import ServiceMaker
    from twisted.scripts import twistd

    maker: Any = ServiceMaker("memtunnel", "memtunnel.service", "", "memtunnel")

    class Twistd(twistd.ServerOptions):  # type: ignore[misc, name-defined]
        @property
        def subCommands(self) -> Iterator[tuple[str, None, Callable[[], Any], str]]:
            self.loadedPlugins = {maker.tapname: maker}
            yield maker.tapname, None, maker.options, maker.description

    app.run(twistd.runApp, Twistd)


def tool(word: str) -> Callable[[list[str]], int]:
    """The entry point of a tool, imported only when it is asked for."""
    if word == "check":
        from memtunnel.check import main as check

        return check
    if word == "start":
        from memtunnel.start import main as start

        return start
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
