"""The functions that run Construct: values, sizes, faults with offsets, and what is too short."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from tests import streamwriter as sw
from tests.containers import lzop, save_image
from tests.strategies import block_names, examples
from tests.streamwriter import RamBlock, StreamWriter
from vmstream.errors import FormatError, IntegrityError, LimitError, UnsupportedError
from vmstream.wire import parse
from vmstream.wire.constants import FOREIGN_MAGICS, MAX_CONFIGURATION, MAX_RAM_BLOCKS

MIB = 1 << 20
EOS = sw.be64(sw.FLAG_EOS)


def written(write: Callable[[StreamWriter], Any]) -> bytes:
    w = StreamWriter()
    write(w)
    return bytes(w)


def needs_all(read: Callable[[bytes], Any], data: bytes, used: int) -> None:
    """Every prefix shorter than `used` is Short."""
    for length in range(used):
        with pytest.raises(parse.Short) as caught:
            read(data[:length])
        assert caught.value.size > 0


# ---- file header ---------------------------------------------------------------------------


def test_file_header() -> None:
    assert parse.file_header(b"QEVM\0\0\0\3rest") == 8
    assert parse.file_header(memoryview(b"QEVM\0\0\0\3")) == 8
    needs_all(parse.file_header, b"QEVM\0\0\0\3", 8)


@pytest.mark.parametrize("magic", list(FOREIGN_MAGICS))
def test_file_header_of_a_container(magic: bytes) -> None:
    what, advice = FOREIGN_MAGICS[magic]
    with pytest.raises(UnsupportedError, match=what) as caught:
        parse.file_header(magic + b"\0" * 8)
    assert caught.value.offset == 0
    assert caught.value.advice == advice


@pytest.mark.parametrize("magic", [b"QEVN", b"\x7fELF", b"PK\3\4", b"R", b"QX"])
def test_file_header_of_something_else(magic: bytes) -> None:
    with pytest.raises(FormatError, match="not a migration stream") as caught:
        parse.file_header(magic)
    assert caught.value.offset == 0
    assert repr(magic[:4]) in str(caught.value)


def test_a_recovered_postcopy() -> None:
    """Its connection has no header, and the names of blocks first; a real one of 11.1."""
    for command in (10, 9):  # 9 in 3.0
        name = sw.cstr8("pc.ram")
        raw = sw.u8(8) + sw.be16(command) + sw.be16(len(name)) + name
        with pytest.raises(UnsupportedError, match="recovered postcopy"):
            parse.file_header(raw[:8])
        with pytest.raises(FormatError, match="not a migration stream"):
            parse.file_header(raw[:4] + b"\2" + raw[5:8])
        with pytest.raises(FormatError, match="not a migration stream"):
            parse.file_header(raw[:5])


@pytest.mark.parametrize("version", [0, 2, 4, 0x03000000, 0xFFFFFFFF])
def test_file_header_of_another_version(version: int) -> None:
    with pytest.raises(FormatError, match="version") as caught:
        parse.file_header(b"QEVM" + sw.be32(version))
    assert caught.value.offset == 4
    assert caught.value.found == str(version)


# ---- configuration -------------------------------------------------------------------------

CAPABILITIES: list[list[str] | None] = [None, [], ["x-ignore-shared"], ["a", "b" * 255, "c"]]
CHOICES = list(itertools.product((None, 12, 16), CAPABILITIES, (None, bytes(range(16)))))


@pytest.mark.parametrize(("bits", "capabilities", "uuid"), CHOICES)
def test_configuration(
    bits: int | None, capabilities: list[str] | None, uuid: bytes | None
) -> None:
    raw = written(
        lambda w: w.configuration(
            "pc-q35-10.0", page_bits=bits, capabilities=capabilities, uuid=uuid
        )
    )
    found, used = parse.configuration(raw + b"\1", 8)
    assert used == len(raw)
    names = [b"target-page-bits"] * (bits is not None)
    names += [b"capabilities"] * (capabilities is not None) + [b"uuid"] * (uuid is not None)
    assert found == parse.ConfigurationValues(
        name=b"pc-q35-10.0",
        target_page_bits=bits,
        capabilities=tuple(c.encode() for c in capabilities or ()),
        uuid=uuid,
        subsections=tuple(b"configuration/" + n for n in names),
    )
    # Only the byte behind it tells that it has ended.
    needs_all(lambda part: parse.configuration(part, 8), raw + b"\1", len(raw) + 1)


def test_configuration_in_another_order() -> None:
    uuid = sw.subsection("configuration/uuid", 1, b"u" * 16)
    bits = sw.subsection("configuration/target-page-bits", 1, sw.be32(14))
    raw = written(lambda w: w.configuration("m", subsections=uuid + bits))
    found, used = parse.configuration(raw + b"\x08", 8)
    assert (found.target_page_bits, found.uuid, used) == (14, b"u" * 16, len(raw))


def test_configuration_name_is_any_bytes() -> None:
    found, _ = parse.configuration(b"\7\0\0\0\4\xff\0\n{\1", 8)
    assert found.name == b"\xff\0\n{"
    assert parse.configuration(b"\7\0\0\0\0\1", 8)[0].name == b""


def test_configuration_with_a_subsection_nobody_knows() -> None:
    extra = sw.subsection("configuration/later", 1, b"abc")
    raw = written(lambda w: w.configuration("m", uuid=bytes(16), subsections=extra))
    with pytest.raises(FormatError, match="unknown subsection") as caught:
        parse.configuration(raw + b"\1", 8)
    assert caught.value.offset == 8 + len(raw) - len(extra)
    assert "configuration/later" in caught.value.found


@pytest.mark.parametrize("version", [0, 2, 0x1000001])
def test_configuration_with_a_subsection_of_another_version(version: int) -> None:
    """QEMU refuses it; what is in it nobody knows."""
    extra = sw.subsection("configuration/uuid", version, bytes(16))
    raw = written(lambda w: w.configuration("m", subsections=extra))
    with pytest.raises(FormatError, match="unknown version") as caught:
        parse.configuration(raw + b"\1", 8)
    assert caught.value.offset == 8 + len(raw) - len(extra)


@pytest.mark.parametrize("length", [MAX_CONFIGURATION, 1 << 31, 0xFFFFFFFF])
def test_configuration_name_of_impossible_length(length: int) -> None:
    for size in (5, 100):
        with pytest.raises(FormatError, match="impossible length") as caught:
            parse.configuration((b"\7" + sw.be32(length)).ljust(size, b"x"), 8)
        assert caught.value.offset == 9


def test_configuration_without_end_is_bounded() -> None:
    one = sw.subsection("configuration/uuid", 1, bytes(16))
    raw = b"\7" + sw.be32(1) + b"m" + one * (MAX_CONFIGURATION // len(one) + 2)
    with pytest.raises(LimitError):
        parse.configuration(raw, 8)


def test_configuration_with_a_hostile_count() -> None:
    body = sw.be32(0xFFFFFFFF) + b"\1a" * 200
    raw = b"\7" + sw.be32(1) + b"m" + sw.subsection("configuration/capabilities", 1, body)
    with pytest.raises((parse.Short, FormatError, LimitError)):
        parse.configuration(raw, 8)


# ---- section head, command -----------------------------------------------------------------


@pytest.mark.parametrize("idstr", ["ram", "0000:00:02.0/virtio-net", "x" * 255])
@pytest.mark.parametrize("kind", [sw.SECTION_START, sw.SECTION_FULL])
def test_section_head(kind: int, idstr: str) -> None:
    raw = sw.section_header(kind, 0xFFFFFFFE, idstr, 0x80000001, 12)
    found, used = parse.section_head(raw + b"\xa5" * 9, 100)
    assert found == parse.SectionHead(kind, 0xFFFFFFFE, idstr.encode(), 0x80000001, 12)
    assert used == len(raw) <= parse.LONGEST_SECTION_HEAD
    needs_all(lambda part: parse.section_head(part, 100), raw, len(raw))


def test_longest_section_head() -> None:
    assert len(sw.section_header(4, 1, "x" * 255, 0, 0)) == parse.LONGEST_SECTION_HEAD


def test_section_without_a_name() -> None:
    with pytest.raises(FormatError, match="without a name") as caught:
        parse.section_head(sw.section_header(4, 1, "", 0, 0), 100)
    assert caught.value.offset == 105


@pytest.mark.parametrize("size", [0, 1, 16, 0xFFFF])
def test_command(size: int) -> None:
    raw = written(lambda w: w.command(0x0203, b"\x08" * size))
    assert parse.command(raw + b"\xa5", 0) == (0x0203, b"\x08" * size, 5 + size)
    for length in (0, 1, 4, len(raw) - 1):
        with pytest.raises(parse.Short):
            parse.command(raw[:length], 0)


def test_command_fields() -> None:
    advise = sw.be64(0x201000) + sw.be64(4096)
    assert parse.command_fields(sw.CMD_PING, sw.be32(3)) == {"value": 3}
    assert parse.command_fields(sw.CMD_POSTCOPY_ADVISE, advise) == {
        "page_sizes": 0x201000,
        "target_page_size": 4096,
    }
    assert parse.command_fields(sw.CMD_PACKAGED, sw.be32(77)) == {"length": 77}


@pytest.mark.parametrize("cmd", [*range(13), 0xFFFF])
@pytest.mark.parametrize("data", [b"", b"\0", bytes(5), bytes(300)])
def test_command_without_fields(cmd: int, data: bytes) -> None:
    assert parse.command_fields(cmd, data) == {}


# ---- RAM block list ------------------------------------------------------------------------


def block_list(blocks: list[RamBlock], behind: bytes = EOS) -> tuple[bytes, int]:
    raw = b"".join(b.entry() for b in blocks)
    return raw + behind, len(raw)


def check_list(blocks: list[RamBlock], *, ignore_shared: bool = False, behind: bytes = EOS) -> None:
    data, size = block_list(blocks, behind)
    total = sum(b.length for b in blocks)
    found, used = parse.ram_block_list(data, 1000, total, ignore_shared=ignore_shared)
    assert used == size
    assert found == tuple(
        parse.BlockEntry(b.idstr.encode(), b.length, b.page_size, b.gpa, b.ignored) for b in blocks
    )
    # The head behind the list is looked at too.
    needs_all(
        lambda part: parse.ram_block_list(part, 1000, total, ignore_shared=ignore_shared),
        data,
        size + 8,
    )


HUGE = {"page_size": 2 * MIB}


@pytest.mark.parametrize("huge", list(itertools.product((False, True), repeat=3)))
@pytest.mark.parametrize("variant", ["plain", "gpa", "ignored"])
def test_block_list(variant: str, huge: tuple[bool, ...]) -> None:
    """Any of the entries may have a huge page size, whatever else the variant adds to each."""
    names = ("pc.ram", "/objects/mem1", "pc.bios")
    blocks = []
    for i, (name, is_huge) in enumerate(zip(names, huge, strict=True)):
        extra: dict[str, int] = dict(HUGE) if is_huge else {}
        if variant != "plain":
            extra["gpa"] = (0, 0x100000000, 0xFFFC0000)[i]
        if variant == "ignored":
            extra["ignored"] = i % 2
        blocks.append(RamBlock(name, (i + 1) * 4 * MIB, **extra))
    check_list(blocks, ignore_shared=variant != "plain")


@pytest.mark.parametrize(
    "behind",
    [
        EOS,
        sw.be64(sw.FLAG_MULTIFD_FLUSH) + EOS,
        sw.be64(sw.FLAG_PAGE) + sw.cstr8("pc.ram"),
        sw.be64(0x7000 | sw.FLAG_ZERO) + sw.cstr8("pc.ram") + b"\0",
        sw.be64(sw.FLAG_XBZRLE) + sw.cstr8("pc.ram"),
        sw.be64(sw.FLAG_HOOK) + EOS,
    ],
)
def test_block_list_before_any_record(behind: bytes) -> None:
    check_list([RamBlock("pc.ram", MIB)], behind=behind)
    check_list([RamBlock("pc.ram", MIB, **HUGE), RamBlock("b", 4096)], behind=behind)


def test_block_list_of_one_page_blocks() -> None:
    check_list([RamBlock(f"block{i}", 4096) for i in range(40)])


def test_block_list_with_huge_pages_of_many_sizes() -> None:
    sizes = (65536, MIB, 2 * MIB, 1 << 30, 1 << 34)
    check_list([RamBlock(f"node{i}", 1 << 34, page_size=s) for i, s in enumerate(sizes)])


def test_block_list_longer_than_it_may_be() -> None:
    blocks = [RamBlock("b", 4096)] * (MAX_RAM_BLOCKS + 1)
    data, _ = block_list(blocks)
    with pytest.raises(LimitError, match="RAM blocks"):
        parse.ram_block_list(data, 0, 4096 * len(blocks), ignore_shared=False)


def test_block_list_as_long_as_it_may_be() -> None:
    blocks = [RamBlock("b", 4096)] * MAX_RAM_BLOCKS
    data, size = block_list(blocks)
    found, used = parse.ram_block_list(data, 0, 4096 * len(blocks), ignore_shared=False)
    assert (len(found), used) == (MAX_RAM_BLOCKS, size)


@pytest.mark.parametrize("wrong", [-4096, 4096, -8 * MIB, 1 << 40])
def test_block_list_that_does_not_add_up(wrong: int) -> None:
    blocks = [RamBlock("pc.ram", 8 * MIB), RamBlock("pc.bios", 256 << 10)]
    data, _ = block_list(blocks, EOS + sw.footer(1) + b"\2" + bytes(2000))
    total = sum(b.length for b in blocks) + wrong
    with pytest.raises(IntegrityError, match="do not add up") as caught:
        parse.ram_block_list(data, 4096, total, ignore_shared=False)
    assert caught.value.offset == 4096
    assert f"{total:#x}" in caught.value.expected


@pytest.mark.parametrize("length", [0, 8 * MIB + 4096, 1 << 63, 0xFFFFFFFFFFFFFFFF])
def test_block_list_with_an_impossible_length(length: int) -> None:
    blocks = [RamBlock("pc.ram", length), RamBlock("b", 4096)]
    data, _ = block_list(blocks, EOS + bytes(2000))
    with pytest.raises(IntegrityError):
        parse.ram_block_list(data, 0, 8 * MIB + 4096, ignore_shared=False)


def test_block_list_must_end_before_a_record() -> None:
    data, _ = block_list([RamBlock("pc.ram", MIB)], sw.be64(0x01) + bytes(2000))
    with pytest.raises(IntegrityError):
        parse.ram_block_list(data, 0, MIB, ignore_shared=False)


def test_block_list_with_a_bad_page_size() -> None:
    for size in (1, 3, 4097, 3 * MIB, 0xFFFFFFFFFFFFFFFF):
        data, _ = block_list([RamBlock("pc.ram", MIB, page_size=size)], EOS + bytes(2000))
        with pytest.raises(IntegrityError):
            parse.ram_block_list(data, 0, MIB, ignore_shared=False)


def test_block_list_of_nothing() -> None:
    assert parse.ram_block_list(EOS, 0, 0, ignore_shared=False) == ((), 0)


lists = st.lists(
    st.tuples(
        block_names,
        st.integers(1, 1 << 30).map(lambda n: n * 4096),
        st.sampled_from((None, None, 65536, 2 * MIB, 1 << 30)),
        st.sampled_from((0, 0xC0000, 0xFFFC0000, 1 << 32, 1 << 40)),
        st.integers(0, 1),
    ),
    min_size=1,
    max_size=20,
)


@settings(deadline=None, max_examples=examples(150))
@given(lists, st.sampled_from(("plain", "gpa", "ignored")))
def test_any_block_list(entries: list[tuple[str, int, int | None, int, int]], variant: str) -> None:
    raw, want = b"", []
    for idstr, length, size, gpa, ignored in entries:
        raw += sw.cstr8(idstr) + sw.be64(length)
        raw += b"" if size is None else sw.be64(size)
        raw += b"" if variant == "plain" else sw.be64(gpa)
        raw += sw.u8(ignored) if variant == "ignored" else b""
        want.append(
            parse.BlockEntry(
                idstr.encode(),
                length,
                size,
                None if variant == "plain" else gpa,
                ignored if variant == "ignored" else None,
            )
        )
    total = sum(length for _, length, *_ in entries)
    found, used = parse.ram_block_list(raw + EOS, 0, total, ignore_shared=variant != "plain")
    assert found == tuple(want)
    assert used == len(raw)


@settings(deadline=None, max_examples=examples(200))
@given(st.binary(max_size=400), st.integers(0, 1 << 40), st.booleans())
def test_any_bytes_as_a_block_list(data: bytes, total: int, shared: bool) -> None:
    try:
        blocks, used = parse.ram_block_list(data, 0, total, ignore_shared=shared)
    except (parse.Short, IntegrityError, LimitError):
        return
    assert sum(b.used_length for b in blocks) == total
    assert used <= len(data)


@settings(deadline=None, max_examples=examples(300))
@given(st.binary(max_size=400))
def test_any_bytes_as_anything_rare(data: bytes) -> None:
    readers: list[Callable[[bytes], Any]] = [
        parse.file_header,
        lambda d: parse.configuration(b"\7" + d, 8),
        lambda d: parse.configuration(b"\7\0\0\0\0" + d, 8),
        lambda d: parse.configuration(b"\7\0\0\0\0\5\x1aconfiguration/capabilities" + d, 8),
        lambda d: parse.section_head(d, 8),
        lambda d: parse.command(b"\x08" + d, 8),
    ]
    for read in readers:
        try:
            read(data)
        except (parse.Short, FormatError, LimitError, UnsupportedError):
            pass


# ---- what is around a stream -----------------------------------------------------------------


@pytest.mark.parametrize("order", ["little", "big"])
def test_save_header(order: str) -> None:
    raw = save_image(b"", order="<" if order == "little" else ">", number=3, running=7)[:92]
    header, size = parse.save_header(raw + b"more")
    assert size == 92
    assert (header.byte_order, header.version, header.format) == (order, 2, 3)
    assert (header.finished, header.was_running) == (True, True)
    assert header.data_length == len(save_image(b"")) - 92
    needs_all(parse.save_header, raw, 92)


def test_save_header_of_something_else() -> None:
    with pytest.raises(FormatError, match="no libvirt save image"):
        parse.save_header(bytes(92))
    with pytest.raises(UnsupportedError, match="version") as caught:
        parse.save_header(save_image(b"", version=9))
    assert (caught.value.offset, caught.value.found) == (16, "9")


def test_lzop() -> None:
    pytest.importorskip("lzallright")
    raw = lzop(bytes(1000), name=b"name")
    method, flags, _, size = parse.lzop_header(raw, 100)
    assert (method, flags, size) == (1, 0x3000001, 38 + 4)
    needs_all(lambda data: parse.lzop_header(data, 0), raw, size)
    block, used = parse.lzop_block(raw[size:], size, flags)
    assert (block.size, used) == (1000, 12)
    assert block.packed_size == len(raw) - size - used - 4
    assert (block.adler32 is not None, block.crc32) == (True, None)
    needs_all(lambda data: parse.lzop_block(data, 0, flags), raw[size:], used)
    with pytest.raises(FormatError) as caught:
        parse.lzop_header(b"x" * 100, 100)
    assert caught.value.offset == 100


# ---- qcow2 ---------------------------------------------------------------------------------


def qcow2_header(version: int = 3, features: int = 0, length: int = 112, kind: int = 0) -> bytes:
    """As docs/interop/qcow2.rst draws it."""
    start = struct.pack(
        ">4sIQIIQIIQQIIQ",
        b"QFI\xfb",
        version,
        0,
        0,
        16,
        1 << 30,
        0,
        2,
        0x30000,
        0x10000,
        1,
        5,
        0x50000,
    )
    more = struct.pack(">QQQIIB7x", features, 0, 0, 4, length, kind)
    return start + (more if version == 3 else b"")


def test_qcow2_header() -> None:
    found = parse.qcow2_header(qcow2_header())
    assert (found.version, found.cluster_bits, found.size) == (3, 16, 1 << 30)
    assert (found.snapshot_count, found.snapshots_offset, found.crypt_method) == (5, 0x50000, 0)
    assert (found.incompatible, found.compression) == (0, 0)
    zstd = parse.qcow2_header(qcow2_header(features=0x1B, kind=1))
    assert (int(zstd.incompatible), zstd.compression) == (0x1B, 1)
    needs_all(parse.qcow2_header, qcow2_header(), 105)


def test_qcow2_header_of_version_2() -> None:
    """What is behind 72 bytes is none of its fields."""
    found = parse.qcow2_header(qcow2_header(2) + b"\xff" * 40)
    assert (found.version, found.incompatible, found.compression) == (2, 0, 0)
    needs_all(parse.qcow2_header, qcow2_header(2), 72)


def test_qcow2_header_before_compression_types() -> None:
    found = parse.qcow2_header(qcow2_header(length=104)[:104] + b"\xff" * 8)
    assert found.compression == 0


def qcow2_snapshot(extra: bytes, id_str: bytes = b"1", name: bytes = b"first") -> bytes:
    head = struct.pack(
        ">QIHHIIQII", 0x40000, 3, len(id_str), len(name), 1_700_000_000, 7, 12_345, 99, len(extra)
    )
    return head + extra + id_str + name


@pytest.mark.parametrize(
    ("extra", "sizes"),
    [
        (b"", (99, None, None)),
        (b"1234567", (99, None, None)),
        (struct.pack(">Q", 1 << 33), (1 << 33, None, None)),
        (struct.pack(">QQ", 5, 1 << 40), (5, 1 << 40, None)),
        (struct.pack(">QQI", 5, 1 << 40, 1), (5, 1 << 40, None)),
        (struct.pack(">QQQ", 5, 6, 7), (5, 6, 7)),
        (struct.pack(">QQq", 5, 6, -1), (5, 6, None)),
        (struct.pack(">QQQ", 5, 6, 7) + bytes(1000), (5, 6, 7)),
    ],
)
def test_qcow2_snapshot(extra: bytes, sizes: tuple[int, int | None, int | None]) -> None:
    raw = qcow2_snapshot(extra)
    found, used = parse.qcow2_snapshot(raw + b"\xa5" * 9, 0x50000)
    assert used == len(raw)
    assert (found.vm_state_size, found.disk_size, found.icount) == sizes
    assert (found.offset, found.id_str, found.name) == (0x50000, b"1", b"first")
    assert (found.date_sec, found.date_nsec, found.vm_clock_nsec) == (1_700_000_000, 7, 12_345)
    assert (found.l1_table_offset, found.l1_size) == (0x40000, 3)
    needs_all(lambda data: parse.qcow2_snapshot(data, 0), raw, used)


def test_the_longest_qcow2_snapshot() -> None:
    raw = qcow2_snapshot(bytes(1024), b"i" * 0xFFFF, b"n" * 0xFFFF)
    assert len(raw) == parse.LONGEST_SNAPSHOT
    found, used = parse.qcow2_snapshot(raw, 0)
    assert (used, len(found.id_str), len(found.name)) == (len(raw), 0xFFFF, 0xFFFF)
    with pytest.raises(LimitError, match="too much extra data") as caught:
        parse.qcow2_snapshot(qcow2_snapshot(bytes(1025))[:40], 0x100)
    assert caught.value.offset == 0x100 + 36


def test_discarded_ranges() -> None:
    """QEMU v10.1.0 migration/savevm.c loadvm_postcopy_ram_handle_discard()."""
    data = b"\0\3mem\0" + struct.pack(">4Q", 0x1000, 0x2000, 0x8000, 0x1000)
    assert parse.discarded_ranges(data) == (b"mem", ((0x1000, 0x2000), (0x8000, 0x1000)))
    for wrong in (
        b"",
        data[:7],
        data[:-1],
        data + b"\0",
        b"\1" + data[1:],
        data[:5] + b"\1" + data[6:],
        b"\0\3mem\0",
        b"\0\xffmem\0" + data[7:],
    ):
        assert parse.discarded_ranges(wrong) is None
