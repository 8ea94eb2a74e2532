"""SASL PLAIN: the login that memcached takes, its verification, and a secret that stays one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtunnel.wire.sasl import MECHANISM, Credentials, Secret

CANARY = "canary-5ecret"
LOGIN = Credentials(username="user1", password=Secret("secret"))

words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)


def test_the_mechanism_is_plain_and_nothing_else() -> None:
    assert MECHANISM == b"PLAIN"


def test_the_initial_response_is_the_message_of_rfc_4616() -> None:
    assert LOGIN.initial_response() == b"\0user1\0secret"


@given(words, words)
def test_a_login_is_its_own(username: str, password: str) -> None:
    login = Credentials(username=username, password=Secret(password))
    assert login.verify(login.initial_response())


@pytest.mark.parametrize("message", [b"\0user1\0secret", b"user1\0user1\0secret"])
def test_the_identity_may_be_empty_or_the_users_name(message: bytes) -> None:
    assert LOGIN.verify(message)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"secret",
        b"\0",
        b"\0\0",
        b"user1\0secret",
        b"\0user1\0",
        b"\0user1\0Secret",
        b"\0user1\0secret\0",
        b"\0user1\0secret2",
        b"\0user1\0secre",
        b"\0\0secret",
        b"\0user2\0secret",
        b"\0secret\0user1",
        b"user2\0user1\0secret",
        b"\0user1\0" + b"s" * 4000,
        b"\0us\xffer1\0secret",
    ],
)
def test_anything_else_is_refused(message: bytes) -> None:
    assert not LOGIN.verify(message)


@given(st.binary(max_size=40))
def test_no_message_makes_it_raise(message: bytes) -> None:
    right = (b"\0user1\0secret", b"user1\0user1\0secret")
    assert LOGIN.verify(message) == (message in right)


@pytest.mark.parametrize("password", ["p:@ &w", "pässwörd", "a" * 300])
def test_a_password_may_have_any_character_but_nul(password: str) -> None:
    login = Credentials(username="user1", password=Secret(password))
    assert login.initial_response() == b"\0user1\0" + password.encode()
    assert login.verify(b"\0user1\0" + password.encode())


def test_p7_a_secret_shows_itself_to_nobody() -> None:
    secret = Secret(CANARY)
    login = Credentials(username="user1", password=secret)
    shown = [
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret!r:>40}",
        "%s %r" % (secret, secret),  # noqa: UP031
        "{:20}".format(secret),  # noqa: UP032
        repr(login),
        str(login),
        repr({"login": login, "secret": secret}),
    ]
    assert not any(CANARY in text for text in shown)
    assert secret.reveal() == CANARY.encode()


def test_credentials_are_values() -> None:
    same = Credentials(username="user1", password=Secret("secret"))
    assert same == LOGIN
    assert hash(same) == hash(LOGIN)
    assert same != Credentials(username="user1", password=Secret("other"))
