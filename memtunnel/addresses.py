"""The grammar of places: endpoints to listen on, servers to dial, names and keys of hosts.

Each parser takes the text as the user wrote it, gives one form for all ways to write the same
thing, and raises ValueError with what was expected, as it would follow the word "expected".
Left to others: names that are looked up, and anything that is opened.
"""

import base64
import os
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final, NamedTuple

#: The port that memcached clients know, and that libmemcached drops from a server's name.
PLAIN_PORT: Final = 11211

_LABEL: Final = "[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOSTNAME: Final = re.compile(rf"(?!.{{254}})(?:{_LABEL}\.)*(?![0-9]+\Z){_LABEL}")
_NAME: Final = r"[!-+\--:<-~]{1,250}"  # no comma or semicolon, which divide lists of servers
_ADDRESS: Final = re.compile(rf"(\[[^\]]*\]|[^:=]*)(?::([0-9]{{1,5}}))?(?:=({_NAME}))?")


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """A server: where to dial it, and what the continuum calls it."""

    host: str
    """Lower case; an IPv6 address without brackets."""
    port: int
    name: str
    """As clients write it, which is what their keys were hashed with."""


class Address(NamedTuple):
    """What HOST, HOST:PORT or HOST:PORT=NAME says."""

    host: str
    """As `host` gives it."""
    port: int | None
    name: str | None
    written: str
    """The host as it stands."""

    def server(self, default_port: int) -> ServerConfig:
        """The server there, under the name that it was given, or else its host's."""
        port = self.port or default_port
        # Several servers on one host: only the port tells them apart.
        usual = port in (default_port, PLAIN_PORT)
        name = self.name or (self.written if usual else f"{self.written}:{port}")
        return ServerConfig(host=self.host, port=port, name=name)


def port(text: str, *, least: int = 1) -> int:
    """A port; 0 stands for any."""
    # int() alone would take underscores and other scripts' digits.
    if re.fullmatch("[0-9]{1,5}", text) and least <= int(text) <= 65535:
        return int(text)
    raise ValueError(f"a port from {least} to 65535")


def host(text: str) -> str:
    """A host in the one form by which hosts are compared."""
    try:
        return str(_ip(text))
    except ValueError:
        if _HOSTNAME.fullmatch(text):
            return text.lower()
        raise ValueError("a host name or an IP address") from None


def host_port(host: str, port: int) -> str:
    """The way back, brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _ip(text: str) -> IPv4Address | IPv6Address:
    """An IP address without a zone; brackets are allowed around one of IPv6."""
    if "%" in text:
        raise ValueError
    bracketed = re.fullmatch(r"\[(.*)\]", text)
    return ip_address(text) if bracketed is None else IPv6Address(bracketed[1])


def server(text: str) -> Address:
    """Where a server is, and its name if that is there too."""
    match = _ADDRESS.fullmatch(text)
    try:
        if match is not None:
            number = None if match[2] is None else port(match[2])
            return Address(host(match[1]), number, match[3], match[1])
    except ValueError:
        pass
    raise ValueError("HOST, HOST:PORT or HOST:PORT=NAME, an IPv6 address in brackets")


def tls_name(text: str) -> tuple[str, str]:
    """A host, and the name that its certificate bears."""
    where, _, name = text.partition("=")
    try:
        return host(where), host(name)
    except ValueError:
        raise ValueError("HOST=NAME") from None


def tls_pin(text: str) -> tuple[str, bytes]:
    """A host, and the SHA-256 digest, raw, of a key that it may have."""
    where, _, pin = text.partition("=")
    algorithm, _, digest = pin.partition("/")
    try:
        if algorithm == "sha256":
            is_hex = re.fullmatch("[0-9A-Fa-f]{64}", digest)
            key = bytes.fromhex(digest) if is_hex else base64.b64decode(digest, validate=True)
            if len(key) == 32:
                return host(where), key
    except ValueError:
        pass
    raise ValueError("HOST=sha256/DIGEST, the digest's 32 bytes in base64 or hex")


class Endpoint(NamedTuple):
    """A place to listen on."""

    description: str
    """For Twisted, in one form for all ways to write it."""
    private: bool
    """Whether only this machine can reach it, as far as a description tells."""


_TEXT: Final = r"(?:[^\\:=\0]|\\[^\0])"  # colons divide, a backslash quotes
_BACKLOG: Final = "backlog=[1-9][0-9]{0,4}"
_TCP: Final = re.compile(
    rf"tcp:(?P<port>[0-9]{{1,5}})(?::(?:interface=(?P<interface>{_TEXT}*)|{_BACKLOG}))*"
)
# 107 bytes is what the kernel's sockaddr_un holds, beside the NUL at its end.
_UNIX: Final = re.compile(
    rf"unix:{_TEXT}{{1,107}}(?::(?:mode=(?P<mode>[0-7]{{3,4}})|{_BACKLOG}|lockfile=[01]))*"
)
_SYSTEMD: Final = re.compile(
    rf"systemd:domain=(?:INET6?|UNIX):(?:index=[0-9]{{1,3}}|name={_TEXT}+)"
)
_LISTEN: Final = re.compile(r"(\[[^\]]*\]|[^:]*):([0-9]{1,5})")


def endpoint(text: str) -> Endpoint:
    """ADDRESS:PORT, or one of Twisted's server endpoint descriptions."""
    # Whoever wrote systemd's socket unit has chosen where it listens; we cannot see it from here.
    if _SYSTEMD.fullmatch(text):
        return Endpoint(text, private=True)
    if unix := _UNIX.fullmatch(text):
        return Endpoint(text if unix["mode"] else f"{text}:mode=660", private=True)
    try:
        if tcp := _TCP.fullmatch(text):
            port(tcp["port"], least=0)
            interface = re.sub(r"\\(.)", r"\1", tcp["interface"] or "")
            return Endpoint(text, private=bool(interface) and _local_ip(interface).is_loopback)
        if listen := _LISTEN.fullmatch(text):
            description = f"tcp:{port(listen[2], least=0)}"
            if not listen[1]:
                return Endpoint(description, private=False)
            ip = _local_ip(listen[1])
            interface = str(ip).replace(":", r"\:")
            return Endpoint(f"{description}:interface={interface}", ip.is_loopback)
    except ValueError:
        pass
    raise ValueError("ADDRESS:PORT, unix:/path, or a tcp:, unix: or systemd: endpoint")


def _local_ip(text: str) -> IPv4Address | IPv6Address:
    return _ip("127.0.0.1" if text.lower() == "localhost" else text)


def address_of(port: Any) -> str:
    """Where an open port of Twisted's listens, as people write it."""
    where = port.getHost()
    if hasattr(where, "port"):
        return host_port(where.host, where.port)
    return f"unix:{os.fsdecode(where.name)}"


def reachable(address: str) -> str:
    """Where to reach, on this machine, what listens at such an address."""
    host, colon, number = address.rpartition(":")
    everywhere = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}
    return everywhere.get(host, host) + colon + number
