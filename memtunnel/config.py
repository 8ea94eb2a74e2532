"""Flags, environment and a TOML file, made into one frozen `Config`, or every mistake at once.

`SETTINGS` is the one table of what can be set. The names of flags, variables and TOML keys,
the help text, what ``--check-config`` prints and the README's table all come from it.

Order: flags, then ``MEMTUNNEL_*``, then the file, then the add-on's variables, then defaults.
A mistake in a value that another layer overrides is a mistake all the same.

Left to others: opening anything (the service), reading certificates (`net.tls`), parsing the
command line. Files that hold a setting are read, and a CA file is looked into, so that a
missing one is known before anything is opened.
"""

import base64
import difflib
import json
import re
import socket
import tomllib
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import Enum, auto
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, TypeVar

from memtunnel.wire.sasl import Credentials, Secret

#: The port that memcached clients know, and that libmemcached drops from a server's name.
PLAIN_PORT: Final = 11211
KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30


_H = TypeVar("_H", bound=Hashable)


class ConfigError(Exception):
    """What is wrong with the configuration: `mistakes` has a line for each, secrets left out."""

    def __init__(self, mistakes: Iterable[str]) -> None:
        self.mistakes: Final = tuple(mistakes)
        super().__init__("\n".join(self.mistakes))


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """A server: where to dial it, and what the continuum calls it."""

    host: str
    """Lower case; an IPv6 address without brackets."""
    port: int
    name: str
    """As clients write it, which is what their keys were hashed with."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """The effective configuration. Times are in seconds, sizes in bytes."""

    listen: tuple[str, ...]
    """Endpoint descriptions for Twisted."""
    servers: tuple[ServerConfig, ...]
    """Empty only with `demo`."""
    ca_file: str | None
    verify: Literal["full", "chain"]
    tls_names: Mapping[str, str]
    """By `ServerConfig.host`: the name that its certificate bears."""
    tls_pins: Mapping[str, tuple[bytes, ...]]
    """By `ServerConfig.host`: SHA-256 digests, raw, of the keys that it may have."""
    pool_size: int
    client_auth: Literal["open", "required"]
    hashing: Literal["ketama", "ketama-weighted", "modula"]
    metrics: str
    """An endpoint description for Twisted."""
    request_timeout: float
    connect_timeout: float
    drain_timeout: float
    on_unavailable: Literal["miss", "error"]
    failover: bool
    max_clients: int
    max_buffer: int
    max_value_size: int
    allow_remote: bool
    credentials: Credentials | None
    metrics_token: Secret | None
    strip_touch_extras: bool
    demo: bool
    check_config: bool


# What a value may look like. Each parser takes the text as the user wrote it, and raises
# ValueError with what was expected, as it would follow the word "expected".


def _whole(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        # int() would take underscores, other scripts' digits, and thousands of them.
        if re.fullmatch("[0-9]{1,18}", text) and least <= int(text) <= most:
            return int(text)
        raise ValueError(f"a whole number from {least} to {most}")

    return parse


_port = _whole(1, 65535)


def _seconds(most: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        # float() would take "nan", underscores and other scripts' digits.
        if re.fullmatch(r"([0-9]+\.?|[0-9]*\.[0-9]+)(e-?[0-9]+)?", text):
            value = float(text)
            if 0 < value <= most:
                return value
        raise ValueError(f"seconds, above 0 and at most {most:g}, without a unit")

    return parse


_UNITS: Final = {"GiB": GIB, "MiB": MIB, "KiB": KIB}


def _size(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        match = re.fullmatch("([0-9]{1,18}) ?(KiB|MiB|GiB)?", text)
        if match is not None:
            value = int(match[1]) * _UNITS.get(match[2], 1)
            if least <= value <= most:
                return value
        bounds = f"from {_show_size(least)} to {_show_size(most)}"
        raise ValueError(f"bytes, or a number with KiB, MiB or GiB, {bounds}")

    return parse


def _show_size(size: int) -> str:
    for unit, factor in _UNITS.items():
        if size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


def _choice(*words: str, caveat: str = "") -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text in words:
            return text
        raise ValueError(" or ".join(words) + caveat)

    return parse


def _switch(text: str) -> bool:
    if text.lower() in ("on", "true", "yes", "1"):
        return True
    if text.lower() in ("off", "false", "no", "0"):
        return False
    raise ValueError("on or off")


def _path(text: str) -> str:
    if text and "\0" not in text:
        return text
    raise ValueError("the name of a file")


def _username(text: str) -> str:
    if text and text.isprintable():
        return text
    raise ValueError("a name of printable characters")


def _password(text: str) -> Secret:
    expected = "a password that is not empty and has no NUL byte"
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ValueError(expected) from None
    if text and "\0" not in text:
        return Secret(text)
    raise ValueError(expected)


def _token(text: str) -> Secret:
    if re.fullmatch("[!-~]+", text):
        return Secret(text)
    raise ValueError("printable ASCII characters without spaces")


_LABEL: Final = "[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOSTNAME: Final = re.compile(rf"(?!.{{254}})(?:{_LABEL}\.)*(?![0-9]+\Z){_LABEL}")
_HOST_PORT: Final = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::([0-9]{1,5}))?")


def _ip(text: str) -> IPv4Address | IPv6Address:
    """An IP address without a zone; brackets are allowed around one of IPv6."""
    if text.startswith("[") and text.endswith("]"):
        return IPv6Address(text[1:-1].replace("%", "?"))
    return ip_address(text.replace("%", "?"))


def _host(text: str) -> str:
    """A host in the one form by which hosts are compared."""
    try:
        return str(_ip(text))
    except ValueError:
        if _HOSTNAME.fullmatch(text):
            return text.lower()
        raise ValueError("a host name or an IP address") from None


class _Address(NamedTuple):
    """HOST, HOST:PORT or HOST:PORT=NAME, as it was written."""

    host: str
    """In the form of `_host`."""
    port: int | None
    written: str
    """The host as it stands."""
    name: str | None = None


def _address(text: str) -> _Address:
    match = _HOST_PORT.fullmatch(text)
    try:
        if match is not None:
            port = None if match[2] is None else _port(match[2])
            return _Address(_host(match[1]), port, match[1])
    except ValueError:
        pass
    raise ValueError("HOST or HOST:PORT, an IPv6 address in brackets")


def _server(text: str) -> _Address:
    address, equals, name = text.partition("=")
    try:
        parsed = _address(address)
    except ValueError:
        pass
    else:
        if not equals:
            return parsed
        if re.fullmatch("[!-~]{1,250}", name) and not set(name) & set(",;"):
            return parsed._replace(name=name)
    raise ValueError("HOST, HOST:PORT or HOST:PORT=NAME, an IPv6 address in brackets")


def _tls_name(text: str) -> tuple[str, str]:
    host, _, name = text.partition("=")
    try:
        return _host(host), _host(name)
    except ValueError:
        raise ValueError("HOST=NAME") from None


def _tls_pin(text: str) -> tuple[str, bytes]:
    host, _, pin = text.partition("=")
    algorithm, _, digest = pin.partition("/")
    try:
        if algorithm == "sha256":
            is_hex = re.fullmatch("[0-9A-Fa-f]{64}", digest)
            key = bytes.fromhex(digest) if is_hex else base64.b64decode(digest, validate=True)
            if len(key) == 32:
                return _host(host), key
    except ValueError:
        pass
    raise ValueError("HOST=sha256/DIGEST, the digest's 32 bytes in base64 or hex")


class _Endpoint(NamedTuple):
    description: str
    """For Twisted, in one form for all ways to write it."""
    private: bool
    """Whether only this machine can reach it, as far as a description tells."""


#: By the prefix of a description: its parameters, in the order in which Twisted binds them.
_PARAMETERS: Final = {
    "tcp": ("port", "interface", "backlog"),
    "tcp6": ("port", "backlog", "interface"),
    "unix": ("address", "mode", "backlog", "lockfile"),
    "systemd": ("domain", "index", "name"),
}
_ENDPOINT: Final = "ADDRESS:PORT, unix:/path, or a tcp:, tcp6:, unix: or systemd: endpoint"


def _endpoint(text: str) -> _Endpoint:
    prefix = text.partition(":")[0]
    try:
        if prefix not in _PARAMETERS:
            match = _HOST_PORT.fullmatch(text)
            if match is None or match[2] is None:
                raise ValueError
            return _tcp(interface=match[1], port=match[2])
        parameters = _parameters(prefix, text)
        if prefix == "unix":
            return _unix(**parameters)
        if prefix == "systemd":
            return _systemd(**parameters)
        if prefix == "tcp6":
            parameters.setdefault("interface", "::")
        return _tcp(**parameters)
    except (TypeError, ValueError):  # TypeError: a parameter is missing
        raise ValueError(_ENDPOINT) from None


def _parameters(prefix: str, text: str) -> dict[str, str]:
    """What Twisted would read from a description: colons divide, a backslash quotes."""
    parts = [[""]]
    characters = iter(text)
    for character in characters:
        if character == "\\":
            quoted = next(characters, None)
            if quoted is None:
                raise ValueError
            parts[-1][-1] += quoted
        elif character == ":":
            parts.append([""])
        elif character == "=" and len(parts[-1]) == 1:
            parts[-1].append("")
        else:
            parts[-1][-1] += character
    names = _PARAMETERS[prefix]
    positional = [part[0] for part in parts[1:] if len(part) == 1]
    keywords = [(part[0], part[1]) for part in parts[1:] if len(part) == 2]
    bound = [*zip(names, positional, strict=False), *keywords]
    parameters = dict(bound)
    too_many = len(positional) > len(names) or len(parameters) < len(bound)
    if too_many or not parameters.keys() <= set(names):
        raise ValueError
    return parameters


def _description(prefix: str, *positional: str, **keywords: str) -> str:
    parts = [prefix, *map(_quote, positional)]
    parts += [f"{name}={_quote(value)}" for name, value in keywords.items() if value]
    return ":".join(parts)


def _quote(text: str) -> str:
    return re.sub(r"([\\:=])", r"\\\1", text)


def _tcp(*, port: str, interface: str = "", backlog: str = "") -> _Endpoint:
    number = str(_whole(0, 65535)(port))
    private = False
    if interface:
        address = _ip("127.0.0.1" if interface.lower() == "localhost" else interface)
        interface, private = str(address), address.is_loopback
    return _Endpoint(
        _description("tcp", number, interface=interface, backlog=_backlog(backlog)), private
    )


def _unix(*, address: str, mode: str = "660", backlog: str = "", lockfile: str = "") -> _Endpoint:
    # 107 bytes is what the kernel's sockaddr_un holds, beside the NUL at its end.
    fits = 0 < len(address.encode("utf-8", "surrogateescape")) <= 107 and "\0" not in address
    if not fits or not re.fullmatch("[0-7]{3,4}", mode) or lockfile not in ("", "0", "1"):
        raise ValueError
    description = _description(
        "unix", address, mode=mode, backlog=_backlog(backlog), lockfile=lockfile
    )
    return _Endpoint(description, private=True)


def _systemd(*, domain: str, index: str = "", name: str = "") -> _Endpoint:
    if domain not in ("INET", "INET6", "UNIX") or bool(index) == bool(name):
        raise ValueError
    if index:
        index = str(_whole(0, 1023)(index))
    # Whoever wrote the socket unit has chosen where it listens; we cannot see it from here.
    return _Endpoint(_description("systemd", domain=domain, index=index, name=name), private=True)


def _backlog(text: str) -> str:
    return text and str(_whole(1, 65535)(text))


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
    caution: str = ""
    metavar: str = ""
    """What stands for the value in help texts; empty for a switch, which takes none."""
    default: str | None = None
    """As the user would write it."""
    unset: str = "none"
    """In words: what holds where there is no `default`."""
    repeatable: bool = False
    """A list: the flag again and again, commas in the variable, an array in the file."""
    secret: bool = False
    """Whether a mistake keeps the value to itself."""
    toml: tuple[type, ...] = (str,)
    """The types that it may have in the file; of the entries if `repeatable`."""
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
        names = {
            Source.FLAG: self.flag,
            Source.VARIABLE: self.variable,
            Source.FILE: self.name,
        }
        return names[source]

    @property
    def default_text(self) -> str:
        """The default for readers."""
        return self.unset if self.default is None else self.default

    @property
    def help(self) -> str:
        """Sentence, caution and default, for ``--help``."""
        default = f"Default: {self.default_text}."
        return " ".join(filter(None, (self.sentence, self.caution, default)))


_NUMBER: Final = (float, int)

SETTINGS: Final[tuple[Setting, ...]] = (
    Setting(
        name="listen",
        parse=_endpoint,
        metavar="ENDPOINT",
        repeatable=True,
        unset=f"port {PLAIN_PORT} on 127.0.0.1, and on ::1 where the machine has it",
        sentence="Where clients connect: ADDRESS:PORT, unix:/path or a Twisted endpoint.",
        caution="Whoever can connect is the cache's user, so anything but loopback, a unix socket"
        " or a socket of systemd's is refused without --allow-remote.",
    ),
    Setting(
        name="server",
        parse=_server,
        metavar="HOST[:PORT][=NAME]",
        repeatable=True,
        unset="those of MEMCACHIER_SERVERS, else of MEMCACHE_SERVERS",
        sentence="A server to dial, and its name in the continuum.",
        caution="Another name moves keys to other servers; the add-on's login is not used with"
        " servers given here.",
    ),
    Setting(
        name="tls-port",
        parse=_port,
        metavar="PORT",
        default="11219",
        toml=(int,),
        sentence="The port to dial where a server has none, and on every server of the add-on.",
        caution="The port that stands in MEMCACHIER_SERVERS is the one without TLS.",
    ),
    Setting(
        name="ca-file",
        parse=_path,
        metavar="PEM",
        unset="the system's roots",
        sentence="Trust only the root certificates in this file.",
        caution="The system's roots are then trusted no more.",
    ),
    Setting(
        name="verify",
        parse=_choice("full", "chain"),
        metavar="full|chain",
        default="full",
        sentence="What to check of a certificate: chain and name, or the chain alone.",
        caution="With chain, whoever has any certificate of that authority can read all traffic.",
    ),
    Setting(
        name="tls-name",
        parse=_tls_name,
        metavar="HOST=NAME",
        repeatable=True,
        sentence="The name to expect in a server's certificate in place of its host.",
        caution="The name then decides whom you trust: take it from the provider, not from the"
        " certificate that came.",
    ),
    Setting(
        name="tls-pin",
        parse=_tls_pin,
        metavar="HOST=sha256/DIGEST",
        repeatable=True,
        sentence="A key to expect on a server, by its SHA-256; several for one host are"
        " alternatives.",
        caution="When the provider changes the key, the tunnel refuses that server until the pin"
        " follows.",
    ),
    Setting(
        name="pool-size",
        parse=_whole(1, 256),
        metavar="N",
        default="2",
        toml=(int,),
        sentence="Warm connections to keep to each server.",
        caution="Every process of the tunnel has its own.",
    ),
    Setting(
        name="client-auth",
        parse=_choice("open", "required", caveat=" (passthrough is not available in this version)"),
        metavar="open|required",
        default="open",
        sentence="Whether clients must log in; with open they need not, but a login is checked.",
        caution="With open, whoever can connect is the cache's user.",
    ),
    Setting(
        name="hashing",
        parse=_choice("ketama", "ketama-weighted", "modula"),
        metavar="ketama|ketama-weighted|modula",
        default="ketama",
        sentence="How a key finds its server when there are several.",
        caution="It must be what the clients used before, or they miss what is stored.",
    ),
    Setting(
        name="metrics",
        parse=_endpoint,
        metavar="ENDPOINT",
        default="tcp:9152:interface=127.0.0.1",
        sentence="Where /metrics, /healthz, /readyz and a status page are served.",
        caution="Beyond loopback only /healthz and /readyz are, unless there is a metrics token.",
    ),
    Setting(
        name="request-timeout",
        parse=_seconds(60),
        metavar="SECONDS",
        default="0.4",
        toml=_NUMBER,
        sentence="How long a request may take, from its last byte to its answer, queueing"
        " included; large values get more.",
        caution="Clients give up from 0.5 s on, and some then give up the server for seconds.",
    ),
    Setting(
        name="connect-timeout",
        parse=_seconds(60),
        metavar="SECONDS",
        default="5",
        toml=_NUMBER,
        sentence="How long a connection to a server may take from dialling to warm.",
        caution="It covers name look-up, TCP, TLS, login and a first answer together.",
    ),
    Setting(
        name="drain-timeout",
        parse=_seconds(3600),
        metavar="SECONDS",
        default="5",
        toml=_NUMBER,
        sentence="How long open clients are served on after SIGTERM.",
        caution="Keep it below the time after which the platform sends SIGKILL.",
    ),
    Setting(
        name="on-unavailable",
        parse=_choice("miss", "error"),
        metavar="miss|error",
        default="miss",
        sentence="What clients get when no server answers: a miss, or for writes an error.",
        caution="An error makes some clients drop the server for up to half a minute.",
    ),
    Setting(
        name="failover",
        parse=_switch,
        metavar="on|off",
        default="on",
        toml=(bool, str),
        sentence="Whether the next server serves a key while its own is down.",
        caution="A key that moves there and back may show an older value.",
    ),
    Setting(
        name="max-clients",
        parse=_whole(1, 1_000_000),
        metavar="N",
        default="10000",
        toml=(int,),
        sentence="Clients connected at one time; more are closed at once.",
        caution="It is lowered where the limit of open files does not suffice.",
    ),
    Setting(
        name="max-buffer",
        parse=_size(MIB, 1024 * GIB),
        metavar="BYTES",
        default="256MiB",
        toml=(int, str),
        sentence="Bytes that all buffers towards clients may hold together.",
        caution="Past it, hits are delivered as misses.",
    ),
    Setting(
        name="max-value-size",
        # Larger bodies are not even swallowed: the connection would be lost.
        parse=_size(1, 32 * MIB),
        metavar="BYTES",
        default="1MiB",
        toml=(int, str),
        sentence="The largest value that passes; larger ones are refused, or are a miss.",
        caution="The server has a limit of its own.",
    ),
    Setting(
        name="allow-remote",
        parse=_switch,
        default="off",
        toml=(bool,),
        sentence="Listen beyond loopback.",
        caution="Clients' logins and data cross that network in the clear; it needs"
        " --client-auth required.",
    ),
    Setting(
        name="username",
        parse=_username,
        metavar="NAME",
        unset="the add-on's, with its servers",
        sentence="The login on the servers.",
        caution="It needs a password of its own: the add-on's is not combined with it.",
    ),
    Setting(
        name="password",
        parse=_password,
        metavar="PASSWORD",
        unset="the add-on's, with its servers",
        secret=True,
        sources=(Source.VARIABLE,),
        sentence="The password on the servers.",
        caution="Only the environment may hold it: flags are seen by every user of the machine.",
    ),
    Setting(
        name="password-file",
        parse=_path,
        metavar="FILE",
        secret=True,  # its value may be a password that was put in the wrong place
        sentence="A file that holds the password; a newline at its end does not count.",
        caution="Nobody else should be able to read it.",
    ),
    Setting(
        name="metrics-token",
        parse=_token,
        metavar="TOKEN",
        secret=True,
        sources=(Source.VARIABLE,),
        sentence="The bearer token that /metrics and the status page ask for.",
        caution="It crosses the network in the clear.",
    ),
    Setting(
        name="strip-touch-extras",
        parse=_switch,
        default="off",
        toml=(bool,),
        sentence="Leave the flags out of answers to TOUCH, which libmemcached 1.0 stumbles over"
        " for 5 s.",
        caution="Other clients may expect them.",
    ),
    Setting(
        name="config",
        parse=_path,
        metavar="FILE",
        sources=(Source.FLAG, Source.VARIABLE),
        sentence="A TOML file with settings under the same names.",
        caution="An unknown name in it is a mistake.",
    ),
    Setting(
        name="check-config",
        parse=_switch,
        default="off",
        toml=(bool,),
        sentence="Print the effective configuration, secrets left out, and open nothing.",
        caution="Servers are not dialled: `memtunnel check` does that.",
    ),
    Setting(
        name="demo",
        parse=_switch,
        default="off",
        toml=(bool,),
        sentence="Start an embedded server with a throw-away CA and login, and tunnel to it.",
        caution="What it stores is gone when it ends.",
    ),
)

_SETTINGS: Final = {setting.name: setting for setting in SETTINGS}
#: By source: the settings by the names that they have there.
_WRITTEN: Final = {
    source: {setting.written(source): setting for setting in SETTINGS if source in setting.sources}
    for source in Source
}
#: Kubernetes sets these for any service whose name begins with "memtunnel"; none is ours.
_SERVICE_LINK: Final = re.compile(
    r"MEMTUNNEL\w*_(SERVICE_HOST=|SERVICE_PORT(_\w+)?=|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?=|PORT=\w+://)"
)
#: The add-on's variables begin with one of these, and are read in this order.
_ADD_ONS: Final = ("MEMCACHIER", "MEMCACHE")
#: What the embedded server brings itself.
_NOT_WITH_DEMO: Final = ("server", "username", "password", "password-file", "ca-file")
_LOGIN: Final = ("username", "password", "password-file")
_PASSWORD_SOURCES: Final = f"{_SETTINGS['password'].variable} or --password-file"
_REQUIRED: Final = "--client-auth required"


def has_ipv6_loopback() -> bool:
    """Whether something can listen on ::1 here."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def load(
    flags: Mapping[str, str | Sequence[str] | bool | None],
    environ: Mapping[str, str],
    read_file: Callable[[str], bytes] = lambda path: Path(path).read_bytes(),
    ipv6_loopback: Callable[[], bool] = has_ipv6_loopback,
) -> Config:
    """The configuration, or `ConfigError` with every mistake in it.

    `flags` are by name without the dashes, values as they were written, lists where the flag
    is repeatable; None, False and an empty list stand for a flag that was not given.
    """
    reading = _Reading(environ, read_file)
    reading.read_flags(flags)
    reading.read_environment()
    reading.read_toml()
    config = reading.config(ipv6_loopback)
    if reading.mistakes:
        raise ConfigError(reading.mistakes)
    return config


class _Given(NamedTuple):
    value: Any
    source: Source
    place: str
    """The setting's name as the user wrote it."""


class _Reading:
    """One reading of all sources: what was given, and what is wrong with it."""

    __slots__ = ("_bad", "_environ", "_given", "_read_file", "mistakes")

    def __init__(self, environ: Mapping[str, str], read_file: Callable[[str], bytes]) -> None:
        self._environ = environ
        self._read_file = read_file
        self._given: dict[str, _Given] = {}
        # Settings with a mistake in them: what follows from their values is not reported.
        self._bad: set[str] = set()
        self.mistakes: list[str] = []

    def read_flags(self, flags: Mapping[str, str | Sequence[str] | bool | None]) -> None:
        for name, given in flags.items():
            if not given and given != "":
                continue
            setting = self._find(Source.FLAG, f"--{name}", f"--{_shown(name)}")
            if setting is None:
                continue
            if isinstance(given, str):
                texts = [given]
            elif isinstance(given, Sequence):
                texts = list(given)
            elif setting.switch:
                texts = ["on"]
            else:
                self._mistake(setting.flag, f"expected {setting.metavar}", setting)
                continue
            if len(texts) > 1 and not setting.repeatable:
                self._mistake(setting.flag, "expected only once", setting)
            else:
                self._take(Source.FLAG, setting, setting.flag, texts)

    def read_environment(self) -> None:
        for variable, text in self._environ.items():
            if not text or not variable.startswith("MEMTUNNEL_"):
                continue
            if _SERVICE_LINK.match(f"{variable}={text}"):
                continue
            setting = self._find(Source.VARIABLE, variable, _shown(variable))
            if setting is not None:
                texts = _entries(text, ",") if setting.repeatable else [text]
                self._take(Source.VARIABLE, setting, variable, texts)

    def read_toml(self) -> None:
        given = self._given.get("config")
        if given is None:
            return
        data = self._read(given.place, given.value, _SETTINGS["config"])
        if data is None:
            return
        try:
            table = tomllib.loads(data.decode())
        except UnicodeDecodeError:
            self._mistake(given.place, "expected TOML in UTF-8", _SETTINGS["config"])
            return
        except (ValueError, RecursionError) as error:
            self._mistake(given.place, f"expected TOML: {error}", _SETTINGS["config"])
            return
        for key, value in table.items():
            place = f"{_shown(key)} in {_shown(given.value)}"
            setting = self._find(Source.FILE, key, place)
            if setting is None:
                continue
            values = value if setting.repeatable else [value]
            if not isinstance(values, list) or any(type(v) not in setting.toml for v in values):
                self._mistake(place, f"expected {_toml_types(setting)}", setting)
                continue
            # tomllib reads hexadecimal numbers of any length, which str() refuses.
            texts = [hex(v) if type(v) is int and abs(v) >> 63 else str(v) for v in values]
            self._take(Source.FILE, setting, place, texts)

    def config(self, ipv6_loopback: Callable[[], bool]) -> Config:
        """The configuration; of no use if there are mistakes afterwards."""
        add_on, servers = self._servers()
        credentials = self._credentials(add_on)
        self._check_servers(servers, add_on)
        self._check_demo(add_on)
        listen: Sequence[_Endpoint] = self._value("listen")
        if not listen:
            addresses = ["127.0.0.1", "::1"] if ipv6_loopback() else ["127.0.0.1"]
            listen = [_tcp(port=str(PLAIN_PORT), interface=address) for address in addresses]
        self._check_listen(listen)
        self._check_access(listen, credentials)
        self._check_ca_file()
        buffer, value_size = self._value("max-buffer"), self._value("max-value-size")
        if self._sound("max-buffer", "max-value-size") and buffer < value_size:
            self._mistake(self._place("max-buffer"), "expected at least --max-value-size")
        return Config(
            listen=tuple(endpoint.description for endpoint in listen),
            servers=servers,
            ca_file=self._value("ca-file"),
            verify=self._value("verify"),
            tls_names=self._tls_names(servers),
            tls_pins=self._tls_pins(servers),
            pool_size=self._value("pool-size"),
            client_auth=self._value("client-auth"),
            hashing=self._value("hashing"),
            metrics=self._value("metrics").description,
            request_timeout=self._value("request-timeout"),
            connect_timeout=self._value("connect-timeout"),
            drain_timeout=self._value("drain-timeout"),
            on_unavailable=self._value("on-unavailable"),
            failover=self._value("failover"),
            max_clients=self._value("max-clients"),
            max_buffer=buffer,
            max_value_size=value_size,
            allow_remote=self._value("allow-remote"),
            credentials=credentials,
            metrics_token=self._value("metrics-token"),
            strip_touch_extras=self._value("strip-touch-extras"),
            demo=self._value("demo"),
            check_config=self._value("check-config"),
        )

    def _find(self, source: Source, written: str, place: str) -> Setting | None:
        names = _WRITTEN[source]
        if written in names:
            return names[written]
        name = written.removeprefix("--").removeprefix("MEMTUNNEL_").lower().replace("_", "-")
        elsewhere = _SETTINGS.get(name)
        if elsewhere is not None and source not in elsewhere.sources:
            variants = " or ".join(elsewhere.written(each) for each in elsewhere.sources)
            if elsewhere is _SETTINGS["password"]:
                variants = _PASSWORD_SOURCES
            self._mistake(place, f"cannot be set here: expected {variants}")
        else:
            close = difflib.get_close_matches(written, names, n=1)
            self._mistake(place, "unknown" + (f": did you mean {close[0]}?" if close else ""))
        return None

    def _take(self, source: Source, setting: Setting, place: str, texts: Sequence[str]) -> None:
        values = []
        for text in texts:
            try:
                values.append(setting.parse(text))
            except ValueError as error:
                got = "" if setting.secret else _got(text)
                self._mistake(place, f"expected {error}{got}", setting)
        if values and len(values) == len(texts):
            value = tuple(values) if setting.repeatable else values[0]
            self._given.setdefault(setting.name, _Given(value, source, place))

    def _mistake(self, place: str, words: str, setting: Setting | None = None) -> None:
        """Note a mistake; of `setting`'s own value, where that is given."""
        self.mistakes.append(f"{place}: {words}")
        if setting is not None:
            self._bad.add(setting.name)

    def _sound(self, *names: str) -> bool:
        return self._bad.isdisjoint(names)

    def _value(self, name: str) -> Any:
        given = self._given.get(name)
        if given is not None:
            return given.value
        setting = _SETTINGS[name]
        if setting.default is None:
            return () if setting.repeatable else None
        return setting.parse(setting.default)

    def _place(self, name: str) -> str:
        given = self._given.get(name)
        return _SETTINGS[name].flag if given is None else given.place

    def _read(self, place: str, path: str, setting: Setting) -> bytes | None:
        try:
            return self._read_file(path)
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            reason = getattr(error, "strerror", None) or "no such file"
            self._mistake(place, f"expected a file that can be read: {reason}", setting)
            return None

    def _servers(self) -> tuple[str | None, tuple[ServerConfig, ...]]:
        """The servers, and whose variables they came from, if from an add-on's."""
        tls_port: int = self._value("tls-port")
        if "server" in self._given or not self._sound("server"):
            return None, tuple(_named(server, tls_port) for server in self._value("server"))
        for add_on in _ADD_ONS:
            variable = f"{add_on}_SERVERS"
            entries = _entries(self._environ.get(variable, ""), r"[,;\s]")
            servers = []
            for entry in entries:
                try:
                    host = _address(entry).host
                except ValueError as error:
                    words = f"expected {error}{_got(entry)}"
                    self._mistake(variable, words, _SETTINGS["server"])
                else:
                    name = entry.removesuffix(f":{PLAIN_PORT}")
                    servers.append(ServerConfig(host=host, port=tls_port, name=name))
            if entries:
                return add_on, tuple(servers)
        return None, ()

    def _credentials(self, add_on: str | None) -> Credentials | None:
        """The login, whose two halves always come from one place: ours, or one add-on's."""
        username, password = self._given.get("username"), self._password()
        places = _SETTINGS["username"].flag, _PASSWORD_SOURCES
        if add_on is not None and self._sound(*_LOGIN) and username is None and password is None:
            places = f"{add_on}_USERNAME", f"{add_on}_PASSWORD"
            username = self._of_add_on(_SETTINGS["username"], places[0])
            password = self._of_add_on(_SETTINGS["password"], places[1])
        if not self._sound(*_LOGIN):
            return None
        if username is not None and password is not None:
            return Credentials(username=username.value, password=password.value)
        if username is not None:
            words = f"expected a password with it: {places[1]}"
            self._mistake(username.place, words, _SETTINGS["password"])
        if password is not None:
            words = f"expected a user name with it: {places[0]}"
            self._mistake(password.place, words, _SETTINGS["username"])
        return None

    def _password(self) -> _Given | None:
        """The password, read from its file if that is where it is."""
        password, file = self._given.get("password"), self._given.get("password-file")
        setting = _SETTINGS["password-file"]
        if file is None or (password is not None and file.source is Source.FILE):
            return password
        if password is not None and file.source is Source.VARIABLE:
            self._mistake(file.place, f"expected only one of it and {password.place}", setting)
            return None
        data = self._read(file.place, file.value, setting)
        if data is None:
            return None
        text = re.sub(rb"\r?\n\Z", b"", data).decode("utf-8", "surrogateescape")
        try:
            return file._replace(value=_password(text))
        except ValueError as error:
            self._mistake(file.place, f"expected {error} in the file", setting)
            return None

    def _of_add_on(self, setting: Setting, variable: str) -> _Given | None:
        text = self._environ.get(variable, "")
        if text:
            try:
                return _Given(setting.parse(text), Source.VARIABLE, variable)
            except ValueError as error:
                self._mistake(variable, f"expected {error}", setting)
        return None

    def _check_servers(self, servers: Sequence[ServerConfig], add_on: str | None) -> None:
        place = self._place("server") if add_on is None else f"{add_on}_SERVERS"
        if not servers and not self._value("demo") and self._sound("server", "demo"):
            words = "expected a server: set MEMCACHIER_SERVERS, or give --server or --demo"
            self._mistake(place, words)
        if self._sound("tls-port"):
            for host, port in _repeated((server.host, server.port) for server in servers):
                address = _host_port(host, port)
                self._mistake(place, f"expected different servers, but {address} is there twice")
            for name in _repeated(server.name for server in servers):
                words = f"expected different names, but {_shown(name)} is there twice"
                self._mistake(place, f"{words}: --server {_SETTINGS['server'].metavar} sets one")

    def _check_demo(self, add_on: str | None) -> None:
        if not self._value("demo"):
            return
        places = [self._place(name) for name in _NOT_WITH_DEMO if name in self._given]
        if add_on is not None:
            places.append(f"{add_on}_SERVERS")
        for place in places:
            self._mistake(place, "expected nothing with --demo, which brings its own server")

    def _check_listen(self, listen: Sequence[_Endpoint]) -> None:
        # Port 0 is another one each time.
        taken = [each.description for each in listen if not each.description.startswith("tcp:0")]
        for description in _repeated(taken):
            words = f"expected different endpoints, but {_shown(description)} is there twice"
            self._mistake(self._place("listen"), words)
        if self._sound("listen", "metrics") and self._value("metrics").description in taken:
            self._mistake(self._place("metrics"), "expected an endpoint that is not in --listen")

    def _check_access(self, listen: Sequence[_Endpoint], credentials: Credentials | None) -> None:
        allow_remote, required = self._value("allow-remote"), _REQUIRED
        if self._sound("listen", "allow-remote") and not allow_remote:
            for endpoint in listen:
                if not endpoint.private:
                    words = f"beyond loopback, {_shown(endpoint.description)} needs --allow-remote"
                    self._mistake(self._place("listen"), f"{words} and {required}")
        if not self._sound("client-auth"):
            return
        if allow_remote and self._value("client-auth") != "required":
            self._mistake(self._place("allow-remote"), f"expected {required} with it")
        without_login = credentials is None and not self._value("demo") and self._sound(*_LOGIN)
        if self._value("client-auth") == "required" and without_login:
            words = f"required needs a login: expected --username and {_PASSWORD_SOURCES}"
            self._mistake(self._place("client-auth"), words)

    def _check_ca_file(self) -> None:
        path, place, setting = self._value("ca-file"), self._place("ca-file"), _SETTINGS["ca-file"]
        if path is None:
            return
        data = self._read(place, path, setting)
        if data is not None and b"-----BEGIN CERTIFICATE-----" not in data:
            self._mistake(place, "expected a PEM file with a certificate in it", setting)

    def _by_host(self, name: str, servers: Sequence[ServerConfig]) -> dict[str, list[Any]]:
        """The values of a setting of (host, value) pairs, in order, for hosts that are dialled."""
        values: dict[str, list[Any]] = {}
        for host, value in self._value(name):
            values.setdefault(host, []).append(value)
        if self._sound("server") and (servers or self._value("demo")):
            for host in sorted(values.keys() - {server.host for server in servers}):
                words = f"expected the host of a server, not {_shown(host)}"
                self._mistake(self._place(name), words)
        return values

    def _tls_names(self, servers: Sequence[ServerConfig]) -> Mapping[str, str]:
        names = self._by_host("tls-name", servers)
        for host, values in names.items():
            if len(values) > 1:
                words = f"expected one name for each host, but {_shown(host)} has several"
                self._mistake(self._place("tls-name"), words)
        return MappingProxyType({host: values[0] for host, values in names.items()})

    def _tls_pins(self, servers: Sequence[ServerConfig]) -> Mapping[str, tuple[bytes, ...]]:
        pins = self._by_host("tls-pin", servers)
        return MappingProxyType({host: tuple(values) for host, values in pins.items()})


def _named(server: _Address, tls_port: int) -> ServerConfig:
    """A server of ours, under the name that it was given, or else its host's."""
    port = server.port or tls_port
    name = server.name
    if name is None:
        name = server.written
        if port not in (tls_port, PLAIN_PORT):
            # Several servers on one host: only the port tells them apart.
            name = f"{name}:{port}"
    return ServerConfig(host=server.host, port=port, name=name)


def _host_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _entries(text: str, separator: str) -> list[str]:
    return [entry for part in re.split(separator, text) if (entry := part.strip())]


def _repeated(items: Iterable[_H]) -> list[_H]:
    return [item for item, count in Counter(items).items() if count > 1]


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:80] + "…"


def _shown(text: str) -> str:
    """A name of the user's, short and on one line, whatever is in it."""
    short = _short(text)
    return short if short.isprintable() else repr(short)


def _got(text: str) -> str:
    """The value that was not expected; not if it may be an address with a login in it."""
    return "" if "@" in text else f", not {_short(text)!r}"


def _toml_types(setting: Setting) -> str:
    if setting.repeatable:
        return "an array of strings"
    words = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}
    return " or ".join(words[each] for each in setting.toml)


def describe(config: Config) -> str:
    """The effective configuration, a setting a line, for ``--check-config``.

    It is TOML but for the secrets: read as a file, with the password beside it, it gives the
    same configuration.
    """
    effective: dict[str, object] = {
        field.name.replace("_", "-"): getattr(config, field.name) for field in fields(config)
    }
    login = config.credentials
    effective |= {
        "server": [
            f"{_host_port(server.host, server.port)}={server.name}" for server in config.servers
        ],
        "tls-name": [f"{host}={name}" for host, name in config.tls_names.items()],
        "tls-pin": [
            f"{host}=sha256/{base64.b64encode(pin).decode()}"
            for host, pins in config.tls_pins.items()
            for pin in pins
        ],
        "max-buffer": _show_size(config.max_buffer),
        "max-value-size": _show_size(config.max_value_size),
        "username": None if login is None else login.username,
        "password": None if login is None else login.password,
    }
    return "\n".join(
        f"# {setting.name} is not set"
        if effective[setting.name] is None
        else f"{setting.name} = {_toml(effective[setting.name])}"
        for setting in SETTINGS
        if setting.name in effective
    )


def _toml(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case tuple() | list():
            return f"[{', '.join(map(_toml, value))}]"
        case _:
            # str() is what keeps a Secret secret: json would read past it.
            text = json.dumps(str(value), ensure_ascii=False)
            return text.encode("utf-8", "backslashreplace").decode()


def reference() -> str:
    """Every setting as a table in Markdown, for the README."""
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    for setting in SETTINGS:
        name = f"{setting.written(setting.sources[0])} {setting.metavar}".rstrip()
        if setting.sources == (Source.VARIABLE,):
            name = setting.variable
        cells = (f"`{name}`", setting.default_text, f"{setting.sentence} {setting.caution}")
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)
