"""Writes LZFSE streams of raw and LZVN blocks, as Apple describes them."""

from __future__ import annotations

import struct

END = b"bvx$"
STOP = b"\x06" + bytes(7)  # of an LZVN payload


def raw(data: bytes) -> bytes:
    return b"bvx-" + struct.pack("<I", len(data)) + data


def lzvn(payload: bytes, output: int) -> bytes:
    return b"bvxn" + struct.pack("<2I", output, len(payload)) + payload


def literals(data: bytes) -> bytes:
    result = b""
    for start in range(0, len(data), 271):
        part = data[start : start + 271]
        result += (bytes([0xE0 + len(part)]) if len(part) < 16 else bytes([0xE0, len(part) - 16])) + part
    return result


def match(length: int, distance: int) -> bytes:
    """At least 3 bytes: up to 10 with a distance of their own, the rest at the same one."""
    first = min(length, 10)
    result = struct.pack("<BH", (first - 3) << 3 | 7, distance)
    for start in range(first, length, 271):
        rest = min(length - start, 271)
        result += bytes([0xF0 + rest]) if rest < 16 else bytes([0xF0, rest - 16])
    return result


def compress(data: bytes) -> bytes:
    """A stream of one LZVN block, with a match wherever eight bytes have been seen before."""
    seen: dict[bytes, int] = {}
    payload, start, at = b"", 0, 0
    while at + 8 <= len(data):
        found = seen.get(data[at : at + 8])
        seen[data[at : at + 8]] = at
        if found is None or at - found > 65535:
            at += 1
            continue
        length = 8
        while at + length < len(data) and data[found + length] == data[at + length]:
            length += 1
        payload += literals(data[start:at]) + match(length, at - found)
        at += length
        start = at
    return lzvn(payload + literals(data[start:]) + STOP, len(data)) + END
