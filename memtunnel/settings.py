"""What can be set: one table, from which flags, variables, TOML keys and help texts are made.

Each parser takes the text as the user wrote it, and raises ValueError with what was expected,
as it would follow the word "expected". Left to others: where values come from, and what has
to hold between them (`config`).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final

from memtunnel import addresses
from memtunnel.wire.sasl import Secret


def whole(least: int, most: int) -> Callable[[str], int]:
    """A whole number within bounds."""

    def parse(text: str) -> int:
        # int() would take underscores, other scripts' digits, and thousands of them.
        if re.fullmatch("[0-9]{1,18}", text) and least <= int(text) <= most:
            return int(text)
        raise ValueError(f"a whole number from {least} to {most}")

    return parse


def time_in(unit: str, most: float) -> Callable[[str], float]:
    """A time above 0, in this unit."""

    def parse(text: str) -> float:
        # float() would take "nan", underscores and other scripts' digits.
        if re.fullmatch(r"([0-9]+\.?|[0-9]*\.[0-9]+)(e-?[0-9]+)?", text):
            value = float(text)
            if 0 < value <= most:
                return value
        raise ValueError(f"{unit}, above 0 and at most {most:g}, without a unit")

    return parse


_UNITS: Final = {None: 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def size(least: str, most: str) -> Callable[[str], int]:
    """A number of bytes within bounds."""

    def count(text: str) -> int:
        match = re.fullmatch("([0-9]{1,18}) ?(KiB|MiB|GiB)?", text)
        return -1 if match is None else int(match[1]) * _UNITS[match[2]]

    def parse(text: str) -> int:
        if count(least) <= count(text) <= count(most):
            return count(text)
        raise ValueError(f"bytes, or a number with KiB, MiB or GiB, from {least} to {most}")

    return parse


def switch(text: str) -> bool:
    """On or off."""
    if text.lower() in ("on", "true", "yes", "1"):
        return True
    if text.lower() in ("off", "false", "no", "0"):
        return False
    raise ValueError("on or off")


def matching(pattern: str, expected: str) -> Callable[[str], str]:
    """Text of the form `pattern`, which is `expected` in words."""

    def parse(text: str) -> str:
        if re.fullmatch(pattern, text):
            return text
        raise ValueError(expected)

    return parse


def choice(*words: str) -> Callable[[str], str]:
    """One of a few words."""
    return matching("|".join(words), " or ".join(words))


def secret(pattern: str, expected: str) -> Callable[[str], Secret]:
    """The same as `matching`, but never shown."""
    parse = matching(pattern, expected)
    return lambda text: Secret(parse(text))


path: Final = matching(r"[^\0]+", "the name of a file")
username: Final = matching(
    r"[^\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+", "a name without control characters"
)
# Bytes that are not UTF-8 come as surrogates of one half; the others are no bytes at all.
password: Final = secret(
    r"[^\0\ud800-\udc7f\udd00-\udfff]+", "a password that is not empty and has no NUL byte"
)
token: Final = secret("[!-~]+", "printable ASCII characters without spaces")


class Source(Enum):
    """Where the user can write a setting, in order of precedence."""

    FLAG = auto()
    VARIABLE = auto()
    FILE = auto()


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One thing that can be set, and all that is said about it anywhere."""

    name: str
    parse: Callable[[str], Any]
    """From text to value, one entry of it if `repeatable`; raises ValueError."""
    sentence: str
    caution: str
    metavar: str = ""
    """What stands for the value in help texts; empty for a switch, which takes none."""
    default: str | None = None
    """As the user would write it."""
    unset: str = "none"
    """In words: what holds where there is no `default`."""
    repeatable: bool = False
    """A list: the flag again and again, commas in the variable, an array in the file."""
    sources: tuple[Source, ...] = tuple(Source)

    @property
    def switch(self) -> bool:
        """Whether the flag takes no value."""
        return not self.metavar

    @property
    def flag(self) -> str:
        return f"--{self.name}"

    @property
    def variable(self) -> str:
        return "MEMTUNNEL_" + self.name.upper().replace("-", "_")

    def written(self, source: Source) -> str:
        """Its name there."""
        names = {Source.FLAG: self.flag, Source.VARIABLE: self.variable}
        return names.get(source, self.name)

    @property
    def default_text(self) -> str:
        """The default for readers."""
        return self.unset if self.default is None else self.default

    @property
    def help(self) -> str:
        """Sentence, caution and default, for ``--help``."""
        return f"{self.sentence} {self.caution} Default: {self.default_text}."


SETTINGS: Final[tuple[Setting, ...]] = (
    Setting(name="listen", parse=addresses.endpoint, metavar="ENDPOINT", repeatable=True,
            unset="port 11211 on 127.0.0.1, and on ::1 where the machine has it",
            sentence="Where clients connect: ADDRESS:PORT, unix:/path or a Twisted endpoint.",
            caution="Whoever can connect is the cache's user, so anything but loopback, a unix"
            " socket or a socket of systemd's is refused without --allow-remote. A unix socket is"
            " for the tunnel's own user and group, or what its :mode=666 says."),
    Setting(name="server", parse=addresses.server, metavar="HOST[:PORT][=NAME]", repeatable=True,
            unset="those of MEMCACHIER_SERVERS, else of MEMCACHE_SERVERS",
            sentence="A server to dial, and its name in the continuum.",
            caution="Another name moves keys to other servers; the add-on's login is not used"
            " with servers given here."),
    Setting(name="tls-port", parse=addresses.port, metavar="PORT", default="11219",
            sentence="The port to dial where a server has none, and on every server of the"
            " add-on.",
            caution="The port that stands in MEMCACHIER_SERVERS is the one without TLS."),
    Setting(name="ca-file", parse=path, metavar="PEM", unset="the system's roots",
            sentence="Trust only the root certificates in this file.",
            caution="The system's roots are then trusted no more."),
    Setting(name="verify", parse=choice("full", "chain"), metavar="full|chain", default="full",
            sentence="What to check of a certificate: chain and name, or the chain alone.",
            caution="With chain, whoever has any certificate of that authority can read all"
            " traffic."),
    Setting(name="tls-name", parse=addresses.tls_name, metavar="HOST=NAME", repeatable=True,
            sentence="The name to expect in a server's certificate in place of its host.",
            caution="The name then decides whom you trust: take it from the provider, not from"
            " the certificate that came."),
    Setting(name="tls-pin", parse=addresses.tls_pin, metavar="HOST=sha256/DIGEST",
            repeatable=True,
            sentence="A key to expect on a server, by its SHA-256; several for one host are"
            " alternatives.",
            caution="When the provider changes the key, the tunnel refuses that server until the"
            " pin follows."),
    Setting(name="pool-size", parse=whole(1, 256), metavar="N", default="2",
            sentence="Warm connections to keep to each server.",
            caution="Every worker has its own."),
    Setting(name="workers", parse=whole(1, 64), metavar="N", default="1",
            sentence="Processes that share the listeners and the admin port, to use several cores.",
            caution="Each has a pool of --pool-size; --max-clients and --max-buffer are divided"
            " among them."),
    Setting(name="client-auth", metavar="open|required|passthrough", default="open",
            parse=choice("open", "required", "passthrough"),
            sentence="Whether clients must log in: with open they need not, but a login is"
            " checked; with passthrough their own login is used on the servers.",
            caution="With open, and with passthrough where the tunnel has a login itself, whoever"
            " can connect is the cache's user."),
    Setting(name="max-logins", parse=whole(1, 10_000), metavar="N", default="32",
            sentence="Logins of clients' own that are used at one time with passthrough.",
            caution="Each has --pool-size connections to each server, in every worker."),
    Setting(name="hashing", parse=choice("ketama", "ketama-weighted", "modula"),
            metavar="ketama|ketama-weighted|modula", default="ketama",
            sentence="How a key finds its server when there are several.",
            caution="It must be what the clients used before, or they miss what is stored."),
    Setting(name="metrics", parse=addresses.endpoint, metavar="ENDPOINT",
            default="tcp:9152:interface=127.0.0.1",
            sentence="Where /metrics, /healthz, /readyz and a status page are served.",
            caution="Beyond loopback only /healthz and /readyz are, unless there is a metrics"
            " token."),
    Setting(name="request-timeout", parse=time_in("seconds", 60), metavar="SECONDS", default="0.4",
            sentence="How long a request may take, from its last byte to its answer, queueing"
            " included; large values get more.",
            caution="Clients give up from 0.5 s on, and some then give up the server for"
            " seconds."),
    Setting(name="connect-timeout", parse=time_in("seconds", 60), metavar="SECONDS", default="5",
            sentence="How long a connection to a server may take from dialling to warm.",
            caution="It covers name look-up, TCP, TLS, login and a first answer together."),
    Setting(name="drain-timeout", parse=time_in("seconds", 3600), metavar="SECONDS", default="5",
            sentence="How long open clients are served on after SIGTERM.",
            caution="Keep it below the time after which the platform sends SIGKILL."),
    Setting(name="on-unavailable", parse=choice("miss", "error"), metavar="miss|error",
            default="miss",
            sentence="What clients get when no server answers: a miss, or for writes an error.",
            caution="An error makes some clients drop the server for up to half a minute."),
    Setting(name="failover", parse=switch, metavar="on|off", default="on",
            sentence="Whether the next server serves a key while its own is down.",
            caution="A key that moves there and back may show an older value."),
    Setting(name="max-clients", parse=whole(1, 1_000_000), metavar="N", default="10000",
            sentence="Clients connected at one time; more are closed at once.",
            caution="It is lowered where the limit of open files does not suffice."),
    Setting(name="max-buffer", parse=size("1MiB", "1024GiB"), metavar="BYTES", default="256MiB",
            sentence="Bytes that all buffers towards clients may hold together.",
            caution="Past it, hits are delivered as misses."),
    # Larger bodies than 32 MiB are not even swallowed: the connection would be lost.
    Setting(name="max-value-size", parse=size("1", "32MiB"), metavar="BYTES", default="1MiB",
            sentence="The largest value that passes; larger ones are refused, or are a miss.",
            caution="The server has a limit of its own."),
    Setting(name="allow-remote", parse=switch, default="off",
            sentence="Listen beyond loopback.",
            caution="Clients' logins and data cross that network in the clear; it needs"
            " --client-auth required or passthrough, and with either nobody gets in without a"
            " login."),
    Setting(name="username", parse=username, metavar="NAME",
            unset="the add-on's, with its servers",
            sentence="The login on the servers.",
            caution="It needs a password of its own: the add-on's is not combined with it."),
    Setting(name="password", parse=password, metavar="PASSWORD",
            sources=(Source.VARIABLE,), unset="the add-on's, with its servers",
            sentence="The password on the servers.",
            caution="Only the environment may hold it: flags are seen by every user of the"
            " machine."),
    Setting(name="password-file", parse=path, metavar="FILE",
            sentence="A file that holds the password; a newline at its end does not count.",
            caution="Nobody else should be able to read it."),
    Setting(name="metrics-token", parse=token, metavar="TOKEN", sources=(Source.VARIABLE,),
            sentence="The bearer token that /metrics and the status page ask for.",
            caution="It crosses the network in the clear."),
    Setting(name="slow-ms", parse=time_in("milliseconds", 60_000), metavar="MS",
            sentence="From how many milliseconds on a request is slow: it is kept for the status"
            " page and STAT memtunnel slow, and logged, as failed ones are in any case.",
            caution="Keys are shown as a salted hash; at most 10 lines a minute are logged, in each"
            " worker."),
    Setting(name="slow-sample", parse=whole(1, 1_000_000_000), metavar="N",
            sentence="Keep one in so many requests there as well, whatever it took.",
            caution="Samples are not logged; below some hundreds they cost time."),
    Setting(name="log-format", parse=choice("text", "json"), metavar="text|json", default="text",
            sentence="How the log's lines are written: for people, or an object each.",
            caution="Where the log goes is for the options of twistd to say."),
    Setting(name="log-metrics", parse=switch, default="off",
            sentence="Log a line of figures each minute in l2met's form, for log drains.",
            caution="Its source is $DYNO where that is set, else the host's name."),
    Setting(name="strip-touch-extras", parse=switch, default="off",
            sentence="Leave the flags out of answers to TOUCH, for libmemcached 1.0 and what is"
            " made with it.",
            caution="Other clients may expect them."),
    Setting(name="exit-with-pid", parse=whole(1, 4_194_304), metavar="PID",
            sentence="A process to outlive: SIGTERM is only noted until it ends, or"
            " --drain-timeout is over; when it ends, so does the tunnel.",
            caution="Linux only; for the app's process where the platform sends SIGTERM to all."),
    Setting(name="config", parse=path, metavar="FILE", sources=(Source.FLAG, Source.VARIABLE),
            sentence="A TOML file with settings under the same names.",
            caution="An unknown name in it is a mistake."),
    Setting(name="check-config", parse=switch, default="off",
            sentence="Print the effective configuration, secrets left out, and open nothing.",
            caution="Servers are not dialled: `memtunnel check` does that."),
    Setting(name="demo", parse=switch, default="off",
            sentence="Start an embedded server with a throw-away CA and login, and tunnel to it.",
            caution="What it stores is gone when it ends."),
)  # fmt: skip


def reference() -> str:
    """Every setting as a table in Markdown, for docs/settings.md."""
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    for setting in SETTINGS:
        name = setting.variable
        if Source.FLAG in setting.sources:
            name = f"{setting.flag} {setting.metavar}".rstrip()
        cells = (f"`{name}`", setting.default_text, f"{setting.sentence} {setting.caution}")
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)
