"""LZFSE: streams that Apple's encoder wrote, every LZVN instruction by hand, round trips, thousands of damaged ones."""

from __future__ import annotations

import base64
import struct
import tracemalloc

import numpy as np
import pytest
from lzfse_writer import END, STOP, compress, literals, lzvn, match, raw

from fuzz import tries
from pri3d.errors import FrameError
from pri3d.recordings._shared import lzfse
from pri3d.recordings._shared.lzfse import decompress
from pri3d.testing.reader import mutations

# What the reference encoder makes of the contents below: two entropy-coded blocks (bvx2), and one of LZVN (bvxn).
TEXT = base64.b85decode(
    "Vs>~kh!X$+AOP?H00;meyGsgQ4;27lqyPW_JuKh|j{pa700#iT0dN2uZ~zAf0KmcFqwoj-@Cfh-@Cfh-@CX0^0000000000002A!00000"
    "0002MBLV;bJOTg!0PqL^0000000000@M!QT@TkC}06Yqh0>C5iC_D=A2mk;8000000000000000000000000000000000000000000000"
    "0Elq9%+K=%o=*Y*0000000000Fa`b(@c)u<cqVWXVs>~W"
)
WORDS = base64.b85decode(
    "Vs>~kz!CrehykDn00jV0++KU_wGjXilmGw#DFCnt9{>Pw1pojqzy|=p6#xLh3-C|86951J0002L0RR9100000002*H+qP}nwr$(CZQHhO"
    "yH?w_ZQHhO+qP}nwr$(CZQHhO+qP}n0ssI2000000000000000000000000000000000000000000000B#t1_Uq9~Ck1zM@(WAWh@8zD|"
    "`lmy0UggJ$Be?I~#a&zWU$ahq)1yJZv*ydE9NF;~BQAWwfB8PI-MNR`R_)J{4STO!vA(L*r)Nqc`ky>=-sVi0Z>jR+Nrv?JjTkFl;zNc{"
    "XmH>G_S5%!^y1y!I&?25?i&CA00000006MqA^rb+aQ^^ec6cN"
)
SHORT = base64.b85decode("Vs?0LSONe5H2?qr-~e=JWguf=ZDn#{AaiA9b07#1<#%ChY%DMeI2afxm^3>e@c;1p<SZa`Xa)cP000000AhA{Bm")
TEXT_CONTENT = (b"the camera sees the wall, the wall sees the camera; " * 100)[:5000]
WORDS_CONTENT = struct.pack("<1200I", *(k % 97 for k in range(1, 1201)))
KNOWN = {"text": (TEXT, TEXT_CONTENT), "words": (WORDS, WORDS_CONTENT), "short": (SHORT, TEXT_CONTENT[:600])}


def one_block(payload: bytes, size: int) -> bytes:
    return decompress(lzvn(payload + STOP, size) + END, size, "it")


class TestKnownAnswers:
    @pytest.mark.thorough
    @pytest.mark.parametrize("name", KNOWN)
    def test_streams_of_the_reference_encoder(self, name: str) -> None:
        stream, content = KNOWN[name]
        assert decompress(stream, len(content), "it") == content

    @pytest.mark.parametrize("name", ["text", "words"])
    def test_the_same_block_with_plain_tables(self, name: str) -> None:
        stream, content = KNOWN[name]
        head = lzfse._packed_tables(stream, np.frombuffer(stream, np.uint8), 0, "it")
        payload = stream[head.size : head.size + head.literal_bytes + head.match_bytes]
        fields = (head.output, len(payload), head.literals, head.matches, head.literal_bytes, head.match_bytes)
        states = (head.literal_bits, *head.literal_states, head.match_bits, *head.match_states)
        plain = struct.pack("<4s6Ii4Hi3H", b"bvx1", *fields, *states) + head.tables.astype("<u2").tobytes() + bytes(2)
        assert len(plain) == 772
        assert decompress(plain + payload + END, len(content), "it") == content

    def test_blocks_follow_each_other_and_matches_reach_back_over_them(self) -> None:
        stream = TEXT[:-4] + raw(b"raw") + lzvn(literals(b"xy") + match(20, 5005) + STOP, 22) + WORDS
        content = TEXT_CONTENT + b"raw" + b"xy" + TEXT_CONTENT[:20] + WORDS_CONTENT
        assert decompress(stream, len(content), "it") == content

    def test_nothing(self) -> None:
        assert decompress(END, 0, "it") == b""


class TestInstructions:
    @pytest.mark.parametrize(
        ("payload", "content"),
        [
            (b"\xe3abc", b"abc"),
            (b"\xe0\x04" + bytes(range(20)), bytes(range(20))),
            (b"\xe3abc\x00\x03", b"abcabc"),  # small: 3 at distance 3
            (b"\xe3abc\x88\x05xy", b"abcxyabcx"),  # small with two literals: 4 at distance 5
            (literals(bytes(300) + b"abc") + b"\x01\x2f", bytes(300) + b"abc" + bytes(3)),  # small: distance 303
            (b"\xe3abc\x3f\x03\x00", b"abcabcabcabca"),  # large: 10 at distance 3
            (b"\xe3abc\xa7\x0f\x00", b"abc" + b"abc" * 11 + b"a"),  # medium: 34 at distance 3
            (b"\xe3abc\xb8\x18\x00xyz", b"abcxyzabc"),  # medium with three literals: 3 at distance 6
            (b"\xe3abc\x00\x03\xf2", b"abcabcab"),  # alone, at the distance before
            (b"\xe3abc\x00\x03\xf0\x01", b"abcabc" + b"abc" * 5 + b"ab"),
            (b"\xe3abc\x00\x03\x46z", b"abcabczbcz"),  # a literal, then the distance before
            (b"\x0e\x16\xe1a", b"a"),  # two that do nothing
        ],
    )
    def test_each(self, payload: bytes, content: bytes) -> None:
        assert one_block(payload, len(content)) == content

    @pytest.mark.parametrize(
        "payload",
        [
            b"\xe3abc\x00\x04",  # beyond the beginning
            b"\xe3abc\x00\x00",  # at distance 0
            b"\xe3abc\xf3",  # at no distance yet
            b"\xe3abc\x70\x03",  # none such
            b"\xe3abc\xd0\x03",
            b"\xe3abc\x1e\x03",
            b"\xe3abc\x3f\x03\x00",  # more than the block says
        ],
    )
    def test_damaged(self, payload: bytes) -> None:
        with pytest.raises(FrameError, match="it: its compression"):
            one_block(payload, 6)


class TestStreams:
    @pytest.mark.parametrize("size", [0, 1, 7, 8, 300, 6912, 70000])
    def test_round_trip(self, size: int) -> None:
        rng = np.random.default_rng(size)
        noise, few = (rng.integers(high, size=size, dtype=np.uint8).tobytes() for high in (256, 2))
        for content in (bytes(size), noise, few, np.arange(size // 4, dtype="<f4").tobytes()):
            assert decompress(compress(content), len(content), "it") == content

    @pytest.mark.parametrize("size", [599, 601])
    def test_another_length(self, size: int) -> None:
        with pytest.raises(FrameError, match=r"it: (says it holds more|holds 600 bytes, expected 601)"):
            decompress(SHORT, size, "it")

    def test_bombs_take_no_memory(self) -> None:
        """A gigabyte is claimed in three ways, and a small block repeats one byte beyond what is asked for."""
        many = literals(b"a") + match(10**6, 1)
        bombs = (
            b"bvx-" + struct.pack("<I", 1 << 30),
            lzvn(many + STOP, 1 << 30) + END,
            TEXT[:4] + struct.pack("<I", 1 << 30) + TEXT[8:],
            lzvn(many + STOP, 1000) + END,
        )
        for bomb in bombs:
            tracemalloc.start()
            with pytest.raises(FrameError):
                decompress(bomb, 1000, "it")
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 1 << 20

    def test_empty_blocks_come_to_an_end(self) -> None:
        assert decompress(raw(b"") * 1000 + raw(b"a") + END, 1, "it") == b"a"
        with pytest.raises(FrameError, match="truncated"):
            decompress(raw(b"") * 1000, 1, "it")

    @pytest.mark.parametrize("name", KNOWN)
    def test_damaged_bytes(self, name: str) -> None:
        """A changed literal may pass, a changed length never."""
        stream, content = KNOWN[name]
        refused = 0
        for damaged in mutations(stream, np.random.default_rng(len(name)), count=tries(200)):
            try:
                assert len(decompress(damaged, len(content), "it")) == len(content)
            except FrameError as error:
                assert str(error).startswith("it: ")
                refused += 1
        assert refused > tries(100)

    def test_every_cut(self) -> None:
        for end in range(len(SHORT)):
            with pytest.raises(FrameError, match=r"truncated|damaged"):
                decompress(SHORT[:end], 600, "it")
