"""A website over HTTPS, on this machine."""

import ssl
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import NamedTuple

import authority
import servers


class Page(NamedTuple):
    """What the server has at a path."""

    body: bytes = b""
    status: int = 200
    location: str | None = None
    missing: int = 0
    """Bytes that the header promises beyond the body."""


class Site:
    """An HTTPS server of `pages`, by path."""

    def __init__(self, pair: authority.Pair, folder: Path) -> None:
        self.pages: dict[str, Page] = {}
        self.asked: list[str] = []
        site = self

        class Visit(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append(self.path)
                page = site.pages.get(self.path, Page(b"<html>Not here</html>", 404))
                self.send_response(page.status)
                if page.location is not None:
                    self.send_header("Location", page.location)
                self.send_header("Content-Length", str(len(page.body) + page.missing))
                self.end_headers()
                self.wfile.write(page.body)

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        (folder / "site.pem").write_bytes(pair.pem)
        (folder / "site.key").write_bytes(pair.key_pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "site.pem", folder / "site.key")
        self._server = HTTPServer(("127.0.0.1", 0), Visit)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join(servers.PATIENCE)
        self._server.server_close()
