"""A client's login: who may say what before it, and what a wrong one costs."""

import pytest
from core_harness import Client, House, O, bare, get, login, opaque_of, store

from memtunnel.wire.binary import Status, answer, refusal, request
from memtunnel.wire.sasl import Credentials, Secret

CREDENTIALS = Credentials(username="user", password=Secret("pa ss:word"))
RIGHT = b"\0user\0pa ss:word"
WRONG = [
    b"\0user\0other",
    b"\0other\0pa ss:word",
    b"\0user\0",
    b"\0\0pa ss:word",
    b"other\0user\0pa ss:word",
    b"user\0pa ss:word",
    b"\0user\0pa ss:word\0",
    b"",
    b"x" * 4000,
]


def opened(required: bool = False, credentials: Credentials | None = CREDENTIALS) -> Client:
    return House(credentials=credentials, login_required=required).client()


@pytest.mark.parametrize("required", [False, True])
@pytest.mark.parametrize("message", [RIGHT, b"user" + RIGHT], ids=["plain", "with identity"])
@pytest.mark.parametrize("mechanism", [b"PLAIN", b"plain"])
def test_the_right_login_is_welcome(required: bool, message: bytes, mechanism: bytes) -> None:
    client = opened(required)
    client.send(login(message, 1, mechanism), store(b"k", b"v", 2))
    client.house.serve()
    assert client.received == answer(O.SASL_AUTH, opaque_of(1), value=b"Authenticated") + answer(
        O.SET, opaque_of(2), cas=1
    )
    assert client.house.listener.logins == {"ok": 1}


@pytest.mark.parametrize("required", [False, True])
@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_login_is_refused_and_so_is_what_follows(required: bool, message: bytes) -> None:
    client = opened(required)
    client.send(login(message, 1) + get(b"k", 2) + get(b"k", 3))
    assert client.received == refusal(O.SASL_AUTH, opaque_of(1), Status.AUTH_FAILED) + refusal(
        O.GET, opaque_of(2), Status.AUTH_FAILED
    )
    assert client.closed
    assert client.house.links[0].opcodes == []
    assert client.house.listener.logins == {"refused": 1}


def test_after_a_wrong_login_the_connection_lives_for_a_right_one() -> None:
    client = opened()
    client.send(login(WRONG[0], 1), bare(O.VERSION, 2), login(RIGHT, 3), get(b"k", 4))
    client.house.serve()
    assert [status for _, _, status in client.told] == [Status.AUTH_FAILED, 0, 0, 1]
    assert not client.closed


def test_a_wrong_login_takes_back_a_right_one() -> None:
    client = opened()
    client.send(login(RIGHT, 1), login(WRONG[0], 2), get(b"k", 3))
    assert client.told[1:] == [(O.SASL_AUTH, 2, 0x20), (O.GET, 3, 0x20)]
    assert client.closed


def test_open_needs_no_login() -> None:
    client = opened()
    client.send(get(b"k", 1))
    client.house.serve()
    assert client.told == [(O.GET, 1, Status.NOT_FOUND)]


@pytest.mark.parametrize("message", [*WRONG, RIGHT])
def test_where_no_login_is_configured_any_is_welcome(message: bytes) -> None:
    client = opened(credentials=None)
    client.send(login(message, 1), get(b"k", 2))
    client.house.serve()
    assert client.told == [(O.SASL_AUTH, 1, 0), (O.GET, 2, 1)]


@pytest.mark.parametrize("mechanism", [b"CRAM-MD5", b"DIGEST-MD5", b"PLAINER", b"P"])
def test_other_mechanisms_are_refused(mechanism: bytes) -> None:
    client = opened()
    client.send(login(RIGHT, 1, mechanism))
    assert client.told == [(O.SASL_AUTH, 1, Status.AUTH_FAILED)]
    assert not client.closed


@pytest.mark.parametrize("required", [False, True])
def test_a_step_is_refused(required: bool) -> None:
    client = opened(required)
    client.send(request(O.SASL_STEP, b"PLAIN", value=RIGHT, opaque=opaque_of(1)))
    assert client.told == [(O.SASL_STEP, 1, Status.AUTH_FAILED)]
    assert not client.closed


@pytest.mark.parametrize("opcode", sorted(set(range(256)) - {0x20, 0x21, 0x22, O.VERSION}))
def test_before_a_required_login_nothing_else_is_served(opcode: int) -> None:
    client = opened(required=True)
    client.send(request(opcode, b"k", value=b"v", opaque=opaque_of(1)) + bare(O.NOOP, 2))
    assert client.received == refusal(opcode, opaque_of(1), Status.AUTH_FAILED)
    assert client.closed
    assert client.house.links[0].opcodes == []


def test_before_a_required_login_mechanisms_and_version_are_told() -> None:
    client = opened(required=True)
    client.send(bare(O.SASL_LIST, 1), bare(O.VERSION, 2))
    assert client.received == answer(O.SASL_LIST, opaque_of(1), value=b"PLAIN") + answer(
        O.VERSION, opaque_of(2), value=b"1.6.0"
    )


@pytest.mark.parametrize("size", [1, 10, 1000])
def test_login_and_requests_may_come_in_any_pieces(size: int) -> None:
    client = opened(required=True)
    sent = bare(O.SASL_LIST, 1) + login(RIGHT, 1) + store(b"k", b"v", 2) + get(b"k", 3)
    client.send(*(sent[start : start + size] for start in range(0, len(sent), size)))
    client.house.serve()
    assert [status for _, _, status in client.told] == [0] * 4


def test_a_refusal_waits_for_the_answers_before_it() -> None:
    client = opened()
    client.send(get(b"k", 1) + login(WRONG[0], 2) + get(b"k", 3))
    assert client.told == []
    client.house.serve()
    assert client.told == [(O.GET, 1, 1), (O.SASL_AUTH, 2, 0x20), (O.GET, 3, 0x20)]
    assert client.closed


def test_P9_a_client_with_another_login_never_reaches_the_servers() -> None:
    house = House(credentials=CREDENTIALS)
    mine, other = house.client(), house.client()
    mine.send(login(RIGHT), store(b"k", b"secret"))
    other.send(login(b"\0them\0theirs"), get(b"k", 9, O.GETKQ))
    house.serve()
    assert other.told == [(O.SASL_AUTH, 0, 0x20), (O.GETKQ, 9, 0x20)]
    assert other.closed
    assert house.stores[0].executed == {(O.SET, b"k", b"secret"): 1}


def test_P7_a_login_shows_no_password() -> None:
    shown = f"{CREDENTIALS!r} {CREDENTIALS} {CREDENTIALS.password} {CREDENTIALS.password!r}"
    assert "pa ss:word" not in shown
