"""``memtunnel ca FILE``: fetch MemCachier's root certificate into a file for ``--ca-file``.

It comes over HTTPS verified by the system's roots, and nothing but certificates gets into the
file: an error page must never become what the tunnel trusts. Left to others: using it.
"""

import argparse
import contextlib
import os
import re
import shlex
import signal
import ssl
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException, HTTPMessage, InvalidURL
from pathlib import Path
from typing import IO, Final, NoReturn

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from memtunnel.net.tls import dates_of, pem_certificates, printable, words_of

URL: Final = "https://www.memcachier.com/MemCachierRootCA.pem"
#: Seconds that all of it may take.
TIMEOUT: Final = 10.0
#: Bytes of the largest answer that is read.
LIMIT: Final = 64 << 10


class CannotFetch(Exception):
    """There is no certificate to be had, or no place for it; the message says why."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CannotFetch(message)


def _parser() -> _Parser:
    words = "Fetch MemCachier's root certificate into FILE, for --ca-file."
    parser = _Parser(prog="memtunnel ca", description=words, allow_abbrev=False)
    parser.add_argument("file", metavar="FILE", type=Path, help="where to put it")
    parser.add_argument("--url", default=URL, help="where it is, over https (default: %(default)s)")
    parser.add_argument(
        "--sha256",
        metavar="DIGITS",
        type=_fingerprint,
        help="take no certificate but the one with this SHA-256, as it is printed",
    )
    return parser


def main(arguments: list[str], context: ssl.SSLContext | None = None) -> int:
    """The exit status. `context` verifies the server; None trusts the system's roots."""
    try:
        options = _parser().parse_args(arguments)
        file: Path = options.file
        # Known before anything is fetched.
        if not file.parent.is_dir():
            raise CannotFetch(f"there is no folder {file.parent}: make it, or name another file")
        if file.is_dir():
            raise CannotFetch(f"{file} is a folder: name a file in it")
        certificates = read_certificates(fetch(options.url, context))
        if options.sha256 is not None:
            check(certificates, options.sha256)
        lines = [line for one in certificates for line in _describe(one)]
        write(file, b"".join(one.public_bytes(Encoding.PEM) for one in certificates))
    except CannotFetch as problem:
        print(f"memtunnel ca: {printable(str(problem))}", file=sys.stderr)
        return 1
    lines += [
        f"Written to {file}. Next:",
        f"  MEMTUNNEL_CA_FILE={shlex.quote(str(file))} memtunnel",
    ]
    for line in lines:
        print(printable(line))
    return 0


def _fingerprint(text: str) -> bytes:
    digits = text.replace(":", "")
    if not re.fullmatch("[0-9A-Fa-f]{64}", digits):
        raise argparse.ArgumentTypeError("expected 64 digits, with or without colons")
    return bytes.fromhex(digits)


def check(certificates: list[x509.Certificate], fingerprint: bytes) -> None:
    """Raises `CannotFetch` for any that has another SHA-256."""
    for one in certificates:
        found = one.fingerprint(SHA256())
        if found != fingerprint:
            raise CannotFetch(
                f"what came is another certificate, and nothing was written: its SHA-256 is "
                f"{found.hex(':').upper()}"
            )


def _describe(certificate: x509.Certificate) -> list[str]:
    try:
        return [
            f"subject  {certificate.subject.rfc4514_string()}",
            f"dates    {dates_of(certificate)}",
            f"sha256   {certificate.fingerprint(SHA256()).hex(':').upper()}",
        ]
    except ValueError:  # some parts are parsed only when they are looked at
        words = "what came is a broken certificate, and nothing was written"
        raise CannotFetch(words) from None


class _OnlyHTTPS(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if not _is_https(newurl):
            raise CannotFetch(f"the server redirects to {_shown(newurl)}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _is_https(url: str) -> bool:
    return url.lower().startswith("https://")


def _shown(url: str) -> str:
    """The URL without what may be a secret in it."""
    return re.sub("(?s)[?#].*", "", re.sub("(?s)//.*@", "//", url))


@contextlib.contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raise TimeoutError then, whatever is waited for but a name. For the main thread."""

    def late(*_: object) -> NoReturn:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def fetch(url: str, context: ssl.SSLContext | None = None) -> bytes:
    """What is at `url`, whole, over verified HTTPS. Raises `CannotFetch`."""
    shown = _shown(url)
    if not _is_https(url):
        raise CannotFetch(f"expected a URL that begins with https://, not {shown}")
    if "@" in re.split("[/?#]", url, maxsplit=3)[2]:
        raise CannotFetch(f"expected a URL without a login: {shown}")
    opener = urllib.request.build_opener(
        urllib.request.HTTPSHandler(context=context or ssl.create_default_context()), _OnlyHTTPS
    )
    try:
        with _within(TIMEOUT), opener.open(url, timeout=TIMEOUT) as answer:
            data: bytes = answer.read(LIMIT + 1)
            if len(data) > LIMIT:
                raise CannotFetch(f"more than {LIMIT} bytes at {shown}: no root certificate")
            if answer.length:
                raise CannotFetch(f"the answer was cut short: {answer.length} bytes are missing")
    except urllib.error.HTTPError as error:
        with error:
            raise CannotFetch(f"the server answered {error.code} for {shown}") from None
    except (OSError, HTTPException, ValueError) as error:  # ValueError: what is no URL
        raise CannotFetch(f"cannot fetch {shown}: {_in_words(error)}") from None
    return data


def _in_words(error: Exception) -> str:
    if isinstance(error, urllib.error.URLError):
        reason = error.reason
        return _in_words(reason) if isinstance(reason, Exception) else str(reason)
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, (ValueError, InvalidURL)):
        return "that is no URL"  # whose parts may be secret
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT:g} s"
    return words_of(error)


def read_certificates(data: bytes) -> list[x509.Certificate]:
    """The certificates in PEM form among `data`. Raises `CannotFetch` if there is none.

    All else is left out: the text that often explains a CA file, and what cannot be read.
    """
    certificates = []
    for one in pem_certificates(data):
        with contextlib.suppress(ValueError):
            certificates.append(x509.load_pem_x509_certificate(one))
    if not certificates:
        raise CannotFetch("what came has no certificate in PEM form, and nothing was written")
    return certificates


def write(file: Path, data: bytes) -> None:
    """Put `data` there, readable by all, whole or not at all. Raises `CannotFetch`."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
        try:
            with open(descriptor, "wb") as temporary:
                os.fchmod(descriptor, 0o644)
                temporary.write(data)
                temporary.flush()
                os.fsync(descriptor)
            os.replace(name, file)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
    except OSError as error:
        raise CannotFetch(f"cannot write {file}: {error.strerror}") from None
