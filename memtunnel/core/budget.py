"""How much memory may wait in the tunnel, in all."""


class Budget:
    """`limit` and `used` are bytes."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    @property
    def exhausted(self) -> bool:
        return self.used > self.limit

    def reserve(self, size: int) -> bool:
        """Take `size` bytes, if there are so many left."""
        if self.used + size > self.limit:
            return False
        self.used += size
        return True

    def release(self, size: int) -> None:
        self.used -= size
