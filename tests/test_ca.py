"""``memtunnel ca FILE`` against a local HTTPS server: what it writes, and what it never does."""

import contextlib
import socket
import ssl
import stat
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import authority
import pytest
import servers
from cryptography.hazmat.primitives.hashes import SHA256
from website import Page, Site

from memtunnel import ca
from memtunnel.net.tls import load_roots


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def trusting(ca_file: Path) -> ssl.SSLContext:
    """As the system's roots would be, with the root of tests among them."""
    return ssl.create_default_context(cafile=str(ca_file))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "made here"
    path.mkdir()
    return path


Refuse = Callable[..., str]


@pytest.fixture
def refuse(
    folder: Path, site: Site, trusting: ssl.SSLContext, capsys: pytest.CaptureFixture[str]
) -> Refuse:
    """Runs what has to fail; returns its line. What was in the folder is as it was."""

    def run(path: str = "/ca.pem", *, url: str = "", context: ssl.SSLContext | None = None) -> str:
        file = folder / "ca.pem"
        file.write_bytes(b"what was there")
        arguments = [str(file), "--url", url or site.url + path]
        assert ca.main(arguments, context or trusting) == 1
        assert [each.name for each in folder.iterdir()] == ["ca.pem"]
        assert file.read_bytes() == b"what was there"
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("memtunnel ca: ")
        assert err.count("\n") == 1
        return err

    return run


def test_the_root_is_fetched_and_told(
    folder: Path,
    site: Site,
    trusting: ssl.SSLContext,
    root: authority.Pair,
    capsys: pytest.CaptureFixture[str],
) -> None:
    site.pages["/ca.pem"] = Page(root.pem)
    file = folder / "ca.pem"
    assert ca.main([str(file), f"--url={site.url}/ca.pem"], trusting) == 0
    assert file.read_bytes() == root.pem
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert list(folder.iterdir()) == [file]
    out, err = capsys.readouterr()
    assert err == ""
    first, last = root.certificate.not_valid_before_utc, root.certificate.not_valid_after_utc
    assert out.splitlines() == [
        "subject  CN=memtunnel test authority",
        f"dates    {first:%F} to {last:%F}, 29 days left",
        f"sha256   {root.certificate.fingerprint(SHA256()).hex(':').upper()}",
        f"Written to {file}. Next:",
        f"  MEMTUNNEL_CA_FILE='{file}' memtunnel",
    ]


def test_the_fingerprint_is_what_openssl_prints(
    folder: Path,
    site: Site,
    trusting: ssl.SSLContext,
    root: authority.Pair,
    capsys: pytest.CaptureFixture[str],
) -> None:
    openssl = servers.need("openssl")
    site.pages["/ca.pem"] = Page(root.pem)
    file = folder / "ca.pem"
    assert ca.main([str(file), f"--url={site.url}/ca.pem"], trusting) == 0
    command = [openssl, "x509", "-in", str(file), "-noout", "-fingerprint", "-sha256"]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    assert told.stdout.partition("=")[2].strip() in capsys.readouterr().out


def test_another_certificate_than_the_expected_one_is_not_taken(
    refuse: Refuse, folder: Path, site: Site, trusting: ssl.SSLContext, root: authority.Pair
) -> None:
    site.pages["/ca.pem"] = Page(root.pem)
    digits = root.certificate.fingerprint(SHA256()).hex()
    file, url = folder / "ca.pem", f"--url={site.url}/ca.pem"
    assert ca.main([str(file), url, f"--sha256={digits}"], trusting) == 0
    file.unlink()
    other = ("0" if digits[0] != "0" else "1") + digits[1:]
    assert ca.main([str(file), url, f"--sha256={other}"], trusting) == 1
    assert not file.exists()


def test_several_roots_are_kept_in_order_and_readable_by_the_tunnel(
    folder: Path, site: Site, trusting: ssl.SSLContext, root: authority.Pair
) -> None:
    second = authority.authority("the next one")
    site.pages["/ca.pem"] = Page(root.pem.replace(b"\n", b"\r\n") + b"\r\n\r\n" + second.pem)
    file = folder / "ca.pem"
    assert ca.main([str(file), f"--url={site.url}/ca.pem"], trusting) == 0
    assert file.read_bytes() == root.pem + second.pem
    assert len(load_roots(file.read_bytes())) == 2


def test_an_older_file_is_replaced(
    folder: Path, site: Site, trusting: ssl.SSLContext, root: authority.Pair
) -> None:
    site.pages["/ca.pem"] = Page(root.pem)
    file = folder / "ca.pem"
    file.write_bytes(b"old")
    file.chmod(0o600)
    assert ca.main([str(file), f"--url={site.url}/ca.pem"], trusting) == 0
    assert file.read_bytes() == root.pem
    assert stat.S_IMODE(file.stat().st_mode) == 0o644


def test_a_redirect_to_https_is_followed(
    folder: Path, site: Site, trusting: ssl.SSLContext, root: authority.Pair
) -> None:
    site.pages["/old.pem"] = Page(status=301, location="/ca.pem")
    site.pages["/ca.pem"] = Page(root.pem)
    file = folder / "ca.pem"
    assert ca.main([str(file), f"--url={site.url}/old.pem"], trusting) == 0
    assert file.read_bytes() == root.pem


@pytest.mark.parametrize("elsewhere", ["http://127.0.0.1:1/", "ftp://127.0.0.1:1/"])
def test_a_redirect_to_anything_else_is_not(refuse: Refuse, site: Site, elsewhere: str) -> None:
    site.pages["/ca.pem"] = Page(status=302, location=elsewhere)
    assert f"redirects to {elsewhere}, which is not https" in refuse()


def test_a_redirect_to_a_file_is_not(
    refuse: Refuse, site: Site, root: authority.Pair, tmp_path: Path
) -> None:
    local = tmp_path / "local.pem"
    local.write_bytes(root.pem)
    site.pages["/ca.pem"] = Page(status=302, location=local.as_uri())
    assert "the server answered 302" in refuse()


def test_redirects_end(refuse: Refuse, site: Site) -> None:
    site.pages["/ca.pem"] = Page(status=302, location="/ca.pem")
    assert "the server answered 302" in refuse()
    assert len(site.asked) < 20


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "file:///etc/passwd", "ca.pem", ""])
def test_only_https_is_fetched(folder: Path, capsys: pytest.CaptureFixture[str], url: str) -> None:
    assert ca.main([str(folder / "ca.pem"), "--url", url]) == 1
    assert "expected a URL that begins with https://" in capsys.readouterr().err
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("url", ["https://", "https://[", "https://127.0.0.1:port/"])
def test_a_url_that_is_none(refuse: Refuse, url: str) -> None:
    assert f"cannot fetch {url}: " in refuse(url=url)


def test_the_server_is_verified_by_the_systems_roots(
    refuse: Refuse, site: Site, root: authority.Pair
) -> None:
    """The very root that it would hand out is not in them."""
    site.pages["/ca.pem"] = Page(root.pem)
    assert "its certificate is not trusted" in refuse(context=ssl.create_default_context())
    assert site.asked == []


def test_without_a_context_the_systems_roots_decide(
    folder: Path, site: Site, root: authority.Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    site.pages["/ca.pem"] = Page(root.pem)
    assert ca.main([str(folder / "ca.pem"), f"--url={site.url}/ca.pem"]) == 1
    assert "its certificate is not trusted" in capsys.readouterr().err
    assert site.asked == []
    assert list(folder.iterdir()) == []


def test_the_servers_name_counts(refuse: Refuse, root: authority.Pair, tmp_path: Path) -> None:
    site = Site(authority.issue("www.example.com", issuer=root), tmp_path)
    site.pages["/ca.pem"] = Page(root.pem)
    try:
        words = refuse(url=f"{site.url}/ca.pem")
    finally:
        site.stop()
    assert "its certificate is not trusted: IP address mismatch" in words
    assert site.asked == []


def test_an_error_page_is_no_certificate(refuse: Refuse) -> None:
    assert "the server answered 404" in refuse("/nothing-here.pem")


EXPLAINED: dict[str, Callable[[authority.Pair], bytes]] = {
    "text": lambda root: b"Our root\n========\n" + root.pem + b"-- the end \xff\n",
    "a page": lambda root: b"<pre>" + root.pem + b"</pre>",
    "its key": lambda root: root.key_pem + root.pem,
    "half of another": lambda root: root.pem + root.pem[: len(root.pem) // 2],
    "a broken one before": lambda root: BROKEN[0] + root.pem,
    "a broken one behind": lambda root: root.pem + BROKEN[1],
}


@pytest.mark.parametrize("make", EXPLAINED.values(), ids=EXPLAINED)
def test_what_is_around_a_certificate_is_left_out(
    folder: Path,
    site: Site,
    trusting: ssl.SSLContext,
    root: authority.Pair,
    make: Callable[[authority.Pair], bytes],
) -> None:
    site.pages["/ca.pem"] = Page(make(root))
    file = folder / "ca.pem"
    assert ca.main([str(file), f"--url={site.url}/ca.pem"], trusting) == 0
    assert file.read_bytes() == root.pem


BROKEN = [
    b"-----BEGIN CERTIFICATE-----\n" + inside + b"\n-----END CERTIFICATE-----\n"
    for inside in (b"MAA=", b"not base64!", b"MIIB")
]
ERROR_PAGE = b"<html><title>Maintenance</title></html>"
NOT_CERTIFICATES: dict[str, Callable[[authority.Pair], bytes]] = {
    "an error page with status 200": lambda root: ERROR_PAGE,
    "nothing": lambda root: b"",
    "a key": lambda root: root.key_pem,
    "a certificate in DER": lambda root: ssl.PEM_cert_to_DER_cert(root.pem.decode()),
    "half a certificate": lambda root: root.pem[: len(root.pem) // 2],
    "broken ones only": lambda root: b"".join(BROKEN),
}


@pytest.mark.parametrize("make", NOT_CERTIFICATES.values(), ids=NOT_CERTIFICATES)
def test_what_has_no_certificate_is_not_taken(
    refuse: Refuse, site: Site, root: authority.Pair, make: Callable[[authority.Pair], bytes]
) -> None:
    site.pages["/ca.pem"] = Page(make(root))
    assert "no certificate in PEM form" in refuse()


def test_an_answer_that_was_cut_short_is_not_taken(
    refuse: Refuse, site: Site, root: authority.Pair
) -> None:
    """It may end between two certificates, where nobody would see it."""
    site.pages["/ca.pem"] = Page(root.pem, missing=len(root.pem))
    assert f"cut short: {len(root.pem)} bytes are missing" in refuse()


def test_an_answer_that_is_too_large_is_not_taken(
    refuse: Refuse, site: Site, root: authority.Pair
) -> None:
    site.pages["/ca.pem"] = Page(root.pem + b"\n" * ca.LIMIT)
    assert f"more than {ca.LIMIT} bytes" in refuse()


def test_a_server_that_is_not_there(refuse: Refuse) -> None:
    words = refuse(url=f"https://127.0.0.1:{servers.free_port()}/ca.pem")
    assert "Connection refused" in words


def test_a_server_that_keeps_silent(refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ca, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as hole:
        words = refuse(url=f"https://127.0.0.1:{hole.getsockname()[1]}/ca.pem")
    assert "no answer within 0.2 s" in words


@pytest.mark.parametrize(
    ("begins", "goes_on"),
    [(b"HTTP/1.1 200 OK\r\n", b"X-More: 1\r\n"), (b"HTTP/1.1 200 OK\r\n\r\n", b"\n")],
    ids=["headers", "body"],
)
def test_an_answer_that_only_trickles_ends_too(
    begins: bytes,
    goes_on: bytes,
    refuse: Refuse,
    good_pair: authority.Pair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each read is quick; it is the whole that takes too long."""
    monkeypatch.setattr(ca, "TIMEOUT", 0.3)
    (tmp_path / "site.pem").write_bytes(good_pair.pem + good_pair.key_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "site.pem")

    def trickle(listener: socket.socket) -> None:
        with contextlib.suppress(OSError), context.wrap_socket(listener.accept()[0], True) as one:
            one.sendall(begins)
            for _ in range(1000):
                time.sleep(0.02)
                one.sendall(goes_on)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(servers.PATIENCE)
        server = threading.Thread(target=trickle, args=(listener,))
        server.start()
        words = refuse(url=f"https://127.0.0.1:{listener.getsockname()[1]}/ca.pem")
        server.join(servers.PATIENCE)
    assert "no answer within 0.3 s" in words


def test_what_may_be_secret_in_a_url_is_not_told(refuse: Refuse, site: Site) -> None:
    site.pages["/moved"] = Page(status=302, location="http://user:canary@127.0.0.1/?token=canary")
    for url in (
        f"{site.url}/nothing-here.pem?token=canary",
        f"{site.url}/moved",
        "http://user:canary@127.0.0.1/ca.pem",
        f"https://127.0.0.1:{servers.free_port()}/?token=canary",
        "https://user:canary?@127.0.0.1:1/ca.pem",
        "https://user:canary/@127.0.0.1:1/ca.pem",
    ):
        assert "canary" not in refuse(url=url)
    words = refuse(url=f"{site.url.replace('//', '//user:canary@')}/ca.pem")
    assert "expected a URL without a login: https://127.0.0.1" in words
    assert "canary" not in words


def test_a_folder_that_is_missing_is_known_before_anything_is_fetched(
    folder: Path, site: Site, trusting: ssl.SSLContext, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "nowhere" / "ca.pem"
    assert ca.main([str(file), f"--url={site.url}/ca.pem"], trusting) == 1
    assert f"there is no folder {file.parent}" in capsys.readouterr().err
    assert ca.main([str(folder), f"--url={site.url}/ca.pem"], trusting) == 1
    assert f"{folder} is a folder" in capsys.readouterr().err
    assert site.asked == []


def test_a_rename_that_fails_leaves_nothing_behind(
    refuse: Refuse, site: Site, root: authority.Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    site.pages["/ca.pem"] = Page(root.pem)
    monkeypatch.setattr(ca.os, "replace", fail)
    words = refuse()
    assert "cannot write" in words
    assert "Operation not permitted" in words


@pytest.mark.parametrize("arguments", [[], ["--url"], ["a", "b"], ["a", "--no-such-flag"]])
def test_a_command_line_that_is_wrong(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ca.main(arguments) == 1
    assert capsys.readouterr().err.startswith("memtunnel ca: ")


def test_what_a_server_says_does_not_reach_the_terminal_raw(
    folder: Path, site: Site, trusting: ssl.SSLContext, capsys: pytest.CaptureFixture[str]
) -> None:
    site.pages["/ca.pem"] = Page(authority.authority("\x1b]0;owned\x07").pem)
    assert ca.main([str(folder / "ca.pem"), f"--url={site.url}/ca.pem"], trusting) == 0
    out = capsys.readouterr().out
    assert "owned" in out
    assert not set(out) & {"\x1b", "\x07"}
