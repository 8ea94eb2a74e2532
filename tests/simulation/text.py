"""Clients of the simulation that speak the text protocol, classic and meta.

A quiet meta command bears an opaque, so that its answer, if there is one, says what it is to. Only
an error does not; what came of the quiet changes before a loud command is not known then.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from memtunnel.core import session
from memtunnel.wire.binary import GETS, Opcode, Status
from simulation.clients import Ask, Client
from simulation.history import COUNTS, STORES, Floors

O = Opcode  # noqa: E741

#: What classic commands are told; in place of a number, the number.
_CLASSIC = {
    b"STORED": Status.OK,
    b"DELETED": Status.OK,
    b"TOUCHED": Status.OK,
    b"NOT_STORED": Status.NOT_STORED,
    b"NOT_FOUND": Status.NOT_FOUND,
    b"EXISTS": Status.EXISTS,
}
_META = {
    b"HD": Status.OK,
    b"VA": Status.OK,
    b"NS": Status.NOT_STORED,
    b"NF": Status.NOT_FOUND,
    b"EX": Status.EXISTS,
}
_UNAVAILABLE = b"SERVER_ERROR temporarily unavailable"
_TOO_LARGE = b"SERVER_ERROR object too large for cache"
_UNAUTHENTICATED = b"CLIENT_ERROR unauthenticated"
_LOGIN_FAILED = b"CLIENT_ERROR authentication failure"
_REFUSED = (_UNAUTHENTICATED, _LOGIN_FAILED)
_BAD_FORMAT = b"CLIENT_ERROR bad command line format"
_ERROR = re.compile(rb"(SERVER|CLIENT)_ERROR [ -~]+")
_NONSENSE = (
    (b"nonsense", b"ERROR"),
    (b"get", b"ERROR"),
    (b"get " + b"k" * 251, _BAD_FORMAT),
    (b"gat soon k", b"CLIENT_ERROR invalid exptime argument"),
    (b"mg k t", b"CLIENT_ERROR unsupported flag"),
    (b"incr k x", b"CLIENT_ERROR invalid numeric delta argument"),
    (b"set k 0 0 x", _BAD_FORMAT),
)
#: "Not stored" is what text says of a key that is there, or is not, too.
_NOT_STORED = frozenset((Status.NOT_STORED,))
_VERBS = {"set": O.SET, "add": O.ADD, "replace": O.REPLACE, "append": O.APPEND}
_VERBS |= {"prepend": O.PREPEND}
_MODES = {b"": O.SET, b" MS": O.SET, b" ME": O.ADD, b" MR": O.REPLACE}
_JOIN_MODES = {b" MA": O.APPEND, b" MP": O.PREPEND}


class Text(Client):
    kind = "text"

    _errors = 0
    """Answers to quiet changes that do not say to which."""
    _needs_fence = False
    """Whether a quiet change was asked for since something loud."""

    # What it asks for

    def log_in(self, *, right: bool) -> bytes:
        self.trusted = right
        user, password = self.history.user.encode(), self.history.password.encode()
        if not right:
            password += b"?"
        if self.draw() < 0.5:
            block = password
        else:
            user, block = b"login", user + b" " + password
        # Where none has to log in, what is stored first is a login only if its flags are no number.
        flags = b"login" if self.world.auth == "passthrough" else b"0"
        line = b"set %b %b 0 %d\r\n%b\r\n" % (user, flags, len(block), block)
        said = b"STORED" if right else _LOGIN_FAILED
        return self._fixed(O.SASL_AUTH, line, said)

    def _owe(
        self,
        opcode: int,
        key: bytes,
        data: bytes,
        words: object,
        value: bytes = b"",
        payload: bytes = b"",
        quiet: bool = False,
    ) -> bytes:
        fence = b""
        if self._needs_fence and not quiet:
            self._needs_fence = False
            fence = self._fixed(O.NOOP, b"mn\r\n", b"MN")
        ask = self.owe(opcode, key, value, payload, quiet=quiet)
        ask.words = words
        return fence + self._mark(ask, data)

    def _fixed(self, opcode: int, data: bytes, said: bytes) -> bytes:
        """A command to which there is one answer, of a line."""
        return self._owe(opcode, b"", data, said)

    def speak(self) -> bytes:
        said: bytes = self.pick(_SPEECH)(self)
        return said

    def speak_untrusted(self) -> bytes:
        draw = self.draw()
        if draw < 0.3:
            return self.log_in(right=draw < 0.2)
        line = self.pick((b"get key", b"delete key", b"mn", b"version"))
        return self._fixed(O.NOOP, line + b"\r\n", _UNAUTHENTICATED)

    def _get(self) -> bytes:
        key = self.key_to_read()
        draw = self.draw()
        if draw < 0.8:
            return self._get_values(b"get", [key])
        if draw < 0.92:
            return self._get_values(b"gets", [key])
        return self._get_values(b"gat" if draw < 0.96 else b"gats", [key])

    def _get_many(self) -> bytes:
        keys = list(dict.fromkeys(self.key() for _ in range(6)))
        verb = self.pick((b"get", b"get", b"gets", b"gat", b"gats"))
        return self._get_values(verb, keys)

    def _get_long(self) -> bytes:
        """A line of more than 2 KiB, of keys that are there and keys that are not."""
        random = self.world.random
        keys = [b"%b%d-%d" % (b"k" * 150, self.number, number) for number in range(14)]
        if self.draw() < 0.2:
            keys += [b"%d-none%d" % (self.number, number) for number in range(120)]
        keys += dict.fromkeys(self.key() for _ in range(4))
        random.shuffle(keys)
        return self._get_values(b"get", keys)

    def _get_values(self, verb: bytes, keys: list[bytes]) -> bytes:
        opcode, payload = O.GET, b""
        line = verb + b" " + b" ".join(keys) + b"\r\n"
        if verb.startswith(b"gat"):
            opcode, payload = O.GAT, self.stamp.to_bytes(4, "big")
            line = b"%b %d %b\r\n" % (verb, self.stamp, b" ".join(keys))
            for key in keys[1:]:
                self.history.asked[opcode, key, payload] += 1
        said = self._owe(opcode, keys[0], line, _Values(verb.endswith(b"s"), keys), b"", payload)
        if len(keys) > 1:
            acknowledged = self.history.acknowledged
            none = self.history.no_floors
            values = self.owed[-1].words
            values.floors = [acknowledged.get(key, none) for key in keys]
            values.moves = [self.history.moves.get(key, 0) for key in keys]
            self.left -= len(keys) - 1
            self.world.requests += len(keys) - 1
        return said

    def _meta_get(self) -> bytes:
        random = self.world.random
        key = self.key_to_read()
        opcode, payload = O.GET, b""
        flags = [b"k", b"v", *random.sample((b"c", b"f", b"s", b"q", b"O"), random.randint(0, 5))]
        if self.draw() < 0.1:
            opcode, payload = O.GAT, self.stamp.to_bytes(4, "big")
            flags.append(b"T%d" % self.stamp)
        return self._meta(opcode, b"mg", key, flags, payload=payload)

    def _store(self) -> bytes:
        key = self.key()
        verb = self.pick(("set", "set", "set", "add", "replace"))
        return self._classic(verb, key, self.value(key), quiet=self.draw() < 0.3)

    def _classic(self, verb: str, key: bytes, value: bytes, cas: int = 0, *, quiet: bool) -> bytes:
        opcode = O.REPLACE if verb == "cas" else _VERBS[verb]
        compared = b" %d" % cas if verb == "cas" else b""
        tail = b" noreply" if quiet else b""
        form = b"%b %b %d 0 %d%b%b\r\n%b\r\n"
        stamp = self.stamp
        data = form % (verb.encode(), key, stamp, len(value), compared, tail, value)
        said = self._owe(opcode, key, data, "classic", value, quiet=quiet)
        if cas:
            self.compare(self.owed[-1], cas)
        return said

    def _compare(self) -> bytes:
        random = self.world.random
        key = self.key()
        cas = self.cas_for(key)
        draw = self.draw()
        if draw < 0.5:
            return self._classic("cas", key, self.value(key), cas, quiet=self.draw() < 0.2)
        flags = [b"C%d" % cas, *random.sample((b"c", b"k", b"q", b"O"), random.randint(0, 4))]
        if draw < 0.8:
            return self._meta(O.SET, b"ms", key, flags, self.value(key), cas=cas)
        flags = [flag for flag in flags if flag != b"c"]
        return self._meta(O.DELETE, b"md", key, flags, cas=cas)

    def _meta_store(self) -> bytes:
        random = self.world.random
        key = self.key()
        mode = self.pick(tuple(_MODES))
        flags = random.sample((b"c", b"k", b"q", b"O"), random.randint(0, 4))
        if mode:
            flags.append(mode[1:])
        return self._meta(_MODES[mode], b"ms", key, flags, self.value(key))

    def _store_large(self) -> bytes:
        random = self.world.random
        largest = self.world.max_value
        key = self.mine + b"big"
        if self.draw() < 0.6:
            value = self.value(key, self.world.sure_value - random.randint(0, 3))
            return self._classic("set", key, value, quiet=self.draw() < 0.3)
        value = self.value(key, largest + self.pick((1, 2, 5000)))
        if self.draw() < 0.3:
            data = b"ms %b %d\r\n%b\r\n" % (key, len(value), value)
            said = self._owe(O.SET, key, data, _TOO_LARGE, value)
            self.drops(key)
            return said
        verb = self.pick(("set", "set", "add", "replace"))
        said = self._classic(verb, key, value, quiet=self.draw() < 0.3)
        self.owed[-1].words = _TOO_LARGE
        if verb == "set":
            self.drops(key)
        return said

    def _read_large(self) -> bytes:
        return self._get_values(b"get", [self.mine + b"big"])

    def _delete(self) -> bytes:
        random = self.world.random
        key = self.key()
        if self.draw() < 0.3:
            flags = random.sample((b"k", b"q", b"O"), random.randint(0, 3))
            return self._meta(O.DELETE, b"md", key, flags)
        if self.draw() < 0.3:
            return self._owe(O.DELETE, key, b"delete %b noreply\r\n" % key, "", quiet=True)
        return self._owe(O.DELETE, key, b"delete %b\r\n" % key, "classic")

    def _join(self) -> bytes:
        random = self.world.random
        draw = self.draw()
        if draw < 0.2:
            verb = "set" if draw < 0.1 else "add"
            return self._classic(verb, self.log, self.value(self.log, 0), quiet=False)
        value = b"<%d>" % self.stamp
        if draw < 0.7:
            verb = self.pick(("append", "prepend"))
            return self._classic(verb, self.log, value, quiet=self.draw() < 0.3)
        mode = self.pick(tuple(_JOIN_MODES))
        flags = [mode[1:], *random.sample((b"c", b"q", b"O"), random.randint(0, 3))]
        return self._meta(_JOIN_MODES[mode], b"ms", self.log, flags, value)

    def _count(self) -> bytes:
        random = self.world.random
        stamp = self.stamp
        payload = stamp.to_bytes(8, "big")
        opcode = self.pick((O.INCR, O.DECR))
        draw = self.draw()
        if draw < 0.5:
            verb = b"incr" if opcode == O.INCR else b"decr"
            quiet = draw < 0.1
            line = b"%b %b %d%b\r\n" % (verb, self.counter, stamp, b" noreply" if quiet else b"")
            return self._owe(opcode, self.counter, line, "classic", b"", payload, quiet)
        flags = [b"D%d" % stamp, *random.sample((b"v", b"c", b"k", b"q", b"O"), 3)]
        if opcode == O.DECR:
            flags.append(b"MD")
        if draw < 0.9:
            flags += [b"N0", b"J7"]
        return self._meta(opcode, b"ma", self.counter, flags, payload=payload)

    def _touch(self) -> bytes:
        key = self.key()
        stamp = self.stamp
        line = b"touch %b %d\r\n" % (key, stamp)
        return self._owe(O.TOUCH, key, line, "classic", b"", stamp.to_bytes(4, "big"))

    def _meta(
        self,
        opcode: int,
        verb: bytes,
        key: bytes,
        flags: list[bytes],
        value: bytes = b"",
        payload: bytes = b"",
        cas: int = 0,
    ) -> bytes:
        """A meta command. What is quiet has an opaque."""
        quiet = b"q" in flags
        if quiet and b"O" not in flags:
            flags = [*flags, b"O"]
        opaque = b"O%d" % self.number_of_next
        words = [opaque if flag == b"O" else flag for flag in flags]
        head = b"%b %b" % (verb, key)
        block = b""
        if verb == b"ms":
            head += b" %d" % len(value)
            block = value + b"\r\n"
            if opcode in STORES:
                words.append(b"F%d" % self.stamp)
        data = b" ".join((head, *words)) + b"\r\n" + block
        said = self._owe(opcode, key, data, "meta", value, payload, quiet)
        ask = self.owed[-1]
        ask.flags = b"".join(flag[:1] for flag in flags)
        ask.opaque = opaque if b"O" in flags else b""
        if cas:
            self.compare(ask, cas)
        self._needs_fence = self._needs_fence or (quiet and opcode not in GETS)
        return said

    def _no_op(self) -> bytes:
        return self._fixed(O.NOOP, b"mn\r\n", b"MN")

    def _others(self) -> bytes:
        draw = self.draw()
        if draw < 0.3:
            return self._owe(O.VERSION, b"", b"version\r\n", "version")
        if draw < 0.6:
            group = self.pick((b"", b" settings", b" memtunnel", b" nonsense"))
            return self._owe(O.STAT, b"", b"stats%b\r\n" % group, "stats")
        if draw < 0.97:
            line, said = self.pick(_NONSENSE)
            return self._fixed(O.NOOP, line + b"\r\n", said)
        return self._owe(O.FLUSH, b"", b"flush_all\r\n", "flush")

    def fence(self) -> bytes:
        if self.owed and self.owed[-1].quiet:
            self._needs_fence = False
            return self._no_op()
        return b""

    def beginning(self) -> bytes:
        return b"set half 0 0 7\r\na value\r\n"[: self.world.random.randint(1, 24)]

    def farewell(self) -> None:
        self.say(self._owe(O.QUIT, b"", b"quit\r\n", "", quiet=True))

    # What it hears

    def grace(self, ask: Ask) -> float:
        grace = super().grace(ask)
        if ask.words.__class__ is _Values and len(ask.words.keys) > session.REQUESTS_A_TURN:
            # The keys of a long line count from their turn on, and so does what is behind them.
            grace += self.world.timeout
        return grace

    def received(self, data: bytes) -> None:
        if self.over or self.leaving == "is refused":
            return
        data = self._buffer + data
        position = 0
        while (end := data.find(b"\r\n", position) + 2) > 1:
            line = data[position : end - 2]
            words = line.split(b" ")
            block = b""
            if words[0] in (b"VALUE", b"VA"):
                size = int(words[3] if words[0] == b"VALUE" else words[1])
                if len(data) < end + size + 2:
                    break
                block = data[end : end + size]
                if data[end + size : end + size + 2] != b"\r\n":
                    self.world.fail(f"{self.name} was told a block without an end: {line!r}")
                end += size + 2
            self.heard += end - position
            position = end
            if line in _REFUSED and self.may_be_refused:
                self.is_refused()
                return
            self._hear(line, words, block)
        self._buffer = data[position:]
        if not self.owed:
            self.act_soon()

    def _hear(self, line: bytes, words: list[bytes], block: bytes) -> None:
        owed = self.owed
        passed: list[Ask] = []
        while owed and owed[0].quiet and not (owed[0].opaque and owed[0].opaque in words):
            if owed[0].opaque and owed[0].opcode not in GETS and _ERROR.fullmatch(line):
                self._errors += 1
                self._pass_over(passed, know=True)
                return
            passed.append(owed.popleft())
        self._pass_over(passed, know=not self._errors)
        self._errors = 0
        if not owed:
            self.world.fail(f"{self.name} was told {line!r}, and is owed nothing")
        ask = owed[0]
        kind = ask.words
        if kind.__class__ is _Values:
            if not self._hear_values(ask, kind, words, block):
                return
        elif kind.__class__ is bytes:
            if line != kind:
                self.wrong(f"{line!r}", ask)
            if ask.opcode == O.SASL_AUTH and line == b"STORED":
                self.welcomed(ask)
        elif kind == "stats":
            if words[0] == b"STAT":
                return
            if line not in (b"END", b"ERROR"):
                self.wrong(f"{line!r}", ask)
        elif kind == "version":
            if not re.fullmatch(rb"VERSION \d+\.\d+\.\d+", line):
                self.wrong(f"{line!r}", ask)
        elif kind == "flush":
            if line not in (b"OK", _UNAVAILABLE) and not self._may_refuse(line):
                self.wrong(f"{line!r}", ask)
        elif kind == "meta":
            self._hear_meta(ask, line, words, block)
        else:
            self._hear_classic(ask, line)
        self.in_time(ask, self.heard)
        owed.popleft()

    def _pass_over(self, passed: list[Ask], *, know: bool) -> None:
        """These were not answered: `know` says whether it is known what that means."""
        for ask in passed:
            if not ask.opaque:
                continue  # nobody tells what became of it
            if ask.opcode in GETS:
                self.missed(ask)
            elif know:
                self.changed(ask, Status.OK)

    def _may_refuse(self, line: bytes) -> bool:
        return self.world.refused and _ERROR.fullmatch(line) is not None

    def _hear_values(self, ask: Ask, kind: _Values, words: list[bytes], block: bytes) -> bool:
        """A value, or the end; whether it is that."""
        keys = kind.keys
        seen = ask.seen
        if len(words) == 4 + kind.with_cas and words[0] == b"VALUE" and words[1] in keys[seen:]:
            place = keys.index(words[1], seen)
            self._miss(ask, kind, seen, place)
            ask.seen = place + 1
            kind.turn_to(place, ask)
            self.read(ask, block, int(words[2]), int(words[4]) if kind.with_cas else 0)
            return False
        if words != [b"END"]:
            self.wrong(f"{words!r}", ask)
        self._miss(ask, kind, seen, len(keys))
        self.world.checked += len(keys) - 1
        return True

    def _miss(self, ask: Ask, kind: _Values, start: int, stop: int) -> None:
        """Some of its keys have no value."""
        for place in range(start, stop):
            kind.turn_to(place, ask)
            self.missed(ask)

    def _hear_classic(self, ask: Ask, line: bytes) -> None:
        status = _CLASSIC.get(line)
        if status is not None:
            if (line == b"TOUCHED") != (ask.opcode == O.TOUCH) and status == Status.OK:
                self.wrong(f"{line!r}", ask)
            if ask.opcode in STORES and status == Status.NOT_FOUND and not ask.cas:
                self.wrong(f"{line!r}", ask)
            self._outcome(ask, status)
        elif ask.opcode in COUNTS and line.isdigit():
            self.outcome(ask, Status.OK)
            self.counted(ask, int(line))
        elif line == _UNAVAILABLE:
            self._outcome(ask, Status.TEMPORARY_FAILURE)
        elif not self._may_refuse(line):
            self.wrong(f"{line!r}", ask)

    def _outcome(self, ask: Ask, status: int) -> None:
        self.outcome(ask, status, _NOT_STORED if ask.opcode in (O.ADD, O.REPLACE) else frozenset())

    def _hear_meta(self, ask: Ask, line: bytes, words: list[bytes], block: bytes) -> None:
        word = words[0]
        if ask.opcode in GETS:
            if word == b"EN":
                self._shown(ask, words[1:], b"kO")
                self.missed(ask)
            elif word == b"VA":
                shown = self._shown(ask, words[2:], b"kOcfs")
                if int(shown.get(b"s", len(block))) != len(block):
                    self.wrong(f"{line!r}", ask)
                flags = int(shown[b"f"]) if b"f" in shown else b""
                self.read(ask, block, flags, int(shown.get(b"c", 0)))
            else:
                self.wrong(f"{line!r}", ask)
            return
        status = _META.get(word)
        if status is None:
            if line == _UNAVAILABLE:
                self._outcome(ask, Status.TEMPORARY_FAILURE)
            elif not self._may_refuse(line):
                self.wrong(f"{line!r}", ask)
            return
        if status == Status.OK and b"q" in ask.flags:
            self.wrong(f"{line!r}", ask)
        counts = ask.opcode in COUNTS
        shows_cas = status == Status.OK or ask.opcode not in (O.DELETE, *COUNTS)
        shown = self._shown(ask, words[1 + (word == b"VA") :], b"kOc" if shows_cas else b"kO")
        self._outcome(ask, status)
        if status == Status.OK:
            if counts and (word == b"VA") != (b"v" in ask.flags):
                self.wrong(f"{line!r}", ask)
            if word == b"VA":
                self.counted(ask, int(block))
            if ask.opcode in STORES and int(shown.get(b"c", 0)) not in (
                0,
                self.history.done[ask.value].cas,
            ):
                self.wrong(f"{line!r}", ask)

    def _shown(self, ask: Ask, tokens: list[bytes], letters: bytes) -> dict[bytes, bytes]:
        """What the flags of a meta command asked to hear, by flag."""
        wanted = bytes(flag for flag in ask.flags if flag in letters)
        shown = {token[:1]: token[1:] for token in tokens}
        if bytes(token[0] for token in tokens if token) != wanted:
            self.wrong(f"{tokens!r}", ask)
        if shown.get(b"k", ask.key) != ask.key:
            self.wrong(f"key {shown[b'k']!r}", ask)
        if b"O" in shown and b"O" + shown[b"O"] != ask.opaque:
            self.wrong(f"opaque {shown[b'O']!r}", ask)
        return shown


class _Values:
    """What a get asks for. Where that is several keys, what was known of each of them."""

    __slots__ = ("floors", "keys", "moves", "with_cas")

    def __init__(self, with_cas: bool, keys: list[bytes]) -> None:
        self.with_cas = with_cas
        self.keys = keys
        self.floors: list[Floors] = []
        self.moves: list[int] = []

    def turn_to(self, place: int, ask: Ask) -> None:
        """Let `ask` be for one of its keys."""
        if self.floors:
            ask.key = self.keys[place]
            ask.floors = self.floors[place]
            ask.moves = self.moves[place]


_SPEECH: tuple[Callable[[Text], bytes], ...] = (
    *(Text._get,) * 74,
    *(Text._get_many,) * 8,
    *(Text._meta_get,) * 18,
    *(Text._store,) * 44,
    *(Text._meta_store,) * 8,
    *(Text._compare,) * 8,
    *(Text._delete,) * 9,
    *(Text._join,) * 8,
    *(Text._count,) * 8,
    *(Text._touch,) * 3,
    *(Text._no_op,) * 4,
    *(Text._others,) * 3,
    *(Text._store_large,) * 2,
    *(Text._read_large,) * 2,
    Text._get_long,
)
