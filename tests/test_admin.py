"""The admin port: who is told what, over real sockets and from feigned addresses."""

import base64
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_twisted
from prometheus_client import parser
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from twisted.web.client import Agent, readBody
from twisted.web.http_headers import Headers
from twisted.web.test.requesthelper import DummyRequest

from memtunnel.ops import admin
from memtunnel.ops.exposition import Exposition
from memtunnel.ops.history import History
from memtunnel.ops.metrics import ConnectionState, Metrics, ServerState, State
from memtunnel.ops.overview import Overview
from memtunnel.ops.slowlog import SlowLog
from memtunnel.wire.binary import Opcode
from memtunnel.wire.sasl import Secret

TOKEN = "canary-token"
LOOPBACK = IPv4Address("TCP", "127.0.0.1", 9152)
FAR = IPv4Address("TCP", "192.0.2.1", 9152)

SERVER = ServerState(
    up=True,
    connections={"warm": 2},
    connections_target=2,
    in_flight=0,
    queued=0,
    tombstones=0,
    queue_oldest_seconds=0.0,
    breaker_open=False,
    verify="full",
    tls=("TLSv1.3", "TLS_AES_256_GCM_SHA384"),
    certificate_not_after=2e9,
    pool=(ConnectionState(number=1, state="warm", age=1.0, in_flight=0, round_trip=None),),
)
READY = State(
    ready=True,
    draining=False,
    client_paused=0,
    buffered_bytes=0,
    client_connections_max=10,
    config_last_reload_successful=True,
    servers={"mc1<b>": SERVER},
)
NOT_READY = replace(READY, ready=False, servers={"mc1<b>": replace(SERVER, up=False)})


def make_metrics() -> Metrics:
    return Metrics(version="1", python="3", twisted="26", openssl="3.5", reactor="EPollReactor")


def make_overview() -> Overview:
    return Overview(History(), SlowLog(), lambda: 0.0, lambda: 0.0)


def make_site(
    state: Callable[[], State] = lambda: READY, metrics: Metrics | None = None, **options: Any
) -> Any:
    """A site of a tunnel that serves in its own process."""
    metrics = metrics or make_metrics()
    metrics.watch(state)
    options = {"overview": make_overview(), "token": None, "reactor": Clock(), **options}
    return admin.site(lambda: succeed(metrics), lambda: True, **options)


class Answer:
    """What a client got."""

    def __init__(self, code: int, headers: Headers, body: bytes) -> None:
        self.code = code
        self.headers = headers
        self.body = body

    def header(self, name: str) -> str | None:
        values = self.headers.getRawHeaders(name)
        return None if values is None else values[0]


class FakeRequest(DummyRequest):
    """A request as it arrives at an address of this machine."""

    def __init__(self, path: bytes, host: Any, headers: dict[str, str]) -> None:
        super().__init__([])
        self.path = path
        self.clientproto = b"HTTP/1.1"
        self.lost = False
        self._host = host
        for name, value in headers.items():
            self.requestHeaders.addRawHeader(name, value)

    def getHost(self) -> Any:
        return self._host

    def loseConnection(self) -> None:
        self.lost = True


def render(
    path: str,
    host: Any = FAR,
    token: str | None = None,
    state: State = READY,
    **headers: str,
) -> Answer:
    """Ask a site with a fake clock, and let it finish."""
    clock = Clock()
    site = make_site(lambda: state, token=Secret(token) if token else None, reactor=clock)
    request = FakeRequest(path.encode(), host, headers)
    request.render(site.resource)
    while clock.getDelayedCalls():
        clock.advance(0)
    assert request.finished == 1
    return Answer(request.responseCode, request.responseHeaders, b"".join(request.written))


class Site:
    """A site that listens on 127.0.0.1, and its client."""

    def __init__(self, reactor: Any, token: Secret | None) -> None:
        self.state = READY
        self.metrics = make_metrics()
        factory = make_site(lambda: self.state, self.metrics, token=token, reactor=reactor)
        self.port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self._reactor = reactor
        self._agent = Agent(reactor, connectTimeout=10)

    async def get(self, path: str, method: str = "GET", **headers: str) -> Answer:
        given = Headers({name: [value] for name, value in headers.items()})
        url = f"http://127.0.0.1:{self.port.getHost().port}{path}"
        asked = self._agent.request(method.encode(), url.encode(), given)
        response = await asked.addTimeout(10, self._reactor)
        body = await readBody(response).addTimeout(10, self._reactor)
        return Answer(response.code, response.headers, body)


@pytest_twisted.async_yield_fixture(params=[None, TOKEN], ids=["no token", "token"])
async def site(request: pytest.FixtureRequest) -> AsyncIterator[Site]:
    """On loopback a token changes nothing."""
    from twisted.internet import reactor

    running = Site(reactor, Secret(request.param) if request.param else None)
    yield running
    await running.port.stopListening()


@pytest_twisted.ensureDeferred
async def test_healthz_is_well_whatever_the_servers_do(site: Site) -> None:
    site.state = NOT_READY
    answer = await site.get("/healthz")
    assert (answer.code, answer.body) == (200, b"ok\n")


@pytest_twisted.ensureDeferred
async def test_readyz_tells_the_state_of_each_server(site: Site) -> None:
    answer = await site.get("/readyz")
    assert answer.code == 200
    told = json.loads(answer.body)
    assert told["ready"] is True
    assert told["servers"]["mc1<b>"]["up"] is True
    assert "pool" not in told["servers"]["mc1<b>"], "each by itself is for /status"
    assert "workers" not in told, "there are none"
    site.state = NOT_READY
    answer = await site.get("/readyz")
    assert answer.code == 503
    told = json.loads(answer.body)
    assert told["ready"] is False
    assert told["servers"]["mc1<b>"]["up"] is False


@pytest_twisted.ensureDeferred
async def test_metrics_come_whole_in_the_format_asked_for(site: Site) -> None:
    site.metrics.local.answered(Opcode.NOOP, 0, 1.0, 0.0, 1.0, 1.0)
    answer = await site.get("/metrics")
    assert answer.code == 200
    assert answer.header("content-type") == "text/plain; version=0.0.4; charset=utf-8"
    names = {each.name for each in parser.text_string_to_metric_families(answer.body.decode())}
    assert {"memtunnel_commands", "memtunnel_upstream_up", "process_open_fds"} <= names
    answer = await site.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert answer.header(
        "content-type",
    ).startswith("application/openmetrics-text")
    assert answer.body.endswith(b"# EOF\n")


@pytest_twisted.ensureDeferred
async def test_the_page_may_do_nothing_but_ask_where_it_came_from(site: Site) -> None:
    answer = await site.get("/")
    assert (answer.code, answer.body.decode()) == (200, admin.PAGE)
    policy = answer.header("content-security-policy") or ""
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules.pop("default-src") == "'none'"
    assert rules.pop("connect-src") == "'self'"
    assert rules.pop("img-src") == "data:"
    for kind in ("style-src", "script-src"):
        assert re.fullmatch("'sha256-[A-Za-z0-9+/]{43}='", rules.pop(kind))
    assert rules == dict.fromkeys(("base-uri", "form-action", "frame-ancestors"), "'none'")


@pytest_twisted.ensureDeferred
async def test_status_is_a_document_of_everything(site: Site) -> None:
    answer = await site.get("/status")
    assert (answer.code, answer.header("content-type")) == (200, "application/json")
    told = json.loads(answer.body)
    assert told["ready"] is True
    assert [server["name"] for server in told["servers"]] == ["mc1<b>"]
    assert told["servers"][0]["connections"][0]["state"] == "warm"
    assert told["history"]["time"] == told["slow"] == []


@pytest.mark.parametrize("after", ["x", "", "-1", "9" * 16])
@pytest_twisted.ensureDeferred
async def test_status_is_asked_for_with_a_number(site: Site, after: str) -> None:
    assert (await site.get("/status?after=17")).code == 200
    answer = await site.get(f"/status?after={after}")
    assert (answer.code, answer.body) == (400, b"after has to be a number\n")


@pytest.mark.parametrize("path", ["/", "/status", "/metrics", "/healthz", "/readyz"])
@pytest_twisted.ensureDeferred
async def test_head_has_the_headers_and_no_body(site: Site, path: str) -> None:
    answer = await site.get(path, method="HEAD")
    whole = await site.get(path)
    assert (answer.code, answer.body) == (200, b"")
    assert answer.header("content-type") == whole.header("content-type")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "BREW"])
@pytest_twisted.ensureDeferred
async def test_other_methods_are_refused(site: Site, method: str) -> None:
    answer = await site.get("/metrics", method=method)
    assert answer.code == 405
    assert answer.header("allow") == "GET, HEAD"


@pytest_twisted.ensureDeferred
async def test_an_unknown_page_is_not_found(site: Site) -> None:
    assert (await site.get("/metrics/")).code == 404
    assert (await site.get("/favicon.ico")).code == 404


@pytest_twisted.ensureDeferred
async def test_a_query_changes_nothing(site: Site) -> None:
    assert (await site.get("/healthz?x=1")).code == 200


@pytest.mark.parametrize("path", ["/", "/status", "/metrics", "/healthz", "/readyz"])
@pytest_twisted.ensureDeferred
async def test_a_foreign_host_is_refused_on_loopback(site: Site, path: str) -> None:
    answer = await site.get(path, Host="evil.example:9152", Authorization=f"Bearer {TOKEN}")
    assert answer.code == 403
    assert b"mc1" not in answer.body


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:9152", "127.0.0.2", "[::1]", "[::1]:80"],
)
def test_a_host_of_this_machine_is_served(host: str) -> None:
    assert render("/metrics", LOOPBACK, Host=host).code == 200


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "127.0.0.1@evil.example",
        "localhost:80:80",
        "localhost:x",
        "[localhost]",
        "[127.0.0.1]",
        "[::1",
        "::1",
        "192.0.2.1",
        "0.0.0.0",
    ],
)
def test_any_other_host_is_not(host: str) -> None:
    assert render("/metrics", LOOPBACK, Host=host).code == 403


@pytest.mark.parametrize(("version", "code"), [(b"HTTP/1.0", 200), (b"HTTP/1.1", 403)])
def test_only_http_1_0_may_leave_the_host_out(version: bytes, code: int) -> None:
    request = FakeRequest(b"/healthz", LOOPBACK, {})
    request.clientproto = version
    request.render(make_site().resource)
    assert request.responseCode == code


def test_two_hosts_must_both_be_of_this_machine() -> None:
    request = FakeRequest(b"/healthz", LOOPBACK, {"Host": "localhost"})
    request.requestHeaders.addRawHeader("Host", "evil.example")
    request.render(make_site().resource)
    assert request.responseCode == 403


@pytest.mark.parametrize(
    ("address", "near"),
    [
        (LOOPBACK, True),
        (IPv4Address("TCP", "127.9.9.9", 1), True),
        (IPv6Address("TCP", "::1", 1), True),
        (UNIXAddress(b"/run/memtunnel"), True),
        (FAR, False),
        (IPv4Address("TCP", "0.0.0.0", 1), False),
        (IPv6Address("TCP", "fe80::1%eth0", 1), False),
        (None, False),
    ],
)
def test_which_addresses_are_loopback(address: Any, near: bool) -> None:
    assert admin.is_loopback(address) is near


def basic(login: str) -> str:
    return "Basic " + base64.b64encode(login.encode()).decode()


@pytest.mark.parametrize("path", ["/", "/status", "/metrics"])
def test_beyond_loopback_only_the_token_opens(path: str) -> None:
    assert render(path, Host="localhost").code == 403
    assert render(path, Authorization="Bearer ").code == 403
    assert render(path, Authorization=basic("user:")).code == 403
    for wrong in (
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        f"Bearer {TOKEN}x",
        f"Basic {TOKEN}",
        f"Digest {TOKEN}",
        basic(TOKEN),
        basic(f"{TOKEN}:"),
        basic(f"user:{TOKEN}x"),
    ):
        answer = render(path, token=TOKEN, Authorization=wrong)
        assert answer.code == 401
        offered = answer.headers.getRawHeaders("www-authenticate")
        assert offered == ["Bearer", 'Basic realm="memtunnel"']
        assert b"mc1" not in answer.body
        assert TOKEN.encode() not in answer.body
    answer = render(path, token=TOKEN, Authorization=f"Bearer {TOKEN}")
    assert answer.code == 200
    assert TOKEN.encode() not in answer.body
    assert render(path, token=TOKEN, Authorization=f"bearer {TOKEN}").code == 200
    assert render(path, token=TOKEN, Authorization=basic(f"user:{TOKEN}")).code == 200
    assert render(path, token=TOKEN, Authorization=basic(f":{TOKEN}")).code == 200


@pytest.mark.parametrize("token", [None, TOKEN])
def test_beyond_loopback_health_is_a_word(token: str | None) -> None:
    assert render("/healthz", token=token).body == b"ok\n"
    answer = render("/readyz", token=token)
    assert (answer.code, answer.body) == (200, b"ready\n")
    answer = render("/readyz", token=token, state=NOT_READY)
    assert (answer.code, answer.body) == (503, b"not ready\n")


def test_beyond_loopback_the_token_shows_the_state() -> None:
    answer = render("/readyz", token=TOKEN, state=NOT_READY, Authorization=f"Bearer {TOKEN}")
    assert answer.code == 503
    assert "mc1<b>" in json.loads(answer.body)["servers"]


def test_an_empty_token_is_no_token() -> None:
    with pytest.raises(ValueError, match="empty"):
        make_site(token=Secret(""))


class Call:
    """What a reactor calls later."""

    def __init__(self, call: Callable[[], None]) -> None:
        self.call = call
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Turns:
    """A reactor of which one turn is run at a time: `Clock` runs on until nothing is due."""

    def __init__(self) -> None:
        self._calls: list[Call] = []

    def callLater(self, delay: float, call: Callable[[], None]) -> Call:
        assert delay == 0
        self._calls.append(Call(call))
        return self._calls[-1]

    @property
    def is_idle(self) -> bool:
        return all(call.cancelled for call in self._calls)

    def turn(self) -> None:
        calls, self._calls = self._calls, []
        for call in calls:
            if not call.cancelled:
                call.call()


class Scrape:
    """Scrapes rendered turn by turn; each piece takes `cost` seconds of a fake clock."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        cost: float,
        state: Callable[[], State] = lambda: READY,
    ) -> None:
        self.turns = Turns()
        self._now = 0.0
        self._site = make_site(state, reactor=self.turns, clock=lambda: self._now)

        def spend(pieces: Iterator[bytes]) -> Iterator[bytes]:
            for piece in pieces:
                self._now += cost
                yield piece

        class Dear(Exposition):
            def render(self, accept: str) -> tuple[str, Iterator[bytes]]:
                content_type, pieces = super().render(accept)
                return content_type, spend(pieces)

        monkeypatch.setattr(admin, "Exposition", Dear)

    def start(self) -> FakeRequest:
        request = FakeRequest(b"/metrics", LOOPBACK, {"Host": "localhost"})
        request.render(self._site.resource)
        return request

    def turn(self) -> None:
        self.turns.turn()


def test_a_turn_renders_for_a_millisecond_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    scrape = Scrape(monkeypatch, cost=0.0004)
    request = scrape.start()
    assert request.written == []
    for turn in range(1, 5):
        scrape.turn()
        assert len(request.written) == 3 * turn  # 0.4, 0.8, 1.2 ms
    assert not request.finished
    while not scrape.turns.is_idle:
        scrape.turn()
    assert request.finished == 1
    families = parser.text_string_to_metric_families(b"".join(request.written).decode())
    assert "memtunnel_buffered_bytes" in {family.name for family in families}


def test_scrapes_share_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    scrape = Scrape(monkeypatch, cost=0.0004)
    requests = [scrape.start() for _ in range(3)]
    scrape.turn()
    assert sum(len(request.written) for request in requests) == 3
    while not scrape.turns.is_idle:
        scrape.turn()
    assert [request.finished for request in requests] == [1, 1, 1]


def test_nothing_is_rendered_for_a_client_that_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    scrape = Scrape(monkeypatch, cost=0.01)
    request = scrape.start()
    scrape.turn()
    written = len(request.written)
    assert written
    request.processingFailed(Failure(ConnectionLost()))
    scrape.turn()
    assert len(request.written) == written
    assert scrape.turns.is_idle
    assert not request.finished


def test_a_scrape_that_fails_is_cut_off_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> State:
        raise RuntimeError("broken on purpose")

    told: list[Any] = []
    scrape = Scrape(monkeypatch, 0.0, broken)
    globalLogPublisher.addObserver(told.append)
    try:
        request = scrape.start()
        scrape.turn()
    finally:
        globalLogPublisher.removeObserver(told.append)
    assert request.lost
    assert not request.finished
    assert scrape.turns.is_idle
    assert [str(event["log_failure"].value) for event in told] == ["broken on purpose"]


def test_health_is_lost_where_a_worker_does_not_answer() -> None:
    site = admin.site(
        Deferred, lambda: False, overview=make_overview(), token=None, reactor=Clock()
    )
    request = FakeRequest(b"/healthz", LOOPBACK, {"Host": "localhost"})
    request.render(site.resource)
    assert (request.responseCode, request.written) == (503, [b"a worker does not answer\n"])


@pytest.mark.parametrize("path", [b"/", b"/status", b"/metrics", b"/readyz"])
def test_nobody_is_shown_a_page_who_has_gone_before_it_could_be_read(path: bytes) -> None:
    reading: Deferred[Metrics] = Deferred()
    site = admin.site(
        lambda: reading, lambda: True, overview=make_overview(), token=None, reactor=Clock()
    )
    request = FakeRequest(path, LOOPBACK, {"Host": "localhost"})
    request.render(site.resource)
    request.processingFailed(Failure(ConnectionLost()))
    metrics = make_metrics()
    metrics.watch(lambda: READY)
    reading.callback(metrics)
    assert request.written == []
    assert not request.finished
