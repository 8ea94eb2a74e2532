"""Whatever bytes a binary client sends."""

from fuzz.choices import taken_off
from fuzz.client import barely_swallowed, compare
from fuzz.mutation import Language, change_frame, frames
from memtunnel.core.binary_session import BinarySession
from memtunnel.wire.binary import (
    ANSWER_MAGIC,
    GETS,
    HEADER_LENGTH,
    LOUD,
    QUIET,
    Opcode,
    Status,
    request,
    split,
    unpack_request,
)

#: What is worth to be put into an input as a whole: headers, and what is whole without a body.
TOKENS = tuple(
    request(opcode, key, extras=bytes(extras))[: HEADER_LENGTH + extras + len(key)]
    for opcode in Opcode
    for key, extras in ((b"", 0), (b"key", 0), (b"key", 4), (b"key", 8), (b"key", 20))
)
LANGUAGE = Language(frames, change_frame)


def run(data: bytes) -> bool:
    choices = taken_off(data)
    told, compared = compare(BinarySession, choices, comparable=not _has_brink(choices.rest))
    answers, left = split(told.received)
    assert not left, "a part of a frame"
    for frame in answers:
        assert frame.magic == ANSWER_MAGIC
        assert not frame.status or frame.extras + frame.key + frame.value, "an error without a body"
        if frame.opcode in QUIET and LOUD[frame.opcode] in GETS and frame.status:
            # Only what ends the connection may be told: no login, or lost framing.
            assert frame is answers[-1], "a quiet miss is told"
            assert frame.status in (Status.AUTH_FAILED, Status.UNKNOWN_COMMAND)
    return compared


def _has_brink(data: bytes) -> bool:
    position = 0
    while len(data) - position >= HEADER_LENGTH:
        *_, body = unpack_request(data, position)
        if barely_swallowed(body, len(data)):
            return True
        position += HEADER_LENGTH + body
    return False
