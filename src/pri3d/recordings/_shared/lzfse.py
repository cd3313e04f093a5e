"""LZFSE, the compression of Apple's systems: streams of blocks -> bytes, never more than the caller expects.

A stream is a sequence of blocks, each with four characters that name its kind, little-endian throughout:

    bvx-  uint32 bytes, then those bytes as they are
    bvxn  uint32 bytes of output, uint32 bytes of payload, an LZVN payload
    bvx2  LZ77 matches and literals with an entropy code (finite states), its tables packed
    bvx1  the same with plain tables
    bvx$  the end

Known from Apple's published description of the format (the reference implementation's headers, 2016).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pri3d.errors import FrameError

Bytes = NDArray[np.uint8]
Numbers = NDArray[np.int64]

_SYMBOLS = (20, 20, 64, 256)  # of the lengths of literals, lengths of matches, distances, and literals
_STATES = (64, 64, 256, 1024)
_MOST_LITERALS, _MOST_MATCHES = 40000, 10000  # of a block
_V1 = struct.Struct("<7Ii4Hi3H")  # the fields of bvx1 before its tables
_V1_SIZE = 772  # bytes with the tables, and two to fill it up
_V2 = struct.Struct("<4sI3Q")


class _Head(NamedTuple):
    """What the header of an entropy-coded block says."""

    size: int  # bytes of the header
    output: int  # bytes the block gives
    literals: int
    matches: int
    literal_bytes: int
    match_bytes: int
    literal_bits: int  # -7..0: bits of the last byte that are not used
    match_bits: int
    literal_states: tuple[int, ...]  # (4,)
    match_states: tuple[int, ...]  # (3,) of literal length, match length and distance
    tables: Numbers  # (360,) frequencies of all symbols


def decompress(data: bytes, size: int, what: str) -> bytes:
    """Return the ``size`` bytes that a stream holds.

    Raises FrameError, which calls the stream ``what``, where it is damaged, cut off or holds another number of bytes.
    Memory is bounded by ``size`` whatever the stream claims.
    """
    source = np.frombuffer(data, np.uint8)
    target = np.zeros(size, np.uint8)
    at = done = 0
    while data[at : at + 4] != b"bvx$":
        before, kind = (at, done), data[at : at + 4]
        try:
            if kind == b"bvx-":
                (output,) = struct.unpack_from("<I", data, at + 4)
                _check_room(output, target.size - done, output, len(data) - at - 8, what)
                target[done : done + output] = source[at + 8 : at + 8 + output]
                at, done = at + 8 + output, done + output
            elif kind == b"bvxn":
                output, payload = struct.unpack_from("<2I", data, at + 4)
                _check_room(output, target.size - done, payload, len(data) - at - 12, what)
                end = _lzvn(source[at + 12 : at + 12 + payload], target, done, done + output)
                at, done = at + 12 + payload, _done(end, done + output, what)
            elif kind in (b"bvx1", b"bvx2"):
                if kind == b"bvx1":
                    _, output, _, literals, matches, literal_bytes, match_bytes, *rest = _V1.unpack_from(data, at)
                    tables = struct.unpack_from(f"<{sum(_SYMBOLS)}H", data, at + _V1.size)
                    head = _Head(
                        _V1_SIZE, output, literals, matches, literal_bytes, match_bytes, literal_bits=rest[0],
                        match_bits=rest[5], literal_states=tuple(rest[1:5]), match_states=tuple(rest[6:9]),
                        tables=np.array(tables, np.int64),
                    )  # fmt: skip
                else:
                    head = _packed_tables(data, source, at, what)
                at, done = _coded(source, at, head, target, done, what)
            else:
                raise FrameError(
                    f"{what}: its compression (LZFSE) has no block at byte {at}; it is damaged or truncated."
                )
        except struct.error as error:
            raise FrameError(f"{what}: its compression (LZFSE) is truncated.") from error
        if (at, done) == before:
            raise FrameError(f"{what}: its compression (LZFSE) is damaged.")
    if done != size:
        raise FrameError(f"{what}: holds {done} bytes, expected {size}.")
    return target.tobytes()


def _check_room(output: int, room: int, payload: int, left: int, what: str) -> None:
    if output > room:
        raise FrameError(f"{what}: says it holds more bytes than its image has pixels for; it is damaged.")
    if payload > left:
        raise FrameError(f"{what}: its compression (LZFSE) is truncated.")


def _done(end: int, expected: int, what: str) -> int:
    if end != expected:
        raise FrameError(f"{what}: its compression (LZFSE) is damaged.")
    return end


def _packed_tables(data: bytes, source: Bytes, at: int, what: str) -> _Head:
    _, output, first, second, third = _V2.unpack_from(data, at)
    size = third & 0xFFFFFFFF
    if not _V2.size <= size <= min(len(data) - at, _V2.size + 2 * sum(_SYMBOLS)):
        raise FrameError(f"{what}: its compression (LZFSE) has a header of {size} bytes; it is damaged or truncated.")
    tables = np.zeros(sum(_SYMBOLS), np.int64)
    if size > _V2.size and not _unpack(source[at + _V2.size : at + size], tables):
        raise FrameError(f"{what}: its compression (LZFSE) has damaged tables.")
    return _Head(
        size=size,
        output=output,
        literals=_bits(first, 0, 20),
        matches=_bits(first, 40, 20),
        literal_bytes=_bits(first, 20, 20),
        match_bytes=_bits(second, 40, 20),
        literal_bits=_bits(first, 60, 3) - 7,
        match_bits=_bits(second, 60, 3) - 7,
        literal_states=tuple(_bits(second, 10 * k, 10) for k in range(4)),
        match_states=tuple(_bits(third, 32 + 10 * k, 10) for k in range(3)),
        tables=tables,
    )


def _bits(value: int, start: int, count: int) -> int:
    return value >> start & ((1 << count) - 1)


def _coded(source: Bytes, at: int, head: _Head, target: Bytes, done: int, what: str) -> tuple[int, int]:
    start = at + head.size
    middle, end = start + head.literal_bytes, start + head.literal_bytes + head.match_bytes
    _check_room(head.output, target.size - done, end, source.size, what)
    frequencies = np.split(head.tables, np.cumsum(_SYMBOLS)[:-1])
    fits = (
        head.literals <= _MOST_LITERALS
        and head.literals % 4 == 0
        and head.matches <= _MOST_MATCHES
        and -7 <= min(head.literal_bits, head.match_bits) <= max(head.literal_bits, head.match_bits) <= 0
        and all(table.sum() <= states for table, states in zip(frequencies, _STATES, strict=True))
        and max(head.literal_states) < _STATES[3]
        and all(state < states for state, states in zip(head.match_states, _STATES, strict=False))
    )
    if not fits:
        raise FrameError(f"{what}: its compression (LZFSE) has a damaged header.")
    steps = [_steps(table, states) for table, states in zip(frequencies, _STATES, strict=True)]
    literals = np.zeros(head.literals, np.uint8)
    states = np.array(head.literal_states, np.int64)
    if not _read_literals(source[start:middle], head.literal_bits, states, steps[3], literals):
        raise FrameError(f"{what}: its compression (LZFSE) has damaged literals.")
    states = np.array(head.match_states, np.int64)
    stop = _read_matches(
        source[middle:end], head.match_bits, states, steps[0], steps[1], steps[2], _EXTRA, _BASE,
        head.matches, literals, target, done, done + head.output,
    )  # fmt: skip
    return end, _done(stop, done + head.output, what)


def _values() -> tuple[Numbers, Numbers]:
    """Extra bits and smallest value (3, 64) of each symbol of literal length, match length and distance."""
    extra = np.zeros((3, 64), np.int64)
    extra[0, 16:20] = 2, 3, 5, 8
    extra[1, 16:20] = 3, 5, 8, 11
    extra[2] = np.repeat(np.arange(16), 4)
    base = np.zeros((3, 64), np.int64)
    base[:, 1:] = np.cumsum(1 << extra, axis=1)[:, :-1]
    return extra, base


_EXTRA, _BASE = _values()


@njit(cache=True, nogil=True)
def _byte(stream: Bytes, at: int) -> int:
    """Byte ``at`` as a signed number, 0 beyond the end."""
    return np.int64(stream[at]) if at < stream.size else np.int64(0)  # type: ignore[return-value]


@njit(cache=True, nogil=True)
def _unpack(packed: Bytes, tables: Numbers) -> bool:
    """Fill ``tables`` (360,) with frequencies of 2, 3, 5, 8 or 14 bits, lowest bits first; whether they are there."""
    bit = 0
    for k in range(tables.size):
        word = 0
        for i in range(3):
            word |= _byte(packed, (bit >> 3) + i) << (8 * i)
        word >>= bit & 7
        if word & 3 == 0 or word & 3 == 2:
            length, value = 2, (word & 3) >> 1
        elif word & 3 == 1:
            length, value = 3, 2 + (word >> 2 & 1)
        elif word & 7 == 3:
            length, value = 5, 4 + (word >> 3 & 3)
        elif word & 15 == 7:
            length, value = 8, 8 + (word >> 4 & 15)
        else:
            length, value = 14, 24 + (word >> 4 & 1023)
        bit += length
        if bit > 8 * packed.size:
            return False
        tables[k] = value
    return 8 * packed.size - bit < 8


@njit(cache=True, nogil=True)
def _steps(frequencies: Numbers, states: int) -> Numbers:
    """Decoder (states, 3): of each state its symbol, bits to read, and what to add to them for the next state.

    A symbol owns as many states, in a row, as its frequency says; states that no symbol owns have symbol -1.
    """
    table = np.full((states, 3), -1, np.int64)
    at = 0
    for symbol in range(frequencies.size):
        count = frequencies[symbol]
        if count == 0:
            continue
        bits = 0
        while count << bits < states:
            bits += 1
        if count << bits > states:
            bits -= 1
        bits += count << bits != states
        longer = (2 * states >> bits) - count  # states that read all the bits; the others one less
        for k in range(count):
            table[at, 0] = symbol
            table[at, 1] = bits if k < longer else bits - 1
            table[at, 2] = ((count + k) << bits) - states if k < longer else (k - longer) << (bits - 1)
            at += 1
    return table


@njit(cache=True, nogil=True)
def _pull(stream: Bytes, at: int, count: int) -> int:
    """The ``count`` (at most 24) bits that begin at bit ``at`` of a stream, lowest first."""
    word = 0
    for i in range(4):
        word |= _byte(stream, (at >> 3) + i) << (8 * i)
    return (word >> (at & 7)) & ((1 << count) - 1)


@njit(cache=True, nogil=True)
def _read_literals(stream: Bytes, unused: int, states: Numbers, steps: Numbers, literals: Bytes) -> bool:
    """Fill ``literals`` from a stream that is read from its end by four states in turn; whether it is sound."""
    at = 8 * stream.size + unused
    for k in range(literals.size):
        symbol, bits, add = steps[states[k & 3]]
        at -= bits
        if symbol < 0 or at < 0:
            return False
        literals[k] = symbol
        states[k & 3] = add + _pull(stream, at, bits)
    return True


@njit(cache=True, nogil=True)
def _read_matches(
    stream: Bytes,
    unused: int,
    states: Numbers,
    literal_steps: Numbers,
    match_steps: Numbers,
    distance_steps: Numbers,
    extra: Numbers,
    base: Numbers,
    count: int,
    literals: Bytes,
    target: Bytes,
    done: int,
    end: int,
) -> int:
    """Write literals and matches to ``target``, from ``done`` to ``end`` at most; where it ends, -1 if damaged."""
    at = 8 * stream.size + unused
    values = np.zeros(3, np.int64)
    used = distance = 0
    for _ in range(count):
        for k in range(3):
            steps = literal_steps if k == 0 else match_steps if k == 1 else distance_steps
            symbol, bits, add = steps[states[k]]
            if symbol < 0:
                return -1
            low = extra[k, symbol]
            at -= bits + low
            if at < 0:
                return -1
            word = _pull(stream, at, bits + low)
            states[k] = add + (word >> low)
            values[k] = base[k, symbol] + (word & ((1 << low) - 1))
        length = values[0]
        if used + length > literals.size or done + length + values[1] > end:
            return -1
        target[done : done + length] = literals[used : used + length]
        used, done = used + length, done + length
        if values[2]:
            distance = values[2]  # else that of the match before
        if values[1] and not 0 < distance <= done:
            return -1
        for i in range(done, done + values[1]):
            target[i] = target[i - distance]
        done += values[1]
    return done


@njit(cache=True, nogil=True)
def _opcode(stream: Bytes, at: int, distance: int) -> tuple[int, int, int, int]:
    """Bytes, literals, match and distance of the LZVN instruction at ``at``; 0 bytes if there is none such.

    Bytes -1 is the end of the stream. Six kinds: LLMMMDDD and a byte of distance (small), LLMMM111 and two (large),
    LLMMM110 (the distance before), 101LLMMM DDDDDDMM DDDDDDDD (medium), 1110LLLL (literals alone), 1111MMMM (a match
    alone, at the distance before); a zero length of the last two is in the next byte, less 16.
    """
    code, second, third = _byte(stream, at), _byte(stream, at + 1), _byte(stream, at + 2)
    kind, small = code >> 4, code & 15
    if kind in (7, 13):
        return 0, 0, 0, 0
    if kind >= 14:
        length = small if small else second + 16
        literals = length if kind == 14 else 0
        return 1 if small else 2, literals, length - literals, distance
    if kind in (10, 11):
        return 3, code >> 3 & 3, ((code & 7) << 2 | second & 3) + 3, second >> 2 | third << 6
    literals, match, high = code >> 6, (code >> 3 & 7) + 3, code & 7
    if high == 7:
        return 3, literals, match, second | third << 8
    if high < 6:
        return 2, literals, match, high << 8 | second
    size = 1 if literals or code in (14, 22) else -1 if code == 6 else 0  # 14 and 22 do nothing
    return size, literals, match if literals else 0, distance


@njit(cache=True, nogil=True)
def _lzvn(stream: Bytes, target: Bytes, done: int, end: int) -> int:
    """Decode an LZVN payload to ``target``, from ``done`` to ``end`` at most; where it ends, -1 if damaged."""
    at = distance = 0
    while at < stream.size:
        size, literals, match, distance = _opcode(stream, at, distance)
        if size < 0:
            return done
        at += size
        if size == 0 or at + literals > stream.size or done + literals + match > end:
            return -1
        target[done : done + literals] = stream[at : at + literals]
        at, done = at + literals, done + literals
        if match and not 0 < distance <= done:
            return -1
        for i in range(done, done + match):
            target[i] = target[i - distance]
        done += match
    return done if done == end else -1
