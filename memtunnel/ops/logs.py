"""The log as JSON: an object a line, for those who read it by program.

Each has ``time``, ``level`` and ``message``, which is the line that people would read, and beside
them what the message was made of: ``server``, ``connection``, ``reason`` and so on. A field whose
name begins with an underscore is only for the message.
"""

from __future__ import annotations

import json
from typing import Any, Final, TextIO

from twisted.logger import FileLogObserver, LogEvent, formatEvent

from memtunnel.ops.epoch import timestamp

#: Where our own lines come from; others name their origin.
NAMESPACE: Final = "memtunnel"


def json_observer(file: TextIO) -> FileLogObserver:
    """Writes each event to `file` as a line."""
    return FileLogObserver(file, json_line)


def json_line(event: LogEvent) -> str | None:
    """An event as a line; None for one that says nothing."""
    message = formatEvent(event)
    if "log_failure" in event:
        message = f"{message}\n{event['log_failure'].getTraceback()}".strip()
    if not message:
        return None
    line: dict[str, Any] = {
        "time": timestamp(event["log_time"]),
        "level": event["log_level"].name,
        "message": message,
    }
    if event["log_namespace"] == NAMESPACE:
        line = line | fields(event) | line
    else:
        line["origin"] = event["log_namespace"]
    return json.dumps(line, separators=(",", ":"), default=str) + "\n"


def fields(event: LogEvent) -> dict[str, Any]:
    """What an event of ours was made of, without what is only for its message."""
    return {name: value for name, value in event.items() if not name.startswith(("log_", "_"))}
