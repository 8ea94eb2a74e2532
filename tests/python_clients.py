"""Python's clients of text and meta commands, made to answer alike.

Keys are text, values are bytes, and what is absent is None. Whatever a client does not know, it
does not have here either.
"""

import asyncio
import functools
from typing import Any

import aiomcache
import emcache
import libmc
import memcache
import memcachio
import meta_memcache
import pymemcache
from meta_memcache import Key, RequestFlags, SetMode, Value
from pymemcache.client.hash import HashClient
from pymemcache.exceptions import MemcacheClientError

HOST = "127.0.0.1"


class Sync:
    """A client whose methods are called as they are, where none here is in their place."""

    error: type[Exception] = Exception
    #: Where a client says of a deletion that it succeeded though nothing was there.
    deletes_what_is_absent = False
    #: Whether it has commands that wait for no answer.
    has_quiet_commands = True

    def __init__(self, client: Any) -> None:
        self.client = client

    def quietly(self, verb: str, *args: Any) -> None:
        """Have a command done without waiting for an answer."""
        getattr(self.client, verb)(*args, noreply=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)


class Pymemcache(Sync):
    error = MemcacheClientError

    def __init__(self, port: int) -> None:
        super().__init__(pymemcache.Client((HOST, port), default_noreply=False, timeout=5))


class PymemcacheHash(Pymemcache):
    """Its client of several servers, with one; it knows fewer commands."""

    def __init__(self, port: int) -> None:
        Sync.__init__(self, HashClient([(HOST, port)], default_noreply=False, timeout=5))
        (self._only,) = self.client.clients.values()

    def stats(self) -> dict[bytes, Any]:
        return dict(self._only.stats())

    def version(self) -> bytes:
        return bytes(self._only.version())


class PythonMemcached(Sync):
    error = ValueError

    def __init__(self, port: int) -> None:
        super().__init__(memcache.Client([f"{HOST}:{port}"], cache_cas=True, socket_timeout=5))

    def get_many(self, keys: list[str]) -> Any:
        return self.client.get_multi(keys)

    def gets(self, key: str) -> tuple[Any, Any]:
        value = self.client.gets(key)
        return value, self.client.cas_ids[key.encode()]

    def cas(self, key: str, value: bytes, token: Any) -> bool:
        self.client.cas_ids[key.encode()] = token
        return bool(self.client.cas(key, value))

    def delete(self, key: str) -> bool:
        return bool(self.client.delete(key))

    def stats(self) -> dict[bytes, Any]:
        ((_, statistics),) = self.client.get_stats()
        return {name.encode(): value for name, value in statistics.items()}

    def quit(self) -> None:
        self.client.quit_all()


class Libmc(Sync):
    deletes_what_is_absent = True
    has_quiet_commands = False

    def __init__(self, port: int) -> None:
        super().__init__(libmc.Client([f"{HOST}:{port}"]))
        self.client.config(libmc.MC_POLL_TIMEOUT, 5000)
        self.client.toggle_flush_all_feature(True)

    def get_many(self, keys: list[str]) -> Any:
        return self.client.get_multi(keys)

    def cas(self, key: str, value: bytes, token: Any) -> bool:
        return bool(self.client.cas(key, value, 0, token))

    def incr(self, key: str, count: int) -> Any:
        value = self.client.incr(key, count)
        # It answers with a word of its own where the server did with an error.
        if self.client.get_last_error() != libmc.MC_RETURN_OK:
            raise self.error(self.client.get_last_strerror())
        return value

    def stats(self) -> dict[bytes, Any]:
        (statistics,) = self.client.stats().values()
        return {name.encode(): value for name, value in statistics.items()}

    def version(self) -> bytes:
        (version,) = self.client.version().values()
        return bytes(version.encode())


class Async(Sync):
    """A client whose methods are coroutines, run to their end in a loop of their own."""

    #: Whether it takes keys as bytes only.
    wants_bytes = False

    def __init__(self, runner: asyncio.Runner, client: Any) -> None:
        super().__init__(client)
        self._runner = runner

    def call(self, name: str, *args: Any, **named: Any) -> Any:
        if self.wants_bytes:
            args = tuple(arg.encode() if isinstance(arg, str) else arg for arg in args)

        async def called() -> Any:
            return await getattr(self.client, name)(*args, **named)

        return self._runner.run(called())

    def __getattr__(self, name: str) -> Any:
        return functools.partial(self.call, name)

    def quietly(self, verb: str, *args: Any) -> None:
        self.call(verb, *args, noreply=True)


class Aiomcache(Async):
    error = aiomcache.exceptions.ClientException
    wants_bytes = True
    has_quiet_commands = False

    def __init__(self, port: int, runner: asyncio.Runner) -> None:
        super().__init__(runner, aiomcache.Client(HOST, port))

    def get_many(self, keys: list[str]) -> Any:
        found = self.call("multi_get", *keys)
        return {key: value for key, value in zip(keys, found, strict=True) if value is not None}

    def incr(self, key: str, count: int) -> Any:
        return self._count("incr", key, count)

    def decr(self, key: str, count: int) -> Any:
        return self._count("decr", key, count)

    def _count(self, verb: str, key: str, count: int) -> Any:
        # To count what is absent is an error for it.
        try:
            return self.call(verb, key, count)
        except self.error as error:
            if "NOT_FOUND" in str(error):
                return None
            raise

    def quit(self) -> None:
        self.call("close")


class Emcache(Async):
    """Its methods return nothing, and raise where something was not stored or not found."""

    error = ValueError
    wants_bytes = True

    def __init__(self, port: int, runner: asyncio.Runner, **login: Any) -> None:
        self.address = emcache.MemcachedHostAddress(HOST, port)

        async def connect() -> Any:
            # A command after a quiet one has to take the same connection.
            return await emcache.create_client(
                [self.address], timeout=5, max_connections=1, min_connections=1, **login
            )

        super().__init__(runner, runner.run(connect()))

    def __getattr__(self, name: str) -> Any:
        if name in ("set", "add", "replace", "append", "prepend", "cas"):
            return functools.partial(self._store, name)
        return super().__getattr__(name)

    def _store(self, verb: str, *args: Any) -> bool:
        try:
            self.call(verb, *args)
        except emcache.NotStoredStorageCommandError:
            return False
        return True

    def _find(self, verb: str, *args: Any) -> Any:
        try:
            value = self.call(verb, *args)
        except emcache.NotFoundCommandError:
            return None
        return True if value is None else value

    def get(self, key: str) -> Any:
        item = self.call("get", key)
        return item and item.value

    def get_many(self, keys: list[str]) -> Any:
        found = self.call("get_many", [key.encode() for key in keys])
        return {key.decode(): item.value for key, item in found.items()}

    def gets(self, key: str) -> tuple[Any, Any]:
        item = self.call("gets", key)
        return (None, None) if item is None else (item.value, item.cas)

    def gat(self, key: str, expire: int) -> Any:
        item = self.call("gat", expire, key)
        return item and item.value

    def incr(self, key: str, count: int) -> Any:
        return self._find("increment", key, count)

    def decr(self, key: str, count: int) -> Any:
        return self._find("decrement", key, count)

    def touch(self, key: str, expire: int) -> bool:
        return bool(self._find("touch", key, expire))

    def delete(self, key: str) -> bool:
        return bool(self._find("delete", key))

    def quietly(self, verb: str, *args: Any) -> None:
        super().quietly({"incr": "increment"}.get(verb, verb), *args)

    def stats(self) -> dict[bytes, Any]:
        statistics = self.call("stats", self.address)
        return {name.encode(): value for name, value in statistics.items()}

    def version(self) -> bytes:
        return bytes(self.call("version", self.address).encode())

    def flush_all(self) -> None:
        self.call("flush_all", self.address)

    def quit(self) -> None:
        self.call("close")


class Memcachio(Async):
    """Its methods take several keys, and return what they found by key or by server."""

    error = memcachio.errors.ClientError

    def __init__(self, port: int, runner: asyncio.Runner, **login: Any) -> None:
        # A command after a quiet one has to take the same connection.
        client = memcachio.Client((HOST, port), max_connections=1, read_timeout=5, **login)
        super().__init__(runner, client)

    def get(self, key: str) -> Any:
        return self.get_many([key]).get(key)

    def get_many(self, keys: list[str]) -> Any:
        return {key.decode(): item.value for key, item in self.call("get", *keys).items()}

    def gets(self, key: str) -> tuple[Any, Any]:
        for item in self.call("gets", key).values():
            return item.value, item.cas
        return None, None

    def gat(self, key: str, expire: int) -> Any:
        for item in self.call("gat", key, expiry=expire).values():
            return item.value
        return None

    def stats(self) -> dict[bytes, Any]:
        (statistics,) = self.call("stats").values()
        return dict(statistics)

    def version(self) -> bytes:
        (version,) = self.call("version").values()
        return bytes(version.encode())

    def flush_all(self) -> None:
        self.call("flushall")

    def quit(self) -> None:
        self.client.connection_pool.close()


class MetaMemcache(Sync):
    """It speaks meta commands only, and none of stats, version and flush_all.

    It is asked for values by its lower methods: the upper ones want to hear of each item how long
    it will live and when it was read last, which the binary protocol cannot tell.
    """

    error = meta_memcache.MemcacheServerError

    def __init__(self, port: int) -> None:
        address = meta_memcache.ServerAddress(HOST, port)
        factory = meta_memcache.connection_pool_factory_builder(
            recv_timeout=5, read_buffer_size=1 << 16
        )
        super().__init__(meta_memcache.CacheClient.cache_client_from_servers([address], factory))

    def __getattr__(self, name: str) -> Any:
        if name in ("set", "add", "replace", "append", "prepend"):
            mode = SetMode[name.upper()]
            return lambda key, value: self.client.set(key, value, 0, set_mode=mode)
        return super().__getattr__(name)

    def _found(self, key: str, **flags: Any) -> Any:
        asked = RequestFlags(return_value=True, return_client_flag=True, **flags)
        found = self.client.meta_get(Key(key), asked)
        return found if isinstance(found, Value) else None

    def get(self, key: str) -> Any:
        item = self._found(key)
        return item and item.value

    def gets(self, key: str) -> tuple[Any, Any]:
        item = self._found(key, return_cas_token=True)
        return (None, None) if item is None else (item.value, item.flags.cas_token)

    def cas(self, key: str, value: bytes, token: Any) -> bool:
        return bool(self.client.set(key, value, 0, cas_token=token))

    def gat(self, key: str, expire: int) -> Any:
        item = self._found(key, cache_ttl=expire)
        return item and item.value

    def get_many(self, keys: list[str]) -> Any:
        asked = RequestFlags(return_value=True, return_client_flag=True)
        found = self.client.meta_multiget([Key(key) for key in keys], asked)
        return {key.key: item.value for key, item in found.items() if isinstance(item, Value)}

    def incr(self, key: str, count: int) -> Any:
        return self.client.delta_and_get(key, count)

    def decr(self, key: str, count: int) -> Any:
        return self.client.delta_and_get(key, -count)

    def quietly(self, verb: str, *args: Any) -> None:
        if verb == "incr":
            self.client.delta(*args, no_reply=True)
        elif verb == "delete":
            self.client.delete(*args, no_reply=True)
        else:
            self.client.set(*args, 0, no_reply=True, set_mode=SetMode[verb.upper()])

    def quit(self) -> None:
        # It has no other way to close its only connection.
        pool = self.client.router.pool_provider.get_pool(Key("a"))
        pool.release_connection(pool.pop_connection(), error=True)


KINDS = [
    Pymemcache,
    PymemcacheHash,
    PythonMemcached,
    Libmc,
    MetaMemcache,
    Aiomcache,
    Emcache,
    Memcachio,
]
