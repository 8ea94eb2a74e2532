"""How things end: one closed set of words, shared by log lines, metrics and degraded replies.

What the tunnel says to a client when it has no answer from a server is decided here too, for
all commands in one place: a wrong status makes real clients cross their values, so every row
of `degraded` was tried with them.
"""

from enum import StrEnum
from typing import Final

from memtunnel.wire.binary import (
    GETS,
    LOUD,
    QUIET,
    Opcode,
    Status,
    answer,
    refusal,
)

#: The `status` label of a settled command. The first ten are a server's verdicts, in
#: memcached_exporter's words where it has one; the rest are `Reason`s of the tunnel's own.
STATUS_WORDS: Final[tuple[str, ...]] = (
    "hit",
    "miss",
    "badval",
    "not_stored",
    "too_large",
    "invalid",
    "non_numeric",
    "refused",
    "unknown_command",
    "error",
    "timeout",
    "upstream_lost",
    "no_upstream",
    "overloaded",
)


class Reason(StrEnum):
    """Why a request got a degraded reply."""

    TIMEOUT = "timeout"
    """No answer within the deadline."""
    UPSTREAM_LOST = "upstream_lost"
    """The connection was lost after the request was written."""
    NO_UPSTREAM = "no_upstream"
    """The server is known to be unreachable or stalled, and no other one may serve the key."""
    OVERLOADED = "overloaded"
    """A bound of the tunnel was reached."""
    REFUSED = "refused"
    """The server refused it to this login (0x20)."""
    ERROR = "error"
    """The server answered with a status that clients do not survive (0x81 and up)."""
    TOO_LARGE = "too_large"
    """The answer was larger than `--max-value-size`."""


#: Added to the index in `STATUS_WORDS` of what is degraded: a server's verdict may bear the same
#: word.
DEGRADED: Final = 64
#: By reason, the status of a degraded reply.
REASON_STATUS: Final = {reason: STATUS_WORDS.index(reason.value) + DEGRADED for reason in Reason}

_WORD_OF: Final[dict[int, int]] = {
    status: STATUS_WORDS.index(word)
    for status, word in (
        (Status.OK, "hit"),
        (Status.NOT_FOUND, "miss"),
        (Status.EXISTS, "badval"),
        (Status.TOO_LARGE, "too_large"),
        (Status.INVALID, "invalid"),
        (Status.NOT_STORED, "not_stored"),
        (Status.NON_NUMERIC, "non_numeric"),
        (Status.AUTH_FAILED, "refused"),
        (Status.UNKNOWN_COMMAND, "unknown_command"),
    )
}
_ERROR: Final = STATUS_WORDS.index("error")


def status_index(status: int) -> int:
    """The index in `STATUS_WORDS` of a binary status."""
    return _WORD_OF.get(status, _ERROR)


class Notable(StrEnum):
    """Why a request is noted by itself, beside being counted."""

    FAILED = "failed"
    """It got a degraded reply."""
    SLOW = "slow"
    SAMPLE = "sample"
    """It is one in so many."""


class LoginResult(StrEnum):
    """What came of a client's login."""

    OK = "ok"
    REFUSED = "refused"
    UNJUDGED = "unjudged"
    """No server said in time what it thinks of it: the client is welcome until one does."""
    TOO_MANY = "too_many"
    """`--max-logins` is reached."""

    @property
    def right(self) -> bool:
        return self in (LoginResult.OK, LoginResult.UNJUDGED)


class Lost(StrEnum):
    """Why a connection to a server was lost, or never became warm."""

    DNS = "dns"
    """The server's name was not found."""
    CONNECT_REFUSED = "connect_refused"
    UNREACHABLE = "unreachable"
    """Any other failure of the TCP connection."""
    SETUP_TIMEOUT = "setup_timeout"
    """Not warm within `--connect-timeout`."""
    NOT_TLS = "not_tls"
    """The server answered in clear text, as one over its connection limit does."""
    TLS = "tls"
    """The handshake failed for a reason other than the certificate."""
    CERTIFICATE_CHAIN = "certificate_chain"
    """The certificate does not lead to a trusted root."""
    CERTIFICATE_DATE = "certificate_date"
    """A certificate of the chain has expired or is not valid yet."""
    CERTIFICATE_NAME = "certificate_name"
    """The certificate does not bear the expected name."""
    CERTIFICATE_PIN = "certificate_pin"
    """The certificate's key is not the pinned one."""
    LOGIN_REFUSED = "login_refused"
    LOGIN_LOST = "login_lost"
    """A warm connection was told that it is not logged in."""
    CLOSED = "closed"
    """The server closed it."""
    RESET = "reset"
    """The network or the server cut it off."""
    SILENT = "silent"
    """Nothing came or went for a second with answers owed."""
    DESYNC = "desync"
    """The server said something that answers no request."""
    RETIRED = "retired"
    """It had reached its age and was replaced."""
    SHUTDOWN = "shutdown"
    """The tunnel stopped."""


#: What people make of it, where the word alone does not say.
HINTS: Final[dict[Lost, str]] = {
    Lost.DNS: "its name was not found",
    Lost.CONNECT_REFUSED: "nothing listens there",
    Lost.SETUP_TIMEOUT: "not warm within --connect-timeout",
    Lost.NOT_TLS: "it answered in clear text: another port, or over its connection limit",
    Lost.LOGIN_REFUSED: "it does not take this user name and password",
    Lost.LOGIN_LOST: "it wants a login: --username, and a password",
}

#: Of a server that answers to a login as if there were no such command.
NO_LOGINS: Final = "it knows no logins: leave user name and password out"


class Desync(StrEnum):
    """What made a server's stream untrustworthy."""

    MAGIC = "magic"
    LENGTH = "length"
    OPAQUE = "opaque"
    """No request in flight has this opaque: unsolicited, a duplicate, or garbled."""
    OPCODE = "opcode"
    """The opaque is known, but another command was asked."""


class Distrust(Exception):
    """A server said something that makes its connection untrustworthy; it has to be aborted.

    `words` are for people, where those of `HINTS` do not hold.
    """

    def __init__(self, lost: Lost, kind: Desync | None = None, words: str = "") -> None:
        super().__init__(f"{lost}: {kind}" if kind else str(lost))
        self.lost = lost
        self.kind = kind
        self.words = words


#: Statuses that pass from a server to a client, for all but the commands that return a value.
_PASSED: Final = frozenset(range(0x07))
#: Quiet commands whose failure is told as a miss: the one status that crosses no client's
#: values, where silence would claim success.
_FAIL_AS_MISS: Final = frozenset((Opcode.DELETEQ, Opcode.INCRQ, Opcode.DECRQ, Opcode.FLUSHQ))


def passes(loud: int, status: int) -> bool:
    """Whether a client may see this status of a server in answer to `loud`."""
    if loud in GETS:
        return status in (Status.OK, Status.NOT_FOUND)
    return status in _PASSED


def refusal_reason(status: int) -> Reason:
    """Why a request fails whose answer has a status that does not pass."""
    return Reason.REFUSED if status == Status.AUTH_FAILED else Reason.ERROR


def degraded(opcode: int, opaque: bytes, key: bytes, *, as_error: bool) -> bytes:
    """The reply to a request for which there is no answer from a server; empty for none.

    `opcode` and `opaque` are the client's, `key` is echoed to GETK and GATK. `as_error` is
    ``--on-unavailable error``: a temporary failure in answer to what would have changed
    something. Not for STAT, whose degraded reply is its bare terminator.
    """
    loud = LOUD[opcode]
    if loud in GETS:
        if opcode in QUIET:
            # An error here makes clients read one answer too few, and cross values for good.
            return b""
        if key and loud in (Opcode.GETK, Opcode.GATK):
            return answer(opcode, opaque, Status.NOT_FOUND, key=key)
        return refusal(opcode, opaque, Status.NOT_FOUND)
    if as_error:
        return refusal(opcode, opaque, Status.TEMPORARY_FAILURE)
    if loud == Opcode.TOUCH or opcode in _FAIL_AS_MISS:
        return refusal(opcode, opaque, Status.NOT_FOUND)
    return refusal(opcode, opaque, Status.NOT_STORED)
