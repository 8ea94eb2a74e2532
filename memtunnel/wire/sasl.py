"""SASL PLAIN (RFC 4616): the message that logs in, and its verification."""

import hmac
from dataclasses import dataclass, field
from typing import Final

MECHANISM: Final = b"PLAIN"


class Secret(str):
    """A text that shows itself to nobody: its `repr`, and what `format` makes of it, is ``***``."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "***"

    def __str__(self) -> str:
        return "***"

    def __format__(self, spec: str) -> str:
        return "***"

    def reveal(self) -> bytes:
        """The text itself, as the bytes that go over the wire: UTF-8, or as they were given."""
        return self.encode("utf-8", "surrogateescape")


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """A login."""

    username: str
    password: Secret = field(repr=False)

    @classmethod
    def given(cls, username: bytes, password: bytes) -> "Credentials | None":
        """Those that a client gave, UTF-8 or not; None where they cannot be any."""
        if not username or not password or b"\0" in username + password:
            return None
        name, secret = (part.decode("utf-8", "surrogateescape") for part in (username, password))
        return cls(username=name, password=Secret(secret))

    @classmethod
    def of_message(cls, message: bytes) -> "Credentials | None":
        """Those of a client's PLAIN message, which may act for nobody else; None for none."""
        identity, _, both = message.partition(b"\0")
        username, _, password = both.partition(b"\0")
        return cls.given(username, password) if identity in (b"", username) else None

    def initial_response(self) -> bytes:
        """The PLAIN message that logs in: no authorization identity, user name, password."""
        username = self.username.encode("utf-8", "surrogateescape")
        return b"\0".join((b"", username, self.password.reveal()))

    def verify(self, message: bytes) -> bool:
        """Whether a client's PLAIN message is this login.

        The authorization identity may be empty or the user's name. Takes the same time
        whichever part is wrong.
        """
        parts = message.split(b"\0")
        if len(parts) != 3:
            return False
        identity, username, password = parts
        right = self.matches(username, password)
        right_identity = not identity or hmac.compare_digest(identity, self.username.encode())
        return right and right_identity

    def matches(self, username: bytes, password: bytes) -> bool:
        """Whether these are it. Takes the same time whichever of them is wrong."""
        right_username = hmac.compare_digest(username, self.username.encode())
        right_password = hmac.compare_digest(password, self.password.reveal())
        return right_username and right_password
