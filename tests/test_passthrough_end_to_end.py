"""``--client-auth passthrough``: each login reaches the servers by connections of its own.

All of it in both protocols, with one process and with two; they share a memcached, which knows
every login that a test makes up.
"""

import secrets
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import authority
import bmemcached
import pytest
import servers
from bmemcached.exceptions import MemcachedException
from servers import REFUSED
from test_passwords_stay_secret import forms, statistics
from test_server_restart import nothing_is_left

from memtunnel.wire.binary import Opcode, Status

Login = tuple[str, str]
Connect = Callable[..., Any]
KINDS = [servers.Binary, servers.Text]
#: No less than a busy machine may take, no more than tests of an outage can wait for.
DEADLINE = "--request-timeout=1.5"
POOL = 2


class House:
    """A memcached, and the logins that were made up for it."""

    def __init__(self, memcached: servers.Memcached, ca_file: Path) -> None:
        self.memcached = memcached
        self.ca_file = ca_file
        self.passwords = [servers.PASSWORD]
        """All that clients have used, right ones and wrong ones."""

    def stranger(self) -> Login:
        """A login that the server does not know."""
        self.passwords.append(f"canary-{secrets.token_hex(8)}")
        return f"user-{secrets.token_hex(4)}", self.passwords[-1]

    def user(self) -> Login:
        """One that it knows, and that nobody has used yet."""
        login = self.stranger()
        self.memcached.add_login(*login)
        return login

    def tunnel(self, *flags: str, environ: dict[str, str] | None = None) -> servers.Tunnel:
        return servers.Tunnel(
            f"--server=127.0.0.1:{self.memcached.port}=server0",
            f"--ca-file={self.ca_file}",
            "--client-auth=passthrough",
            f"--pool-size={POOL}",
            DEADLINE,
            *flags,
            environ=environ,
        )


@pytest.fixture(scope="module")
def house(
    good_pair: authority.Pair, ca_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("passthrough")
    memcached = servers.Memcached(folder, pair=good_pair, sasl=True)
    with servers.closing_all([memcached]):
        yield House(memcached.start(), ca_file)


@pytest.fixture(scope="module", params=[1, 2])
def workers(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.full)])
def mostly_one(request: pytest.FixtureRequest) -> int:
    """For tests that need a tunnel of their own."""
    number: int = request.param
    return number


@pytest.fixture(scope="module")
def tunnel(house: House, workers: int) -> Iterator[servers.Tunnel]:
    """A tunnel without a login of its own."""
    with servers.closing_all([house.tunnel(f"--workers={workers}")]) as (tunnel,):
        tunnel.start().wait_ready()
        yield tunnel


@pytest.fixture(scope="module")
def configured(house: House, mostly_one: int) -> Iterator[servers.Tunnel]:
    """A tunnel with a login for clients that have none."""
    tunnel = house.tunnel(
        f"--workers={mostly_one}",
        f"--username={servers.USERNAME}",
        environ={"MEMTUNNEL_PASSWORD": servers.PASSWORD},
    )
    with servers.closing_all([tunnel]):
        tunnel.start().wait_ready()
        yield tunnel


@pytest.fixture(params=KINDS, ids=["binary", "text"])
def kind(request: pytest.FixtureRequest) -> type[servers.Binary]:
    kind: type[servers.Binary] = request.param
    return kind


@pytest.fixture
def others(
    tunnel: servers.Tunnel, house: House, connect: Connect, kind: type[servers.Binary]
) -> Iterator[None]:
    """Clients with a login of theirs, who must not notice what happens here."""
    login = house.user()
    clients = [connect(tunnel, kind) for _ in range(2)]
    for client in clients:
        assert client.say(client.log_in(*login)) == [True]
    before = tunnel.metric("memtunnel_degraded_replies_total")
    with servers.Regulars(clients):
        yield
    assert tunnel.metric("memtunnel_degraded_replies_total") == before


def logins(tunnel: servers.Tunnel, result: str) -> float:
    return tunnel.metric("memtunnel_client_logins_total", result=result)


# Who gets in


def test_each_client_is_served_with_its_own_login(
    tunnel: servers.Tunnel, house: House, connect: Connect, workers: int
) -> None:
    degraded = tunnel.metric("memtunnel_degraded_replies_total")
    before = house.memcached.peers()
    count = 0
    for kind in KINDS:
        for login in (house.user(), house.user()):
            count += 1
            for _ in range(5):
                client = connect(tunnel, kind)
                assert client.say(client.log_in(*login)) == [True]
                key, value = login[0].encode(), kind.__name__.encode()
                said = client.say(client.store(key, value), client.fetch(key))
                assert said == [True, value]
    # Less than a pool for each client, though another tunnel may be dialling meanwhile.
    seen = range(count * POOL, count * POOL * 5)
    servers.wait_until(
        lambda: len(house.memcached.peers() - before) in seen,
        "each login has connections of its own, however many clients have it",
    )
    warm = tunnel.metric("memtunnel_upstream_connections", state="warm")
    assert warm in range(count * POOL, count * POOL * workers + 1)
    assert tunnel.metric("memtunnel_degraded_replies_total") == degraded


@pytest.mark.usefixtures("others")
def test_a_wrong_login_is_refused_and_nobody_else_notices(
    tunnel: servers.Tunnel, house: House, connect: Connect, kind: type[servers.Binary]
) -> None:
    (mine, my_password), (_, other_password) = house.user(), house.user()
    refused = logins(tunnel, "refused")
    wrong = [(mine, other_password), (mine, house.stranger()[1]), house.stranger()]
    for login in wrong:
        client = connect(tunnel, kind)
        # What comes behind it is not taken any more, as it may be another's.
        assert client.say(client.log_in(*login), client.fetch(b"k")) == [REFUSED]
        assert client.at_end()
    assert logins(tunnel, "refused") == refused + len(wrong)
    client = connect(tunnel, kind)
    assert client.say(client.log_in(mine, my_password), client.fetch(b"absent")) == [True, None]
    assert "a client's login was refused by the servers" in tunnel.log()


def test_without_a_login_nothing_else_is_served(tunnel: servers.Tunnel, connect: Connect) -> None:
    assert tunnel.get("/readyz")[0] == 200
    client = connect(tunnel, servers.Binary)
    assert client.ask(Opcode.SASL_LIST).value == b"PLAIN"
    assert client.ask(Opcode.VERSION).status == Status.OK
    assert client.say(client.store(b"k", b"v"), client.fetch(b"k")) == [REFUSED]
    assert client.at_end()
    client = connect(tunnel, servers.Text)
    assert client.say(client.fetch(b"k"), client.fetch(b"k")) == [REFUSED, REFUSED]


def test_without_a_login_the_configured_one_is_used(
    configured: servers.Tunnel,
    house: House,
    connect: Connect,
    mostly_one: int,
    kind: type[servers.Binary],
) -> None:
    stranger, known = connect(configured, kind), connect(configured, kind)
    assert stranger.say(stranger.store(b"k", b"v"), stranger.fetch(b"k")) == [True, b"v"]
    mine = known.log_in(servers.USERNAME, servers.PASSWORD)
    assert known.say(mine, known.fetch(b"k")) == [True, b"v"]
    wrong = connect(configured, kind)
    login = servers.USERNAME, house.stranger()[1]
    assert wrong.say(wrong.log_in(*login), wrong.fetch(b"k")) == [REFUSED]
    assert wrong.at_end()
    other = connect(configured, kind)
    # In text it has to say more clearly that it is a login, where none is due.
    login_of_another = other.log_in(*house.user()).replace(b" 0 0 ", b" login 0 ")
    assert other.say(login_of_another, other.fetch(b"absent")) == [True, None]
    assert configured.metric("memtunnel_degraded_replies_total") == 0


@pytest.mark.parametrize(
    "said",
    [
        b"set any 0 0 %(size)d\r\n%(user)b %(secret)b\r\n",
        b"set %(user)b 0 0 %(length)d\r\n%(secret)b\r\n",
    ],
    ids=["as memcached", "as MemCachier"],
)
def test_in_text_a_login_is_said_in_either_form(
    said: bytes, tunnel: servers.Tunnel, house: House, connect: Connect
) -> None:
    user, secret = (each.encode() for each in house.user())
    parts = {"user": user, "secret": secret, "length": len(secret)}
    parts["size"] = len(user) + 1 + len(secret)
    client = connect(tunnel, servers.Text)
    assert client.say(said % {name.encode(): part for name, part in parts.items()}) == [True]
    assert client.say(client.store(b"k", b"v"), client.fetch(b"k")) == [True, b"v"]


def test_beyond_this_machine_nobody_is_taken_for_the_configured_login(
    started: list[Any], house: House, connect: Connect
) -> None:
    tunnel = house.tunnel(
        "--allow-remote",
        f"--username={servers.USERNAME}",
        environ={"MEMTUNNEL_PASSWORD": servers.PASSWORD},
    )
    started.append(tunnel)
    tunnel.start().wait_ready()
    for kind in KINDS:
        client = connect(tunnel, kind)
        assert client.say(client.store(b"k", b"v")) == [REFUSED]
        for login in ((servers.USERNAME, servers.PASSWORD), house.user()):
            client = connect(tunnel, kind)
            assert client.say(client.log_in(*login), client.fetch(b"absent")) == [True, None]


def test_clients_of_two_users(tunnel: servers.Tunnel, house: House) -> None:
    """python-binary-memcached, with and without the right password."""
    mine, other = house.user(), house.user()
    clients = [
        bmemcached.Client((f"127.0.0.1:{tunnel.port}",), *login)
        for login in (mine, other, (mine[0], other[1]))
    ]
    try:
        for number, client in enumerate(clients[:2]):
            assert client.set(f"client{number}", str(number))
            assert client.get(f"client{number}") == str(number)
            assert client.get_multi([f"client{number}", "absent"]) == {
                f"client{number}": str(number)
            }
        with pytest.raises(MemcachedException):
            clients[2].get("client0")
    finally:
        for client in clients:
            client.disconnect_all()


# The login and what comes behind it


@pytest.mark.parametrize("ends", [False, True], ids=["stays", "ends"])
def test_what_comes_with_the_login_is_served_with_it(
    ends: bool, tunnel: servers.Tunnel, house: House, connect: Connect, kind: type[servers.Binary]
) -> None:
    degraded = tunnel.metric("memtunnel_degraded_replies_total")
    login = house.user()
    # For the first of them the server has to be asked, for the others it has been.
    for number in range(5):
        client = connect(tunnel, kind)
        value = b"%d" % number
        client.send(client.log_in(*login), client.store(b"behind", value), client.fetch(b"behind"))
        if ends:
            client.socket.shutdown(socket.SHUT_WR)
        assert client.hear(3) == [True, True, value]
        if ends:
            assert client.at_end()
        else:
            assert client.say(client.fetch(b"behind")) == [value]
    assert tunnel.metric("memtunnel_degraded_replies_total") == degraded


def test_clients_that_leave_before_the_verdict_leave_nothing_behind(
    tunnel: servers.Tunnel, house: House, connect: Connect
) -> None:
    before = tunnel.metric("memtunnel_client_connections")
    right, *wrong = house.user(), house.stranger(), house.stranger()
    with house.memcached.standing():
        clients = [connect(tunnel, kind) for kind in KINDS * 2]
        for client, login in zip(clients, (right, right, *wrong), strict=True):
            client.send(client.log_in(*login), client.store(b"k", b"v"), client.fetch(b"k"))
        servers.wait_until(
            lambda: tunnel.metric("memtunnel_client_paused") == len(clients), "their logins wait"
        )
        for client in clients:
            client.close()
        # They are not read from, so that their end is seen once their logins have waited enough.
        servers.wait_until(
            lambda: tunnel.metric("memtunnel_client_connections") == before, "they have left"
        )
    assert tunnel.metric("memtunnel_client_paused") == 0
    servers.wait_until(lambda: nothing_is_left(tunnel), "all requests are accounted for")
    degraded = tunnel.metric("memtunnel_degraded_replies_total")
    client = connect(tunnel, servers.Binary)
    assert client.say(client.log_in(*right), client.fetch(b"absent")) == [True, None]
    assert tunnel.metric("memtunnel_degraded_replies_total") == degraded
    assert "Traceback" not in tunnel.log()


# While the server is away


@pytest.fixture
def outage(tunnel: servers.Tunnel, house: House) -> Iterator[Callable[[], None]]:
    """The server is away, until the test lets it come back."""
    memcached = house.memcached

    def end() -> None:
        if memcached.process is None:
            memcached.start()

    memcached.stop()
    yield end
    end()


def test_a_login_in_an_outage_is_taken_until_it_is_judged(
    tunnel: servers.Tunnel, house: House, connect: Connect, outage: Callable[[], None]
) -> None:
    right, wrong = [house.user(), house.user()], [house.stranger(), house.stranger()]
    unjudged = logins(tunnel, "unjudged")
    clients = [[connect(tunnel, kind) for kind in KINDS] for _ in range(2)]
    for group, those in zip(clients, (right, wrong), strict=True):
        for client, login in zip(group, those, strict=True):
            client.send(client.log_in(*login), client.store(b"k", b"v"), client.fetch(b"k"))
    for group in clients:
        for client in group:
            assert client.hear(3) == [True, False, None]
    assert logins(tunnel, "unjudged") == unjudged + 4
    assert logins(tunnel, "too_many") == 0
    outage()
    for client in clients[0]:
        servers.wait_until(
            lambda client=client: client.say(client.store(b"k", b"v")) == [True], "it is served"
        )
        assert client.say(client.fetch(b"k")) == [b"v"]
    for client in clients[1]:

        def refused(client: servers.Binary = client) -> bool:
            (said,) = client.say(client.fetch(b"k"))
            assert said in (None, REFUSED)
            return bool(said == REFUSED)

        servers.wait_until(refused, "the servers have refused it")
        assert client.at_end()


@pytest.mark.full
def test_a_verdict_on_a_login_is_none_on_the_one_that_came_after_it(
    tunnel: servers.Tunnel, house: House, connect: Connect, outage: Callable[[], None]
) -> None:
    client = connect(tunnel, servers.Binary)
    for login in (house.stranger(), house.user()):
        assert client.say(client.log_in(*login)) == [True]
    refused = tunnel.metric("memtunnel_upstream_connects_total", result="login_refused")
    outage()
    servers.wait_until(
        lambda: (
            tunnel.metric("memtunnel_upstream_connects_total", result="login_refused") > refused
        ),
        "the servers have refused the first one",
    )
    servers.wait_until(
        lambda: client.say(client.store(b"k", b"v")) == [True], "the second one is used"
    )
    assert client.say(client.fetch(b"k")) == [b"v"]


# What operators see


def test_one_login_too_many_is_refused_and_told(
    started: list[Any], house: House, connect: Connect, mostly_one: int
) -> None:
    # With room for three clients each, four clients are in both processes.
    tunnel = house.tunnel(
        f"--workers={mostly_one}", f"--max-clients={3 * mostly_one}", "--max-logins=1"
    )
    started.append(tunnel)
    tunnel.start().wait_ready()
    login = house.user()
    clients = [connect(tunnel, kind) for kind in KINDS * mostly_one]
    for client in clients:
        assert client.say(client.log_in(*login)) == [True]
    servers.wait_until(
        lambda: tunnel.metric("memtunnel_upstream_connections", state="warm") == POOL * mostly_one,
        "all pools are warm",
    )
    with servers.Regulars(clients):
        for kind in KINDS:
            late = connect(tunnel, kind)
            assert late.say(late.log_in(*house.user()), late.fetch(b"k")) == [REFUSED]
            assert late.at_end()
            late.close()
    assert logins(tunnel, "too_many") == 2
    assert logins(tunnel, "ok") == len(clients)
    assert tunnel.metric("memtunnel_degraded_replies_total") == 0
    assert "a client's login was refused: --max-logins is reached" in tunnel.log()


def test_without_trust_in_the_server_it_is_not_ready(
    started: list[Any], house: House, connect: Connect, tmp_path: Path, mostly_one: int
) -> None:
    other = tmp_path / "other.pem"
    other.write_bytes(authority.authority("another authority").pem)
    # The last of two flags counts.
    tunnel = house.tunnel(f"--workers={mostly_one}", f"--ca-file={other}")
    started.append(tunnel)
    tunnel.start()
    servers.wait_until(lambda: "certificate_chain" in tunnel.log(), "the log says why")
    assert tunnel.get("/readyz")[0] == 503
    client = connect(tunnel, servers.Binary)
    assert client.say(client.log_in(*house.user()), client.fetch(b"k")) == [True, None]
    assert tunnel.get("/readyz")[0] == 503


def test_p7_no_password_of_a_client_is_anywhere_to_be_read(
    tunnel: servers.Tunnel, house: House, connect: Connect
) -> None:
    client = connect(tunnel, servers.Binary)
    assert client.say(client.log_in(*house.user())) == [True]
    other = connect(tunnel, servers.Text)
    assert other.say(other.log_in(*house.stranger())) == [REFUSED]
    said = statistics(client)
    assert "connections_warm" in said
    said += "".join(tunnel.get(page)[1] for page in ("/", "/metrics", "/readyz", "/healthz"))
    said += tunnel.log()
    assert "refused" in said
    for password in house.passwords:
        for form in forms(password):
            assert form not in said
