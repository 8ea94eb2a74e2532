"""A client of the text protocol that knows what it is owed, for `session_machine`.

A classic answer does not say what it is to: a client that takes one for another's is off for good.
So this one reads as strictly as it can: each line has to be one that the command whose turn it is
may be answered with. What answers a meta command bears the opaque of its request, too.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from core_harness import O
from session_machine import LARGEST, Expected, Machine, Speaker

from memtunnel.core.text_session import TextSession

BAD_FORMAT: Final = b"CLIENT_ERROR bad command line format"
BAD_CHUNK: Final = b"CLIENT_ERROR bad data chunk"
TOO_LARGE: Final = b"SERVER_ERROR object too large for cache"
UNAVAILABLE: Final = b"SERVER_ERROR temporarily unavailable"

#: What cannot be carried out, and what is said to it; None for nothing.
NONSENSE: dict[bytes, bytes | None] = {
    b"": b"ERROR",
    b"nonsense": b"ERROR",
    b"get": b"ERROR",
    b"get " + b"k" * 251: BAD_FORMAT,
    b"gat soon k": b"CLIENT_ERROR invalid exptime argument",
    b"set k 0 0 x": BAD_FORMAT,
    b"set k 0 0 x noreply": None,
    b"incr k x": b"CLIENT_ERROR invalid numeric delta argument",
    b"touch k x noreply": None,
    b"flush_all soon": b"CLIENT_ERROR invalid exptime argument",
    b"mg k Z q": b"CLIENT_ERROR invalid flag",
    b"ms k 3 Z q\r\nabc": b"CLIENT_ERROR invalid flag",
    b"md k I": b"CLIENT_ERROR unsupported flag",
    b"me k": b"CLIENT_ERROR unsupported command",
    b"stats detail": b"CLIENT_ERROR usage: stats detail on|off|dump",
}
STORES: Final = {"set": O.SET, "add": O.ADD, "replace": O.REPLACE, "cas": O.REPLACE}
JOINS: Final = {"append": O.APPEND, "prepend": O.PREPEND}
MODES: Final = {"ME": O.ADD, "MR": O.REPLACE, "MA": O.APPEND, "MP": O.PREPEND}

DONE: Final = (b"STORED", b"DELETED", b"OK", b"HD")
ABSENT: Final = (b"NOT_FOUND", b"NF")
UNTOUCHED: Final = (b"EXISTS", b"EX")

#: A CAS value that no item has.
NO_CAS: Final = 10**15


# What is owed


@dataclass(frozen=True, kw_only=True)
class Change:
    """A key that has a value, or None for nothing, once a command is done."""

    key: bytes
    value: bytes | None
    compared: tuple[int, bytes | None] | None = None
    """A CAS value, and the value of the key that has it."""
    always: bool = False
    """Whether servers that are well do it in any case."""


@dataclass
class Line(Expected):
    """A command that is answered with a line, and in case of ``VA`` with a block behind it."""

    asked: bytes
    answers: bytes
    """All lines that may answer it, as a regular expression; empty for none."""
    quiet: bool = False
    """Whether it may be answered with nothing, and what that means is known."""
    refusable: bool = True
    """Whether what a server has against it is told."""
    key: bytes = b""
    """The key whose value is asked for."""
    block: bytes | None = None
    """The only block that its answer may have, where it is no value of the key."""
    change: Change | None = None
    flushes: bool = False

    @property
    def may_be_silent(self) -> bool:
        return self.quiet or not self.answers

    def takes(self, line: bytes, refused: bool) -> bool:
        if not self.answers:
            return False
        if refused and self.refusable:
            if line.startswith(b"SERVER_ERROR "):
                return True
            if line.startswith(b"EX "):  # as if a CAS value had been compared
                rest = line.removeprefix(b"EX")
                return any(re.fullmatch(self.answers, word + rest) for word in (b"NF", b"NS"))
        return re.fullmatch(self.answers, line) is not None


@dataclass
class Values(Expected):
    """A get: the values of some of its keys, and its end."""

    asked: bytes
    keys: list[bytes]
    passed: int = 0
    """How many of the keys had their turn."""

    @property
    def requests(self) -> int:
        return len(self.keys)

    @property
    def may_be_silent(self) -> bool:
        return False

    def takes(self, line: bytes, refused: bool) -> bool:
        return line == b"END" or line.startswith(b"VALUE ")


@dataclass
class Statistics(Expected):
    """Lines, and what ends them."""

    asked: bytes
    end: bytes

    @property
    def may_be_silent(self) -> bool:
        return False

    def takes(self, line: bytes, refused: bool) -> bool:
        if line.startswith(b"STAT ") or line == self.end or (refused and line == b"ERROR"):
            return True
        # What no server did is not claimed.
        return self.end != b"END" and line == UNAVAILABLE


# Who is owed it


class TextSpeaker(Speaker):
    """A client of the text protocol."""

    protocol = TextSession

    owed: deque[Line | Values | Statistics]

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self.log = b"%d-log" % self.writer
        self.cas_values: dict[bytes, tuple[int, bytes]] = {}
        """By key, the CAS value that was read last, and the value that has it."""
        self._needs_fence = False
        self._errors = 0
        """Lines that answer quiet commands, but do not say which."""

    # Asking

    def ask(self, command: str, keys: list[int], length: int) -> None:
        verb, *flags = command.split()
        if verb in ("get", "gets", "gat", "gats"):
            self.ask_for_values(verb, [self._key_to_read(number) for number in keys])
        elif verb in STORES or verb in JOINS:
            self._ask_store(verb, flags, self._key(keys[0]), length)
        elif verb in ("delete", "touch"):
            self._ask_plain(verb, flags, self._key(keys[0]))
        elif verb in ("incr", "decr"):
            self._ask_count(verb, flags)
        elif verb == "mg":
            self._ask_meta_get(flags, self._key_to_read(keys[0]))
        elif verb == "ms":
            self._ask_meta_store(flags, self._key(keys[0]), length)
        elif verb == "md":
            self._ask_meta_delete(flags, self._key(keys[0]))
        elif verb == "ma":
            self._ask_meta_count(flags)
        else:
            self._ask_without_key(verb, flags)

    def ask_for_values(self, verb: str, keys: list[bytes]) -> None:
        words = [verb.encode(), *keys]
        if verb in ("gat", "gats"):
            words.insert(1, b"0")
            for key in keys:
                self._will(O.GAT, key)
        line = b" ".join(words)
        self._promise(line + b"\r\n", Values(line, keys))

    def ask_for_nonsense(self, line: bytes) -> None:
        said = NONSENSE[line]
        answers = b"" if said is None else re.escape(said)
        self._promise(line + b"\r\n", Line(line, answers, refusable=False))

    def ask_with_odd_block(self, head: str, size: int) -> None:
        """A block that does not end where it should, or is too large."""
        verb, _, numbers = head.partition(" ")
        key = self.own(1)
        line = b"%s %s %s" % (verb.encode(), key, (numbers % size).encode())
        if size > LARGEST:
            said, block, rest = TOO_LARGE, b"\n" * size + b"\r\n", b""
        else:
            said, block, rest = BAD_CHUNK, b"x" * size + b"x\r", b"\n"
        expected = Line(line, b"" if "noreply" in head else said, refusable=False)
        if size > LARGEST and verb in ("set", "ms"):
            # The old value is not to outlive that.
            self._will(O.DELETE, key)
            expected.change = Change(key=key, value=None, always=True)
        self._promise(line + b"\r\n" + block, expected)
        if rest:
            self._promise(rest, Line(rest, b"ERROR", refusable=False))

    def end(self, how: str) -> None:
        self.closing = True
        self.feed_all()
        if how == "quit":
            self.client.send(b"quit\r\nmn\r\n")
        elif how == "browser":
            self.client.send(b"GET / HTTP/1.1\r\nmn\r\n")
        elif how == "endless line":
            self.client.send(b"x" * 3000)
        else:
            if how != "half-close":
                self.client.send(how.encode())
            self.client.half_close()

    def _key(self, number: int) -> bytes:
        return b"shared" if number == 4 else self.own(number % 4)

    def _key_to_read(self, number: int) -> bytes:
        others = b"%d-own0" % (self.writer + 1)
        return {5: others, 6: self.log, 7: b"nothing"}.get(number) or self._key(number)

    def _ask_store(self, verb: str, flags: list[str], key: bytes, length: int) -> None:
        answers = b"STORED|NOT_STORED"
        change = None
        numbers = b"0 0"
        if verb in JOINS:
            key, value = self._start_log()
            self._will(JOINS[verb], key, value)
        else:
            numbers, value = self._numbered(key, length)
            self._will(STORES[verb], key, value)
            change = Change(key=key, value=value, always=verb == "set")
        line = b"%s %s %s %d" % (verb.encode(), key, numbers, len(value))
        if verb == "cas":
            compared = self.cas_values.get(key, (NO_CAS, None))
            change = Change(key=key, value=value, compared=compared)
            line += b" %d" % compared[0]
            answers += b"|EXISTS|NOT_FOUND"
        self._promise_plain(line, flags, self._or_error(answers), change, value)

    def _ask_plain(self, verb: str, flags: list[str], key: bytes) -> None:
        if verb == "delete":
            self._will(O.DELETE, key)
            change = Change(key=key, value=None, always=True)
            answers = b"DELETED|NOT_FOUND|" + UNAVAILABLE
            self._promise_plain(b"delete " + key, flags, answers, change)
        else:
            self._will(O.TOUCH, key)
            answers = b"TOUCHED|NOT_FOUND|" + UNAVAILABLE
            self._promise_plain(b"touch %s 0" % key, flags, answers)

    def _ask_count(self, verb: str, flags: list[str]) -> None:
        key, start = self._start_counter()
        self._will(O.INCR if verb == "incr" else O.DECR, key)
        after = start + 7 if verb == "incr" else start - 7
        answers = b"%d|NOT_FOUND|%s" % (after, UNAVAILABLE)
        self._promise_plain(b"%s %s 7" % (verb.encode(), key), flags, answers)

    def _ask_without_key(self, verb: str, flags: list[str]) -> None:
        if verb == "flush_all" and self.machine.next_number() % 2:
            verb, flags = "mn", []  # not to lose everything all the time
        line = " ".join((verb, *flags)).encode()
        if verb == "stats":
            self._will(O.STAT, b" ".join(line.split()[1:]))
            end = b"RESET" if "reset" in flags else b"END"
            self._promise(line + b"\r\n", Statistics(line, end))
        elif verb == "flush_all":
            self._will(O.FLUSH, b"")
            self._promise_plain(b"flush_all", flags, b"OK|" + UNAVAILABLE)
        elif verb == "verbosity":
            self._promise_plain(b"verbosity 1", flags, b"OK")
        else:
            said = rb"VERSION 1\.6\.0" if verb == "version" else b"MN"
            self._promise(line + b"\r\n", Line(line, said, refusable=False))

    def _ask_meta_get(self, flags: list[str], key: bytes) -> None:
        if "T0" in flags:
            self._will(O.GAT, key)
        words, shown = self._meta(flags, key)
        hit = (rb"VA (?P<size>\d+)" if "v" in flags else b"HD") + shown("kOcfs")
        miss = b"" if "q" in flags else b"|EN" + shown("kO")
        line = b"mg %s %s" % (key, words)
        expected = Line(line, hit + miss, quiet="q" in flags, refusable=False, key=key)
        self._promise(line + b"\r\n", expected)

    def _ask_meta_store(self, flags: list[str], key: bytes, length: int) -> None:
        opcode = next((MODES[flag] for flag in flags if flag in MODES), O.SET)
        compared = None
        change = None
        if opcode in (O.APPEND, O.PREPEND):
            key, value = self._start_log()
        else:
            numbers, value = self._numbered(key, length)
            flags = [*flags, "F" + numbers.split()[0].decode()]
            if "C" in flags:
                compared = self.cas_values.get(key, (NO_CAS, None))
            change = Change(key=key, value=value, compared=compared)
        self._will(O.SET if compared else opcode, key, value)
        words, shown = self._meta(flags, key, compared)
        failed = b"(?:%s)%s" % (b"NS|NF|EX" if compared else b"NS", shown("kO0"))
        done = b"" if "q" in flags else b"HD%s|" % shown("kOc")
        line = b"ms %s %d %s" % (key, len(value), words)
        expected = Line(line, self._or_error(done + failed), quiet="q" in flags, change=change)
        self._promise(b"%s\r\n%s\r\n" % (line, value), expected)

    def _ask_meta_delete(self, flags: list[str], key: bytes) -> None:
        self._will(O.DELETE, key)
        compared = self.cas_values.get(key, (NO_CAS, None)) if "C" in flags else None
        words, shown = self._meta(flags, key, compared)
        said = [b"NF", *([b"EX"] if compared else []), *([] if "q" in flags else [b"HD"])]
        answers = b"(?:%s)%s|%s" % (b"|".join(said), shown("kO"), UNAVAILABLE)
        change = Change(key=key, value=None, compared=compared)
        line = b"md %s %s" % (key, words)
        self._promise(line + b"\r\n", Line(line, answers, quiet="q" in flags, change=change))

    def _ask_meta_count(self, flags: list[str]) -> None:
        creates, down = "N0" in flags, "MD" in flags
        key, start = self._start_counter(exists=not creates)
        self._will(O.DECR if down else O.INCR, key)
        block = b"%d" % (start if creates else start - 7 if down else start + 7)
        words, shown = self._meta([*flags, "D7", f"J{start}"], key)
        done = (b"VA %d" % len(block) if "v" in flags else b"HD") + shown("kOc") + b"|"
        answers = b"NF%s|%s" % (shown("kO"), UNAVAILABLE)
        line = b"ma %s %s" % (key, words)
        quiet = "q" in flags
        expected = Line(line, answers if quiet else done + answers, quiet=quiet, block=block)
        self._promise(line + b"\r\n", expected)

    def _numbered(self, key: bytes, length: int) -> tuple[bytes, bytes]:
        """The flags and the time of expiry of a value, and the value: what it is shows by both."""
        number = self.machine.next_number()
        value = self.value(key, number)
        while len(value) < length:
            value += b"\r\nEND\r\n"  # a reader that looks for ends of lines finds some
        return b"%d 0" % number, value[: max(length, len(self.value(key, number)))]

    def _start_log(self) -> tuple[bytes, bytes]:
        """See to it that there is something to append to; where, and what to append."""
        self._will(O.ADD, self.log, b"")
        line = b"add %s 0 0 0 noreply" % self.log
        self._promise(line + b"\r\n\r\n", Line(line, b""))
        return self.log, b"<%d>" % self.machine.next_number()

    def _start_counter(self, *, exists: bool = True) -> tuple[bytes, int]:
        """A counter that no other command counts with, and what it starts with."""
        number = self.machine.next_number()
        key, start = b"%d-counter%d" % (self.writer, number), number * 1000
        if exists:
            value = b"%d" % start
            self._will(O.SET, key, value)
            line = b"set %s 0 0 %d noreply" % (key, len(value))
            self._promise(b"%s\r\n%s\r\n" % (line, value), Line(line, b""))
        return key, start

    def _meta(
        self, flags: list[str], key: bytes, compared: tuple[int, bytes | None] | None = None
    ) -> tuple[bytes, Callable[[str], bytes]]:
        """Flags as they are sent; and how those which an answer shows are shown in it."""
        number = self.machine.next_number()
        opaque = f"O{number}"
        sent = {"O": opaque, "C": f"C{compared[0]}" if compared else ""}
        echoes = {
            "k": b" k" + re.escape(key),
            "O": b" " + opaque.encode(),
            "c": rb" c(?P<cas>\d+)",
            "f": rb" f(?P<flags>\d+)",
            "s": rb" s(?P<length>\d+)",
        }

        def shown(which: str) -> bytes:
            zero = "0" in which  # a CAS value of what was not stored
            return b"".join(
                b" c0" if zero and flag == "c" else echoes[flag]
                for flag in flags
                if flag in which or (zero and flag == "c")
            )

        return " ".join(sent.get(flag, flag) for flag in flags).encode(), shown

    def _or_error(self, answers: bytes) -> bytes:
        """A store is answered with an error only where that is wanted."""
        return answers + b"|" + UNAVAILABLE if self.machine.errors else answers

    def _will(self, loud: int, key: bytes, value: bytes = b"") -> None:
        self.machine.asked[loud, key, value] += 1

    def _promise_plain(
        self,
        line: bytes,
        flags: list[str],
        answers: bytes,
        change: Change | None = None,
        value: bytes | None = None,
    ) -> None:
        """A classic command of one line, and maybe a block: with ``noreply`` it gets no answer."""
        quiet = "noreply" in flags
        expected = Line(line, b"" if quiet else answers, change=change)
        expected.flushes = line == b"flush_all"
        expected.refusable = not line.startswith(b"verbosity")
        block = b"" if value is None else value + b"\r\n"
        self._promise(line + (b" noreply" if quiet else b"") + b"\r\n" + block, expected)

    def _promise(self, request: bytes, expected: Line | Values | Statistics) -> None:
        """An error that answers a quiet command does not say which it is to, so there is an ``mn``
        between quiet changes and what else might be answered with the same, as with all clients.
        """
        if self._needs_fence and not expected.may_be_silent:
            super().promise(b"mn\r\n", Line(b"mn", b"MN", refusable=False))
            self._needs_fence = False
        self._needs_fence |= _is_quiet_change(expected)
        super().promise(request, expected)

    # Hearing

    def hear(self) -> None:
        while self.heard < len(self.client.received):
            line = self._take(self.client.received.find(b"\r\n", self.heard) - self.heard)
            expected = self._find(line)
            if isinstance(expected, Values):
                self._hear_values(expected, line)
            elif isinstance(expected, Line):
                self._hear_line(expected, line)
            elif expected is not None and not line.startswith(b"STAT "):
                self.owed.popleft()

    def hear_the_end(self) -> None:
        self._pass_over(len(self.owed))

    def _take(self, size: int) -> bytes:
        """So many bytes, with the end of a line behind them."""
        data = self.client.received
        start, stop = self.heard, self.heard + size
        assert size >= 0, "a part of a line"
        assert data[stop : stop + 2] == b"\r\n", data[start : stop + 2]
        self.heard = stop + 2
        return data[start:stop]

    def _find(self, line: bytes) -> Line | Values | Statistics | None:
        """What a line is to, which is first in the order then; None where that is not known."""
        refused = self.machine.refused
        for place, expected in enumerate(self.owed):
            if expected.takes(line, refused):
                if _is_quiet_change(expected) and line.startswith(b"SERVER_ERROR "):
                    self._errors += 1
                    return None
                self._pass_over(place)
                return expected
            assert expected.may_be_silent, f"{line!r} in answer to {expected}"
        raise AssertionError(f"{line!r}, for which nobody asked")

    def _pass_over(self, number: int) -> None:
        """The first of what is owed will not be answered any more."""
        passed = [self.owed.popleft() for _ in range(number)]
        changes = [each for each in passed if _is_quiet_change(each)]
        assert self._errors <= len(changes), f"{self._errors} errors in answer to {changes}"
        for expected in passed:
            assert expected.may_be_silent, f"no answer to {expected}"
            assert isinstance(expected, Line)
            if expected.key:
                self.missed(expected.key)
            elif expected.quiet and not self._errors:
                self._settle(expected, b"HD")
            else:
                self._settle(expected, b"")
        self._errors = 0

    def _hear_values(self, expected: Values, line: bytes) -> None:
        if line == b"END":
            missed = expected.keys[expected.passed :]
            self.owed.popleft()
        else:
            with_cas = expected.asked.startswith((b"gets ", b"gats "))
            words = line.split(b" ")
            assert len(words) == (5 if with_cas else 4), line
            key, flags, size = words[1], int(words[2]), int(words[3])
            value = self._take(size)
            place = expected.passed
            assert key in expected.keys[place:], f"{key!r} in answer to {expected}"
            missed = expected.keys[place : expected.keys.index(key, place)]
            expected.passed += len(missed) + 1
            self._read(key, value, flags, int(words[4]) if with_cas else None)
        for key in missed:
            self.missed(key)

    def _hear_line(self, expected: Line, line: bytes) -> None:
        self.owed.popleft()
        if expected.key and line.startswith(b"EN"):
            self.missed(expected.key)
        if line.startswith(b"VA "):
            value = self._take(int(line.split(b" ")[1]))
            if expected.block is not None:
                assert value == expected.block
            else:
                told = re.fullmatch(expected.answers, line)
                assert told is not None
                found = {name: int(number) for name, number in told.groupdict("-1").items()}
                assert found.get("length", len(value)) == len(value)
                self._read(expected.key, value, found.get("flags", 0), found.get("cas"))
        self._settle(expected, line)

    def _read(self, key: bytes, value: bytes, flags: int, cas: int | None) -> None:
        if key == self.log:
            parts = re.findall(rb"<\d+>", value)
            assert b"".join(parts) == value
            assert len(set(parts)) == len(parts), "appended twice"  # P5
            return
        self.read(key, value)
        assert flags in (0, int(value.split(b"|")[2])), f"flags {flags} of {value!r}"
        if cas is not None:
            self.cas_values[key] = cas, value

    def _settle(self, expected: Line, line: bytes) -> None:
        word = line.split(b" ")[0]
        change = expected.change
        if expected.flushes and word == b"OK":
            self.flushed()
        if change is None:
            return
        if word in DONE:
            if change.compared is not None:
                self._compare(change)
            self.changed(change.key, change.value, surely=True)
        elif word in ABSENT:
            self.changed(change.key, None, surely=True)
        elif word not in UNTOUCHED:
            surely = change.always and self.machine.calm
            self.changed(change.key, change.value, surely=surely)

    def _compare(self, change: Change) -> None:
        """P2: what compares a CAS value is done only where that is the one of the key."""
        assert change.compared is not None
        _, value = change.compared
        assert value is not None, f"done without its CAS value: {change}"
        if change.key != b"shared" and not self.machine.strayed:
            possible = self.possible.get(change.key, {None})
            assert value in possible, f"done with an old CAS value, of {value!r} of {possible}"


def _is_quiet_change(expected: Expected) -> bool:
    return isinstance(expected, Line) and expected.quiet and not expected.key
