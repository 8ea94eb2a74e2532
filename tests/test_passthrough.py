"""Clients whose own logins are used on the servers: who waits for what, and who sees what."""

from collections.abc import Callable, Iterator

import pytest
from core_harness import Counts, House, Link, O, Store, get, login, opaque_of, store

from memtunnel.core.binary_session import BinarySession
from memtunnel.core.breaker import FAILED_DIALS
from memtunnel.core.cluster import Cluster, Verdict
from memtunnel.core.routing import router
from memtunnel.core.server import Server
from memtunnel.core.session import Session
from memtunnel.core.text_session import TextSession
from memtunnel.wire.binary import Status, answer, refusal
from memtunnel.wire.sasl import Credentials, Secret

ONE = Credentials(username="one", password=Secret("pass-1"))
OTHER = Credentials(username="other", password=Secret("pass-2"))
OWN = Credentials(username="own", password=Secret("pass-0"))
#: Just past the deadline of a small request.
LATE = 0.401
STORED = b"STORED\r\n"


class Town(House):
    """A house in which each login has a server of its own, as soon as somebody has it."""

    def __init__(self, own: Credentials | None = None, most: int = 9, **policy: object) -> None:
        required = policy.pop("login_required", own is None)
        super().__init__(
            credentials=own, login_required=required, passthrough=True, connections=0, **policy
        )
        self.most = most
        self.tunnel.log_in = self._log_in
        self.clusters: dict[Credentials, Cluster] = {}
        self.accounts = {ONE: Store(), OTHER: Store()}
        if own is not None:
            self.clusters[own] = self.tunnel.cluster
            self.accounts[own] = self.stores[0]

    def _log_in(self, credentials: Credentials) -> Cluster | None:
        if credentials not in self.clusters:
            if len(self.clusters) >= self.most:
                return None
            server = Server("server0", self.server_counts[0], self.budget)
            self.clusters[credentials] = Cluster([server], router("modula", ["server0"]))
        return self.clusters[credentials]

    def warm(self, credentials: Credentials) -> Link:
        """A connection with this login becomes warm."""
        cluster = self._log_in(credentials)
        assert cluster is not None
        self._next_opaque += 0x01000000
        account = self.accounts[credentials]
        link = Link(self, cluster.servers[0], account, self._next_opaque & 0xFFFFFFFF)
        self.links.append(link)
        cluster.accepted(self.now)
        self.tunnel.flush()
        return link

    def refuse(self, credentials: Credentials) -> None:
        """A server refuses this login."""
        cluster = self._log_in(credentials)
        assert cluster is not None
        cluster.refused(self.now)
        self.tunnel.flush()


def binary_login(credentials: Credentials) -> bytes:
    return login(credentials.initial_response(), 1)


def text_login(credentials: Credentials) -> bytes:
    password = credentials.password.reveal()
    return b"set %b 0 0 %d\r\n%b\r\n" % (credentials.username.encode(), len(password), password)


def text_login_of_memcached(credentials: Credentials) -> bytes:
    both = credentials.username.encode() + b" " + credentials.password.reveal()
    return b"set any _ 0 %d\r\n%b\r\n" % (len(both), both)


class Tongue:
    """What is said in one of the protocols."""

    def __init__(self, protocol: type[Session], login: Callable[[Credentials], bytes]) -> None:
        self.protocol = protocol
        self.login = login
        binary = protocol is BinarySession
        self.welcome = (
            answer(O.SASL_AUTH, opaque_of(1), value=b"Authenticated") if binary else STORED
        )
        self.refusal = (
            refusal(O.SASL_AUTH, opaque_of(1), Status.AUTH_FAILED)
            if binary
            else b"CLIENT_ERROR authentication failure\r\n"
        )
        self.set = store(b"k", b"v", 2) if binary else b"set k 0 0 1\r\nv\r\n"
        self.get = get(b"k", 3) if binary else b"get k\r\n"
        self.miss = refusal(O.GET, opaque_of(3), Status.NOT_FOUND) if binary else b"END\r\n"
        self.hit = (
            answer(O.GET, opaque_of(3), extras=bytes(4), value=b"v", cas=1)
            if binary
            else b"VALUE k 0 1\r\nv\r\nEND\r\n"
        )
        self.stored = answer(O.SET, opaque_of(2), cas=1) if binary else STORED
        self.before_login = (
            refusal(O.GET, opaque_of(3), Status.AUTH_FAILED)
            if binary
            else b"CLIENT_ERROR unauthenticated\r\n"
        )


TONGUES = [
    pytest.param(Tongue(BinarySession, binary_login), id="binary"),
    pytest.param(Tongue(TextSession, text_login), id="text"),
    pytest.param(Tongue(TextSession, text_login_of_memcached), id="memcached's text"),
]
each_tongue = pytest.mark.parametrize("tongue", TONGUES)


def settled(house: House) -> None:
    assert house.budget.used == 0
    assert not any(link.mux.load for link in house.links)
    assert not any(client.session._owed for client in house.clients)


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


@each_tongue
@pytest.mark.parametrize("size", [1, 100_000])
def test_P9_each_login_sees_what_it_has_stored_and_nothing_else(tongue: Tongue, size: int) -> None:
    town = Town()
    town.warm(ONE)
    town.warm(OTHER)
    one, other = town.client(tongue.protocol), town.client(tongue.protocol)
    one.send(*pieces(tongue.login(ONE) + tongue.set + tongue.get, size))
    other.send(*pieces(tongue.login(OTHER) + tongue.get, size))
    town.serve()
    assert one.received == tongue.welcome + tongue.stored + tongue.hit
    assert other.received == tongue.welcome + tongue.miss
    assert list(town.accounts[ONE].items) == [b"k"]
    assert not town.accounts[OTHER].executed[O.SET, b"k", b"v"]
    assert town.listener.logins == {"ok": 2}
    settled(town)


@each_tongue
@pytest.mark.parametrize("size", [1, 100_000])
def test_a_client_waits_for_the_verdict_and_what_follows_waits_with_it(
    tongue: Tongue, size: int
) -> None:
    town = Town()
    client = town.client(tongue.protocol)
    client.send(*pieces(tongue.login(ONE) + tongue.set + tongue.get, size))
    assert client.received == b""
    assert client.session.full
    town.pass_time(0.39)
    town.warm(ONE)
    assert client.received == tongue.welcome
    town.serve()
    assert client.received == tongue.welcome + tongue.stored + tongue.hit
    assert not town.degraded
    settled(town)


@each_tongue
def test_a_refused_login_is_told_to_its_client_which_is_closed(tongue: Tongue) -> None:
    town = Town()
    town.warm(ONE)
    one, other = town.client(tongue.protocol), town.client(tongue.protocol)
    one.send(tongue.login(ONE))
    other.send(tongue.login(OTHER) + tongue.set + tongue.get)
    town.refuse(OTHER)
    assert other.received == tongue.refusal
    assert other.closed
    assert other.noticed == ["passed_login_refused"]
    one.send(tongue.set + tongue.get)
    town.serve()
    assert one.received == tongue.welcome + tongue.stored + tongue.hit
    assert not town.degraded
    again = town.client(tongue.protocol)
    again.send(tongue.login(OTHER))
    assert (again.received, again.closed) == (tongue.refusal, True)
    assert town.listener.logins == {"ok": 1, "refused": 2}
    for client in town.clients:
        client.leave()
    assert [cluster.clients for cluster in town.clusters.values()] == [0, 0]
    settled(town)


@each_tongue
def test_a_server_that_refuses_does_not_outdo_one_that_takes_the_login(tongue: Tongue) -> None:
    town = Town()
    town.warm(ONE)
    town.refuse(ONE)
    client = town.client(tongue.protocol)
    client.send(tongue.login(ONE))
    assert client.received == tongue.welcome


@each_tongue
def test_without_a_verdict_in_time_a_login_is_welcome_and_gets_degraded_replies(
    tongue: Tongue,
) -> None:
    town = Town()
    client = town.client(tongue.protocol)
    client.send(tongue.login(ONE))
    town.pass_time(LATE)
    assert client.received == tongue.welcome
    assert town.listener.logins == {"unjudged": 1}
    assert town.degraded == [(O.SASL_AUTH, "timeout")]
    client.send(tongue.get)
    town.pass_time(LATE)
    assert client.received == tongue.welcome + tongue.miss
    town.warm(ONE)
    client.send(tongue.set + tongue.get)
    town.serve()
    assert client.received == tongue.welcome + tongue.miss + tongue.stored + tongue.hit
    settled(town)


@each_tongue
def test_a_late_refusal_reaches_those_who_were_welcome(tongue: Tongue) -> None:
    town = Town()
    client = town.client(tongue.protocol)
    client.send(tongue.login(ONE))
    town.pass_time(LATE)
    town.refuse(ONE)
    client.send(tongue.get)
    assert client.received == tongue.welcome + tongue.before_login
    assert client.closed
    assert client.noticed == ["passed_login_refused"]
    assert town.listener.logins == {"unjudged": 1, "refused": 1}
    settled(town)


def test_after_a_late_refusal_a_value_is_not_taken_for_another_login() -> None:
    town = Town()
    client = town.client(TextSession)
    client.send(text_login(ONE))
    town.pass_time(LATE)
    town.refuse(ONE)
    client.send(b"set key 0 0 12\r\nsecret value\r\n")
    assert client.received == STORED + b"CLIENT_ERROR unauthenticated\r\n"
    assert client.closed
    assert list(town.clusters) == [ONE]
    settled(town)


@each_tongue
@pytest.mark.parametrize("early", [False, True], ids=["while it waits", "after its deadline"])
def test_who_leaves_before_the_verdict_leaves_nothing_behind(tongue: Tongue, early: bool) -> None:
    town = Town()
    client = town.client(tongue.protocol)
    client.send(tongue.login(ONE) + tongue.set)
    if not early:
        town.pass_time(LATE)
    client.leave()
    cluster = town.clusters[ONE]
    assert not cluster.waiting
    assert not cluster.clients
    town.warm(ONE)
    town.serve()
    assert not town.pass_time(10)
    settled(town)


@each_tongue
def test_who_closes_its_side_behind_its_login_gets_all_answers(tongue: Tongue) -> None:
    town = Town()
    client = town.client(tongue.protocol)
    client.send(tongue.login(ONE) + tongue.set + tongue.get)
    client.half_close()
    assert not client.closed
    town.warm(ONE)
    town.serve()
    assert client.received == tongue.welcome + tongue.stored + tongue.hit
    assert client.closed


@each_tongue
def test_what_waits_for_the_verdict_counts_against_the_bound(tongue: Tongue) -> None:
    town = Town()
    client = town.client(tongue.protocol)
    client.send(tongue.login(ONE) + tongue.set)
    assert town.budget.used >= len(tongue.set)
    town.refuse(ONE)
    settled(town)


@each_tongue
def test_what_there_is_no_room_for_waits_for_no_verdict(tongue: Tongue) -> None:
    town = Town(limit=0)
    client = town.client(tongue.protocol)
    client.send(tongue.login(ONE) + tongue.set + tongue.get)
    town.serve()
    assert town.degraded == [(op, "overloaded") for op in (O.SASL_AUTH, O.SET, O.GET)]
    assert client.received.startswith(tongue.welcome)
    assert client.received.endswith(tongue.miss)
    town.warm(ONE)
    assert town.clusters[ONE].verdict is Verdict.ACCEPTED
    settled(town)


@each_tongue
def test_one_login_too_many_is_refused(tongue: Tongue) -> None:
    town = Town(most=1)
    town.warm(ONE)
    client = town.client(tongue.protocol)
    client.send(tongue.login(OTHER) + tongue.get)
    assert (client.received, client.closed) == (tongue.refusal, True)
    assert client.noticed == ["max_logins"]
    assert town.listener.logins == {"too_many": 1}


@each_tongue
def test_without_a_login_there_is_no_access_unless_one_is_configured(tongue: Tongue) -> None:
    client = Town().client(tongue.protocol)
    client.send(tongue.get)
    assert client.received == tongue.before_login
    town = Town(own=OWN)
    town.warm(OWN)
    client = town.client(tongue.protocol)
    client.send(tongue.get)
    town.serve()
    assert client.received == tongue.miss
    town = Town(own=OWN, login_required=True)
    client = town.client(tongue.protocol)
    client.send(tongue.get)
    assert client.received == tongue.before_login


def test_P9_a_second_login_on_a_connection_leaves_the_first_ones_cache() -> None:
    town = Town()
    town.warm(ONE)
    town.warm(OTHER)
    client = town.client()
    client.send(binary_login(ONE) + store(b"k", b"v", 2) + binary_login(OTHER) + get(b"k", 3))
    town.serve()
    assert client.told == [(O.SASL_AUTH, 1, 0), (O.SET, 2, 0), (O.SASL_AUTH, 1, 0), (O.GET, 3, 1)]
    assert [cluster.clients for cluster in town.clusters.values()] == [0, 1]


def test_answers_of_the_former_login_come_first() -> None:
    town = Town(own=OWN)
    slow = town.warm(OWN)
    town.warm(ONE)
    client = town.client()
    client.send(store(b"k", b"v", 2) + binary_login(ONE) + get(b"k", 3))
    fast = town.links[1]
    fast.deliver(fast.execute())
    assert client.received == b""
    slow.deliver(slow.execute())
    assert client.told == [(O.SET, 2, 0), (O.SASL_AUTH, 1, 0), (O.GET, 3, 1)]


@pytest.mark.parametrize(
    ("message", "mechanism"),
    [
        (b"", b"PLAIN"),
        (b"\0one", b"PLAIN"),
        (b"\0\0pass-1", b"PLAIN"),
        (b"\0one\0", b"PLAIN"),
        (b"other\0one\0pass-1", b"PLAIN"),
        (b"\0one\0pass-1\0", b"PLAIN"),
        (b"\0one\0pass-1", b"LOGIN"),
    ],
)
def test_what_cannot_be_a_login_reaches_no_server(message: bytes, mechanism: bytes) -> None:
    town = Town()
    client = town.client()
    client.send(login(message, 1, mechanism))
    assert client.told == [(O.SASL_AUTH, 1, Status.AUTH_FAILED)]
    assert client.closed
    assert not town.clusters


@pytest.mark.parametrize(
    "asked",
    [
        b"set one 0 0 0\r\n\r\n",
        b"set one 0 0 7\r\npass\x00-1\r\n",
        b"set any 0 0 5\r\na\x00b c\r\n",
        b"set one 0 0 5000\r\n" + b"x" * 5000 + b"\r\n",
    ],
)
def test_what_cannot_be_a_login_in_text_reaches_no_server(asked: bytes) -> None:
    town = Town()
    client = town.client(TextSession)
    client.send(asked)
    assert client.received == b"CLIENT_ERROR authentication failure\r\n"
    assert not town.clusters


def test_bytes_that_are_not_UTF_8_are_sent_on_as_they_came() -> None:
    message = b"\0na\xffme\0pass\xfe"
    credentials = Credentials.of_message(message)
    assert credentials is not None
    assert credentials.initial_response() == message
    assert Credentials.of_message(b"na\xffme" + message) == credentials


def test_a_first_set_is_no_login_where_none_is_due() -> None:
    town = Town(own=OWN)
    town.warm(OWN)
    client = town.client(TextSession)
    client.send(b"set one 0 0 6\r\npass-1\r\nget one\r\n")
    town.serve()
    assert client.received == STORED + b"VALUE one 0 6\r\npass-1\r\nEND\r\n"
    assert list(town.clusters) == [OWN]


def test_P9_what_waits_with_one_login_does_not_fail_over_to_another_ones_servers() -> None:
    town = Town(failover=True)
    one = [Server(f"server{n}", Counts(), town.budget) for n in range(2)]
    names = ["server0", "server1"]
    town.clusters[ONE] = Cluster(one, router("modula", names))
    town.clusters[ONE].accepted(town.now)
    other = [Server(f"server{n}", Counts(), town.budget) for n in range(2)]
    town.clusters[OTHER] = Cluster(other, router("modula", names))
    town.clusters[OTHER].accepted(town.now)
    client = town.client()
    client.send(binary_login(ONE))
    client.send(*(store(b"key%d" % number, b"mine", number) for number in range(8)))
    client.send(binary_login(OTHER))
    for server in other:
        town.links.append(Link(town, server, Store(), 0x55 << 24 | server.index << 20))
    for server in one:
        for _ in range(FAILED_DIALS):
            server.dial_failed(town.now)
    town.tunnel.flush()
    town.serve()
    assert not any(link.store.items for link in town.links)
    assert [status for _, _, status in client.told] == [0, *[Status.NOT_STORED] * 8, 0]
    settled(town)


def test_the_verdict_is_remembered() -> None:
    town = Town()
    town.refuse(ONE)
    assert town.clusters[ONE].verdict is Verdict.REFUSED
    town.warm(ONE)
    assert town.clusters[ONE].verdict is Verdict.ACCEPTED
