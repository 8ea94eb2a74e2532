"""A multiplexer numbers requests, writes them together, and believes only what answers one.

It is told apart by opaque and opcode (P1); a request that was given up leaves a tombstone; a
connection that says anything else is distrusted, and nothing from there on is delivered.
"""

import pytest
from recording import Counts, Peer, Recorder, ask, bare

from memtunnel.core.budget import Budget
from memtunnel.core.lane import Lane
from memtunnel.core.mux import MAX_BODY, MAX_ENTRIES, MAX_OTHER, MAX_UNSENT, Multiplexer
from memtunnel.core.outcomes import Desync, Distrust, Lost, Reason
from memtunnel.core.request import Request
from memtunnel.core.server import Server
from memtunnel.wire.binary import (
    GETS,
    LOUD,
    MAX_KEY_LENGTH,
    QUIET,
    RULES,
    Opcode,
    Status,
    answer,
    key_of,
    split,
)

#: Everything that a session may send upstream.
FORWARDED = [
    opcode
    for opcode in Opcode
    if LOUD[opcode] != Opcode.QUIT and not opcode.name.startswith("SASL")
]


@pytest.fixture
def owner() -> Recorder:
    return Recorder()


def lane_of(peer: Peer) -> Lane:
    server = Server("server", Counts(), Budget(1 << 20))
    server.connections.append(peer.mux)
    return Lane(server)


# --- writing


def test_what_a_turn_brought_is_one_write_in_the_order_of_sending(owner: Recorder) -> None:
    peer = Peer()
    for key in (b"aaaa", b"bbbb", b"cccc"):
        peer.mux.send(ask(owner, Opcode.GET, key))
    assert peer.read() == [b"aaaa", b"bbbb", b"cccc"]
    assert peer.read() == []


def test_it_wakes_its_transport_once_for_each_write(owner: Recorder) -> None:
    wakes: list[None] = []
    peer = Peer(wake=lambda: wakes.append(None))
    for _ in range(3):
        peer.mux.send(ask(owner, Opcode.GET))
    assert len(wakes) == 1
    peer.read()
    peer.mux.send(ask(owner, Opcode.GET))
    assert len(wakes) == 2


@pytest.mark.parametrize("opcode", FORWARDED, ids=lambda opcode: opcode.name)
def test_a_frame_is_written_as_it_was_but_for_the_opaque(owner: Recorder, opcode: Opcode) -> None:
    peer = Peer(first_opaque=7)
    sent = ask(owner, opcode, value=b"value" if (rule := RULES[opcode]) and rule.value else b"")
    frame = sent.frame
    assert frame is not None
    peer.mux.send(sent)
    assert peer.mux.take(2.0) == frame[:12] + b"\0\0\0\x07" + frame[16:]
    assert sent.sent == 2.0


def test_p1_opaques_begin_at_the_base_of_the_connection_and_wrap(owner: Recorder) -> None:
    peer = Peer(first_opaque=0xFFFFFFFE)
    for _ in range(4):
        peer.mux.send(ask(owner, Opcode.GET))
    peer.read()
    opaques = [int.from_bytes(frame.opaque, "big") for frame in peer.asked]
    assert opaques == [0xFFFFFFFE, 0xFFFFFFFF, 0, 1]


def test_p1_an_opaque_in_flight_is_not_given_again_after_the_wrap(owner: Recorder) -> None:
    peer = Peer(first_opaque=0xFFFFFFFF)
    for key in (b"aaaa", b"bbbb", b"cccc"):
        peer.mux.send(ask(owner, Opcode.GET, key))
    peer.read()
    peer.reply(b"bbbb")
    tombstone = ask(owner, Opcode.GET, b"dddd")
    peer.mux.send(tombstone)
    peer.read()
    peer.mux.abandon(tombstone, 3.0)
    peer.mux._next = 0xFFFFFFFF  # as it is 2 ** 32 requests later
    for key in (b"eeee", b"ffff"):
        peer.mux.send(ask(owner, Opcode.GET, key))
    peer.read()
    opaques = [int.from_bytes(frame.opaque, "big") for frame in peer.asked]
    assert opaques == [0xFFFFFFFF, 0, 1, 2, 0, 3]
    peer.reply(b"ffff", b"aaaa", b"dddd", b"eeee", b"cccc")
    answered = [request.opaque for request, _ in owner.outcomes]
    assert answered == [b"bbbb", b"ffff", b"aaaa", b"eeee", b"cccc"]


@pytest.mark.parametrize("opcode", FORWARDED, ids=lambda opcode: opcode.name)
def test_of_a_long_frame_only_the_key_is_kept_once_written(owner: Recorder, opcode: Opcode) -> None:
    peer = Peer()
    rule = RULES[LOUD[opcode]]
    assert rule is not None
    value = bytes(1000) if rule.value else b""
    sent = ask(owner, opcode, b"kkkk", value=value)
    peer.mux.send(sent)
    whole = sent.frame
    peer.read()
    assert whole is not None
    assert sent.frame is not None
    assert key_of(sent.frame) == key_of(whole)
    assert len(sent.frame) <= 24 + 20 + 250
    assert sent.frame == whole or value


# --- matching


@pytest.mark.parametrize("opcode", FORWARDED, ids=lambda opcode: opcode.name)
def test_p1_each_answer_reaches_the_owner_of_its_request(opcode: Opcode) -> None:
    peer = Peer()
    mine, other = Recorder(), Recorder()
    lane = lane_of(peer)
    first, second = ask(mine, opcode, lane=lane), ask(other, opcode, lane=lane)
    lane.send(first, 1.0)
    lane.send(second, 1.0)
    (one, two), _ = split(peer.mux.take(2.0))
    answers = [answer(LOUD[opcode], frame.opaque, cas=n) for n, frame in enumerate((one, two))]
    data = 0 if opcode == Opcode.STAT else 2
    assert peer.mux.receive(answers[1] + answers[0], 3.0) == data
    assert mine.outcomes == [(first, bare(answers[0]))]
    assert other.outcomes == [(second, bare(answers[1]))]
    assert (peer.mux.load, lane.in_flight) == (0, 0)


def test_p1_successes_in_a_row_are_told_together_to_whom_they_belong() -> None:
    peer = Peer()
    one, other = Recorder(), Recorder()
    keys = [b"one1", b"one2", b"oth1", b"one3", b"miss", b"one4", b"one5"]
    sent = [ask(other if key == b"oth1" else one, Opcode.GET, key) for key in keys]
    for request in sent:
        peer.mux.send(request)
    peer.read()
    said = [
        peer.answer(key, status=Status.NOT_FOUND if key == b"miss" else Status.OK) for key in keys
    ]
    peer.mux.receive(b"".join(said), 3.0)
    assert one.runs == [sent[0:2], sent[3:4], sent[5:7]]
    assert other.runs == [sent[2:3]]
    outcomes = list(zip(sent, map(bare, said), strict=True))
    assert other.outcomes == outcomes[2:3]
    assert one.outcomes == outcomes[0:2] + outcomes[3:]


def test_an_answer_may_overtake_the_end_of_its_write(owner: Recorder) -> None:
    peer = Peer()
    sent = ask(owner, Opcode.SET, value=bytes(100))
    peer.mux.send(sent)
    peer.read()
    peer.reply(b"aaaa", status=Status.TOO_LARGE)
    assert owner.outcome(sent) is not None


def test_answers_cut_anywhere_are_the_same_answers() -> None:
    for cut in range(1, 130):
        peer = Peer()
        owner = Recorder()
        lane = lane_of(peer)
        for key in (b"aaaa", b"bbbb", b"cccc"):
            lane.send(ask(owner, Opcode.GET, key, lane=lane), 1.0)
        peer.read()
        frames = [peer.answer(key, value=key * 5) for key in (b"bbbb", b"cccc", b"aaaa")]
        stream = b"".join(frames)
        assert len(stream) > 130
        answered = peer.mux.receive(stream[:cut], 3.0)
        answered += peer.mux.receive(stream[cut:], 3.0)
        assert answered == 3
        assert [frame for _, frame in owner.outcomes] == [bare(frame) for frame in frames]


def test_an_answer_fed_byte_by_byte_is_one_answer(owner: Recorder) -> None:
    peer = Peer()
    lane = lane_of(peer)
    sent = ask(owner, Opcode.GETK, lane=lane)
    lane.send(sent, 1.0)
    peer.read()
    frame = peer.answer(b"aaaa", extras=bytes(4), key=b"aaaa", value=b"value")
    counts = [peer.mux.receive(bytes((byte,)), 3.0) for byte in frame]
    assert counts == [0] * (len(frame) - 1) + [1]
    assert owner.outcomes == [(sent, bare(frame))]
    assert owner.growth == [(sent, len(frame) - 24)]


def test_an_answer_that_is_on_its_way_is_announced_with_its_size(owner: Recorder) -> None:
    peer = Peer()
    first, second = ask(owner, Opcode.GET, b"aaaa"), ask(owner, Opcode.GET, b"bbbb")
    peer.mux.send(first)
    peer.mux.send(second)
    peer.read()
    frames = [peer.answer(key, value=bytes(1000)) for key in (b"aaaa", b"bbbb")]
    peer.mux.receive(frames[0][:100], 3.0)
    assert owner.growth == [(first, 1000)]
    peer.mux.receive(frames[0][100:] + frames[1][:100], 3.0)
    assert owner.growth == [(first, 1000), (second, 1000)], "of the same size as the one before"
    peer.mux.receive(frames[1][100:], 3.0)
    assert owner.growth == [(first, 1000), (second, 1000)]


def test_a_stat_is_one_request_until_its_terminator(owner: Recorder) -> None:
    peer = Peer()
    lane = lane_of(peer)
    sent = ask(owner, Opcode.STAT, lane=lane)
    lane.send(sent, 1.0)
    peer.read()
    line = peer.answer(b"aaaa", key=b"pid", value=b"1")
    assert peer.mux.receive(line + line, 3.0) == 0
    assert owner.statistics == [(sent, line), (sent, line)]
    assert peer.mux.in_flight == 1
    peer.reply(b"aaaa")
    assert owner.outcome(sent) == bare(peer.answer(b"aaaa"))
    assert peer.mux.in_flight == 0


def test_a_stat_that_is_refused_is_one_answer(owner: Recorder) -> None:
    peer = Peer()
    lane = lane_of(peer)
    sent = ask(owner, Opcode.STAT, lane=lane)
    lane.send(sent, 1.0)
    peer.read()
    refused = peer.answer(b"aaaa", Status.NOT_FOUND, value=b"Not found")
    peer.mux.receive(refused, 3.0)
    assert owner.outcomes == [(sent, bare(refused))]
    assert peer.mux.in_flight == 0


# --- oversize answers


@pytest.mark.parametrize("step", [1, 30, 5000])
def test_an_answer_with_too_large_a_value_is_read_past(owner: Recorder, step: int) -> None:
    peer = Peer(max_value=1000)
    large, exact = ask(owner, Opcode.GET, b"aaaa"), ask(owner, Opcode.GET, b"bbbb")
    peer.mux.send(large)
    peer.mux.send(exact)
    peer.read()
    frame = peer.answer(b"bbbb", extras=bytes(4), value=bytes(1000))
    stream = peer.answer(b"aaaa", extras=bytes(4), value=bytes(1001)) + frame
    for position in range(0, len(stream), step):
        peer.mux.receive(stream[position : position + step], 3.0)
    assert owner.outcomes == [(large, Reason.TOO_LARGE), (exact, bare(frame))]
    assert peer.mux.load == 0


def test_a_statistic_that_is_too_large_is_not_followed_by_others(owner: Recorder) -> None:
    peer = Peer(max_value=10)  # of values, not of what other commands answer
    lane = lane_of(peer)
    sent = ask(owner, Opcode.STAT, lane=lane)
    lane.send(sent, 1.0)
    peer.read()
    sizes = (1, MAX_OTHER + 1, 1)
    lines = [peer.answer(b"aaaa", key=b"stat", value=bytes(size)) for size in sizes]
    peer.mux.receive(b"".join(lines), 3.0)
    assert owner.outcomes == [(sent, Reason.TOO_LARGE)]
    assert (peer.mux.in_flight, lane.in_flight) == (1, 1)
    assert peer.reply(b"aaaa") == 0
    assert len(owner.outcomes) == 1
    assert (peer.mux.in_flight, lane.in_flight) == (0, 0)


# --- tombstones


@pytest.mark.parametrize("opcode", FORWARDED, ids=lambda opcode: opcode.name)
def test_a_request_given_up_before_it_was_written_never_is(owner: Recorder, opcode: Opcode) -> None:
    peer = Peer()
    lane = lane_of(peer)
    given_up, other = ask(owner, opcode, lane=lane), ask(owner, Opcode.SET, b"bbbb", lane=lane)
    lane.send(given_up, 1.0)
    lane.send(other, 1.0)
    peer.mux.abandon(given_up, 2.0)
    assert lane.in_flight == 1
    assert peer.read() == [b"bbbb"]
    assert (peer.mux.load, peer.mux.tombstones) == (1, 0)


@pytest.mark.parametrize("opcode", FORWARDED, ids=lambda opcode: opcode.name)
def test_p1_the_late_answer_to_a_request_given_up_is_dropped(
    owner: Recorder, opcode: Opcode
) -> None:
    peer = Peer()
    given_up, other = ask(owner, opcode), ask(owner, Opcode.DELETE, b"bbbb")
    peer.mux.send(given_up)
    peer.mux.send(other)
    (frame, _), _ = split(peer.mux.take(2.0))
    peer.mux.abandon(given_up, 3.0)
    assert (peer.mux.load, peer.mux.in_flight, peer.mux.tombstones) == (2, 2, 1)
    assert peer.mux.receive(answer(LOUD[opcode], frame.opaque), 4.0) == 0
    assert (peer.mux.load, peer.mux.tombstones) == (1, 0)
    assert owner.outcomes == []


@pytest.mark.parametrize("opcode", FORWARDED, ids=lambda opcode: opcode.name)
def test_p2_a_tombstone_holds_its_lane_unless_it_is_a_read(owner: Recorder, opcode: Opcode) -> None:
    peer = Peer()
    lane = lane_of(peer)
    given_up = ask(owner, opcode, lane=lane)
    lane.send(given_up, 1.0)
    (frame,), _ = split(peer.mux.take(2.0))
    peer.mux.abandon(given_up, 3.0)
    reads = LOUD[opcode] in (Opcode.GET, Opcode.GETK)
    assert lane.in_flight == (0 if reads else 1)
    peer.mux.receive(answer(LOUD[opcode], frame.opaque), 4.0)
    assert lane.in_flight == 0


def test_a_tombstone_answered_with_too_large_a_value_is_read_past(owner: Recorder) -> None:
    peer = Peer(max_value=10)
    given_up, other = ask(owner, Opcode.GET), ask(owner, Opcode.GET, b"bbbb")
    peer.mux.send(given_up)
    peer.mux.send(other)
    peer.read()
    peer.mux.abandon(given_up, 3.0)
    frame = peer.answer(b"bbbb")
    peer.mux.receive(peer.answer(b"aaaa", value=bytes(11)) + frame, 4.0)
    assert owner.outcomes == [(other, bare(frame))]


def test_a_write_whose_client_has_left_is_still_written(owner: Recorder) -> None:
    peer = Peer()
    lane = lane_of(peer)
    write = ask(owner, Opcode.SET, lane=lane)
    lane.send(write, 1.0)
    write.owner = None
    assert peer.read() == [b"aaaa"]
    assert (peer.mux.tombstones, lane.in_flight) == (1, 1)
    peer.reply(b"aaaa")
    assert (peer.mux.load, lane.in_flight) == (0, 0)
    assert write.answer is not None, "its deadline would go on looking at it"


# --- distrust


def test_p1_a_right_opaque_with_another_opcode_is_distrusted(owner: Recorder) -> None:
    peer = Peer()
    peer.mux.send(ask(owner, Opcode.GET))
    (frame,), _ = split(peer.mux.take(2.0))
    with pytest.raises(Distrust) as caught:
        peer.mux.receive(answer(Opcode.GETK, frame.opaque), 3.0)
    assert (caught.value.lost, caught.value.kind) == (Lost.DESYNC, Desync.OPCODE)
    assert owner.outcomes == []


def test_p1_the_quiet_opcode_is_not_what_was_asked(owner: Recorder) -> None:
    peer = Peer()
    peer.mux.send(ask(owner, Opcode.GETQ))
    (frame,), _ = split(peer.mux.take(2.0))
    with pytest.raises(Distrust):
        peer.mux.receive(answer(Opcode.GETQ, frame.opaque), 3.0)


def test_p1_a_second_answer_is_distrusted_and_the_first_delivered(owner: Recorder) -> None:
    peer = Peer()
    first, second = ask(owner, Opcode.GET), ask(owner, Opcode.GET, b"bbbb")
    peer.mux.send(first)
    peer.mux.send(second)
    peer.read()
    with pytest.raises(Distrust) as caught:
        peer.reply(b"aaaa", b"aaaa", b"bbbb")
    assert (caught.value.lost, caught.value.kind) == (Lost.DESYNC, Desync.OPAQUE)
    assert [request for request, _ in owner.outcomes] == [first]


def test_p1_an_answer_to_no_request_is_distrusted() -> None:
    with pytest.raises(Distrust) as caught:
        Peer().mux.receive(answer(Opcode.NOOP, bytes(4)), 3.0)
    assert (caught.value.lost, caught.value.kind) == (Lost.DESYNC, Desync.OPAQUE)


def test_p1_an_answer_to_what_was_not_written_yet_is_distrusted(owner: Recorder) -> None:
    peer = Peer(first_opaque=1)
    peer.mux.send(ask(owner, Opcode.GET))
    with pytest.raises(Distrust) as caught:
        peer.mux.receive(answer(Opcode.GET, b"\0\0\0\x01"), 3.0)
    assert caught.value.kind == Desync.OPAQUE
    assert owner.outcomes == []


@pytest.mark.parametrize("data", [b"E", b"\x80", b"ERROR Too many open connections\r\n"])
def test_a_wrong_first_byte_is_distrusted_before_a_header_is_there(data: bytes) -> None:
    with pytest.raises(Distrust) as caught:
        Peer().mux.receive(data, 3.0)
    assert (caught.value.lost, caught.value.kind) == (Lost.DESYNC, Desync.MAGIC)


@pytest.mark.parametrize(
    "lengths",
    [
        "0005 00 00 0000 00000004",
        "0000 05 00 0000 00000004",
        "0003 02 00 0000 00000004",
        "00fb 04 00 0000 000000ff",
        f"0000 00 00 0000 {MAX_BODY + 1:08x}",
        "0000 00 00 0000 ffffffff",
    ],
)
def test_an_impossible_length_is_distrusted(owner: Recorder, lengths: str) -> None:
    peer = Peer(first_opaque=0)
    peer.mux.send(ask(owner, Opcode.GET))
    peer.read()
    with pytest.raises(Distrust) as caught:
        peer.mux.receive(bytes.fromhex(f"81 00 {lengths} 00000000") + bytes(8), 3.0)
    assert (caught.value.lost, caught.value.kind) == (Lost.DESYNC, Desync.LENGTH)


@pytest.mark.parametrize("size", [MAX_KEY_LENGTH, MAX_KEY_LENGTH + 1])
def test_p1_a_key_that_is_too_long_to_be_one_is_distrusted(owner: Recorder, size: int) -> None:
    peer = Peer(first_opaque=0)
    peer.mux.send(ask(owner, Opcode.GETK))
    peer.read()
    data = answer(Opcode.GETK, bytes(4), extras=bytes(4), key=bytes(size), value=b"v")
    if size == MAX_KEY_LENGTH:
        peer.mux.receive(data, 3.0)
        assert len(owner.outcomes) == 1
        return
    with pytest.raises(Distrust) as caught:
        peer.mux.receive(data, 3.0)
    assert (caught.value.lost, caught.value.kind) == (Lost.DESYNC, Desync.LENGTH)
    assert not owner.outcomes
    assert owner.growth == []


def test_the_longest_possible_body_is_no_desync(owner: Recorder) -> None:
    peer = Peer(first_opaque=0)
    sent = ask(owner, Opcode.GET)
    peer.mux.send(sent)
    peer.read()
    header = bytes.fromhex(f"81 00 0000 00 00 0000 {MAX_BODY:08x} 00000000") + bytes(8)
    peer.mux.receive(header, 3.0)
    assert owner.outcomes == [(sent, Reason.TOO_LARGE)]


@pytest.mark.parametrize("opcode", FORWARDED, ids=lambda opcode: opcode.name)
def test_auth_failure_loses_the_login_where_every_login_may_ask(
    owner: Recorder, opcode: Opcode
) -> None:
    peer = Peer()
    sent = ask(owner, opcode)
    peer.mux.send(sent)
    (frame,), _ = split(peer.mux.take(2.0))
    refused = answer(LOUD[opcode], frame.opaque, Status.AUTH_FAILED, value=b"Auth failure.")
    if LOUD[opcode] in GETS or opcode == Opcode.NOOP:
        with pytest.raises(Distrust) as caught:
            peer.mux.receive(refused, 3.0)
        assert (caught.value.lost, caught.value.kind) == (Lost.LOGIN_LOST, None)
        assert owner.outcomes == []
    else:
        peer.mux.receive(refused, 3.0)
        assert owner.outcomes == [(sent, bare(refused))]


@pytest.mark.parametrize("cut", [1, 10, 23, 24, 30, 1000])
def test_what_comes_after_the_bad_byte_is_never_delivered(owner: Recorder, cut: int) -> None:
    peer = Peer()
    for key in (b"aaaa", b"bbbb", b"cccc"):
        peer.mux.send(ask(owner, Opcode.GET, key))
    peer.read()
    good = [peer.answer(key, value=b"value") for key in (b"aaaa", b"bbbb", b"cccc")]
    bad = peer.answer(b"bbbb", value=b"value").replace(b"\x81", b"\x82", 1)
    stream = good[0] + bad + good[1] + good[2]
    at = len(good[0]) + cut
    with pytest.raises(Distrust):
        peer.mux.receive(stream[:at], 3.0)
    assert [frame for _, frame in owner.outcomes] == [bare(good[0])]


# --- bounds and the end


def test_p6_it_is_full_at_its_bound_of_entries_tombstones_included(owner: Recorder) -> None:
    peer = Peer()
    requests = [ask(owner, Opcode.GET) for _ in range(MAX_ENTRIES)]
    for request in requests[:-1]:
        peer.mux.send(request)
    peer.read()
    peer.mux.abandon(requests[0], 3.0)
    assert not peer.mux.full
    peer.mux.send(requests[-1])
    assert peer.mux.full
    (first, *_) = peer.asked
    peer.mux.receive(answer(first.opcode, first.opaque), 4.0)
    assert not peer.mux.full


def test_p6_it_is_full_at_its_bound_of_unsent_bytes(owner: Recorder) -> None:
    peer = Peer()
    half = bytes(MAX_UNSENT // 2)
    peer.mux.send(ask(owner, Opcode.SET, value=half))
    assert not peer.mux.full
    peer.mux.send(ask(owner, Opcode.SET, value=half))
    assert peer.mux.full
    peer.read()
    assert (peer.mux.full, peer.mux.unsent_bytes) == (False, 0)


def test_a_lost_connection_returns_all_it_carried_in_order(owner: Recorder) -> None:
    peer = Peer()
    written = [ask(owner, opcode) for opcode in (Opcode.SET, Opcode.GET, Opcode.GET, Opcode.SET)]
    for request in written:
        peer.mux.send(request)
    peer.read()
    unsent = [ask(owner, Opcode.GET) for _ in range(3)]
    for request in unsent:
        peer.mux.send(request)
    peer.mux.abandon(written[1], 3.0)
    peer.mux.abandon(unsent[1], 3.0)
    assert peer.mux.lose() == (written, [unsent[0], unsent[2]])
    assert (peer.mux.load, peer.mux.unsent_bytes, peer.mux.take(4.0)) == (0, 0, b"")
    everything: list[Request] = written + unsent
    assert all(request.mux is None for request in everything)
    assert owner.outcomes == []


def test_quiet_requests_are_answered_by_their_loud_twins(owner: Recorder) -> None:
    peer = Peer()
    lane = lane_of(peer)
    quiet = sorted(QUIET - {Opcode.QUITQ})
    for opcode in quiet:
        lane.send(ask(owner, opcode, lane=lane), 1.0)
    frames, _ = split(peer.mux.take(2.0))
    assert [frame.opcode for frame in frames] == [LOUD[opcode] for opcode in quiet]
    stream = b"".join(answer(frame.opcode, frame.opaque) for frame in frames)
    assert peer.mux.receive(stream, 3.0) == len(quiet)


def test_the_connections_own_requests_are_not_counted_as_clients(owner: Recorder) -> None:
    peer = Peer(first_opaque=0)
    beat = ask(owner, Opcode.NOOP)
    peer.mux.send(beat)
    peer.read()
    assert peer.mux.receive(answer(Opcode.NOOP, bytes(4)), 3.0) == 0
    assert owner.outcome(beat) is not None


def test_it_takes_any_first_opaque() -> None:
    for first in (0, 0xFFFFFFFF, 2**40 + 5):
        mux = Multiplexer(first, lambda: None, 1)
        mux.send(ask(Recorder(), Opcode.NOOP))
        assert mux.take(1.0)[12:16] == (first & 0xFFFFFFFF).to_bytes(4, "big")
