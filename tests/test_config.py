"""Configuration: where values come from, what they may be, and how mistakes are told."""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactor

from memtunnel.config import (
    SETTINGS,
    Config,
    ConfigError,
    ServerConfig,
    Setting,
    Source,
    describe,
    has_ipv6_loopback,
    load,
)
from memtunnel.settings import reference

CANARY = "canary-5ecret"
PEM = b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"
PIN = bytes(range(32))
ADD_ON = {
    "MEMCACHIER_SERVERS": "mc1.example.com:11211",
    "MEMCACHIER_USERNAME": "user",
    "MEMCACHIER_PASSWORD": CANARY,
}

Flags = Mapping[str, "str | Sequence[str] | bool | None"]


def read(
    flags: Flags | None = None,
    environ: Mapping[str, str] | None = None,
    files: Mapping[str, bytes | str] | None = None,
    *,
    ipv6: bool = False,
) -> Config:
    def read_file(path: str) -> bytes:
        try:
            data = (files or {})[path]
        except KeyError:
            raise FileNotFoundError(2, "No such file or directory", path) from None
        return data.encode() if isinstance(data, str) else data

    return load(flags or {}, environ or {}, read_file, lambda: ipv6)


def mistakes(
    flags: Flags | None = None,
    environ: Mapping[str, str] | None = None,
    files: Mapping[str, bytes | str] | None = None,
) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        read(flags, environ, files)
    error = caught.value
    assert str(error) == "\n".join(error.mistakes)
    assert len(str(error).splitlines()) == len(error.mistakes)
    return error.mistakes


def only_mistake(
    flags: Flags | None = None,
    environ: Mapping[str, str] | None = None,
    files: Mapping[str, bytes | str] | None = None,
) -> str:
    (mistake,) = mistakes(flags, environ, files)
    return mistake


def one(flags: Flags | None = None, **environ: str) -> Config:
    """A configuration with one server, so that nothing else is amiss."""
    return read({"server": ["one"], **(flags or {})}, environ)


# Defaults


def test_each_setting_becomes_part_of_the_configuration() -> None:
    # A login is one thing, which files may hold; and an add-on's servers have a port in common.
    others = {"username", "password", "password-file", "config", "tls-port"}
    renamed = {"server": "servers", "tls-name": "tls_names", "tls-pin": "tls_pins"}
    names = {setting.name for setting in SETTINGS} - others
    wanted = {renamed.get(name, name.replace("-", "_")) for name in names}
    assert wanted == {field.name for field in fields(Config)} - {"credentials"}


def test_defaults_are_those_of_the_documentation() -> None:
    config = read(environ=ADD_ON)
    credentials = config.credentials
    assert credentials is not None
    assert (credentials.username, credentials.password.encode()) == ("user", CANARY.encode())
    assert replace(config, credentials=None) == Config(
        listen=("tcp:11211:interface=127.0.0.1",),
        servers=(ServerConfig(host="mc1.example.com", port=11219, name="mc1.example.com"),),
        ca_file=None,
        verify="full",
        tls_names={},
        tls_pins={},
        pool_size=2,
        workers=1,
        client_auth="open",
        max_logins=32,
        hashing="ketama",
        metrics="tcp:9152:interface=127.0.0.1",
        request_timeout=0.4,
        connect_timeout=5.0,
        drain_timeout=5.0,
        on_unavailable="miss",
        failover=True,
        max_clients=10000,
        max_buffer=256 * 1024 * 1024,
        max_value_size=1024 * 1024,
        allow_remote=False,
        credentials=None,
        metrics_token=None,
        slow_ms=None,
        slow_sample=None,
        log_format="text",
        log_metrics=False,
        strip_touch_extras=False,
        exit_with_pid=None,
        demo=False,
        check_config=False,
    )


def test_both_loopbacks_by_default_where_there_are_two() -> None:
    assert read({"demo": True}, ipv6=True).listen == (
        "tcp:11211:interface=127.0.0.1",
        r"tcp:11211:interface=\:\:1",
    )


def test_probe_for_ipv6_agrees_with_the_machine() -> None:
    interfaces = Path("/proc/net/if_inet6")
    if not Path("/proc/net").exists():
        pytest.skip("no /proc/net on this system")
    expected = interfaces.exists() and f"{1:032x}" in interfaces.read_text()
    assert has_ipv6_loopback() == expected


def test_a_configuration_cannot_be_changed() -> None:
    config = one()
    with pytest.raises(FrozenInstanceError):
        config.pool_size = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        config.tls_names["one"] = "two"  # type: ignore[index]


# Layers


def test_each_layer_gives_way_to_the_one_above() -> None:
    files = {"f.toml": 'pool-size = 4\nserver = ["from-file"]\n'}
    flags: dict[str, str | list[str]] = {"pool-size": "6", "server": ["from-flag"]}
    environ = {
        "MEMTUNNEL_CONFIG": "f.toml",
        "MEMTUNNEL_POOL_SIZE": "5",
        "MEMTUNNEL_SERVER": "from-variable",
        **ADD_ON,
    }
    seen = []
    config = read(flags, environ, files)
    seen.append((config.pool_size, config.servers[0].host))
    config = read({}, environ, files)
    seen.append((config.pool_size, config.servers[0].host))
    for ours in ("MEMTUNNEL_POOL_SIZE", "MEMTUNNEL_SERVER"):
        del environ[ours]
    config = read({}, environ, files)
    seen.append((config.pool_size, config.servers[0].host))
    config = read({}, ADD_ON)
    seen.append((config.pool_size, config.servers[0].host))
    assert seen == [
        (6, "from-flag"),
        (5, "from-variable"),
        (4, "from-file"),
        (2, "mc1.example.com"),
    ]


#: (flag, as text, as TOML, attribute, value)
SAME_EVERYWHERE = [
    ("ca-file", "ca.pem", '"ca.pem"', "ca_file", "ca.pem"),
    ("verify", "chain", '"chain"', "verify", "chain"),
    ("pool-size", "3", "3", "pool_size", 3),
    ("hashing", "modula", '"modula"', "hashing", "modula"),
    ("hashing", "ketama-weighted", '"ketama-weighted"', "hashing", "ketama-weighted"),
    ("metrics", "0.0.0.0:80", '"0.0.0.0:80"', "metrics", "tcp:80:interface=0.0.0.0"),
    ("request-timeout", "1.5", "1.5", "request_timeout", 1.5),
    ("connect-timeout", "2", "2", "connect_timeout", 2.0),
    ("drain-timeout", "1e-3", "1e-3", "drain_timeout", 0.001),
    ("on-unavailable", "error", '"error"', "on_unavailable", "error"),
    ("failover", "off", "false", "failover", False),
    ("failover", "on", '"on"', "failover", True),
    ("max-clients", "7", "7", "max_clients", 7),
    ("max-buffer", "2GiB", '"2 GiB"', "max_buffer", 2 << 30),
    ("max-buffer", "2097152", "2097152", "max_buffer", 2 << 20),
    ("max-value-size", "512KiB", '"512KiB"', "max_value_size", 512 << 10),
    ("max-value-size", "1", "0x1", "max_value_size", 1),
    ("slow-ms", "2.5", "2.5", "slow_ms", 2.5),
    ("slow-sample", "1000", "1000", "slow_sample", 1000),
    ("log-format", "json", '"json"', "log_format", "json"),
    ("log-metrics", "on", "true", "log_metrics", True),
    ("strip-touch-extras", "on", "true", "strip_touch_extras", True),
    ("check-config", "yes", "true", "check_config", True),
]


@pytest.mark.parametrize(("name", "text", "toml", "attribute", "value"), SAME_EVERYWHERE)
def test_a_setting_is_the_same_from_everywhere(
    name: str, text: str, toml: str, attribute: str, value: object
) -> None:
    variable = "MEMTUNNEL_" + name.upper().replace("-", "_")
    files: dict[str, bytes | str] = {"ca.pem": PEM, "f.toml": f"{name} = {toml}\n"}
    server = {"server": ["one"]}
    configs = [
        read({**server, name: text}, {}, files),
        read(server, {variable: text}, files),
        read({**server, "config": "f.toml"}, {}, files),
    ]
    assert [getattr(config, attribute) for config in configs] == [value] * 3


def test_a_list_is_a_repeated_flag_commas_or_an_array() -> None:
    configs = [
        read({"server": ["a", "b:1=x"]}),
        read({}, {"MEMTUNNEL_SERVER": " a, b:1=x ,"}),
        read({"config": "f"}, {}, {"f": 'server = ["a", "b:1=x"]'}),
    ]
    assert [config.servers for config in configs] == [
        (
            ServerConfig(host="a", port=11219, name="a"),
            ServerConfig(host="b", port=1, name="x"),
        )
    ] * 3


def test_a_flag_without_a_value_switches_on() -> None:
    config = one({"strip-touch-extras": True, "check-config": True, "demo": False})
    assert (config.strip_touch_extras, config.check_config, config.demo) == (True, True, False)


@pytest.mark.parametrize("value", [None, False, []])
def test_a_flag_that_was_not_given_is_none(value: bool | list[str] | None) -> None:
    assert one({"listen": value}).listen == ("tcp:11211:interface=127.0.0.1",)


def test_an_empty_variable_counts_as_unset() -> None:
    environ = {"MEMTUNNEL_POOL_SIZE": "", "MEMTUNNEL_NONSENSE": "", "MEMTUNNEL_PASSWORD": ""}
    config = one({}, **environ, MEMCACHIER_SERVERS="")
    assert (config.pool_size, config.credentials) == (2, None)


# Values


BAD_VALUES = [
    ("pool-size", value) for value in ("0", "-1", "257", "2.0", "1_0", "٣", " 2", "", "9" * 5000)
]
BAD_VALUES += [
    ("request-timeout", value)
    for value in ("0", "-1", "400ms", "nan", "inf", "61", "1_0", "٣", ".", "", "1e-999", "0x1")
]
BAD_VALUES += [("drain-timeout", "3601"), ("connect-timeout", "60.1")]
BAD_VALUES += [
    ("max-value-size", value) for value in ("0", "33MiB", "1MB", "1.5MiB", "KiB", "1mib", "1 B")
]
BAD_VALUES += [("max-buffer", "1023KiB"), ("max-buffer", "1025GiB"), ("max-clients", "0")]
BAD_VALUES += [("verify", "none"), ("hashing", "Ketama"), ("on-unavailable", "fail")]
BAD_VALUES += [("failover", "maybe"), ("demo", "maybe"), ("tls-port", "0"), ("tls-port", "65536")]
BAD_VALUES += [("username", ""), ("username", "a\nb"), ("ca-file", ""), ("ca-file", "a\0b")]
BAD_VALUES += [
    ("server", value)
    for value in (
        "",
        ":1",
        "a:0",
        "a:65536",
        "a:b",
        "a:1:2",
        "::1",
        "::1:11219",
        "[::1",
        "[::1%eth0]",
        "[127.0.0.1]",
        "a b",
        "a=",
        "a=x y",
        "a=x,y",
        "-a",
        "a-",
        "a..b",
        "a.",
        "1.2.3.256",
        "ü",
        "a" * 64,
        ".".join(["a" * 50] * 6),
        "tcp:one:1",
    )
]
BAD_VALUES += [("tls-name", value) for value in ("one", "one=", "=two", "one=t wo", "one=*.two")]
BAD_VALUES += [
    ("tls-pin", value)
    for value in (
        "one",
        "one=sha256/",
        "one=sha1/" + "0" * 64,
        "one=sha256/" + "0" * 62,
        "one=sha256/" + base64.b64encode(PIN[:31]).decode(),
        "one=sha256/" + base64.b64encode(PIN).decode()[:-1],
        "=sha256/" + "0" * 64,
    )
]
BAD_ENDPOINTS = [
    "",
    "11212",
    ":",
    "one:11212",
    "one",
    "127.0.0.1",
    "127.0.0.1:65536",
    "127.0.0.1:-1",
    "[::1]",
    "::1:11212",
    "tcp:",
    "tcp:x",
    "tcp:65536",
    "tcp:port=1:port=2",
    "tcp:1:127.0.0.1:50:9",
    "tcp:1:interface=one",
    "tcp:1:interface=fe80\\:\\:1%eth0",
    "tcp:1:nonsense=1",
    "tcp:1:backlog=0",
    "tcp6:1",
    "tcp:1:50",
    "tcp:1:1=2",
    "tcp:1\\",
    "tcp6:1:interface=one",
    "unix:",
    "unix",
    "unix:" + "a" * 108,
    "unix:a\0b",
    "unix:/a:mode=9",
    "unix:/a:mode=",
    "unix:/a:lockfile=2",
    "systemd:domain=INET",
    "systemd:domain=FILE:index=0",
    "systemd:domain=INET:index=x",
    "systemd:domain=INET:index=0:name=a",
    "ssl:1:privateKey=a",
    "fd:3",
    "haproxy:tcp:1",
]
BAD_VALUES += [(name, value) for name in ("listen", "metrics") for value in BAD_ENDPOINTS]


@pytest.mark.parametrize(("name", "value"), BAD_VALUES)
def test_a_bad_value_is_told_with_its_flag_and_what_was_expected(name: str, value: str) -> None:
    mistake = only_mistake({"server": ["one"], name: value} if name != "server" else {name: value})
    assert re.match(rf"--{name}: expected \S", mistake)


@pytest.mark.parametrize(
    ("flags", "environ", "files", "beginning"),
    [
        ({"request-timeout": "x"}, {}, {}, "--request-timeout: expected seconds"),
        ({"slow-ms": "0"}, {}, {}, "--slow-ms: expected milliseconds, above 0 and at most 60000"),
        ({"slow-sample": "0"}, {}, {}, "--slow-sample: expected a whole number from 1"),
        ({"log-format": "xml"}, {}, {}, "--log-format: expected text or json"),
        ({}, {"MEMTUNNEL_REQUEST_TIMEOUT": "x"}, {}, "MEMTUNNEL_REQUEST_TIMEOUT: expected"),
        ({"config": "f"}, {}, {"f": "request-timeout = 99"}, "request-timeout in f: expected"),
        ({"config": "f"}, {}, {"f": "pool-size = true"}, "pool-size in f: expected a whole"),
        ({"config": "f"}, {}, {"f": "pool-size = 2.0"}, "pool-size in f: expected a whole"),
        ({"config": "f"}, {}, {"f": "max-clients = 0x" + "f" * 9999}, "max-clients in f: expec"),
        ({"config": "f"}, {}, {"f": "listen = [1]"}, "listen in f: expected ADDRESS:PORT"),
        ({"config": "f"}, {}, {"f": "pool-size = [1, 2]"}, "pool-size in f: expected only one"),
        ({"config": "f"}, {}, {"f": "[verify]\na = 1"}, "verify in f: expected full or chain"),
        ({"config": "f"}, {}, {"f": "failover = 2"}, "failover in f: expected on or off"),
        ({"config": "f"}, {}, {"f": "config = 'g'"}, "config in f: cannot be set here"),
        ({"pool-size": True}, {}, {}, "--pool-size: expected a whole"),
        ({"pool-size": ["1", "2"]}, {}, {}, "--pool-size: expected only one value"),
        ({"client-auth": "pass"}, {}, {}, "--client-auth: expected open or required or passthr"),
        ({"exit-with-pid": "0"}, {}, {}, "--exit-with-pid: expected a whole number from 1 to"),
        ({"max-buffer": "1MiB", "max-value-size": "2MiB"}, {}, {}, "--max-buffer: expected at l"),
        ({"max-buffer": "3MiB", "workers": "4"}, {}, {}, "--max-buffer: expected at least --max"),
        ({"max-clients": "3", "workers": "4"}, {}, {}, "--max-clients: expected at least as many"),
    ],
)
def test_a_mistake_names_the_setting_as_it_was_written(
    flags: Flags, environ: Mapping[str, str], files: Mapping[str, str], beginning: str
) -> None:
    assert only_mistake({"server": ["one"], **flags}, environ, files).startswith(beginning)


# Unknown names


@pytest.mark.parametrize(
    ("flags", "environ", "files", "expected"),
    [
        ({"pool-sise": "1"}, {}, {}, "--pool-sise: unknown: did you mean --pool-size?"),
        ({"slow-query": "2"}, {}, {}, "--slow-query: unknown"),
        ({"exit-on-pid": "2"}, {}, {}, "--exit-on-pid: unknown"),
        ({"colour": "text"}, {}, {}, "--colour: unknown"),
        (
            {},
            {"MEMTUNNEL_POOLSIZE": "1"},
            {},
            "MEMTUNNEL_POOLSIZE: unknown: did you mean MEMTUNNEL_POOL_SIZE?",
        ),
        (
            {},
            {"MEMTUNNEL_pool_size": "1"},
            {},
            "MEMTUNNEL_pool_size: unknown",
        ),
        (
            {"config": "f"},
            {},
            {"f": "request_timeout = 1"},
            "request_timeout in f: unknown: did you mean request-timeout?",
        ),
        ({"config": "f"}, {}, {"f": '"a\\nb" = 1'}, "'a\\nb' in f: unknown"),
        ({"password": CANARY}, {}, {}, "--password: cannot be set here: expected MEMTUNNEL_PASS"),
        (
            {"config": "f"},
            {},
            {"f": f"password = '{CANARY}'"},
            "password in f: cannot be set here: expected MEMTUNNEL_PASSWORD",
        ),
        (
            {"metrics-token": CANARY},
            {},
            {},
            "--metrics-token: cannot be set here: expected MEMTUNNEL_METRICS_TOKEN",
        ),
    ],
)
def test_unknown_names_are_mistakes(
    flags: Flags, environ: Mapping[str, str], files: Mapping[str, str], expected: str
) -> None:
    mistake = only_mistake({"server": ["one"], **flags}, environ, files)
    assert mistake.startswith(expected)
    assert CANARY not in mistake


def test_variables_of_kubernetes_services_are_not_ours() -> None:
    one(
        MEMTUNNEL_BUILD_URL="https://example.com/memtunnel.tar.gz",
        MEMTUNNEL_SERVICE_HOST="10.0.0.1",
        MEMTUNNEL_SERVICE_PORT="11211",
        MEMTUNNEL_SERVICE_PORT_MEMCACHE="11211",
        MEMTUNNEL_PORT="tcp://10.0.0.1:11211",
        MEMTUNNEL_PORT_11211_TCP="tcp://10.0.0.1:11211",
        MEMTUNNEL_PORT_11211_TCP_PROTO="tcp",
        MEMTUNNEL_METRICS_PORT_9152_TCP_ADDR="10.0.0.1",
        MEMTUNNEL_METRICS_SERVICE_HOST="10.0.0.1",
    )
    assert only_mistake({"server": ["one"]}, {"MEMTUNNEL_PORT": "1"}).startswith("MEMTUNNEL_PORT:")


def test_variables_of_others_are_left_alone() -> None:
    one(PATH="/bin", MEMTUNNELLER="1", memtunnel_pool_size="x")


# The file


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"pool-size = ", "expected TOML: "),
        (b"a = 1\na = 2", "expected TOML: "),
        (b"a = " + b"9" * 5000, "expected TOML: "),
        (b"a = " + b"[" * 100_000, "expected TOML: "),
        (b"\xff", "expected TOML: "),
    ],
)
def test_a_file_that_is_not_toml(data: bytes, words: str) -> None:
    mistake = only_mistake({"server": ["one"]}, {"MEMTUNNEL_CONFIG": "f"}, {"f": data})
    assert mistake.startswith(f"MEMTUNNEL_CONFIG: {words}")


def test_files_that_are_not_there(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    with pytest.raises(ConfigError) as caught:
        load(
            {
                "server": ["one"],
                "username": "user",
                "config": missing,
                "ca-file": missing,
                "password-file": missing,
            },
            {},
        )
    words = "expected a file that can be read:"
    # What stands in place of a file of a password may be the password.
    assert set(caught.value.mistakes) == {
        f"--config: {words} {missing!r}: No such file or directory",
        f"--ca-file: {words} {missing!r}: No such file or directory",
        f"--password-file: {words} No such file or directory",
    }


def test_a_name_that_no_file_can_have() -> None:
    with pytest.raises(ConfigError) as caught:
        load({"server": ["one"], "config": "\ud800"}, {})
    words = r"--config: expected a file that can be read: '\ud800': no such file"
    assert caught.value.mistakes == (words,)


def test_files_are_read_from_the_disk(tmp_path: Path) -> None:
    (tmp_path / "tunnel.toml").write_text('server = ["one"]\nusername = "user"\n')
    (tmp_path / "password").write_bytes(b"pass\xffword\r\n")
    (tmp_path / "ca.pem").write_bytes(PEM)
    config = load(
        {
            "config": str(tmp_path / "tunnel.toml"),
            "password-file": str(tmp_path / "password"),
            "ca-file": str(tmp_path / "ca.pem"),
        },
        {},
    )
    assert config.ca_file == str(tmp_path / "ca.pem")
    assert config.credentials is not None
    password = config.credentials.password.encode("utf-8", "surrogateescape")
    assert password == b"pass\xffword"


# Listeners


@pytest.mark.parametrize(
    ("text", "description"),
    [
        ("127.0.0.1:11212", "tcp:11212:interface=127.0.0.1"),
        ("localhost:11212", "tcp:11212:interface=127.0.0.1"),
        ("[::1]:11212", r"tcp:11212:interface=\:\:1"),
        ("[0:0::1]:011", r"tcp:11:interface=\:\:1"),
        ("tcp:11212:interface=127.0.0.9", "tcp:11212:interface=127.0.0.9"),
        (r"tcp:0:backlog=9:interface=\:\:1", r"tcp:0:backlog=9:interface=\:\:1"),
        ("unix:/run/tunnel", "unix:/run/tunnel:mode=660"),
        ("unix:/run/tunnel:mode=600", "unix:/run/tunnel:mode=600"),
        ("unix:/a:lockfile=0", "unix:/a:lockfile=0:mode=660"),
        (r"unix:/a\:b\=c", r"unix:/a\:b\=c:mode=660"),
        ("systemd:domain=INET:index=0", "systemd:domain=INET:index=0"),
        ("systemd:domain=UNIX:name=cache", "systemd:domain=UNIX:name=cache"),
    ],
)
def test_private_endpoints(text: str, description: str) -> None:
    assert one({"listen": [text]}).listen == (description,)
    assert one({"metrics": text}).metrics == description


@pytest.mark.parametrize(
    ("text", "description"),
    [
        ("0.0.0.0:1", "tcp:1:interface=0.0.0.0"),
        ("10.1.2.3:1", "tcp:1:interface=10.1.2.3"),
        ("[::]:1", r"tcp:1:interface=\:\:"),
        (":1", "tcp:1"),
        ("tcp:1", "tcp:1"),
        ("tcp:1:interface=", "tcp:1:interface="),
        ("[::ffff:10.0.0.1]:1", r"tcp:1:interface=\:\:ffff\:a00\:1"),
    ],
)
def test_endpoints_beyond_loopback_need_permission_and_login(text: str, description: str) -> None:
    login = {"MEMTUNNEL_USERNAME": "user", "MEMTUNNEL_PASSWORD": CANARY}
    refused = only_mistake({"server": ["one"], "listen": ["127.0.0.1:9", text]}, login)
    assert refused.startswith("--listen: beyond loopback, ")
    assert "--allow-remote and --client-auth required or passthrough" in refused
    allowed: Flags = {"listen": [text], "allow-remote": True, "client-auth": "required"}
    assert one(allowed, **login).listen == (description,)
    # The admin port serves only health there, so it needs neither.
    assert one({"metrics": text}).metrics == description


def test_remote_access_needs_the_login_of_clients() -> None:
    mistake = only_mistake({"demo": True, "allow-remote": True})
    assert mistake == "--allow-remote: expected --client-auth required or passthrough with it"
    read({"demo": True, "allow-remote": True, "client-auth": "required"})
    read({"server": ["one"], "allow-remote": True, "client-auth": "passthrough"})


def test_the_login_of_clients_needs_a_login() -> None:
    mistake = only_mistake({"server": ["one"]}, {"MEMTUNNEL_CLIENT_AUTH": "required"})
    assert mistake.startswith("MEMTUNNEL_CLIENT_AUTH: required needs a login: expected --username")
    read({"client-auth": "required"}, ADD_ON)


@given(
    st.one_of(
        st.text(alphabet=":\\=[].0123456789abtcpunix/", max_size=30),
        st.builds(
            "{}:{}".format,
            st.sampled_from(["tcp", "tcp6", "unix", "127.0.0.1", "[::1]"]),
            st.text(alphabet=":\\=[].0123456789abportinterfacemode/", max_size=30),
        ),
        st.text(alphabet="abc:=\\/ ü", min_size=1, max_size=20).map(
            lambda path: "unix:" + re.sub(r"([:=\\])", r"\\\1", path)
        ),
    )
)
@example(r"unix:/a\\\:b")
def test_twisted_takes_every_endpoint_that_is_taken_here(text: str) -> None:
    try:
        description = one({"metrics": text}).metrics
    except ConfigError:
        return
    reactor = MemoryReactor()  # type: ignore[no-untyped-call]
    serverFromString(reactor, description).listen(Factory())  # type: ignore[no-untyped-call]
    assert len(reactor.tcpServers) + len(reactor.unixServers) == 1
    assert one({"metrics": description}).metrics == description


@given(st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=25))
def test_any_path_can_be_quoted(path: str) -> None:
    text = "unix:" + re.sub(r"([:=\\])", r"\\\1", path)
    reactor = MemoryReactor()  # type: ignore[no-untyped-call]
    serverFromString(reactor, one({"metrics": text}).metrics).listen(Factory())  # type: ignore[no-untyped-call]
    ((address, _, _, mode, _),) = reactor.unixServers
    assert (address, mode) == (path, 0o660)


# Servers


@pytest.mark.parametrize(
    ("text", "host", "port", "name"),
    [
        ("mc.example.com", "mc.example.com", 11219, "mc.example.com"),
        ("mc.example.com:11219", "mc.example.com", 11219, "mc.example.com"),
        ("mc.example.com:11211", "mc.example.com", 11211, "mc.example.com"),
        ("mc.example.com:11220", "mc.example.com", 11220, "mc.example.com:11220"),
        ("mc.example.com:11220=mc", "mc.example.com", 11220, "mc"),
        ("mc.example.com=mc:11211", "mc.example.com", 11219, "mc:11211"),
        ("mc=a=b", "mc", 11219, "a=b"),
        ("MC.Example.com", "mc.example.com", 11219, "MC.Example.com"),
        ("127.0.0.1:1", "127.0.0.1", 1, "127.0.0.1:1"),
        ("[::1]:11219", "::1", 11219, "[::1]"),
        ("[0::1]:5", "::1", 5, "[0::1]:5"),
    ],
)
def test_servers(text: str, host: str, port: int, name: str) -> None:
    assert read({"server": [text]}).servers == (ServerConfig(host=host, port=port, name=name),)


def test_the_tls_port_is_that_of_servers_without_one() -> None:
    config = read({"server": ["a", "b:11219", "c:443"], "tls-port": "443"})
    assert config.servers == (
        ServerConfig(host="a", port=443, name="a"),
        ServerConfig(host="b", port=11219, name="b:11219"),
        ServerConfig(host="c", port=443, name="c"),
    )


@pytest.mark.parametrize("separator", [",", ";", " ", "\n", ", ", " ; ", ",,"])
def test_servers_of_the_add_on_keep_their_names_and_take_the_tls_port(separator: str) -> None:
    entries = separator.join(["mc1:11211", "Mc2:11212", "mc3", "[::1]:11211"])
    config = read({"tls-port": "443"}, {"MEMCACHIER_SERVERS": entries})
    assert config.servers == (
        ServerConfig(host="mc1", port=443, name="mc1"),
        ServerConfig(host="mc2", port=443, name="Mc2:11212"),
        ServerConfig(host="mc3", port=443, name="mc3"),
        ServerConfig(host="::1", port=443, name="[::1]"),
    )


@pytest.mark.parametrize(
    ("flags", "environ", "beginning"),
    [
        ({"server": ["a:1", "A:1=b"]}, {}, "--server: expected a:1 only once"),
        ({"server": ["a:1=x", "b=x"]}, {}, "--server: expected x only once: =NAME"),
        (
            {"server": ["a:11211", "a:11219"]},
            {},
            "--server: expected a only once: =NAME",
        ),
        (
            {},
            {"MEMCACHE_SERVERS": "[::1]:1,[::1]:2"},
            "MEMCACHE_SERVERS: expected [::1]:11219 only once",
        ),
        ({}, {}, "--server: expected a server: set MEMCACHIER_SERVERS, or give --server or --demo"),
        ({}, {"MEMCACHIER_SERVERS": " , "}, "--server: expected a server"),
        ({}, {"MEMCACHIER_SERVERS": "a:b"}, "MEMCACHIER_SERVERS: expected HOST, HOST:PORT or"),
        ({"server": ["local"]}, {}, "--server: expected another name than local"),
        ({"server": ["a=local"]}, {}, "--server: expected another name than local"),
        ({}, {"MEMCACHIER_SERVERS": "a,local:11211"}, "MEMCACHIER_SERVERS: expected another name"),
    ],
)
def test_servers_that_cannot_be(flags: Flags, environ: Mapping[str, str], beginning: str) -> None:
    assert only_mistake(flags, environ).startswith(beginning)


@pytest.mark.parametrize(
    ("flags", "environ", "place"),
    [
        ({"server": ["one"]}, {}, "--server"),
        ({}, ADD_ON, "MEMCACHIER_SERVERS"),
    ],
)
def test_demo_brings_its_own_server(flags: Flags, environ: Mapping[str, str], place: str) -> None:
    mistake = only_mistake({"demo": True, **flags}, environ)
    assert mistake == f"{place}: expected nothing with --demo, which brings its own server"


def test_demo_needs_nothing() -> None:
    config = read({"demo": True})
    assert (config.demo, config.servers, config.credentials) == (True, (), None)


# What certificates must show


def test_names_and_pins_of_certificates() -> None:
    as_base64, other = base64.b64encode(PIN).decode(), bytes(32)
    config = read(
        {
            "server": ["Mc1.example.com", "[::1]"],
            "tls-name": ["mc1.Example.com=Other.example.com", "::1=ip.example.com"],
            "tls-pin": [
                f"mc1.example.com=sha256/{as_base64}",
                f"MC1.example.com=sha256/{other.hex()}",
                f"[::1]=sha256/{PIN.hex().upper()}",
            ],
        }
    )
    assert config.tls_names == {"mc1.example.com": "other.example.com", "::1": "ip.example.com"}
    assert config.tls_pins == {"mc1.example.com": (PIN, other), "::1": (PIN,)}
    assert set(config.tls_names) == {server.host for server in config.servers}


@pytest.mark.parametrize("name", ["tls-name", "tls-pin"])
def test_a_name_or_pin_of_no_server_is_a_mistake(name: str) -> None:
    value = "two=x" if name == "tls-name" else f"two=sha256/{PIN.hex()}"
    expected = f"--{name}: expected the host of a server, not two"
    assert only_mistake({"server": ["one"], name: [value]}) == expected
    assert only_mistake({"demo": True, name: [value]}) == expected


def test_a_host_has_one_name() -> None:
    mistake = only_mistake({"server": ["one"], "tls-name": ["one=a", "ONE=b"]})
    assert mistake == "--tls-name: expected one only once"


# Login


FILES = {"secret": b"from-file\n", "f": b'username = "user"\npassword-file = "secret"\n'}
OTHER_ADD_ON = {
    "MEMCACHE_SERVERS": "mc2",
    "MEMCACHE_USERNAME": "user2",
    "MEMCACHE_PASSWORD": "password2",
}


@pytest.mark.parametrize(
    ("flags", "environ", "login"),
    [
        ({}, {**ADD_ON, **OTHER_ADD_ON}, ("user", CANARY)),
        ({}, OTHER_ADD_ON, ("user2", "password2")),
        # A login is that of the servers that it came with, and of no others.
        ({}, {**OTHER_ADD_ON, "MEMCACHIER_SERVERS": "mc1"}, None),
        ({}, {**ADD_ON, "MEMCACHIER_SERVERS": "", "MEMCACHE_SERVERS": "mc2"}, None),
        ({"server": ["one"]}, {**ADD_ON, **OTHER_ADD_ON}, None),
        ({"server": ["one"]}, {"MEMCACHIER_USERNAME": "half"}, None),
        (
            {"server": ["one"], "username": "ours"},
            {**ADD_ON, "MEMTUNNEL_PASSWORD": "x"},
            ("ours", "x"),
        ),
        ({"username": "ours"}, {**ADD_ON, "MEMTUNNEL_PASSWORD": "x"}, ("ours", "x")),
        ({"username": "ours", "password-file": "secret"}, ADD_ON, ("ours", "from-file")),
        # The order of the layers holds between a password and a file with one.
        (
            {"username": "ours", "password-file": "secret"},
            {**ADD_ON, "MEMTUNNEL_PASSWORD": "x"},
            ("ours", "from-file"),
        ),
        ({"config": "f"}, {**ADD_ON, "MEMTUNNEL_PASSWORD": "x"}, ("user", "x")),
        ({"config": "f"}, ADD_ON, ("user", "from-file")),
        # Side by side, the password itself is nearer than a file with one.
        (
            {"username": "ours"},
            {**ADD_ON, "MEMTUNNEL_PASSWORD": "x", "MEMTUNNEL_PASSWORD_FILE": "secret"},
            ("ours", "x"),
        ),
        ({}, {"MEMCACHIER_SERVERS": "mc1"}, None),
    ],
)
def test_whose_login(
    flags: Flags, environ: Mapping[str, str], login: tuple[str, str] | None
) -> None:
    credentials = read(flags, environ, FILES).credentials
    if login is None:
        assert credentials is None
    else:
        assert credentials is not None
        password = credentials.password.encode().decode()
        assert (credentials.username, password) == login


@pytest.mark.parametrize(
    ("flags", "environ", "expected"),
    [
        (
            {"username": "user"},
            ADD_ON,
            "--username: expected MEMTUNNEL_PASSWORD or --password-file with it",
        ),
        (
            {},
            {**ADD_ON, "MEMTUNNEL_PASSWORD": CANARY},
            "MEMTUNNEL_PASSWORD: expected --username with it",
        ),
        (
            {"password-file": "secret"},
            ADD_ON,
            "--password-file: expected --username with it",
        ),
        (
            {},
            {**ADD_ON, "MEMCACHIER_PASSWORD": ""},
            "MEMCACHIER_USERNAME: expected MEMCACHIER_PASSWORD with it",
        ),
        (
            {},
            {"MEMCACHE_SERVERS": "mc", "MEMCACHE_PASSWORD": CANARY},
            "MEMCACHE_PASSWORD: expected MEMCACHE_USERNAME with it",
        ),
        (
            {"username": "user", "password-file": "empty"},
            ADD_ON,
            "--password-file: expected a password that is not empty and has no NUL byte",
        ),
        (
            {},
            {**ADD_ON, "MEMCACHIER_USERNAME": "a\udcff"},
            "MEMCACHIER_USERNAME: expected a name without control characters",
        ),
    ],
)
def test_half_a_login_is_a_mistake(flags: Flags, environ: Mapping[str, str], expected: str) -> None:
    files = {"secret": CANARY, "empty": "\n"}
    assert only_mistake(flags, environ, files) == expected


def test_bytes_of_a_password_survive_the_environment() -> None:
    as_python_has_it = b"p\xff\xc3\xa4".decode("utf-8", "surrogateescape")
    credentials = read({}, {**ADD_ON, "MEMCACHIER_PASSWORD": as_python_has_it}).credentials
    assert credentials is not None
    assert credentials.password.encode("utf-8", "surrogateescape") == b"p\xff\xc3\xa4"


@pytest.mark.parametrize(
    ("data", "password"),
    [
        (b"a b", b"a b"),
        (b"ab\n", b"ab"),
        (b"ab\r\n", b"ab"),
        (b"ab\n\n", b"ab\n"),
        (b" ab\r", b" ab\r"),
        (b"\xff\n", b"\xff"),
    ],
)
def test_one_newline_at_the_end_of_a_password_file_does_not_count(
    data: bytes, password: bytes
) -> None:
    flags = {"server": ["one"], "username": "user", "password-file": "f"}
    credentials = read(flags, {}, {"f": data}).credentials
    assert credentials is not None
    assert credentials.password.encode("utf-8", "surrogateescape") == password


# Secrets


SECRETIVE = [
    ({}, ADD_ON, {}),
    ({}, {**ADD_ON, "MEMTUNNEL_METRICS_TOKEN": CANARY}, {}),
    ({"username": "user"}, {"MEMTUNNEL_SERVER": "a", "MEMTUNNEL_PASSWORD": CANARY}, {}),
    ({"username": "user", "password-file": "f", "server": ["a"]}, {}, {"f": CANARY}),
    # Mistakes
    ({"password": CANARY}, ADD_ON, {}),
    ({"config": "f"}, ADD_ON, {"f": f"password = '{CANARY}'"}),
    ({"config": "f"}, ADD_ON, {"f": f"passwort = '{CANARY}'"}),
    ({"config": "f"}, ADD_ON, {"f": f"password = '{CANARY}"}),
    ({"config": "f"}, ADD_ON, {"f": f"password = {CANARY}"}),
    ({"config": "f"}, ADD_ON, {"f": f"pool-size = '{CANARY}'"}),
    ({}, {**ADD_ON, "MEMTUNNEL_PASSWORD": CANARY}, {}),
    ({}, {**ADD_ON, "MEMTUNNEL_PASSWORD": CANARY + "\0"}, {}),
    ({}, {**ADD_ON, "MEMTUNNEL_PASSWORD": CANARY + "\ud800"}, {}),
    ({}, {**ADD_ON, "MEMCACHIER_PASSWORD": CANARY + "\ud800"}, {}),
    ({}, {**ADD_ON, "MEMTUNNEL_METRICS_TOKEN": CANARY + " x"}, {}),
    ({}, {**ADD_ON, "MEMTUNNEL_PASSWORT": CANARY}, {}),
    ({}, {**ADD_ON, "MEMTUNNEL_PASSWORD_FILE": CANARY}, {}),
    ({}, {"MEMCACHIER_SERVERS": f"user:{CANARY}@mc1:11211"}, {}),
    ({"server": [f"user:{CANARY}@mc1:11211"]}, {}, {}),
    ({"username": "user", "password-file": "f"}, ADD_ON, {"f": CANARY + "\0"}),
]


@pytest.mark.parametrize(("flags", "environ", "files"), SECRETIVE)
def test_secrets_are_never_shown(
    flags: Flags, environ: Mapping[str, str], files: Mapping[str, str]
) -> None:
    try:
        config = read(flags, environ, files)
    except ConfigError as error:
        # What is reached from the error may be printed by whoever prints more of it.
        reached = (error.__cause__, error.__context__, error.mistakes)
        shown = [str(error), repr(error), *map(repr, reached)]
    else:
        shown = [str(config), repr(config), describe(config), f"{config}"]
        assert "***" in describe(config)
    assert not [text for text in shown if CANARY in text]


# Mistakes together


def test_all_mistakes_are_told_at_once() -> None:
    found = mistakes(
        {
            "pool-size": "0",
            "listen": ["nowhere", "127.0.0.1:1", "elsewhere"],
            "nonsense": "1",
            "username": "user",
            "config": "f",
        },
        {
            "MEMTUNNEL_REQUEST_TIMEOUT": "400ms",
            "MEMTUNNEL_NONSENSE": "1",
            "MEMTUNNEL_CA_FILE": "missing",
        },
        {"f": "max-clients = 'many'\nnonsense = 1\npool-size = 0\n"},
    )
    assert sorted(mistake.partition(":")[0] for mistake in found) == sorted(
        [
            "--pool-size",
            "--listen",
            "--listen",
            "--nonsense",
            "--username",
            "--server",
            "MEMTUNNEL_REQUEST_TIMEOUT",
            "MEMTUNNEL_NONSENSE",
            "MEMTUNNEL_CA_FILE",
            "max-clients in f",
            "nonsense in f",
            "pool-size in f",
        ]
    )


@pytest.mark.parametrize(
    ("flags", "environ"),
    [
        ({"server": ["a:b"]}, {}),
        ({"server": ["a:b"], "tls-name": ["two=x"]}, {}),
        ({"tls-name": ["a=x"]}, {"MEMCACHIER_SERVERS": "a:b,c"}),
        ({"tls-name": ["a=x"]}, {}),
        ({"server": ["one"], "client-auth": "x", "allow-remote": True}, {}),
        ({"server": ["one"], "listen": ["0.0.0.0:1"], "allow-remote": "x"}, {}),
        ({"server": ["one"], "client-auth": "required", "username": "user"}, {}),
        ({"server": ["one"], "max-buffer": "1", "max-value-size": "2MiB"}, {}),
        ({"demo": "x"}, {}),
        ({}, {"MEMCACHIER_SERVERS": "a:b"}),
    ],
)
def test_nothing_is_told_that_only_follows_from_another_mistake(
    flags: Flags, environ: Mapping[str, str]
) -> None:
    only_mistake(flags, environ)


NAMES = st.one_of(st.sampled_from([setting.name for setting in SETTINGS]), st.text(max_size=12))
TEXTS = st.one_of(
    st.text(max_size=30),
    st.text(st.characters(), max_size=10),  # lone surrogates too
    st.sampled_from(
        ["on", "1", "0.4", "one", "f", "[::1]:1", "tcp:1", "unix:a", "required", "a,b"]
    ),
)


@settings(max_examples=500)
@given(
    flags=st.dictionaries(NAMES, st.one_of(TEXTS, st.lists(TEXTS, max_size=3), st.booleans())),
    environ=st.dictionaries(
        st.one_of(
            NAMES.map(lambda name: "MEMTUNNEL_" + name.upper().replace("-", "_")),
            st.sampled_from([*ADD_ON, *OTHER_ADD_ON]),
            st.text(max_size=5),
        ),
        TEXTS,
    ),
    data=st.one_of(st.binary(max_size=40), st.none()),
    toml=st.dictionaries(
        st.sampled_from([setting.name for setting in SETTINGS]),
        st.sampled_from(["1", "'x'", "true", "[]", "['a']", "1.5", "{}", "inf", "1979-05-27"]),
    ),
)
def test_nothing_but_mistakes_comes_of_any_input(
    flags: dict[str, str | list[str] | bool],
    environ: dict[str, str],
    data: bytes | None,
    toml: dict[str, str],
) -> None:
    lines = "\n".join(f"{name} = {value}" for name, value in toml.items())
    files = {"f": lines.encode() if data is None else data}
    try:
        config = read({**flags, "config": "f"}, environ, files)
    except ConfigError as error:
        found, text = error.mistakes, str(error)
    else:
        found, text = (), describe(config)
    text.encode()
    assert not found or text.splitlines() == list(found)


# What is derived from the table


def test_names_follow_from_one_another() -> None:
    (timeout,) = (setting for setting in SETTINGS if setting.name == "request-timeout")
    assert timeout.flag == "--request-timeout"
    assert timeout.variable == "MEMTUNNEL_REQUEST_TIMEOUT"
    assert [timeout.written(source) for source in Source] == [
        "--request-timeout",
        "MEMTUNNEL_REQUEST_TIMEOUT",
        "request-timeout",
    ]
    assert not timeout.switch


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_setting_is_told_as_a_sentence_a_caution_and_a_default(setting: Setting) -> None:
    for text in (setting.sentence, setting.caution):
        assert re.fullmatch(r"[A-Z/].*\.", text)
    assert setting.help.startswith(setting.sentence)
    assert "Default: " in setting.help


def test_names_are_unique_and_every_field_has_its_setting() -> None:
    names = [setting.name for setting in SETTINGS]
    assert len(set(names)) == len(names)
    renamed = {"servers": "server", "tls_names": "tls-name", "tls_pins": "tls-pin"}
    told = {
        renamed.get(field.name, field.name.replace("_", "-"))
        for field in fields(Config)
        if field.name != "credentials"
    }
    assert told <= set(names)


def test_the_reference_is_a_table_with_a_row_for_every_setting() -> None:
    head, rule, *rows = reference().splitlines()
    assert len(rows) == len(SETTINGS)
    for setting, row in zip(SETTINGS, rows, strict=True):
        assert (setting.flag in row) == (Source.FLAG in setting.sources)
        assert setting.sentence in row
    bars = {len(re.findall(r"(?<!\\)\|", row)) for row in (head, rule, *rows)}
    assert bars == {4}


def test_description() -> None:
    config = read(
        {
            "server": ["one", "[::1]:5=two"],
            "tls-name": ["one=uno"],
            "tls-pin": [f"::1=sha256/{PIN.hex()}"],
            "username": 'us"er',
            "listen": ["[::1]:7", "unix:/run/t"],
            "max-value-size": "1000",
            "request-timeout": "1",
            "failover": "off",
        },
        {"MEMTUNNEL_PASSWORD": CANARY},
    )
    assert describe(config).splitlines() == [
        r'listen = ["tcp:7:interface=\\:\\:1", "unix:/run/t:mode=660"]',
        'server = ["one:11219=one", "[::1]:5=two"]',
        "# ca-file is not set",
        'verify = "full"',
        'tls-name = ["one=uno"]',
        f'tls-pin = ["::1=sha256/{base64.b64encode(PIN).decode()}"]',
        "pool-size = 2",
        "workers = 1",
        'client-auth = "open"',
        "max-logins = 32",
        'hashing = "ketama"',
        'metrics = "tcp:9152:interface=127.0.0.1"',
        "request-timeout = 1.0",
        "connect-timeout = 5.0",
        "drain-timeout = 5.0",
        'on-unavailable = "miss"',
        "failover = false",
        "max-clients = 10000",
        "max-buffer = 268435456",
        "max-value-size = 1000",
        "allow-remote = false",
        r'username = "us\"er"',
        "# password = ***",
        "# metrics-token is not set",
        "# slow-ms is not set",
        "# slow-sample is not set",
        'log-format = "text"',
        "log-metrics = false",
        "strip-touch-extras = false",
        "# exit-with-pid is not set",
        "demo = false",
    ]


HOSTS = st.sampled_from(["a", "B.example.com", "[::1]", "10.0.0.1"])


@given(
    hosts=st.lists(HOSTS, unique=True, min_size=1),
    username=st.text(st.characters(codec="utf-8"), min_size=1).filter(str.isprintable),
    timeout=st.floats(min_value=1e-9, max_value=60),
    size=st.integers(min_value=1, max_value=32 << 20),
    buffer=st.integers(min_value=32 << 20, max_value=1 << 40),
    failover=st.booleans(),
    listen=st.lists(
        st.sampled_from(["unix:/a b", r"unix:/a\:\\", "[::1]:1", "127.0.0.1:0"]), unique=True
    ),
)
def test_a_description_read_as_a_file_gives_the_same_configuration(
    hosts: list[str],
    username: str,
    timeout: float,
    size: int,
    buffer: int,
    failover: bool,
    listen: list[str],
) -> None:
    secrets = {"MEMTUNNEL_PASSWORD": CANARY, "MEMTUNNEL_METRICS_TOKEN": CANARY}
    config = read(
        {
            "server": [f"{host}:{port}=n{port}" for port, host in enumerate(hosts, 1)],
            "tls-pin": [f"{hosts[0]}=sha256/{PIN.hex()}"],
            "username": username,
            "request-timeout": repr(timeout),
            "max-value-size": str(size),
            "max-buffer": str(buffer),
            "failover": "on" if failover else "off",
            "listen": listen,
        },
        secrets,
    )
    assert read({"config": "f"}, secrets, {"f": describe(config)}) == config
