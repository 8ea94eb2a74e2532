"""The status page, as people see and use it: in a browser, with documents made for it."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import status_documents as documents
from browser import Stub, Visit, browser
from playwright.sync_api import Browser, expect
from servers import Memcached, Tunnel, Wire, closing_all, wait_until

STOPPED = documents.SERVERS[1]
CHART = "#charts svg"
NONE = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture
def opened() -> Iterator[list[Any]]:
    with closing_all([]) as things:
        yield things


@pytest.fixture
def stub(opened: list[Any]) -> Stub:
    made = Stub(documents.document)
    opened.append(made)
    return made


@pytest.fixture
def visit(chromium: Browser, stub: Stub, opened: list[Any]) -> Callable[..., Visit]:
    """Opens the page, and waits until it shows the first document."""

    def make(document: Callable[[], Any] | None = None, **options: Any) -> Visit:
        stub.document = document or stub.document
        made = Visit(chromium, stub.url, **options)
        opened.append(made)
        expect(made["#picture"]).to_be_visible()
        return made

    return make


def at_times(**changes: Any) -> Callable[[], dict[str, Any]]:
    """Documents two seconds apart."""
    times = iter(range(10**6))
    return lambda: documents.document(now=documents.NOW + 2 * next(times), **changes)


def changed(**changes: Any) -> Callable[[], dict[str, Any]]:
    return lambda: documents.document() | changes


def answered(seen: Visit) -> None:
    wait_until(lambda: seen.page.evaluate("request === null"), "the answer is taken")


def next_picture(seen: Visit, stub: Stub, seconds: float = 2.0) -> None:
    """Let so much of the page's time go by, in which it asks once, and wait for the answer."""
    answered(seen)  # only then does the page set its next time
    asked = stub.asked
    seen.page.clock.run_for(int(1000 * seconds))
    answered(seen)
    assert stub.asked == asked + 1


# --- what it shows


@pytest.fixture(scope="module")
def still(chromium: Browser) -> Iterator[Visit]:
    """A page whose time stands, so that it shows what it is given and nothing else."""
    with closing_all([Stub(documents.starting)]) as things:
        things.append(Visit(chromium, things[0].url, clock=True))
        expect(things[1]["#picture"]).to_be_visible()
        yield things[1]


@pytest.fixture
def show(still: Visit) -> Callable[[Any], Visit]:
    """Puts a document in the place of the one before."""

    def give(document: Any) -> Visit:
        still.page.evaluate("text => picture(JSON.parse(text))", json.dumps(document))
        return still

    return give


def test_the_figures_are_those_of_the_last_interval(show: Callable[[Any], Visit]) -> None:
    document = documents.document()
    newest = {"requests": 4812.4, "degraded": 2.5, "hit_rate": 0.9312, "p50": 420e-6, "p99": 0.0123}
    for name, value in newest.items():
        document["history"][name][-1] = value
    seen = show(document)
    assert seen.texts("#figures div") == [
        "Requests 4 812/s",
        "Latency p50 420 µs",
        "Latency p99 12.3 ms",
        "Hit rate 93.1 %",
        "Degraded 2.5/s",
        "Clients 1 248of 10 000",
    ]
    assert seen.texts("#facts") == ["up 1 d 2 h · version 0.1.0 · 2 workers · pid 4711"]


HEADLINES = {
    "ready": ({}, "Ready", "All 3 servers are up."),
    "one server": ({"names": documents.SERVERS[:1]}, "Ready", "The server is up."),
    "one away": ({"down": [STOPPED]}, "Ready, without 1 of 3 servers", f"Away: {STOPPED}."),
    "all away": ({"down": documents.SERVERS}, "Not ready", "No server can be reached: clients"),
}


@pytest.mark.parametrize("case", HEADLINES)
def test_the_headline_says_how_things_are(case: str, show: Callable[[Any], Visit]) -> None:
    how, words, detail = HEADLINES[case]
    seen = show(documents.document(**how))
    assert seen.texts("#headline") == [words]
    assert seen.texts("#detail")[0].startswith(detail)
    assert seen.page.title() == f"{words} · memtunnel"


@pytest.mark.parametrize(
    ("state", "words", "detail"),
    [
        ({"draining": True}, "Draining", "It serves the clients that are left, and then ends."),
        ({}, "Not ready", "Not every worker can serve yet."),
        ({"silent": ["2", "3"]}, "Not ready", "Worker 2, 3 does not answer."),
        (documents.document(down=[STOPPED]), "Not ready, without 1 of 3 servers", "Away: "),
    ],
)
def test_a_tunnel_that_is_not_ready_says_why(
    state: dict[str, Any], words: str, detail: str, show: Callable[[Any], Visit]
) -> None:
    seen = show(documents.document() | state | {"ready": False})
    assert seen.texts("#headline") == [words]
    assert seen.texts("#detail")[0].startswith(detail)


def test_what_needs_somebody_is_told_beneath_it(show: Callable[[Any], Visit]) -> None:
    document = documents.document(names=LONG[:4]) | {"reloaded": False}  # the first and the last
    seen = show(document)
    assert seen.texts("#notices p") == [
        "The settings that were read last are not in use: the log says why.",
        f"The certificate of {LONG[0]} expires in 9 days, and 1 more soon.",
    ]


def test_the_charts_show_the_last_ten_minutes(show: Callable[[Any], Visit]) -> None:
    document = documents.document(down=[STOPPED])
    history = document["history"]
    for name, value in {"requests": 3000.0, "degraded": 900.0, "p50": 0.0005, "p99": 0.4}.items():
        history[name][-1] = value
    history["queue_p99"][-1] = None
    history["wire_p50"][-1], history["wire_p99"][-1] = 0.0004, 0.002
    history["clients"][-1] = 1234
    history["received_bytes"][-1], history["sent_bytes"][-1] = 3 << 20, 300 << 10
    history["hit_rate"][-1] = 0.5
    seen = show(document)
    more = ". Arrow keys read earlier values."
    assert [chart.get_attribute("aria-label") for chart in seen[CHART].all()] == [
        "Requests per second: for servers 3\u202f000, degraded 900" + more,
        "Latency, as clients see it: p50 500 µs, p99 400 ms" + more,
        "Where the time goes: wire p50 400 µs, wire p99 2.00 ms, queue p99 " + NONE + more,
        "Hit rate: of gets 50.0\u202f%" + more,
        "Clients: connected 1\u202f234, new per second 1" + more,
        "Bytes per second: from servers 3.00\u202fMiB, to servers 300\u202fKiB" + more,
    ]
    assert seen.texts("figure:first-child .keys b") == ["3 000", "900"]
    labels = seen["figure:nth-child(2) text"].all_text_contents()
    assert labels == [
        "100 µs",
        "1 ms",
        "10 ms",
        "100 ms",
        "1 s",
        f"{MINUS}10 min",
        f"{MINUS}5 min",
        "now",
    ]
    curves = [curve.get_attribute("d") or "" for curve in seen["figure:nth-child(1) .curve"].all()]
    # A row of the history is a point; the hatched ones are of the two minutes of the outage.
    assert [len(re.findall("[ML]", curve)) for curve in curves] == [300, 60]


def test_a_chart_has_a_gap_where_nothing_was_measured(show: Callable[[Any], Visit]) -> None:
    document = documents.document(rows=10)
    document["history"]["p50"][3:5] = [None, None]
    curve = show(document)["figure:nth-child(2) .curve.a"].get_attribute("d") or ""
    assert [len(part.split("L")) for part in curve[1:].split("M")] == [3, 5]


def test_servers_stand_above_their_connections(show: Callable[[Any], Visit]) -> None:
    document = documents.document(down=[STOPPED])
    first = document["servers"][0]
    first |= {"in_flight": 3, "tombstones": 1, "queued": 5, "queue_oldest": 0.25, "requests": 1e6}
    first |= {"verify": "chain"}
    first["connections"][0] |= {"age": 61.9, "in_flight": 2, "round_trip": 0.00042}
    seen = show(document)
    rows = [re.sub(r"[\s\u202f]+", " ", row) for row in seen["#servers tbody tr"].all_inner_texts()]
    assert rows[:2] == [
        f"{documents.SERVERS[0]} {documents.SERVERS[0]}:11219 TLSv1.3 TLS_AES_256_GCM_SHA384 "
        "the certificate's name is not checked up 2 of 2 warm 3 1 given up 5 250 ms 1 000 000 "
        "2025-12-06 9 days reset 1 h 6 min ago",
        "worker 1, connection 3 warm 2 420 µs 61 s ",
    ]
    assert [row.partition(" ")[0] for row in rows] == [
        *(documents.SERVERS[0], "worker", "worker"),
        *(STOPPED, "worker"),
        *(documents.SERVERS[2], "worker", "worker"),
    ]
    assert "down 0 of 2 warm 0 14 380 ms" in rows[3]
    assert "2026-09-10 288 days connect_refused 1 s ago" in rows[3]
    assert seen.texts("#servers .warn") == ["2025-12-06"]


def test_one_process_needs_no_name(show: Callable[[Any], Visit]) -> None:
    document = documents.document(workers=1) | {"slow": [SLOW]}
    seen = show(document)
    assert seen.texts("#servers .part th")[0] == "connection 3"
    assert seen.texts("#slow tbody td:nth-child(6)") == ["7"]
    assert "1 worker ·" in seen.texts("#facts")[0]


def test_a_tunnel_that_has_just_started_has_little_to_show(show: Callable[[Any], Visit]) -> None:
    seen = show(documents.starting())
    assert seen.texts("#headline") == ["Not ready"]
    assert seen.texts("#figures dd")[:5] == [f"{NONE}/s", NONE, NONE, NONE, f"{NONE}/s"]
    assert set(seen.texts("#servers .part td:nth-child(2)")) == {"dialling"}
    assert seen.texts("#empty") == ["No request has failed."]
    assert seen.texts("#kept") == [
        "Failed ones are kept in any case; --slow-ms sets a threshold for slow ones."
    ]
    assert not seen["#filter"].is_visible()


def test_clients_are_told_by_listener(show: Callable[[Any], Visit]) -> None:
    seen = show(documents.document())
    assert seen.texts("#clients") == [
        "1 248 connected of at most 10 000, none paused, 192 KiB buffered"
    ]
    assert seen.texts("#listeners tbody tr") == [
        "127.0.0.1:11211 1 200 93 120 0 2 5.00 GiB 61.0 GiB",
        "/run/memtunnel/memtunnel.sock 48 93 120 0 2 5.00 GiB 61.0 GiB",
    ]


SLOW = {
    "time": documents.NOW - 3,
    "worker": "2",
    "command": "set",
    "status": "timeout",
    "why": "failed",
    "server": STOPPED,
    "connection": 7,
    "total": 0.4,
    "queue": 0.1,
    "wire": 0.2,
    "bytes": 2048,
    "key": "9f31c2aa",
}
NEVER_SENT = SLOW | {"connection": None, "wire": None, "queue": 0.4, "key": "", "why": "slow"}


def test_slow_requests_say_where_their_time_went(show: Callable[[Any], Visit]) -> None:
    seen = show(documents.document() | {"slow": [SLOW, NEVER_SENT], "slow_untold": 1234})
    assert seen.texts("#slow tbody tr") == [
        f"15:59:57 set timeout failed {STOPPED} 2:7 400 ms 100 ms 200 ms 2.00 KiB 9f31c2aa",
        f"15:59:57 set timeout slow {STOPPED} none 400 ms 400 ms not sent 2.00 KiB {NONE}",
    ]
    assert seen.texts("#kept") == [
        "Failed ones, and those of 50 ms and more. One in 1 000 of all is kept as a sample. "
        "1 234 more came too fast to be kept."
    ]
    bars = seen[".share i"].evaluate_all("bars => bars.map(bar => bar.offsetWidth)")
    whole = seen[".share"].first.evaluate("bar => bar.offsetWidth")
    assert [round(4 * bar / whole) for bar in bars] == [1, 2, 4, 0]


def test_samples_are_shown_to_those_who_want_them(show: Callable[[Any], Visit]) -> None:
    sample = SLOW | {"why": "sample", "status": "hit"}
    seen = show(documents.document() | {"slow": [sample, SLOW, sample | {"bytes": 1}]})
    shown = seen["#slow tbody tr:visible"]
    seen["#filter"].fill("")
    expect(shown).to_have_count(1)
    told = "One in 1 000 of all is kept as a sample"
    assert f"{told}: 2 not shown." in seen.texts("#kept")[0]
    seen["#samples"].focus()
    seen.page.keyboard.press("Space")
    expect(shown).to_have_count(3)
    assert f"{told}." in seen.texts("#kept")[0]
    seen["#filter"].fill("timeout")
    expect(shown).to_have_count(1)


def test_of_samples_only_it_is_said_that_nothing_was_slow(show: Callable[[Any], Visit]) -> None:
    seen = show(documents.document() | {"slow": [SLOW | {"why": "sample"}]})
    seen["#samples"].uncheck()
    seen["#filter"].fill("")
    assert seen.texts("#empty") == ["No request has failed or taken 50 ms."]
    assert not seen["#slow"].is_visible()


def test_no_slow_request_is_said_in_words(show: Callable[[Any], Visit]) -> None:
    seen = show(documents.document(slow=0))
    assert seen.texts("#empty") == ["No request has failed or taken 50 ms."]
    assert not seen["#slow"].is_visible()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("seconds(0)", "0"),
        ("seconds(null)", NONE),
        ("seconds(0.0000004)", "0 µs"),
        ("seconds(0.000999)", "1.00 ms"),
        ("seconds(0.0099951)", "10.0 ms"),
        ("seconds(0.9996)", "1.00 s"),
        ("age(119.9)", "119 s"),
        ("age(7199)", "1 h 59 min"),
        ("bytes(1023)", "1 023 B"),
        ("bytes(1048576)", "1.00 MiB"),
        ("count(999)", "999"),
        ("count(1234567.8)", "1 234 568"),
        ("rate(0.25)", "0.3"),
        ("share(1)", "100.0 %"),
    ],
)
def test_units(call: str, words: str, still: Visit) -> None:
    assert still.page.evaluate(call).replace("\u202f", " ") == words


# --- what it asks for, and when


@pytest.mark.parametrize("document", [documents.document, documents.hostile])
def test_nothing_but_the_page_and_the_document_is_asked_for(
    document: Callable[[], Any], visit: Callable[..., Visit], stub: Stub
) -> None:
    seen = visit(document, clock=True)
    next_picture(seen, stub)
    row = documents.document()["history"]["first"] + 299
    asked = ["status?after=0", f"status?after={row}"]
    assert seen.requests == [stub.url, *(stub.url + each for each in asked)]
    assert seen.complaints == []


def test_rows_that_are_new_join_those_that_are_here(
    visit: Callable[..., Visit], stub: Stub
) -> None:
    seen = visit(clock=True)
    before = documents.document()["history"]
    later = documents.document(now=documents.NOW + 4, rows=2)
    stub.document = lambda: later
    next_picture(seen, stub)
    assert stub.after == before["first"] + 299
    history = seen.page.evaluate("last.history")
    whole = documents.document(now=documents.NOW + 4)["history"]
    assert history == whole


@pytest.mark.parametrize("uptime", [3.0, 10**6])
def test_rows_of_another_tunnel_do_not(
    uptime: float, visit: Callable[..., Visit], stub: Stub
) -> None:
    seen = visit(clock=True)
    later = documents.document(now=documents.NOW + 2, rows=1) | {"uptime": uptime}
    stub.document = lambda: later
    next_picture(seen, stub)
    assert seen.page.evaluate("last.history") == later["history"]


def test_nor_do_rows_after_a_gap(visit: Callable[..., Visit], stub: Stub) -> None:
    seen = visit(clock=True)
    later = documents.document(now=documents.NOW + 1000, rows=300)
    stub.document = lambda: later
    next_picture(seen, stub)
    assert seen.page.evaluate("last.history") == later["history"]


def test_the_address_may_hold_a_login(chromium: Browser, stub: Stub, opened: list[Any]) -> None:
    seen = Visit(chromium, stub.url.replace("//", "//anybody:token@"))
    opened.append(seen)
    expect(seen["#picture"]).to_be_visible()
    assert seen.complaints == []


def test_words_of_the_document_are_never_markup(visit: Callable[..., Visit]) -> None:
    seen = visit(documents.hostile)
    hostile = documents.HOSTILE
    assert seen["img"].count() == 0
    assert hostile in seen.texts("#facts")[0]
    assert hostile in seen.texts("#notices p")[0]
    assert seen.texts("#servers tbody:nth-of-type(1) .whole th")[0].count(hostile) == 3
    assert seen.texts("#servers .part th")[0] == f"worker {hostile}, connection 3"
    assert seen.texts("#listeners tbody tr")[0].startswith(hostile)
    assert seen.texts("#slow tbody tr")[0].count(hostile) == 6  # five cells, and a worker's name
    assert seen.complaints == []


def test_nothing_is_asked_for_while_nobody_looks(visit: Callable[..., Visit], stub: Stub) -> None:
    seen = visit(clock=True)
    seen.turn(hidden=True)
    seen.page.clock.run_for(60_000)
    with seen.page.expect_response("**/status?*"):
        seen.turn(hidden=False)  # and at once
    assert stub.asked == 2
    next_picture(seen, stub)


@pytest.mark.parametrize("key", ["p", " "])
def test_a_key_pauses_it(key: str, visit: Callable[..., Visit], stub: Stub) -> None:
    seen = visit(clock=True)
    seen.page.keyboard.press(key)
    assert seen.texts("#headline") == ["Paused"]
    assert seen["#pause"].get_attribute("aria-pressed") == "true"
    seen.page.clock.run_for(60_000)
    assert seen.texts("#detail") == ["The picture is 60 s old."]
    seen.turn(hidden=True)
    seen.turn(hidden=False)
    assert stub.asked == 1
    seen.page.keyboard.press(key)
    expect(seen["#headline"]).to_have_text("Ready")
    assert seen["#pause"].get_attribute("aria-pressed") == "false"
    assert stub.asked == 2


def test_a_key_that_is_a_controls_own_does_not_pause_it(visit: Callable[..., Visit]) -> None:
    seen = visit(clock=True)
    seen["#filter"].focus()
    seen.page.keyboard.type("p ")
    assert seen.texts("#headline") == ["Ready"]
    assert seen["#filter"].input_value() == "p "
    seen["#pause"].focus()
    seen.page.keyboard.press(" ")  # once, not twice
    assert seen.texts("#headline") == ["Paused"]


# --- what goes wrong


def refuse(stub: Stub) -> None:
    stub.code = 503


def speak_nonsense(stub: Stub) -> None:
    stub.body = b"<html>"


def say_too_little(stub: Stub) -> None:
    stub.body = b"{}"


def fall_silent(stub: Stub) -> None:
    stub.gate.clear()


TROUBLE = {
    refuse: "HTTP status 503.",
    speak_nonsense: "What came is no JSON.",
    say_too_little: "What came is not understood; perhaps this page has to be reloaded.",
    fall_silent: "No answer came in time.",
}


@pytest.mark.parametrize("trouble", TROUBLE)
def test_trouble_is_told_and_the_last_picture_stays(
    trouble: Callable[[Stub], None], visit: Callable[..., Visit], stub: Stub
) -> None:
    seen = visit(clock=True)
    figures = seen.texts("#figures div")
    trouble(stub)
    seen.page.clock.run_for(2000)
    wait_until(lambda: stub.asked == 2, "it asks again")
    if trouble is fall_silent:
        seen.page.clock.run_for(5000)
    expect(seen["#headline"]).to_have_text("The tunnel does not answer")
    expect(seen["#detail"]).to_contain_text(f"{TROUBLE[trouble]} The picture is ")
    expect(seen["#picture"]).to_have_class("old")
    expect(seen["#picture"]).to_have_css("filter", "grayscale(1)")
    assert seen.texts("#figures div") == figures
    stub.code, stub.body = 200, None
    stub.gate.set()
    next_picture(seen, stub)
    expect(seen["#headline"]).to_have_text("Ready")
    expect(seen["#picture"]).not_to_have_class("old")


def test_a_tunnel_that_has_gone_is_asked_less_and_less_often(
    visit: Callable[..., Visit], stub: Stub
) -> None:
    seen = visit(clock=True)
    stub.code = 503
    for wait in (2, 2, 4, 8, 10, 10):
        asked = stub.asked
        seen.page.clock.run_for(1000 * (wait - 1))
        assert stub.asked == asked
        next_picture(seen, stub, 1)


def test_a_tunnel_that_never_answered_is_told_of_too(chromium: Browser, stub: Stub) -> None:
    stub.code = 503
    with closing_all([Visit(chromium, stub.url)]) as (seen,):
        expect(seen["#headline"]).to_have_text("The tunnel does not answer")
        assert not seen["#picture"].is_visible()


def test_without_a_script_there_are_links(chromium: Browser, stub: Stub) -> None:
    with closing_all([Visit(chromium, stub.url, java_script_enabled=False)]) as (seen,):
        assert "needs JavaScript" in seen.texts("noscript")[0]
        links = seen["noscript a"].evaluate_all("links => links.map(link => link.href)")
        assert links == [stub.url + "metrics", stub.url + "readyz"]


# --- how it is used


def test_charts_are_read_with_the_keyboard(visit: Callable[..., Visit]) -> None:
    document = documents.document()
    document["history"]["requests"][-3:] = [1.0, 2.0, 3.0]
    document["history"]["clients"][0] = 4321
    seen = visit(lambda: document, clock=True)
    first = seen["figure:first-child"]
    first.locator("svg").focus()
    assert first.locator(".keys b").first.inner_text() == "3.0"
    assert first.locator(".muted").inner_text() == "now"
    seen.page.keyboard.press("ArrowLeft")
    seen.page.keyboard.press("ArrowLeft")
    assert first.locator(".keys b").first.inner_text() == "1.0"
    assert first.locator(".muted").inner_text() == "15:59:56, 4 s ago"
    assert seen.texts("#said") == ["15:59:56, 4 s ago: for servers 1.0, degraded 0"]
    assert first.locator(".cursor").get_attribute("d") != ""
    seen.page.keyboard.press("ArrowRight")
    assert first.locator(".keys b").first.inner_text() == "2.0"
    seen.page.keyboard.press("Home")
    assert seen.texts("figure:nth-child(5) .keys b")[0] == "4 321"  # all charts, at one time
    assert first.locator(".muted").inner_text() == "15:50:02, 9 min ago"
    seen.page.keyboard.press("ArrowLeft")
    seen.page.keyboard.press("Escape")
    assert first.locator(".keys b").first.inner_text() == "3.0"
    assert first.locator(".cursor").get_attribute("d") == ""


def test_charts_are_read_with_the_pointer(visit: Callable[..., Visit]) -> None:
    seen = visit(clock=True)
    box = seen[CHART].first.bounding_box()
    assert box is not None
    middle = box["x"] + 52 + (box["width"] - 54) / 2
    seen.page.mouse.move(middle, box["y"] + 40)
    assert seen.texts("figure:first-child .muted") == ["15:55:00, 5 min ago"]
    seen.page.mouse.move(0, 0)
    assert seen.texts("figure:first-child .muted") == ["now"]


def test_slow_requests_are_filtered_from_the_keyboard(visit: Callable[..., Visit]) -> None:
    quick = SLOW | {"server": "MC1.example.com", "status": "hit", "key": "00000000"}
    seen = visit(changed(slow=[SLOW, quick, quick]))
    seen.page.keyboard.press("/")
    seen.page.keyboard.type("TIMEOUT")
    assert seen["#slow tbody tr:visible"].count() == 1
    assert seen.texts("#kept")[0].startswith("1 of 3. ")
    seen.page.keyboard.press("ControlOrMeta+a")
    seen.page.keyboard.type("mc1.EXAMPLE")
    assert seen["#slow tbody tr:visible"].count() == 2
    seen.page.keyboard.type("?")
    assert seen.texts("#empty") == ["None of the 3 has “mc1.EXAMPLE?” in it."]


def test_an_update_leaves_the_reader_alone(visit: Callable[..., Visit], stub: Stub) -> None:
    seen = visit(at_times(slow=100), clock=True)
    seen["#samples"].check()
    seen["#filter"].fill("get")
    for selector in ("figure", "#servers tr", "#slow tbody tr:first-child", "#figures div"):
        seen[selector].evaluate_all("nodes => nodes.forEach(node => { node.known = true })")
    y = "row => row.getBoundingClientRect().y"
    seen["#slow tbody tr:visible"].nth(5).evaluate("row => { row.id = 'read' }")
    seen["#read"].evaluate("row => row.scrollIntoView()")
    where = seen["#read"].evaluate(y)
    facts = seen.texts("#facts, #servers .whole td:nth-child(8)")
    for _ in range(8):
        next_picture(seen, stub)
    expect(seen["#slow tbody tr"]).to_have_count(100)
    assert seen.texts("#facts, #servers .whole td:nth-child(8)") != facts
    assert seen["#filter"].evaluate("input => input === document.activeElement")
    assert seen["#filter"].input_value() == "get"
    assert seen["#read"].evaluate(y) == pytest.approx(where, abs=1)
    known = "nodes => nodes.every(node => node.known)"
    assert seen["figure, #servers tr, #figures div"].evaluate_all(known)
    # The rows of what was slow meanwhile are new; all others are those that were there.
    rows = seen["#slow tbody tr"].evaluate_all("rows => rows.findIndex(row => row.known)")
    assert rows == int(
        (documents.NOW + 16) // documents.SPACING - documents.NOW // documents.SPACING
    )


def test_two_hundred_updates_leave_it_as_large_as_it_was(visit: Callable[..., Visit]) -> None:
    size = """() => {
        const nodes = [...document.querySelectorAll("*")];
        const remembered = nodes.reduce((sum, node) => sum + (node.kept?.size ?? 0), 0);
        const texts = document.createTreeWalker(document, NodeFilter.SHOW_TEXT);
        let count = 0;
        while (texts.nextNode()) count++;
        return [nodes.length, count, remembered];
    }"""
    seen = visit(clock=True)
    later = [documents.document(now=documents.NOW + 10 * n) for n in range(1, 21)]
    before = seen.page.evaluate(size)
    slow = seen.texts("#slow tbody tr:first-child")
    update = "later => { for (let n = 0; n < 10; n++) JSON.parse(later).forEach(picture) }"
    seen.page.evaluate(update, json.dumps(later))
    assert seen.page.evaluate(size) == before
    assert seen.texts("#slow tbody tr:first-child") != slow


# --- of a tunnel that runs


def wait_for(seen: Visit, selector: str, text: str) -> None:
    """Let the page's time go by until it shows this."""

    def shown() -> bool:
        seen.page.clock.run_for(2000)
        answered(seen)
        return text in " ".join(seen.texts(selector))

    wait_until(shown, f"the page shows {text}")


def names(value: Any, path: str = "") -> set[str]:
    """Of all that a document has in it, each with where it stands."""
    if isinstance(value, list):
        return {name for each in value for name in names(each, path)}
    if isinstance(value, dict):
        return {path}.union(*(names(each, f"{path}.{name}") for name, each in value.items()))
    return {path}


def test_it_follows_a_tunnel_through_its_troubles(
    chromium: Browser,
    make_memcached: Callable[..., Memcached],
    make_tunnel: Callable[..., Tunnel],
    connect: Callable[..., Wire],
    opened: list[Any],
) -> None:
    memcacheds = [make_memcached(), make_memcached()]
    tunnel = make_tunnel(*memcacheds, flags=("--workers=2", "--failover=off"))
    client = connect(tunnel)
    url = f"http://127.0.0.1:{tunnel.admin}/"
    seen = Visit(chromium, url, clock=True)
    opened.append(seen)
    wait_for(seen, "#detail", "All 2 servers are up.")
    assert len(seen.texts("#servers .part")) == 2 * 2 * 2  # servers, workers, connections
    assert set(seen.texts("#servers .part td:nth-child(2)")) == {"warm"}
    assert seen.texts("#listeners tbody tr")[0].startswith(f"127.0.0.1:{tunnel.port} 1 ")
    for number in range(20):
        client.get(b"%d" % number)
    wait_for(seen, "#figures", "Hit rate 0.0 %")
    memcacheds[1].stop()
    wait_for(seen, "#headline", "Not ready, without 1 of 2 servers")
    for number in range(20):
        client.get(b"%d" % number)
    wait_for(seen, "#slow tbody", "no_upstream failed server1 none")
    missing = names(documents.document()) - names(json.loads(tunnel.get("/status")[1]))
    assert missing == set(), "documents are made as the tunnel makes them"
    tunnel.stop()
    wait_for(seen, "#detail", "It cannot be reached. The picture is ")
    assert {asked.partition("?")[0] for asked in seen.requests} == {url, url + "status"}
    # Chromium itself complains of each request that is not answered, and nobody of anything else.
    assert {"ERR_CONNECTION_REFUSED" in complaint for complaint in seen.complaints} == {True}


# --- how it looks

CONTRASTS = """() => {
    const parse = colour => colour.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b]
        .map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const ground = node => {
        for (; node; node = node.parentElement) {
            const colour = parse(getComputedStyle(node).backgroundColor);
            if (colour.length === 3 || colour[3] === 1) return colour;
        }
    };
    const found = {};
    for (const node of document.querySelectorAll("body *")) {
        const own = [...node.childNodes].some(child => child.nodeType === 3 && child.data.trim());
        if (!own || !node.checkVisibility() || node.matches("script, noscript")) continue;
        const style = getComputedStyle(node);
        const [a, b] = [style[node.matches("text") ? "fill" : "color"], ground(node)];
        const [low, high] = [light(parse(a)), light(b)].sort((x, y) => x - y);
        found[`${a} on ${b}`] = (high + 0.05) / (low + 0.05);
    }
    return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_words_can_be_read(scheme: str, visit: Callable[..., Visit]) -> None:
    seen = visit(lambda: documents.document(down=[STOPPED]), color_scheme=scheme)
    contrasts = seen.page.evaluate(CONTRASTS)
    assert len(contrasts) >= 8  # ink, muted, good, warn and bad, on the ground and on panels
    assert {pair: ratio for pair, ratio in contrasts.items() if ratio < 4.5} == {}


def test_it_is_dark_where_that_is_liked(visit: Callable[..., Visit]) -> None:
    seen = visit()
    grounds = []
    for scheme in ("light", "dark"):
        seen.page.emulate_media(color_scheme=scheme)
        ground = seen["body"].evaluate("body => getComputedStyle(body).backgroundColor")
        grounds.append(max(map(int, re.findall(r"\d+", ground))))
    assert grounds[0] > 200
    assert grounds[1] < 50


def test_nothing_moves_where_that_is_not_liked(visit: Callable[..., Visit]) -> None:
    seen = visit()
    for wish, duration in (("no-preference", "0.3s"), ("reduce", "0s")):
        seen.page.emulate_media(reduced_motion=wish)
        expect(seen["main"]).to_have_css("transition-duration", duration)


LONG = [f"a-server-with-a-long-name-{n}.eu-west-1.cache.{60 * 'x'}.example" for n in range(20)]
WIDE = {
    "busy": documents.document,
    "hostile": documents.hostile,
    "many": lambda: documents.document(names=LONG, down=LONG[:2]),
}


@pytest.mark.parametrize("case", WIDE)
def test_the_page_never_scrolls_sideways(case: str, visit: Callable[..., Visit]) -> None:
    seen = visit(WIDE[case])
    for width in (1280, 768, 390, 320):
        seen.page.set_viewport_size({"width": width, "height": 800})
        widths = "node => [node.clientWidth, node.scrollWidth]"
        assert seen["html"].evaluate(widths) == [width, width]
