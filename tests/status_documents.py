"""Documents of `GET /status` for tests of what shows them, and for looking at it.

`document` is a function of the time alone: a later one goes on where an earlier one ended.
Seconds are floats, times are seconds since the epoch, rates are per second.
"""

from collections.abc import Sequence
from random import Random
from typing import Any

#: When documents are made unless they say otherwise: 2025-11-26 16:00:00 UTC.
NOW = 1764172800.0
INTERVAL = 2.0
DAY = 86400.0
SERVERS = ("mc1.eu-west.cache.example.com", "mc2.eu-west.cache.example.com", "10.0.7.31")
HOSTILE = "<img src=x onerror=\"fetch('/stolen')\">"
#: Seconds between two entries of the slow log.
SPACING = 7.0


def document(
    *,
    now: float = NOW,
    names: Sequence[str] = SERVERS,
    down: Sequence[str] = (),
    rows: int = 300,
    slow: int = 40,
    connections: int = 2,
    workers: int = 2,
) -> dict[str, Any]:
    """A busy tunnel's. The servers in `down` went away two minutes before `now`."""
    servers = [
        _server(name, now, place, name in down, connections, workers)
        for place, name in enumerate(names)
    ]
    return {
        "version": "0.1.0",
        "now": now,
        "uptime": now - NOW + 93784.0,
        "pid": 4711,
        "ready": len(down) < len(names),
        "draining": False,
        "workers": workers,
        "silent": [],
        "reloaded": True,
        "slow_ms": 50.0,
        "slow_sample": 1000,
        "clients": {
            "connected": 1248,
            "max": 10000,
            "paused": 0,
            "buffered_bytes": 196608,
            "listeners": [
                _listener("127.0.0.1:11211", 1200, now),
                _listener("/run/memtunnel/memtunnel.sock", 48, now),
            ],
        },
        "servers": servers,
        "history": history(now, rows, outage=bool(down)),
        "slow": [_entry(now, number, names, down) for number in range(slow)],
        "slow_untold": 0,
    }


def starting(**changes: Any) -> dict[str, Any]:
    """A tunnel that has just started, and has no connection yet."""
    made = document(rows=0, slow=0, **changes)
    made |= {"ready": False, "uptime": 0.4, "slow_ms": None, "slow_sample": None}
    made["clients"] |= {"connected": 0, "buffered_bytes": 0}
    for listener in made["clients"]["listeners"]:
        listener |= dict.fromkeys(set(listener) - {"address"}, 0)
    for server in made["servers"]:
        server |= {"up": False, "in_flight": 0, "requests": 0, "tls": None}
        server |= {"certificate_not_after": None, "last_lost": "", "last_lost_age": None}
        for connection in server["connections"]:
            connection |= {"state": "dialling", "age": 0.3, "in_flight": 0, "round_trip": None}
    return made


def hostile(**changes: Any) -> dict[str, Any]:
    """One in which every word that comes from elsewhere is markup."""
    made = document(names=(HOSTILE, *SERVERS[1:]), **changes)
    made["version"] = HOSTILE
    made["clients"]["listeners"][0]["address"] = HOSTILE
    made["servers"][0] |= {"address": HOSTILE, "tls": HOSTILE, "last_lost": HOSTILE}
    made["servers"][0]["connections"][0] |= {"worker": HOSTILE, "state": HOSTILE}
    for word in ("worker", "command", "status", "why", "server", "key"):
        made["slow"][0][word] = HOSTILE
    return made


def history(now: float, rows: int, *, outage: bool = False) -> dict[str, Any]:
    """Columns that end at `now`; with an `outage`, their last two minutes tell of one."""
    last = int(now // INTERVAL)
    table = [
        _row(number, outage and number > last - 60) for number in range(last - rows + 1, last + 1)
    ]
    return {
        "interval": INTERVAL,
        "first": last - rows + 1,
        "time": [now - INTERVAL * (rows - 1 - place) for place in range(rows)],
    } | {name: [row[name] for row in table] for name in _row(last, False)}


def _row(number: int, outage: bool) -> dict[str, Any]:
    draw = Random(number)
    tide = 1 + 0.3 * abs((number % 240) / 120 - 1)
    requests = 3600 * tide * draw.uniform(0.93, 1.05)
    p50 = 0.00042 * tide * draw.uniform(0.95, 1.1)
    p99 = 0.0021 * tide * draw.uniform(0.8, 1.4) * (4 if number % 97 == 0 else 1)
    if outage:
        requests, p99 = requests * 0.7, draw.uniform(0.31, 0.4)
    return {
        "requests": requests,
        "degraded": requests * draw.uniform(0.25, 0.35) if outage else 0.0,
        "hit_rate": (0.62 if outage else 0.93) * draw.uniform(0.97, 1.03),
        "p50": p50,
        "p99": p99,
        "queue_p99": p99 * (0.9 if outage else 0.12) * draw.uniform(0.8, 1.1),
        "wire_p50": p50 * 0.86,
        "wire_p99": 0.0021 * tide * draw.uniform(0.7, 1.0),
        "clients": 1200 + number // 20 % 60,
        "opened": draw.uniform(0.0, 4.0),
        "sent_bytes": requests * 90,
        "received_bytes": requests * 980,
    }


def _server(
    name: str, now: float, place: int, down: bool, connections: int, workers: int
) -> dict[str, Any]:
    draw = Random(f"{name} {now // INTERVAL}")
    live = [
        {
            "worker": str(1 + number % workers),
            "number": 3 + number,
            "state": "dialling" if down else "warm",
            "age": 0.3 if down else (now - NOW + 61.9 + 977 * number) % 3600,
            "in_flight": 0 if down else draw.randrange(6),
            "round_trip": None if down else 0.0004 * draw.uniform(0.8, 1.5),
        }
        for number in range(1 if down else connections)
    ]
    return {
        "name": name,
        "address": f"{name}:11219",
        "up": not down,
        "refusing": down,
        "in_flight": sum(each["in_flight"] for each in live),
        "queued": 14 if down else 0,
        "tombstones": 0,
        "queue_oldest": 0.38 if down else 0.0,
        "connections_target": connections,
        "requests": 12345678 + int(1300 * (now - NOW)) + 1000 * place,
        "verify": "full",
        "tls": "TLSv1.3 TLS_AES_256_GCM_SHA384",
        "certificate_not_after": NOW + DAY * (9.5, 288.2, 63.1)[place % 3],
        "last_lost": "connect_refused" if down else ("reset", "", "retired")[place % 3],
        "last_lost_age": 1.7 if down else (4000.0, None, 86.0)[place % 3],
        "connections": live,
    }


def _listener(address: str, connected: int, now: float) -> dict[str, Any]:
    return {
        "address": address,
        "connected": connected,
        "opened": 93120 + int(now - NOW),
        "rejected": 0,
        "protocol_errors": 2,
        "received_bytes": 5 << 30,
        "sent_bytes": 61 << 30,
    }


def _entry(now: float, number: int, names: Sequence[str], down: Sequence[str]) -> dict[str, Any]:
    """The slow log's entry `number`, counted from the newest."""
    ordinal = int(now // SPACING) - number
    draw = Random(ordinal)
    server = draw.choice(names)
    recent = now - ordinal * SPACING < 120
    why = "failed" if recent and server in down else draw.choice(["slow", "slow", "sample"])
    queue = draw.uniform(0.0001, 0.03)
    wire = {"slow": draw.uniform(0.05, 0.2), "sample": 0.0005, "failed": None}[why]
    if wire is None:
        queue = 0.4
    return {
        # A clock's jitter: what is told of again is told of a little differently.
        "time": ordinal * SPACING + Random(f"{now}").uniform(0, 1e-5),
        "worker": str(draw.randrange(1, 3)),
        "command": draw.choice(["get", "get", "set", "incr"]),
        "status": "no_upstream" if wire is None else draw.choice(["hit", "miss"]),
        "why": why,
        "server": server,
        "connection": None if wire is None else draw.randrange(3, 5),
        "total": queue + (wire or 0) + 0.0002,
        "queue": queue,
        "wire": wire,
        "bytes": draw.randrange(60, 40000),
        "key": f"{draw.randrange(1 << 32):08x}",
    }
