"""The pictures in docs/observability.md: ``make pictures`` draws them anew.

They are the status page's own charts, with documents made for them: drawn, not measured.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import status_documents as documents
from browser import Stub, Visit, browser

FOLDER = Path(__file__).parent.parent / "docs" / "pictures"
#: Rows that tell of trouble: the last four minutes.
TROUBLE = 120
WIDTH = 1000

#: What becomes of a row's values: by name, from the value before and the share of the trouble's
#: time that has gone by.
Change = Callable[[dict[str, Any], float, Random], dict[str, Any]]


def queue_grows(row: dict[str, Any], share: float, draw: Random) -> dict[str, Any]:
    queue = row["queue_p99"] + 0.09 * share**2 * draw.uniform(0.8, 1.2)
    return {"queue_p99": queue, "p99": queue + row["wire_p99"], "p50": row["p50"] + queue / 12}


def wire_grows(row: dict[str, Any], share: float, draw: Random) -> dict[str, Any]:
    more = 0.018 * min(1.0, 4 * share) * draw.uniform(0.9, 1.1)
    wire = {name: row[name] + more for name in ("wire_p50", "wire_p99")}
    return wire | {name: row[name] + more for name in ("p50", "p99")}


def one_server_is_slow(row: dict[str, Any], share: float, draw: Random) -> dict[str, Any]:
    wire = 0.13 * draw.uniform(0.85, 1.2)
    return {"wire_p99": wire, "p99": wire + row["queue_p99"]}


def clients_reconnect(row: dict[str, Any], share: float, draw: Random) -> dict[str, Any]:
    return {
        "opened": 900 * draw.uniform(0.7, 1.3),
        "clients": row["clients"] - int(300 * draw.random()),
        "requests": row["requests"] * 0.55 * draw.uniform(0.9, 1.1),
        "p99": row["p99"] * 3 * draw.uniform(0.8, 1.3),
        "queue_p99": row["queue_p99"] * 6 * draw.uniform(0.8, 1.3),
    }


def clients_starve(row: dict[str, Any], share: float, draw: Random) -> dict[str, Any]:
    clients = min(2000, row["clients"] + int(3000 * share))
    # Those that are turned away do not count.
    return {"clients": clients, "opened": draw.uniform(0, 2) if clients == 2000 else 14}


#: By name of the picture: the change, and which charts show it, counted from 1.
PICTURES: dict[str, tuple[Change, tuple[int, int]]] = {
    "queue": (queue_grows, (2, 3)),
    "wire": (wire_grows, (2, 3)),
    "one-server": (one_server_is_slow, (2, 3)),
    "reconnects": (clients_reconnect, (1, 5)),
    "starving": (clients_starve, (1, 5)),
}


def document(change: Change) -> dict[str, Any]:
    """A busy tunnel's, of which this has become."""
    made = documents.document()
    history = made["history"]
    draw = Random(7)
    names = [name for name, column in history.items() if isinstance(column, list)]
    rows = len(history["time"])
    for place in range(rows - TROUBLE, rows):
        row = {name: history[name][place] for name in names}
        changed = change(row, (place - rows + TROUBLE) / TROUBLE, draw)
        for name, value in changed.items():
            history[name][place] = value
    return made


def main() -> int:
    FOLDER.mkdir(exist_ok=True)
    with browser() as chromium:
        for name, (change, charts) in PICTURES.items():
            stub = Stub(lambda change=change: document(change))
            # So tall that the charts stand beside one another, and nothing else is seen.
            seen = Visit(chromium, stub.url, viewport={"width": WIDTH, "height": 900})
            try:
                seen["#picture"].wait_for(state="visible")
                shown = ", ".join(f"#charts figure:nth-child({place})" for place in charts)
                seen.page.evaluate(
                    """shown => {
                        for (const figure of document.querySelectorAll("#charts figure"))
                            figure.hidden = !figure.matches(shown);
                        document.querySelector("#charts").style.gridTemplateColumns = "1fr 1fr";
                        dispatchEvent(new Event("resize"));
                    }""",
                    shown,
                )
                seen["#charts"].screenshot(path=FOLDER / f"{name}.png")
            finally:
                seen.close()
                stub.close()
            print(FOLDER / f"{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
