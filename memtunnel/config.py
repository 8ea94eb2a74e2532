"""Flags, environment and a TOML file, made into one frozen `Config`, or every mistake at once.

Order: flags, then ``MEMTUNNEL_*``, then the file, then the add-on's variables, then defaults.
A mistake in a value that another layer overrides is a mistake all the same.

Left to others: what can be set (`settings`), and opening anything (the service). Files that
settings name are read, so that a missing one is known before.
"""

import base64
import difflib
import json
import re
import socket
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple

from memtunnel.addresses import PLAIN_PORT, Endpoint, ServerConfig, endpoint, host_port
from memtunnel.settings import SETTINGS, Setting, Source
from memtunnel.wire.sasl import Credentials, Secret

__all__ = ["SETTINGS", "Config", "ConfigError", "ServerConfig", "Setting", "Source", "describe",
           "has_ipv6_loopback", "load"]  # fmt: skip


class ConfigError(Exception):
    """What is wrong with the configuration: `mistakes` has a line for each, secrets left out."""

    def __init__(self, mistakes: Iterable[str]) -> None:
        self.mistakes: Final = tuple(mistakes)
        super().__init__("\n".join(self.mistakes))


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
    workers: int
    client_auth: Literal["open", "required", "passthrough"]
    max_logins: int
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
    slow_ms: float | None
    slow_sample: int | None
    log_format: Literal["text", "json"]
    log_metrics: bool
    strip_touch_extras: bool
    exit_with_pid: int | None
    demo: bool
    check_config: bool


_SETTINGS: Final = {setting.name: setting for setting in SETTINGS}
#: By source: the settings by the names that they have there.
_WRITTEN: Final = {
    source: {setting.written(source): setting for setting in SETTINGS if source in setting.sources}
    for source in Source
}
#: Kubernetes sets these for any service whose name begins with "memtunnel"; and some are for the
#: buildpack.
_OTHERS: Final = re.compile(
    r"MEMTUNNEL\w*_(SERVICE_HOST=|SERVICE_PORT(_\w+)?=|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?=|PORT=\w+://)"
    r"|MEMTUNNEL_BUILD_"
)
#: The add-on's variables begin with one of these, and are read in this order.
_ADD_ONS: Final = ("MEMCACHIER", "MEMCACHE")
_LOGIN: Final = ("username", "password", "password-file")
#: What is not followed when settings are read again: what is open, and who may be a client.
FIXED: Final = ("listen", "metrics", "workers", "client-auth", "allow-remote", "exit-with-pid",
                "log-format", "demo")  # fmt: skip
_LOGIN_FIRST: Final = "--client-auth required or passthrough"
#: The server that metrics count under what the tunnel answers itself.
_RESERVED: Final = "local"


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

    # What was given

    def read_flags(self, flags: Mapping[str, str | Sequence[str] | bool | None]) -> None:
        for name, given in flags.items():
            if given or given == "":
                values = [given] if isinstance(given, str | bool) else given
                self._take(Source.FLAG, f"--{name}", _shown(f"--{name}"), values)

    def read_environment(self) -> None:
        repeatable = [setting.variable for setting in SETTINGS if setting.repeatable]
        for name, text in self._environ.items():
            ours = name.startswith("MEMTUNNEL_") and not _OTHERS.match(f"{name}={text}")
            if text and ours:
                values = _entries(text, ",") if name in repeatable else [text]
                self._take(Source.VARIABLE, name, _shown(name), values)

    def read_toml(self) -> None:
        given = self._given.get("config")
        data = None if given is None else self._read("config")
        if given is None or data is None:
            return
        try:
            table = tomllib.loads(data.decode())
        except (ValueError, RecursionError) as error:
            self._mistake(given.place, f"expected TOML: {error}", "config")
            return
        for key, value in table.items():
            values = value if isinstance(value, list) else [value]
            self._take(Source.FILE, key, f"{_shown(key)} in {_shown(given.value)}", values)

    def _take(self, source: Source, written: str, place: str, values: Sequence[object]) -> None:
        setting = _WRITTEN[source].get(written)
        if setting is None:
            self._unknown(source, written, place)
            return
        if len(values) > 1 and not setting.repeatable:
            self._mistake(place, "expected only one value", setting.name)
            return
        parsed = [self._parse(setting.name, _as_written(value), place) for value in values]
        if parsed and None not in parsed:
            taken = tuple(parsed) if setting.repeatable else parsed[0]
            self._given.setdefault(setting.name, _Given(taken, source, place))

    def _parse(self, name: str, text: str, place: str) -> Any:
        """The value; None if it is a mistake, whose text may be a password and is not told."""
        try:
            return _SETTINGS[name].parse(text)
        except ValueError as error:
            self._mistake(place, f"expected {error}", name)
            return None

    def _unknown(self, source: Source, written: str, place: str) -> None:
        name = written.removeprefix("--").removeprefix("MEMTUNNEL_").lower().replace("_", "-")
        close = difflib.get_close_matches(written, _WRITTEN[source], n=1)
        if name in _SETTINGS and source not in _SETTINGS[name].sources:
            words = f"cannot be set here: expected {_SETTINGS[name].variable}"
        else:
            words = "unknown" + (f": did you mean {close[0]}?" if close else "")
        self._mistake(place, words)

    def _read(self, name: str) -> bytes | None:
        """The file that is the value of the setting `name`."""
        path, _, place = self._given[name]
        try:
            return self._read_file(path)
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            reason = getattr(error, "strerror", None) or "no such file"
            # The password itself may have been given in place of its file.
            which = "" if name == "password-file" else f" {path!r}:"
            self._mistake(place, f"expected a file that can be read:{which} {reason}", name)
            return None

    def _mistake(self, place: str, words: str, name: str | None = None) -> None:
        """Note a mistake; of the value of the setting `name`, where that is given."""
        self.mistakes.append(f"{place}: {words}")
        if name is not None:
            self._bad.add(name)

    def _sound(self, *names: str) -> bool:
        return self._bad.isdisjoint(names)

    def _value(self, name: str) -> Any:
        setting = _SETTINGS[name]
        if name in self._given:
            return self._given[name].value
        unset = () if setting.repeatable else None
        return unset if setting.default is None else setting.parse(setting.default)

    def _place(self, name: str) -> str:
        return self._given[name].place if name in self._given else _SETTINGS[name].flag

    # What follows from it

    def config(self, ipv6_loopback: Callable[[], bool]) -> Config:
        """The configuration; of no use if there are mistakes afterwards."""
        add_on, servers = self._servers()
        credentials = self._credentials(add_on)
        listen: Sequence[Endpoint] = self._value("listen")
        if not listen:
            hosts = ["127.0.0.1", "[::1]"] if ipv6_loopback() else ["127.0.0.1"]
            listen = [endpoint(f"{host}:{PLAIN_PORT}") for host in hosts]
        names, pins = self._value("tls-name"), self._value("tls-pin")
        self._check_servers(servers, f"{add_on}_SERVERS" if add_on else self._place("server"))
        self._check_access(listen, credentials)
        if "ca-file" in self._given:
            self._read("ca-file")
        workers = self._value("workers")
        if self._sound("workers", "max-buffer", "max-value-size", "max-clients"):
            if self._value("max-buffer") < workers * self._value("max-value-size"):
                words = " for each of --workers" if workers > 1 else ""
                self._mistake(
                    self._place("max-buffer"), f"expected at least --max-value-size{words}"
                )
            if self._value("max-clients") < workers:
                self._mistake(self._place("max-clients"), "expected at least as many as --workers")
        values = {_field(name): self._value(name) for name in _SETTINGS}
        values |= {
            "listen": tuple(each.description for each in listen),
            "servers": servers,
            "tls_names": MappingProxyType(dict(names)),
            "tls_pins": MappingProxyType(
                {host: tuple(pin for other, pin in pins if other == host) for host, _ in pins}
            ),
            "metrics": self._value("metrics").description,
            "credentials": credentials,
        }
        return Config(**{field.name: values[field.name] for field in fields(Config)})

    def _servers(self) -> tuple[str | None, tuple[ServerConfig, ...]]:
        """The servers, and whose variables they came from, if from an add-on's."""
        tls_port: int = self._value("tls-port")
        if "server" in self._given or not self._sound("server"):
            return None, tuple(each.server(tls_port) for each in self._value("server"))
        for add_on in _ADD_ONS:
            variable = f"{add_on}_SERVERS"
            entries = _entries(self._environ.get(variable, ""), r"[,;\s]")
            parsed = [
                (entry.removesuffix(f":{PLAIN_PORT}"), self._parse("server", entry, variable))
                for entry in entries
            ]
            if entries:
                # Not the port that is dialled, but the entry as it stands is in clients' rings.
                return add_on, tuple(
                    each._replace(port=tls_port, name=each.name or entry).server(tls_port)
                    for entry, each in parsed
                    if each is not None
                )
        return None, ()

    def _credentials(self, add_on: str | None) -> Credentials | None:
        """The login, whose two halves always come from one place: ours, or one add-on's."""
        username, password = self._given.get("username"), self._password()
        names = "--username", "MEMTUNNEL_PASSWORD or --password-file"
        if add_on and self._sound(*_LOGIN) and username is None and password is None:
            names = f"{add_on}_USERNAME", f"{add_on}_PASSWORD"
            username, password = map(self._of_add_on, ("username", "password"), names)
        if username is not None and password is not None:
            return Credentials(username=username.value, password=password.value)
        half, other = (username, names[1]) if username else (password, names[0])
        if half is not None and self._sound(*_LOGIN):
            self._mistake(half.place, f"expected {other} with it", "username")
        return None

    def _password(self) -> _Given | None:
        """The password, read from its file if that comes from a higher layer."""
        password, file = self._given.get("password"), self._given.get("password-file")
        if file is None or (password and password.source.value <= file.source.value):
            return password
        data = self._read("password-file")
        if data is None:
            return None
        text = re.sub(rb"\r?\n\Z", b"", data).decode("utf-8", "surrogateescape")
        value = self._parse("password", text, file.place)
        return None if value is None else file._replace(value=value)

    def _of_add_on(self, name: str, variable: str) -> _Given | None:
        text = self._environ.get(variable)
        value = self._parse(name, text, variable) if text else None
        return None if value is None else _Given(value, Source.VARIABLE, variable)

    # What has to hold

    def _check_servers(self, servers: Sequence[ServerConfig], place: str) -> None:
        demo = self._value("demo")
        if demo and servers:
            self._mistake(place, "expected nothing with --demo, which brings its own server")
        if not servers and not demo and self._sound("server", "demo"):
            words = "expected a server: set MEMCACHIER_SERVERS, or give --server or --demo"
            self._mistake(place, words)
        if self._sound("tls-port"):
            self._check_once(place, [host_port(server.host, server.port) for server in servers])
            self._check_once(place, [server.name for server in servers], ": =NAME sets a name")
        self._check_once(self._place("tls-name"), [host for host, _ in self._value("tls-name")])
        for setting in ("tls-name", "tls-pin"):
            unknown = {host for host, _ in self._value(setting)} - {each.host for each in servers}
            if unknown and (servers or demo) and self._sound("server"):
                words = f"expected the host of a server, not {min(unknown)}"
                self._mistake(self._place(setting), words)
        if _RESERVED in [server.name for server in servers]:
            words = f"expected another name than {_RESERVED}, which metrics use: =NAME sets one"
            self._mistake(place, words)

    def _check_once(self, place: str, items: Sequence[str], advice: str = "") -> None:
        for item, count in Counter(items).items():
            if count > 1:
                self._mistake(place, f"expected {_shown(item)} only once{advice}")

    def _check_access(self, listen: Sequence[Endpoint], credentials: Credentials | None) -> None:
        remote = [each.description for each in listen if not each.private]
        allowed, auth = self._value("allow-remote"), self._value("client-auth")
        required = auth == "required"
        if remote and not allowed and self._sound("listen", "allow-remote"):
            words = f"beyond loopback, {_shown(remote[0])} needs --allow-remote and {_LOGIN_FIRST}"
            self._mistake(self._place("listen"), words)
        if allowed and auth == "open" and self._sound("client-auth"):
            self._mistake(self._place("allow-remote"), f"expected {_LOGIN_FIRST} with it")
        without_login = credentials is None and not self._value("demo")
        if required and without_login and self._sound(*_LOGIN):
            words = "required needs a login: expected --username and a password"
            self._mistake(self._place("client-auth"), words)


def followed(before: Config, after: Config) -> tuple[Config, list[str]]:
    """What a running tunnel can follow of other settings, and the names of what it cannot."""
    kept = {name: getattr(before, name) for name in map(_field, FIXED)}
    fixed = [f"--{name}" for name in FIXED if kept[_field(name)] != getattr(after, _field(name))]
    if before.demo:
        kept |= {"servers": before.servers, "credentials": before.credentials}  # its own server's
    elif None in (before.credentials, after.credentials) and before.client_auth != "open":
        # Who may be a client hangs on whether there is a login.
        kept["credentials"] = before.credentials
        if before.credentials != after.credentials:
            fixed.append("--username")
    return replace(after, **kept), fixed


def _field(name: str) -> str:
    return name.replace("-", "_")


def _entries(text: str, separator: str) -> list[str]:
    return [entry for part in re.split(separator, text) if (entry := part.strip())]


def _as_written(value: object) -> str:
    """A value as the user would write it in a flag: a number as its digits, a switch as a word."""
    if isinstance(value, bool):
        return "on" if value else "off"
    # tomllib reads hexadecimal numbers of any length, which str() refuses.
    return hex(value) if isinstance(value, int) and abs(value) >> 63 else str(value)


def _shown(text: str) -> str:
    """A name of the user's, short and on one line, whatever is in it."""
    short = text if len(text) <= 80 else text[:80] + "…"
    return short if short.isprintable() else repr(short)


def describe(config: Config) -> str:
    """The effective configuration, a setting a line, for ``--check-config``.

    It is TOML; secrets are comments. Read as a file, with the secrets given beside it, it gives
    the same configuration.
    """
    login = config.credentials
    pins = [(host, pin) for host, pins in config.tls_pins.items() for pin in pins]
    effective = {field.name: getattr(config, field.name) for field in fields(config)} | {
        "server": [f"{host_port(each.host, each.port)}={each.name}" for each in config.servers],
        "tls_name": [f"{host}={name}" for host, name in config.tls_names.items()],
        "tls_pin": [f"{host}=sha256/{base64.b64encode(pin).decode()}" for host, pin in pins],
        "username": login and login.username,
        "password": login and login.password,
    }
    lines = []
    for name in _SETTINGS:
        if _field(name) not in effective or name == "check-config":
            continue
        value = effective[_field(name)]
        if value is None:
            lines.append(f"# {name} is not set")
        elif isinstance(value, Secret):
            # str() is what keeps a Secret secret: json would read past it.
            lines.append(f"# {name} = {value}")
        else:
            lines.append(f"{name} = {json.dumps(value, ensure_ascii=False)}")
    return "\n".join(lines).encode("utf-8", "backslashreplace").decode()
