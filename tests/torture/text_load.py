"""Clients that speak text: the classic commands, and the meta commands."""

from __future__ import annotations

from torture.history import Key, value_of
from torture.load import Ask, Client

END = b"\r\n"
_UNAVAILABLE = b"SERVER_ERROR temporarily unavailable"


class TextClient(Client):
    """Answers are lines, some with a block of data after them."""

    def batch(self, count: int) -> bytes:
        said: list[bytes] = []
        while count > 0:
            data, asked = self.phrase(count)
            said.append(data)
            count -= asked
        said.append(self.last_words())
        return b"".join(said)

    def phrase(self, count: int) -> tuple[bytes, int]:
        """One thing to say, and how many requests it is."""
        raise NotImplementedError

    def last_words(self) -> bytes:
        """What ends a batch whose last request might be a silent one."""
        raise NotImplementedError

    def owe(self, ask: Ask, data: bytes) -> bytes:
        ask.size = len(data)
        self.owed.append(ask)
        return data

    def new_value(self) -> tuple[Key, int, bytes]:
        key = self.random.choice(self.own)
        number = key.ask()
        return key, number, value_of(key.name, self.number, number, self.size())

    def deletable(self) -> Key:
        return self.own[self.random.randrange(0, len(self.own), 4)]

    def read(self, now: float) -> None:
        while True:
            stop = self.buffer.find(END)
            if stop < 0:
                return
            line = self.buffer[:stop]
            words = line.split()
            block = b""
            rest = stop + 2
            if words and words[0] in (b"VALUE", b"VA"):
                length = int(words[3 if words[0] == b"VALUE" else 1])
                rest += length + 2
                if len(self.buffer) < rest:
                    return
                block = self.buffer[stop + 2 : rest - 2]
                if self.buffer[rest - 2 : rest] != END:
                    self.wrong(f"wrong: no end to the block of {line!r}")
                    return
            self.buffer = self.buffer[rest:]
            if not self.owed:
                self.wrong(f"unasked: {line!r}")
                return
            asked = self.owed[0].kind
            if not self.line(line, words, block, now):
                if not self._left:
                    self.wrong(f"wrong: {line[:60]!r} in answer to {asked}")
                return

    def line(self, line: bytes, words: list[bytes], block: bytes, now: float) -> bool:
        """Judge a line and its block; whether it may come here."""
        raise NotImplementedError

    def unanswered(self, ask: Ask) -> None:
        if ask.number:
            ask.key.failed(ask.number, delete=ask.kind == "delete")


class ClassicClient(TextClient):
    """get and gets of several keys, set with and without an answer, delete, version."""

    def phrase(self, count: int) -> tuple[bytes, int]:
        draw = self.random.random()
        if draw < 0.55:
            many = 1 if draw < 0.35 else min(count, self.random.randint(2, 20))
            keys = [self.any_key() for _ in range(many)]
            ask = Ask("get")
            ask.word = [Ask("get", key) for key in keys]
            verb = self.random.choice((b"get", b"gets"))
            return self.owe(ask, b"%s %s\r\n" % (verb, b" ".join(key.name for key in keys))), many
        if draw < 0.95:
            key, number, value = self.new_value()
            silent = draw > 0.85
            data = b"set %s 7 0 %d%s\r\n%s\r\n" % (
                key.name,
                len(value),
                b" noreply" * silent,
                value,
            )
            if silent:
                key.failed(number)  # nobody will tell
                return data, 1
            return self.owe(Ask("set", key, number), data), 1
        if draw < 0.98:
            key = self.deletable()
            return self.owe(
                Ask("delete", key, key.ask(delete=True)), b"delete %s\r\n" % key.name
            ), 1
        return self.last_words(), 1

    def last_words(self) -> bytes:
        return self.owe(Ask("version"), b"version\r\n")

    def line(self, line: bytes, words: list[bytes], block: bytes, now: float) -> bool:
        ask = self.owed[0]
        if ask.kind == "get":
            if words[0] == b"VALUE":
                # In the order of the keys; those that are passed over are misses.
                while ask.word:
                    part = ask.word.pop(0)
                    if part.key.name == words[1]:
                        self.hit(part, part.key, block, now)
                        return True
                    self.load.misses += 1
                self.wrong(f"crossed: the value of {words[1]!r} was not asked for, or again")
                return False
            if line != b"END":
                return False
            self.load.misses += len(ask.word)
        elif ask.kind == "version":
            if words[0] != b"VERSION":
                return False
        elif line in (b"STORED", b"DELETED") or (ask.kind == "delete" and line == b"NOT_FOUND"):
            if (line == b"STORED") != (ask.kind == "set"):
                return False
            self.stored(ask, now)
        elif line == (b"NOT_STORED" if ask.kind == "set" else _UNAVAILABLE):
            self.not_stored(ask)
        else:
            return False
        self.owed.popleft()
        return True


class MetaClient(TextClient):
    """mg, ms, md and mn; opaques and keys come back, and ``q`` keeps quiet."""

    _opaque = 0

    def phrase(self, count: int) -> tuple[bytes, int]:
        draw = self.random.random()
        self._opaque += 1
        word = b"O%d" % self._opaque
        if draw < 0.6:
            quiet = draw < 0.4
            key = self.any_key()
            ask = Ask("get", key, quiet=quiet)
            data = b"mg %s v k %s%s\r\n" % (key.name, word, b" q" * quiet)
        elif draw < 0.95:
            key, number, value = self.new_value()
            quiet = draw > 0.8
            ask = Ask("set", key, number, quiet)
            data = b"ms %s %d k %s F7%s\r\n%s\r\n" % (
                key.name,
                len(value),
                word,
                b" q" * quiet,
                value,
            )
        elif draw < 0.98:
            key = self.deletable()
            ask = Ask("delete", key, key.ask(delete=True))
            data = b"md %s k %s\r\n" % (key.name, word)
        else:
            return self.last_words(), 1
        ask.word = word
        return self.owe(ask, data), 1

    def last_words(self) -> bytes:
        return self.owe(Ask("mn"), b"mn\r\n")

    def line(self, line: bytes, words: list[bytes], block: bytes, now: float) -> bool:
        ask = self._asked(words, now)
        if ask is None:
            return False
        said = words[0]
        if ask.kind == "mn":
            return line == b"MN"
        if said != b"SERVER_ERROR" and b"k" + ask.key.name not in words:
            self.wrong(f"crossed: {line[:60]!r} in answer to {ask.kind} {ask.key.name!r}")
            return False
        if ask.kind == "get":
            if said == b"VA":
                self.hit(ask, ask.key, block, now)
                return True
            self.load.misses += 1
            return said == b"EN"
        if said == b"HD" or (ask.kind == "delete" and said == b"NF"):
            self.stored(ask, now)
            return True
        self.not_stored(ask)
        return said == b"NS" if ask.kind == "set" else line == _UNAVAILABLE

    def _asked(self, words: list[bytes], now: float) -> Ask | None:
        """What this answers: the first that it can; quiet ones before it have ended well."""
        opaque = next((word for word in words[1:] if word[:1] == b"O"), None)
        while self.owed:
            ask = self.owed.popleft()
            if opaque == ask.word if opaque is not None else not ask.quiet:
                return ask
            if not ask.quiet:
                self.wrong(f"missing: the answer to {ask.kind} {ask.word}, before {words!r:.80}")
                return None
            if ask.kind == "set":
                self.stored(ask, now)
            else:
                self.load.misses += 1
        self.wrong(f"unasked: {words!r:.80}")
        return None
