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

    def initial_response(self) -> bytes:
        """The PLAIN message that logs in: no authorization identity, user name, password."""
        return b"\0".join((b"", self.username.encode(), self.password.reveal()))

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
