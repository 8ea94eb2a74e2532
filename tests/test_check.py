"""``memtunnel check`` against real servers, good and bad: what it says, and what it sends."""

import contextlib
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import authority
import pytest
import servers
from cryptography import x509

from memtunnel import check
from memtunnel.net import blocking
from memtunnel.net.blocking import Address, Deadline, connect
from memtunnel.wire import binary
from memtunnel.wire.binary import Opcode, Status

Say = Callable[[binary.Frame], bytes | None]
HOST = "127.0.0.1"


def agree(asked: binary.Frame) -> bytes:
    """A server that takes any login, and has no version."""
    status = Status.UNKNOWN_COMMAND if asked.opcode == Opcode.VERSION else Status.OK
    return binary.answer(asked.opcode, asked.opaque, status)


class Recorder:
    """A TLS server that records what comes after the handshake, and answers by `say`."""

    def __init__(self, pair: authority.Pair, folder: Path, say: Say, *more: authority.Pair) -> None:
        folder.mkdir()
        (folder / "cert.pem").write_bytes(b"".join(each.pem for each in (pair, *more)))
        (folder / "key.pem").write_bytes(pair.key_pem)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        self._say = say
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self.handshakes = 0
        self.received = b""
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            connected, _ = self._listener.accept()
            connected.settimeout(servers.PATIENCE)
            if connected.recv(1, socket.MSG_PEEK) == b"":
                return
            with (
                contextlib.suppress(OSError),
                connected,
                self._context.wrap_socket(connected, server_side=True) as tls,
            ):
                self.handshakes += 1
                self._talk(tls)

    def _talk(self, tls: ssl.SSLSocket) -> None:
        left = b""
        while data := tls.recv(1 << 16):
            self.received += data
            frames, left = binary.split(left + data)
            for frame in frames:
                answer = self._say(frame)
                if answer is None:
                    return
                tls.sendall(answer)

    def stop(self) -> None:
        """Ends when all that came before has been read: `received` is complete then."""
        if self._thread.is_alive():
            socket.create_connection((HOST, self.port)).close()
            self._thread.join(servers.PATIENCE)
            assert not self._thread.is_alive()
            self._listener.close()


class ClearText:
    """A server that says a line to whoever comes, and closes."""

    def __init__(self) -> None:
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        connected, _ = self._listener.accept()
        with connected:
            connected.recv(1 << 16)
            connected.sendall(b"ERROR Too many open connections\r\n")

    def stop(self) -> None:
        self._thread.join(servers.PATIENCE)
        self._listener.close()


@pytest.fixture
def make_recorder(
    started: list[Any], tmp_path: Path, good_pair: authority.Pair
) -> Callable[..., Recorder]:
    def make(pair: authority.Pair = good_pair, *more: authority.Pair, say: Say = agree) -> Recorder:
        recorder = Recorder(pair, tmp_path / f"recorder{len(started)}", say, *more)
        started.append(recorder)
        return recorder

    return make


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ca_file: Path
) -> Iterator[Callable[..., SimpleNamespace]]:
    """Runs the check with the login and the root of tests; at the end the password is in no
    output."""
    for variable in list(check.os.environ):
        if variable.startswith(("MEMTUNNEL_", "MEMCACHE")):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("MEMTUNNEL_PASSWORD", servers.PASSWORD)
    monkeypatch.setenv("MEMTUNNEL_CA_FILE", str(ca_file))
    monkeypatch.setenv("MEMTUNNEL_USERNAME", servers.USERNAME)
    said = []

    def run(*dial: Any, flags: tuple[str, ...] = ()) -> SimpleNamespace:
        ports = [f"--server={HOST}:{getattr(server, 'port', server)}" for server in dial]
        status = check.main([*ports, *flags])
        out, err = capsys.readouterr()
        said.extend((out, err))
        return SimpleNamespace(status=status, out=out, err=err)

    yield run
    assert said
    assert servers.PASSWORD not in "".join(said)


def line(out: str, label: str) -> str:
    """The one line that begins with `label`."""
    (found,) = re.findall(rf"^ +{label} +(.*)$", out, re.MULTILINE)
    return str(found)


# What passes


def test_a_good_server_passes_everything(
    run: Any, make_memcached: Any, good_pair: authority.Pair
) -> None:
    memcached = make_memcached()
    result = run(memcached)
    assert result.status == 0
    assert result.err == ""
    out = result.out
    assert out.startswith(f"{HOST}:{memcached.port}\n")
    assert re.fullmatch(rf"{HOST}:{memcached.port}: connected in \S+ ms", line(out, "TCP"))
    assert re.fullmatch(r"TLSv1\.3, TLS_\w+", line(out, "TLS"))
    assert line(out, "cert 0 +subject") == "CN=memtunnel test"
    assert line(out, "issuer") == "CN=memtunnel test authority"
    assert line(out, "names") == "localhost, 127.0.0.1"
    first, last = (
        good_pair.certificate.not_valid_before_utc,
        good_pair.certificate.not_valid_after_utc,
    )
    assert line(out, "dates") == f"{first:%F} to {last:%F}, 29 days left"
    assert line(out, "verify") == "full and chain would pass"
    assert line(out, "login") == f"{servers.USERNAME}: accepted"
    assert re.fullmatch(r"1\.\d+\.\d+", line(out, "version"))
    low, middle, high = map(float, re.findall(r"\d+\.\d+", line(out, "NOOP")))
    assert 0 < low <= middle <= high
    assert line(out, "result") == "passes"
    assert out.endswith("1 of 1 servers pass, with --verify full\n")


def test_the_login_and_twenty_noops_are_what_is_sent(run: Any, make_recorder: Any) -> None:
    recorder = make_recorder()
    assert run(recorder).status == 0
    recorder.stop()
    assert recorder.handshakes == 2
    asked, left = binary.split(recorder.received)
    assert left == b""
    assert [each.opcode for each in asked] == [Opcode.SASL_AUTH, Opcode.VERSION] + 20 * [
        Opcode.NOOP
    ]
    assert asked[0].value == f"\0{servers.USERNAME}\0{servers.PASSWORD}".encode()


def test_the_pin_is_printed_as_the_flag_takes_it(run: Any, make_recorder: Any) -> None:
    recorder = make_recorder()
    pin = line(run(recorder).out, "pin")
    assert run(recorder, flags=(f"--tls-pin={pin}",)).status == 0


def test_the_whole_chain_is_shown(run: Any, make_recorder: Any, root: authority.Pair) -> None:
    middle = authority.issue(issuer=root, authority=True, common_name="middle", days=(-1, 9.5))
    leaf = authority.issue(HOST, issuer=middle, common_name="leaf")
    out = run(make_recorder(leaf, middle)).out
    assert line(out, "cert 0 +subject") == "CN=leaf"
    assert line(out, "cert 1 +subject") == "CN=middle"
    assert "9 days left" in out
    assert out.count("sha256/") == 2


def test_without_a_login_none_is_tried(
    run: Any, make_recorder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MEMTUNNEL_PASSWORD")
    monkeypatch.delenv("MEMTUNNEL_USERNAME")
    recorder = make_recorder()
    result = run(recorder)
    assert result.status == 0
    assert line(result.out, "login") == "none is configured"
    recorder.stop()
    assert binary.split(recorder.received)[0][0].opcode == Opcode.VERSION


# Certificates that do not pass

OTHER = authority.authority("another authority")
BAD: dict[str, tuple[Callable[[authority.Pair], authority.Pair], str, str]] = {
    "wrong name": (
        lambda root: authority.issue("cache.example.com", issuer=root),
        "full would not pass: the certificate bears cache.example.com, not 127.0.0.1",
        "--tls-name 127.0.0.1=cache.example.com",
    ),
    "no name": (
        lambda root: authority.issue(issuer=root),
        "full would not pass: the certificate bears no host name",
        "--verify chain --tls-pin 127.0.0.1=sha256/",
    ),
    "other authority": (
        lambda root: authority.issue(HOST, issuer=OTHER),
        "neither full nor chain would pass: the certificate (127.0.0.1) is not trusted: "
        "its issuer was not sent and is not trusted; --ca-file has to hold its root, and "
        "MemCachier's is to be had by memtunnel ca FILE",
        "its root into the file of --ca-file; memtunnel ca FILE",
    ),
    "self-signed": (
        lambda root: authority.issue(HOST),
        "neither full nor chain would pass: the certificate (127.0.0.1) is not trusted: "
        "it is self-signed",
        "memtunnel ca FILE",
    ),
    "expired": (
        lambda root: authority.issue(HOST, issuer=root, days=(-9, -2)),
        "neither full nor chain would pass: the certificate (127.0.0.1) has expired",
        "the provider has to renew the certificate",
    ),
    "not valid yet": (
        lambda root: authority.issue(HOST, issuer=root, days=(3.5, 9)),
        "neither full nor chain would pass: the certificate (127.0.0.1) is not valid yet",
        "if this machine's clock is right",
    ),
}


@pytest.mark.parametrize(("make_pair", "verdict", "advice"), BAD.values(), ids=BAD)
def test_a_bad_certificate_is_shown_and_sent_nothing(
    run: Any,
    make_recorder: Any,
    root: authority.Pair,
    make_pair: Callable[[authority.Pair], authority.Pair],
    verdict: str,
    advice: str,
) -> None:
    recorder = make_recorder(make_pair(root))
    result = run(recorder)
    assert result.status == 1
    recorder.stop()
    assert recorder.handshakes == 1
    assert recorder.received == b""
    assert f"verify   {verdict}" in result.out
    assert advice in line(result.out, "to do")
    assert line(result.out, "cert 0 +subject") == "CN=memtunnel test"
    assert line(result.out, "login").startswith("not tried")
    assert line(result.out, "result") == "FAILS"


def test_dates_in_the_past_and_in_the_future_are_counted(
    run: Any, make_recorder: Any, root: authority.Pair
) -> None:
    expired = authority.issue(HOST, issuer=root, days=(-9, -2.5))
    early = authority.issue(HOST, issuer=root, days=(3.5, 9))
    assert "expired 2 days ago" in line(run(make_recorder(expired)).out, "dates")
    assert "valid only in 3 days" in line(run(make_recorder(early)).out, "dates")


@pytest.mark.parametrize("name", ["cache.example.com", "*.example.com"])
def test_the_suggested_name_is_one_that_passes(
    run: Any, make_recorder: Any, root: authority.Pair, name: str
) -> None:
    recorder = make_recorder(authority.issue(name, issuer=root))
    words = line(run(recorder).out, "to do")
    suggested = re.match(r"--tls-name (\S+),", words)
    assert suggested is not None, words
    assert run(recorder, flags=("--tls-name", suggested[1])).status == 0


def test_only_names_that_would_pass_are_suggested(
    run: Any, make_recorder: Any, root: authority.Pair
) -> None:
    names = x509.SubjectAlternativeName(
        [x509.RFC822Name("root@example.com"), x509.DNSName("cache.example.com")]
    )
    out = run(make_recorder(authority.issue(issuer=root, extensions=(names,)))).out
    assert line(out, "to do").startswith(f"--tls-name {HOST}=cache.example.com, ")


def test_with_verify_chain_another_name_passes(
    run: Any, make_recorder: Any, root: authority.Pair
) -> None:
    recorder = make_recorder(authority.issue("cache.example.com", issuer=root))
    result = run(recorder, flags=("--verify", "chain"))
    assert result.status == 0
    assert "full would not pass" in result.out
    assert line(result.out, "login") == f"{servers.USERNAME}: accepted"


def test_verify_chain_that_is_not_needed_is_said_to_be_so(run: Any, make_recorder: Any) -> None:
    result = run(make_recorder(), flags=("--verify", "chain"))
    assert result.status == 0
    assert line(result.out, "to do") == "leave --verify chain out: the name is right"


def test_another_key_than_the_pinned_one_is_sent_nothing(run: Any, make_recorder: Any) -> None:
    recorder = make_recorder()
    result = run(recorder, flags=(f"--tls-pin={HOST}=sha256/{'00' * 32}", "--verify=chain"))
    assert result.status == 1
    recorder.stop()
    assert recorder.received == b""
    assert "the key of localhost, 127.0.0.1 is not a pinned one" in line(result.out, "verify")
    assert re.search(rf"--tls-pin {HOST}=sha256/\S+=, if", line(result.out, "to do"))


def test_the_connection_that_speaks_is_judged_by_itself(
    run: Any, make_recorder: Any, good_pair: authority.Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind one address may be several servers: what the first look saw proves nothing."""
    good = make_recorder(good_pair)
    bad = make_recorder(authority.issue(HOST))
    dialled = iter((good, bad))

    def connect_in_turn(address: Address, deadline: Deadline) -> socket.socket:
        return connect(address._replace(where=(HOST, next(dialled).port)), deadline)

    monkeypatch.setattr(check, "connect", connect_in_turn)
    result = run(good)
    assert result.status == 1
    bad.stop()
    assert bad.received == b""
    assert "it is self-signed" in result.out
    assert "full and chain would pass" in line(result.out, "verify")


def test_what_a_certificate_says_does_not_reach_the_terminal_raw(
    run: Any, make_recorder: Any
) -> None:
    recorder = make_recorder(authority.issue(HOST, common_name="\x1b]0;owned\x07"))
    out = run(recorder).out
    assert "owned" in out
    assert not set(out) & {"\x1b", "\x07"}


# Logins and answers


def test_a_wrong_login_is_told(
    run: Any, make_memcached: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMTUNNEL_PASSWORD", "wr0ng-canary")
    result = run(make_memcached())
    assert result.status == 1
    assert line(result.out, "login") == "user1: refused, status 0x20 (Auth failure.)"
    assert "wr0ng-canary" not in result.out + result.err
    assert "NOOP" not in result.out


def test_a_login_that_is_missing_is_told(
    run: Any, make_memcached: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MEMTUNNEL_PASSWORD")
    monkeypatch.delenv("MEMTUNNEL_USERNAME")
    result = run(make_memcached())
    assert result.status == 1
    assert "the server wants a login, and none is configured" in result.out


def garbled(change: Callable[[binary.Frame], bytes | None]) -> Say:
    """As `agree`, but for NOOP."""
    return lambda asked: change(asked) if asked.opcode == Opcode.NOOP else agree(asked)


NONSENSE: dict[str, tuple[Callable[[binary.Frame], bytes | None], str]] = {
    "opaque": (lambda asked: binary.answer(Opcode.NOOP, b"\xff" * 4), "answers no request"),
    "opcode": (lambda asked: binary.answer(Opcode.GET, asked.opaque), "answers no request"),
    "magic": (lambda asked: binary.request(Opcode.NOOP, opaque=asked.opaque), "answers no request"),
    "lengths": (lambda asked: b"\x81\x0a\xff\xff" + bytes(20), "answers no request"),
    "two": (
        lambda asked: 2 * binary.answer(Opcode.NOOP, asked.opaque),
        "answers no request",
    ),
    "endless": (
        lambda asked: b"\x81\x0a" + bytes(6) + b"\xff\xff\xff\xff" + bytes(1 << 18),
        "answers no request",
    ),
    "refusal": (
        lambda asked: binary.refusal(Opcode.NOOP, asked.opaque, Status.OUT_OF_MEMORY),
        r"refused, status 0x82 \(Out of memory\)",
    ),
    "close": (lambda asked: None, "the server closed the connection"),
}


@pytest.mark.parametrize(("change", "words"), NONSENSE.values(), ids=NONSENSE)
def test_an_answer_that_is_none_fails(
    run: Any,
    make_recorder: Any,
    change: Callable[[binary.Frame], bytes | None],
    words: str,
) -> None:
    result = run(make_recorder(say=garbled(change)))
    assert result.status == 1
    assert re.search(words, line(result.out, "NOOP"))
    assert line(result.out, "result") == "FAILS"


SET_UP = [Opcode.SASL_AUTH, Opcode.VERSION, Opcode.NOOP]


@pytest.mark.parametrize("opcode", SET_UP)
def test_a_server_that_falls_silent_fails(run: Any, make_recorder: Any, opcode: Opcode) -> None:
    """At any time of the set-up, which has one deadline."""
    recorder = make_recorder(say=lambda asked: b"" if asked.opcode == opcode else agree(asked))
    result = run(recorder, flags=("--connect-timeout=0.5",))
    assert result.status == 1
    assert "not warm within 0.5 s: the tunnel, too, would give up here" in result.out


def test_a_server_that_falls_silent_later_fails_too(run: Any, make_recorder: Any) -> None:
    asked_before = []

    def say(asked: binary.Frame) -> bytes:
        asked_before.append(asked.opcode)
        return b"" if asked_before.count(Opcode.NOOP) > 1 else agree(asked)

    result = run(make_recorder(say=say), flags=("--connect-timeout=0.5",))
    assert result.status == 1
    assert line(result.out, "NOOP") == "no answer within 0.5 s"


@pytest.fixture
def delay(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets time pass on the clock of deadlines, which else stands still."""
    passed = [0.0]
    clock = SimpleNamespace(monotonic=lambda: sum(passed))
    monkeypatch.setattr(blocking, "time", clock)
    return passed.append


def slow(opcodes: Sequence[Opcode], seconds: float, delay: Callable[[float], None]) -> Say:
    """As `agree`, but each of these answers takes so long."""

    def say(asked: binary.Frame) -> bytes:
        if asked.opcode in opcodes:
            delay(seconds)
        return agree(asked)

    return say


def test_a_server_that_is_too_slow_for_the_tunnel_does_not_pass(
    run: Any, make_recorder: Any, delay: Callable[[float], None]
) -> None:
    """Each answer would be in time; it is the whole set-up that is not."""
    recorder = make_recorder(say=slow(SET_UP[:2], 35, delay))
    result = run(recorder, flags=("--connect-timeout=60",))
    assert result.status == 1
    assert "not warm within 60 s: the tunnel, too, would give up here" in result.out
    recorder.stop()
    asked, _ = binary.split(recorder.received)
    assert Opcode.NOOP not in [each.opcode for each in asked]


@pytest.mark.parametrize(("opcodes", "seconds"), [(SET_UP[:2], 25), (SET_UP[2:], 35)])
def test_a_server_that_is_just_fast_enough_passes(
    run: Any,
    make_recorder: Any,
    delay: Callable[[float], None],
    opcodes: Sequence[Opcode],
    seconds: float,
) -> None:
    """What comes after the first NOOP is no part of the set-up."""
    recorder = make_recorder(say=slow(opcodes, seconds, delay))
    assert run(recorder, flags=("--connect-timeout=60",)).status == 0


# No connection


def test_a_port_where_nothing_listens(run: Any) -> None:
    port = servers.free_port()
    result = run(port)
    assert result.status == 1
    assert f"{HOST}:{port}: refused: nothing listens there" in result.out
    assert line(result.out, "result") == "FAILS"


def test_a_black_hole_ends_by_the_timeout(run: Any) -> None:
    with socket.create_server((HOST, 0)) as hole:
        result = run(hole.getsockname()[1], flags=("--connect-timeout=0.2",))
    assert result.status == 1
    assert line(result.out, "TLS") == "no answer within 0.2 s"


def test_a_server_without_tls(run: Any, started: list[Any]) -> None:
    server = ClearText()
    started.append(server)
    result = run(server)
    assert result.status == 1
    assert "does not speak TLS on this port: give the one that does" in line(result.out, "TLS")


def test_a_server_that_speaks_only_text(
    run: Any, make_memcached: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("USERNAME", "PASSWORD"):
        monkeypatch.delenv(f"MEMTUNNEL_{name}")
    memcached = make_memcached(sasl=False)
    memcached.stop()
    result = run(memcached.start("-B", "ascii"), flags=("--connect-timeout=0.5",))
    assert result.status == 1
    assert "A server that speaks only text answers nothing" in line(result.out, "version")


def test_a_name_that_is_not_found(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    result = run(flags=("--server=cache.invalid",))
    assert result.status == 1
    words = "the name cache.invalid is not found: Name or service not known"
    assert line(result.out, "TCP") == words


def test_a_resolver_that_keeps_silent(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: released.wait() and [])
    try:
        result = run(flags=("--server=cache.invalid", "--connect-timeout=0.1"))
    finally:
        released.set()
    assert result.status == 1
    assert line(result.out, "TCP") == "the name cache.invalid was not looked up within 0.1 s"


def test_the_next_address_is_tried(
    run: Any, make_recorder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = make_recorder()
    dead = servers.free_port()
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (HOST, port)) for port in (dead, recorder.port)
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    result = run(recorder)
    assert result.status == 0
    assert f"{HOST}:{dead}: refused" in result.out
    assert f"{HOST}:{recorder.port}: connected" in result.out


def test_all_servers_are_tried_and_one_bad_one_fails_it_all(run: Any, make_recorder: Any) -> None:
    result = run(servers.free_port(), make_recorder())
    assert result.status == 1
    assert re.findall("result +(.*)", result.out) == ["FAILS", "passes"]
    assert result.out.endswith("1 of 2 servers pass, with --verify full\n")


# The command line


def test_all_mistakes_are_told_and_nothing_is_dialled(run: Any, make_recorder: Any) -> None:
    recorder = make_recorder()
    result = run(recorder, flags=("--verify=maybe", "--pool-size=0"))
    assert result.status == 1
    assert result.out == ""
    assert sorted(re.findall("^memtunnel check: (--[a-z-]+)", result.err, re.MULTILINE)) == [
        "--pool-size",
        "--verify",
    ]
    recorder.stop()
    assert recorder.handshakes == 0


@pytest.mark.parametrize("flag", ["--no-such-flag", "surplus"])
def test_a_flag_that_there_is_not(run: Any, flag: str) -> None:
    result = run(flags=(flag,))
    assert result.status == 1
    assert result.err.startswith("memtunnel check: ")


def test_demo_has_nothing_to_check(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PASSWORD", "USERNAME", "CA_FILE"):
        monkeypatch.delenv(f"MEMTUNNEL_{name}")
    result = run(flags=("--demo",))
    assert result.status == 1
    assert result.err.startswith("memtunnel check: --demo brings a server of its own")


def test_check_config_opens_nothing_here_either(run: Any, make_recorder: Any) -> None:
    recorder = make_recorder()
    result = run(recorder, flags=("--check-config",))
    assert result.status == 0
    assert f'server = ["{HOST}:{recorder.port}=' in result.out
    recorder.stop()
    assert recorder.handshakes == 0


def test_a_ca_file_that_is_broken(run: Any, tmp_path: Path) -> None:
    broken = tmp_path / "ca.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n")
    result = run(1, flags=(f"--ca-file={broken}",))
    assert result.status == 1
    assert result.err.startswith("memtunnel check: --ca-file ")
    assert "ca.pem cannot be used: " in result.err
    assert result.err.count("\n") == 1
