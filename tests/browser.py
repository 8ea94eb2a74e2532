"""The status page in a real browser: what it shows, what it asks for, what it complains of."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from playwright.sync_api import Browser, Locator, sync_playwright
from servers import PATIENCE, need

from memtunnel.ops.admin import PAGE, PAGE_POLICY


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Debian's chromium. While it is open, no loop of asyncio's can run in this thread."""
    program = need("chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


class Visit:
    """One page, in a window of its own; `options` are those of a context of playwright's."""

    def __init__(self, browser: Browser, url: str, *, clock: bool = False, **options: Any) -> None:
        self.context = browser.new_context(timezone_id="UTC", **options)
        self.context.set_default_timeout(1000 * PATIENCE)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        """The addresses asked for, of any kind and by whatever."""
        self.complaints: list[str] = []
        """Errors on the console, breaches of the policy among them."""
        self.context.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._heard)
        if clock:
            self.page.clock.install(time=0)
            self.page.clock.pause_at(1000)
        self.page.goto(url)

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def __getitem__(self, selector: str) -> Locator:
        return self.page.locator(selector)

    def texts(self, selector: str) -> list[str]:
        """What stands in all that match, each with its white space as single spaces."""
        return [" ".join(text.split()) for text in self[selector].all_inner_texts()]

    def turn(self, hidden: bool) -> None:
        """What a browser does as its tab goes to the back, or comes to the front."""
        self.page.evaluate(
            """hidden => {
                Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
                document.dispatchEvent(new Event("visibilitychange"));
            }""",
            hidden,
        )

    def close(self) -> None:
        self.context.close()


class Stub:
    """Serves the page as the admin port does, with a document that the test chooses."""

    def __init__(self, document: Callable[[], Any]) -> None:
        self.document = document
        self.code = 200
        self.body: bytes | None = None
        """In place of the document, if it is there."""
        self.gate = threading.Event()
        """While it is not set, nobody is answered."""
        self.gate.set()
        self.asked = 0
        """How often for the document."""
        self.after = 0
        """The number of the row after which it was asked for."""
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                """No log."""

            def do_GET(self) -> None:
                if self.path == "/":
                    policy = {"content-security-policy": PAGE_POLICY}
                    self._answer(200, "text/html; charset=utf-8", PAGE.encode(), policy)
                elif self.path.partition("?")[0] == "/status":
                    stub.asked += 1
                    stub.after = int(self.path.partition("?after=")[2])
                    stub.gate.wait(PATIENCE)
                    body = stub.body
                    if body is None:
                        body = json.dumps(stub.document()).encode()
                    # Whoever asks twice must not be content with what was told once.
                    fresh = {"cache-control": "max-age=600"}
                    self._answer(stub.code, "application/json", body, fresh)
                else:
                    self._answer(404, "text/plain", b"not found\n", {})

            def _answer(self, code: int, kind: str, body: bytes, more: dict[str, str]) -> None:
                with contextlib.suppress(ConnectionError):
                    self.send_response(code)
                    self.send_header("content-type", kind)
                    self.send_header("content-length", str(len(body)))
                    for name, value in more.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(PATIENCE)
