"""What was asked for with one login, what its servers have carried out, and what is known of it.

Servers write down what they do, clients what they ask for and what they are told. Two logins share
nothing: what one of them has stored, the other's history does not know.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from memtunnel.wire.binary import Frame, Opcode

O = Opcode  # noqa: E741
STORES = frozenset((O.SET, O.ADD, O.REPLACE))
JOINS = frozenset((O.APPEND, O.PREPEND))
COUNTS = frozenset((O.INCR, O.DECR))
#: They bring a time of expiry, and change nothing else.
TOUCHES = frozenset((O.TOUCH, O.GAT, O.GATK))
#: What must not be carried out twice.
CHANGES = STORES | JOINS | COUNTS | TOUCHES | {O.DELETE}
#: What bears the stamp of who asked for it.
STAMPED = CHANGES - {O.DELETE}
#: Bits of a stamp that are the number of a client's request; above them is that of the client.
NUMBER_BITS = 20

#: A change that was asked for: loud opcode, key, and what tells it from others.
What = tuple[int, bytes, bytes]
#: By server, the version from which on its values are not old.
Floors = tuple[int, ...]


class Done(NamedTuple):
    """What a server had for a key, once it had carried something out."""

    key: bytes
    version: int
    server: int
    moves: int
    """How often the key had moved to another server before."""
    cas: int
    flags: bytes
    stamp: int
    """Of the request that made it so."""


class History:
    """Of a login; `servers` is how many there are at most."""

    def __init__(self, user: str, password: str, servers: int) -> None:
        self.user = user
        self.password = password
        self.no_floors: Floors = (0,) * servers
        self.asked: Counter[What] = Counter()
        self.executed: dict[What, int] = {}
        self.results: dict[What, int] = {}
        """What counters were set to."""
        self.compared: dict[bytes, int] = {}
        """By value: the CAS value that it is to be stored with."""
        self.done: dict[bytes, Done] = {}
        """By value, and by key and what was joined to its value."""
        self.deletions: dict[bytes, list[tuple[int, int]]] = {}
        """By key: when it was deleted, and by which server."""
        self.version = 0
        """Changes that servers have carried out."""
        self.served: dict[bytes, int] = {}
        """By key: the server that has carried something out for it last."""
        self.moves: dict[bytes, int] = {}
        """By key: how often it has come to another server."""
        self.acknowledged: dict[bytes, Floors] = {}
        """By key, what clients were told of."""

    @property
    def login(self) -> bytes:
        """The message that logs in."""
        return f"\0{self.user}\0{self.password}".encode()

    def moved(self, key: bytes, server: int) -> None:
        """A key is served by another server than before."""
        if key in self.served:
            self.moves[key] = self.moves.get(key, 0) + 1
        self.served[key] = server

    def execute(self, what: What) -> bool:
        """Count a change; whether it was asked for so often."""
        times = self.executed.get(what, 0) + 1
        self.executed[what] = times
        self.version += 1
        return times <= self.asked[what]

    def deleted(self, key: bytes, server: int) -> None:
        """A server has seen to it that it has nothing for a key."""
        self.deletions.setdefault(key, []).append((self.version, server))

    def deleted_by(self, key: bytes, since: int) -> set[int]:
        """The servers that have deleted a key since this version."""
        servers: set[int] = set()
        for version, server in reversed(self.deletions.get(key, ())):
            if version <= since:
                break
            servers.add(server)
        return servers

    def keep(self, frame: Frame, server: int, item: tuple[bytes, bytes, int]) -> None:
        """Note what came of a change that was carried out: `item` is what the key has now."""
        key = frame.key
        flags, value, cas = item
        stamp = stamp_of(frame)
        done = Done(key, self.version, server, self.moves.get(key, 0), cas, flags, stamp)
        self.done[value] = done
        if frame.opcode in JOINS:
            self.done[key + frame.value] = done


def what_of(frame: Frame) -> What:
    """What a request for a change was asked as."""
    opcode = frame.opcode
    if opcode in COUNTS:
        return opcode, frame.key, frame.extras[:8]
    if opcode in TOUCHES:
        return opcode, frame.key, frame.extras[:4]
    return opcode, frame.key, frame.value


def stamp_of(frame: Frame) -> int:
    """Which request this is: stores have it in their flags, others where they have room."""
    opcode = frame.opcode
    if opcode in COUNTS:
        return int.from_bytes(frame.extras[:8], "big")
    if opcode in JOINS:
        return int(frame.value[1:-1])
    return int.from_bytes(frame.extras[:4], "big")


def raised(floors: Floors, server: int, version: int) -> Floors:
    """The same floors, with the one of `server` at `version`."""
    return (*floors[:server], version, *floors[server + 1 :])
