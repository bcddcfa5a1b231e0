"""Searching guest memory: every hit once, where it stands, also across pages and steps."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

import vmstream
from tests.ops.test_extract import FOUR_GIB, GIB, simple
from tests.ops.test_memory import holed
from tests.strategies import examples
from tests.streamwriter import StreamWriter
from vmstream.errors import OutputError
from vmstream.ops import search as module
from vmstream.ops.memory import GuestMemory
from vmstream.ops.search import LONGEST, Needle, expression, literal, search
from vmstream.report.models.search import HitReport

PAGE = 4096
MIB = 1 << 20


def found(w: StreamWriter, needle: Needle, directory: Path, **options: str) -> list[HitReport]:
    (directory / "s").write_bytes(bytes(w))
    with vmstream.open(directory / "s") as stream, stream.memory() as memory:
        return list(search(memory, needle, **options))


def pages_of(data: bytes) -> StreamWriter:
    """A guest whose RAM this is; its pages are written backwards, and those of zeros as such."""

    def write(w: StreamWriter) -> None:
        for at in reversed(range(0, len(data), PAGE)):
            if any(data[at : at + PAGE]):
                w.page("mem", at, data[at : at + PAGE])

    return simple(write, mem=len(data) // PAGE)


def put(size: int, *places: int, text: bytes) -> bytes:
    data = bytearray(size)
    for place in places:
        data[place : place + len(text)] = text
    return bytes(data)


def test_across_pages_and_steps(tmp_path: Path) -> None:
    """The pages are not next to each other in the stream."""
    text = b"needle"
    at = [0, PAGE - 3, 5 * PAGE - 1, MIB - 1, MIB + 9 * PAGE - 5, 2 * MIB - 6, 2 * MIB, 3 * MIB - 6]
    hits = found(pages_of(put(3 * MIB, *at, text=text)), literal(text), tmp_path)
    assert [h.gpa for h in hits] == at
    assert [h.block_offset for h in hits] == at
    assert {(h.block, h.length, h.data) for h in hits} == {("mem", 6, text.hex())}
    hits = found(pages_of(put(3 * MIB, *at, text=text)), expression(b"n[e]+dle"), tmp_path)
    assert [h.gpa for h in hits] == at


@pytest.mark.parametrize("text", [b"\0\0\0ab", b"\0"])
def test_what_starts_with_zeros(text: bytes, tmp_path: Path) -> None:
    """Then pages of zeros count, too."""
    if text == b"\0":
        hits = found(pages_of(put(4 * PAGE, PAGE, text=b"x" * PAGE)), literal(text), tmp_path)
        assert [h.gpa for h in hits] == [*range(PAGE), *range(2 * PAGE, 4 * PAGE)]
        return
    hits = found(pages_of(put(2 * MIB, MIB - 3, text=text)), literal(text), tmp_path)
    assert [h.gpa for h in hits] == [MIB - 3]


def test_blocks_that_are_adjacent(tmp_path: Path) -> None:
    """A hit may go on in the next block, as it does for the guest."""
    pages = 9 * MIB // PAGE

    def write(w: StreamWriter) -> None:
        w.page("n1", 0, b"dle".ljust(PAGE, b"\0"))
        w.page("n0", (pages - 1) * PAGE, b"nee".rjust(PAGE, b"\0"))

    w = simple(write, n0=pages, n1=pages)
    for needle in (literal(b"needle"), expression(b"n.*e")):
        (hit,) = found(w, needle, tmp_path)
        assert (hit.gpa, hit.block, hit.block_offset, hit.length) == (
            9 * MIB - 3, "n0", 9 * MIB - 3, 6,
        )  # fmt: skip


def test_no_hit_spans_a_hole(tmp_path: Path) -> None:
    pages = {2 * GIB - PAGE: bytes(PAGE - 2) + b"ab", 2 * GIB: b"cd" + bytes(PAGE - 2)}
    w = holed(pages)
    assert found(w, literal(b"abcd"), tmp_path) == []
    (hit,) = found(w, literal(b"cd"), tmp_path)
    assert (hit.gpa, hit.block, hit.block_offset) == (FOUR_GIB, "mem", 2 * GIB)
    # In the block they are next to each other.
    (hit,) = found(w, literal(b"abcd"), tmp_path, block="mem")
    assert (hit.gpa, hit.block_offset) == (2 * GIB - 2, 2 * GIB - 2)


def test_one_block(tmp_path: Path) -> None:
    w = simple(lambda w: w.page("pc.bios", 0, b"_SM_" * 1024), **{"mem": 4, "pc.bios": 1})
    assert found(w, literal(b"_SM_"), tmp_path) == []
    hits = found(w, literal(b"_SM_"), tmp_path, block="pc.bios")
    assert [h.block_offset for h in hits] == list(range(0, PAGE, 4))
    assert {h.gpa for h in hits} == {None}
    with pytest.raises(OutputError, match="no block 'x'"):
        found(w, literal(b"_SM_"), tmp_path, block="x")


def test_hits_do_not_overlap(tmp_path: Path) -> None:
    data = put(2 * MIB, MIB - 5, text=b"a" * 11)
    for needle in (literal(b"aaa"), expression(b"aaa")):
        hits = found(pages_of(data), needle, tmp_path)
        assert [h.gpa for h in hits] == [MIB - 5, MIB - 2, MIB + 1]


def test_expressions(tmp_path: Path) -> None:
    data = put(2 * MIB, MIB - 2, text=b"\x01key=value\x02")
    w = pages_of(data)
    (hit,) = found(w, expression(rb"\w+=\w+"), tmp_path)
    assert (hit.gpa, bytes.fromhex(hit.data)) == (MIB - 1, b"key=value")
    # What is before a match can be looked at, also where a step begins.
    assert len(found(w, expression(rb"(?<=\x01k)ey"), tmp_path)) == 1
    assert found(w, expression(rb"x*"), tmp_path) == []
    (hit,) = found(w, expression(rb"[a-z]{3}=.{300}(?s:.)"), tmp_path)
    assert (hit.length, len(hit.data)) == (305, 128)


@given(st.data())
@settings(max_examples=examples(25), deadline=None)
def test_as_in_one_piece(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """With steps so small that everything is near an edge of one."""
    rng = random.Random(data.draw(st.integers(0, 999)))
    memory = bytes(rng.choice(b"\0\0\0ab") for _ in range(5 * PAGE))
    pattern = data.draw(
        st.sampled_from([b"ab", b"aa", b"\0a", b"b\0\0", b"abab", b"a+b", b"(ab|b\0)+", b"b\0*a"])
    )
    directory = tmp_path_factory.mktemp("search")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_STEP", data.draw(st.sampled_from([PAGE, 2 * PAGE, 777])))
        is_text = re.escape(pattern.replace(b"\0", b"")) == pattern.replace(b"\0", b"")
        needle = literal(pattern) if is_text else expression(pattern)
        hits = found(pages_of(memory), needle, directory)
    want = [m.span() for m in re.finditer(pattern, memory)]
    assert [(h.gpa, (h.gpa or 0) + h.length) for h in hits] == want


@given(
    st.sampled_from([
        b"abc", b"abca*", b"abca+b", b"abc(ab)?", b"abca{0}b", b"abca{1,2}", b"abc[ab]*a",
        rb"abc\x00a", b"abc.", b"abc$", rb"abc\b", b"abca??", b"abc(?=a)", b"ab(c|a)", b"abcab*?c",
        b"abc(?i:A)", b"a]b}", b"abc{", b"(?s)abc.", b"aba|bab", b"abc(?<=abc)", b"aaa", b"abab",
    ]),
    st.lists(
        st.sampled_from([b"a", b"b", b"c", b"abc", b"abca", b"aaa", b"\n", b"\0", b"A", b"{"])
    ),
    st.integers(0, 3), st.integers(0, 9), st.integers(0, 9),
)  # fmt: skip
def test_expressions_that_begin_with_text(
    pattern: bytes, parts: list[bytes], begin: int, skip: int, rest: int
) -> None:
    """Found by that text, they are found as `re` does, whatever part of a buffer is looked at."""
    data = b"".join(parts)
    begin = min(begin, len(data))
    start = min(begin + skip, len(data))
    last = max(start, len(data) - rest)
    want = [
        (m.start() + begin, m.end() + begin)
        for m in re.compile(pattern).finditer(data[begin:], start - begin)
        if m.start() + begin < last
    ]
    found = expression(pattern).find(bytearray(data), begin, start, last, len(data))
    assert list(found) == want


def test_which_text_an_expression_begins_with() -> None:
    for pattern, text in {
        rb"https?://": b"http", rb"key=\w+": b"key=", b"abc*": b"ab", b"abc{2}": b"ab",
        b"a|bcd": b"", b"(?i)abc": b"", b"^abc": b"", b"[a]bc": b"",
        b"abc": b"abc", b"abc\\.": b"abc",
    }.items():  # fmt: skip
        assert module._prefix(pattern) == text
        assert expression(pattern).in_zeros == (len(text) < 3)


def test_limit(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(bytes(pages_of(put(3 * MIB, 0, 9, 2 * MIB, text=b"x"))))
    with vmstream.open(tmp_path / "s") as stream, stream.memory() as memory:
        for limit, count in ((1, 1), (2, 2), (3, 3), (9, 3), (None, 3)):
            assert len(list(search(memory, literal(b"x"), limit=limit))) == count


def test_memory_of_zeros_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """5 GiB of it in no time."""
    reads: list[int] = []
    real = GuestMemory._read

    def counted(self: GuestMemory, block: int, offset: int, buffer: memoryview) -> None:
        reads.append(len(buffer))
        real(self, block, offset, buffer)

    monkeypatch.setattr(GuestMemory, "_read", counted)
    (hit,) = found(holed({GIB: b"here" + bytes(PAGE - 4)}), literal(b"here"), tmp_path)
    assert hit.gpa == GIB
    assert sum(reads) <= MIB + 4


@pytest.mark.parametrize("pattern", [b"", bytes(LONGEST + 1)])
def test_patterns_of_a_wrong_length(pattern: bytes) -> None:
    with pytest.raises(ValueError, match="1 to 65536 bytes"):
        literal(pattern)


@pytest.mark.parametrize("pattern", [b"[", b"(?<x", b"*", b"(?<=a*)b"])
def test_what_is_no_expression(pattern: bytes) -> None:
    with pytest.raises(ValueError, match="no regular expression"):
        expression(pattern)


def test_the_longest_pattern(tmp_path: Path) -> None:
    text = random.Random(1).randbytes(LONGEST)
    (hit,) = found(pages_of(put(2 * MIB, MIB - 77, text=text)), literal(text), tmp_path)
    assert (hit.gpa, hit.length) == (MIB - 77, LONGEST)
