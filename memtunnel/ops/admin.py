"""The admin port: HTTP with the metrics, the tunnel's health, and a status page.

Everything here is answered from what was counted, and from a `State` (both of `ops.metrics`). The
status page is a file of its own (`page.html`), which asks for ``/status`` again and again.
Beyond loopback only health is told to those without the token; on loopback a page of some web
site, whose name was made to point here, is told by its Host header and refused.
"""

from __future__ import annotations

import base64
import hmac
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.task import Cooperator
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from memtunnel.ops.exposition import Exposition
from memtunnel.ops.metrics import Metrics, State
from memtunnel.ops.overview import Overview
from memtunnel.wire.sasl import Secret

#: Seconds of rendering in one turn of the reactor, all scrapes together.
TURN: Final = 0.001

_TEXT: Final = "text/plain; charset=utf-8"
_JSON: Final = "application/json"
_HTML: Final = "text/html; charset=utf-8"
_NO_TOKEN: Final = "served on loopback only, as long as MEMTUNNEL_METRICS_TOKEN is not set\n"

#: The status page.
PAGE: Final = Path(__file__).with_name("page.html").read_text("utf-8")


def _hash_of(tag: str) -> str:
    """By what a browser knows the only element of this kind in the page."""
    (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)
    return "sha256-" + base64.b64encode(sha256(text.encode()).digest()).decode()


#: What the page may do: nothing but what is in it, and ask where it came from.
PAGE_POLICY: Final = (
    "default-src 'none'; connect-src 'self'; img-src data:; "
    f"style-src '{_hash_of('style')}'; script-src '{_hash_of('script')}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def site(
    read: Callable[[], Deferred[Metrics]],
    responsive: Callable[[], bool],
    *,
    overview: Overview,
    token: Secret | None,
    reactor: Any,
    clock: Callable[[], float] = time.perf_counter,
) -> Site:
    """What to listen with.

    `read` gives the metrics, which know their state, as they are now; `responsive` says whether
    all loops turn; `overview` renders ``/status``. `token` opens everything beyond loopback.
    `clock` measures the time spent on rendering. Raises `ValueError` for an empty token, which
    would be no lock at all.
    """
    if token is not None and not token.reveal():
        raise ValueError("the token of the admin port is empty")
    return AdminSite(  # type: ignore[no-untyped-call]
        Admin(read, responsive, overview, token, reactor, clock),
        requestFactory=_BodylessRequest,
        reactor=reactor,
        parsePOSTFormSubmission=False,
    )


class AdminSite(Site):
    noisy = False
    displayTracebacks = False

    def log(self, request: Any) -> None:
        """No access log."""


class _BodylessRequest(Request):
    def handleContentChunk(self, data: bytes) -> None:
        """No page takes a body: it is read past, where Twisted would fill a temporary file."""


class Admin(Resource):
    """All pages, behind one door."""

    isLeaf = True

    def __init__(
        self,
        read: Callable[[], Deferred[Metrics]],
        responsive: Callable[[], bool],
        overview: Overview,
        token: Secret | None,
        reactor: Any,
        clock: Callable[[], float],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._log = Logger(namespace="memtunnel")
        self._read = read
        self._responsive = responsive
        self._overview = overview
        self._token = token
        self._clock = clock
        self._cooperator = Cooperator(
            terminationPredicateFactory=self._turn,
            scheduler=lambda call: reactor.callLater(0, call),
        )
        self._pages: dict[bytes, Callable[[Any, bool, Metrics], None]] = {
            b"/": self._index,
            b"/status": self._status,
            b"/metrics": self._exposition,
            b"/readyz": self._readiness,
        }

    def render(self, request: Any) -> int:
        """Answer a request, or refuse it; whoever is refused learns nothing else."""
        near = is_loopback(request.getHost())
        health = request.path == b"/healthz"
        page = self._pages.get(request.path)
        if near and not _names_loopback(request):
            _answer(request, 403, _TEXT, "this Host is not served here\n")
        elif page is None and not health:
            _answer(request, 404, _TEXT, "not found\n")
        elif request.method not in (b"GET", b"HEAD"):
            request.setHeader(b"allow", b"GET, HEAD")
            _answer(request, 405, _TEXT, "GET and HEAD only\n")
        elif page is None:
            self._health(request)
        else:
            trusted = near or self._bears_token(request)
            if trusted or request.path == b"/readyz":
                self._show(page, request, trusted)
            elif self._token is None:
                _answer(request, 403, _TEXT, _NO_TOKEN)
            else:
                # Basic is what browsers ask people for.
                for scheme in (b"Bearer", b'Basic realm="memtunnel"'):
                    request.responseHeaders.addRawHeader(b"www-authenticate", scheme)
                _answer(request, 401, _TEXT, "the token is missing or wrong\n")
        return NOT_DONE_YET

    def _bears_token(self, request: Any) -> bool:
        """As a bearer token, or as the password of anybody."""
        scheme, _, token = (request.getHeader(b"authorization") or b"").partition(b" ")
        token = token.strip()
        if scheme.lower() == b"basic":
            try:
                token = base64.b64decode(token, validate=True).partition(b":")[2]
            except ValueError:
                return False
        elif scheme.lower() != b"bearer":
            return False
        return self._token is not None and hmac.compare_digest(token, self._token.reveal())

    def _show(
        self, page: Callable[[Any, bool, Metrics], None], request: Any, trusted: bool
    ) -> None:
        """Show a page, unless whoever asked for it has gone meanwhile."""
        gone: list[Failure] = []
        request.notifyFinish().addErrback(gone.append)

        def show(metrics: Metrics) -> None:
            if not gone:
                page(request, trusted, metrics)

        self._read().addCallback(show).addErrback(self._failed, request)

    # Pages

    def _health(self, request: Any) -> None:
        if self._responsive():
            _answer(request, 200, _TEXT, "ok\n")
        else:
            _answer(request, 503, _TEXT, "a worker does not answer\n")

    def _readiness(self, request: Any, trusted: bool, metrics: Metrics) -> None:
        state = _state(metrics)
        code = 200 if state.ready else 503
        if trusted:
            _answer(request, code, _JSON, json.dumps(_summary(state), indent=2) + "\n")
        else:
            _answer(request, code, _TEXT, "ready\n" if state.ready else "not ready\n")

    def _index(self, request: Any, trusted: bool, metrics: Metrics) -> None:
        request.setHeader(b"content-security-policy", PAGE_POLICY.encode())
        _answer(request, 200, _HTML, PAGE)

    def _status(self, request: Any, trusted: bool, metrics: Metrics) -> None:
        after = request.args.get(b"after", [b"0"])[-1]
        if not re.fullmatch(b"[0-9]{1,15}", after):
            _answer(request, 400, _TEXT, "after has to be a number\n")
            return
        pieces = self._overview.render(metrics, _state(metrics), int(after))
        self._write(request, _JSON, pieces)

    def _exposition(self, request: Any, trusted: bool, metrics: Metrics) -> None:
        content_type, pieces = Exposition(metrics).render(request.getHeader("accept") or "")
        self._write(request, content_type, pieces)

    def _write(self, request: Any, content_type: str, pieces: Iterator[bytes]) -> None:
        if request.method == b"HEAD":
            _answer(request, 200, content_type, None)
            return
        _head(request, 200, content_type)
        task = self._cooperator.cooperate(_written(request, pieces))
        task.whenDone().addErrback(self._failed, request)

    def _failed(self, failure: Failure, request: Any) -> None:
        # The head may be out: only a cut tells the other side that the rest is missing.
        self._log.failure("a page could not be rendered", failure)
        request.loseConnection()

    def _turn(self) -> Callable[[], bool]:
        end = self._clock() + TURN
        return lambda: self._clock() >= end


def _state(metrics: Metrics) -> State:
    state = metrics.state()
    assert state is not None, "nobody to ask"
    return state


def _summary(state: State) -> dict[str, Any]:
    """All but each connection by itself, which is for /status: there may be hundreds."""
    servers = {name: replace(server, pool=()) for name, server in state.servers.items()}
    told = asdict(replace(state, servers=servers, workers={}))
    for server in told["servers"].values():
        del server["pool"]
    del told["workers"]
    if state.workers:
        told["workers"] = {number: _summary(worker) for number, worker in state.workers.items()}
    return told


def is_loopback(address: Any) -> bool:
    """Whether a local address is out of reach for other machines."""
    return isinstance(address, UNIXAddress) or _is_loopback_ip(getattr(address, "host", ""))


def _is_loopback_ip(text: str) -> bool:
    try:
        ip = ip_address(text)
    except ValueError:
        return False
    # A socket that listens on [::] has 127.0.0.1 as ::ffff:127.0.0.1.
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


def _names_loopback(request: Any) -> bool:
    """Whether the Host header is one that a browser sends only for this very machine."""
    hosts = request.requestHeaders.getRawHeaders("host", [])
    if not hosts:
        return bool(request.clientproto == b"HTTP/1.0")
    return all(_is_loopback_host(host) for host in hosts)


def _is_loopback_host(host: str) -> bool:
    name, colon, port = host.rpartition(":")
    if not colon or host.endswith("]"):
        name = host
    elif not (port.isascii() and port.isdigit()):
        return False
    if name.startswith("[") and name.endswith("]"):
        return ":" in name and _is_loopback_ip(name[1:-1])
    return name.lower() == "localhost" or (":" not in name and _is_loopback_ip(name))


def _head(request: Any, code: int, content_type: str) -> None:
    request.setResponseCode(code)
    request.setHeader(b"content-type", content_type.encode())
    request.setHeader(b"cache-control", b"no-store")
    request.setHeader(b"x-content-type-options", b"nosniff")


def _answer(request: Any, code: int, content_type: str, text: str | None) -> None:
    """A whole answer; to HEAD, Twisted leaves the body out."""
    _head(request, code, content_type)
    body = (text or "").encode()
    if text is not None:
        request.setHeader(b"content-length", b"%d" % len(body))
    request.write(body)
    request.finish()


def _written(request: Any, pieces: Iterator[bytes]) -> Iterator[None]:
    """Write a piece at each step, until the client has gone."""
    gone: list[Failure] = []
    request.notifyFinish().addErrback(gone.append)
    for piece in pieces:
        if gone:
            return
        request.write(piece)
        yield None
    if not gone:
        request.finish()
