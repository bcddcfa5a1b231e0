"""Each grammar against bytes typed in with struct.pack: parse, build and size agree."""

from __future__ import annotations

import struct
from typing import Any

import construct
import pytest

from vmstream.wire import grammar

CAPABILITIES = grammar.CONFIGURATION_SUBSECTIONS[b"configuration/capabilities"]
PAGE_BITS = grammar.CONFIGURATION_SUBSECTIONS[b"configuration/target-page-bits"]
UUID = grammar.CONFIGURATION_SUBSECTIONS[b"configuration/uuid"]


def plain(value: Any) -> Any:
    """What Construct parsed, without its own keys."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if not k.startswith("_")}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return value


def agree(
    shape: construct.Construct, value: Any, raw: bytes, *, fixed: bool, **params: Any
) -> None:
    """`raw` parses to `value`, which builds to `raw`, and a fixed size is that of `raw`."""
    stream = construct.io.BytesIO(raw + b"\xa5" * 3)
    assert plain(shape.parse_stream(stream, **params)) == value
    assert stream.tell() == len(raw)
    assert shape.build(value, **params) == raw
    if fixed:
        assert shape.sizeof(**params) == len(raw)
    else:
        with pytest.raises(construct.SizeofError):
            shape.sizeof(**params)


FIXED = {
    "FILE_HEADER": (
        grammar.FILE_HEADER,
        {"magic": b"QEVM", "version": 3},
        struct.pack(">4sI", b"QEVM", 3),
    ),
    "target-page-bits": (PAGE_BITS, {"target_page_bits": 16}, struct.pack(">I", 16)),
    "uuid": (UUID, {"uuid": bytes(range(16))}, bytes(range(16))),
    "SECTION_PART_HEAD": (
        grammar.SECTION_PART_HEAD,
        {"section_type": 2, "section_id": 0x01020304},
        struct.pack(">BI", 2, 0x01020304),
    ),
    "SECTION_FOOTER": (
        grammar.SECTION_FOOTER,
        {"section_type": 0x7E, "section_id": 0xFFFFFFFE},
        struct.pack(">BI", 0x7E, 0xFFFFFFFE),
    ),
    "LIVE_WORD": (grammar.LIVE_WORD, {"word": 3 << 20 | 9}, struct.pack(">Q", 3 << 20 | 9)),
    "DIRTY_BITMAP_FLAGS": (grammar.DIRTY_BITMAP_FLAGS, {"flags": 0x4C}, b"\x4c"),
    "DIRTY_BITMAP_START": (
        grammar.DIRTY_BITMAP_START,
        {"granularity": 65536, "flags": 3},
        struct.pack(">IB", 65536, 3),
    ),
    "DIRTY_BITMAP_BITS": (
        grammar.DIRTY_BITMAP_BITS,
        {"start_sector": 1 << 40, "nr_sectors": 2048},
        struct.pack(">QI", 1 << 40, 2048),
    ),
    "HTAB_HEAD": (grammar.HTAB_HEAD, {"htab_shift": -1}, b"\xff" * 4),
    "HTAB_CHUNK": (
        grammar.HTAB_CHUNK,
        {"index": 0x01020304, "n_valid": 5, "n_invalid": 0xFFFF},
        struct.pack(">IHH", 0x01020304, 5, 0xFFFF),
    ),
    "COMMAND_PING": (grammar.COMMAND_PING, {"value": 3}, struct.pack(">I", 3)),
    "COMMAND_POSTCOPY_ADVISE": (
        grammar.COMMAND_POSTCOPY_ADVISE,
        {"page_sizes": 0x201000, "target_page_size": 0x1000},
        struct.pack(">QQ", 0x201000, 0x1000),
    ),
    "COMMAND_PACKAGED": (grammar.COMMAND_PACKAGED, {"length": 1 << 24}, struct.pack(">I", 1 << 24)),
    "VMDESCRIPTION_HEAD": (
        grammar.VMDESCRIPTION_HEAD,
        {"section_type": 6, "length": 0x067B},
        struct.pack(">BI", 6, 0x067B),
    ),
    "RAM_WORD": (grammar.RAM_WORD, {"head": 0x10082004}, struct.pack(">Q", 0x10082004)),
    "ZERO_RECORD": (
        grammar.ZERO_RECORD,
        {"head": 0x1022, "fill": 0x5A},
        struct.pack(">QB", 0x1022, 0x5A),
    ),
    "page_record": (
        grammar.page_record(1024),
        {"head": 0x428, "page": b"\x11" * 1024},
        struct.pack(">Q1024s", 0x428, b"\x11" * 1024),
    ),
    "XBZRLE_HEAD": (
        grammar.XBZRLE_HEAD,
        {"encoding": 1, "length": 0x0203},
        struct.pack(">BH", 1, 0x0203),
    ),
    "COMPRESS_PAGE_HEAD": (grammar.COMPRESS_PAGE_HEAD, {"length": 77}, struct.pack(">I", 77)),
    "QCOW2_HEADER": (
        grammar.QCOW2_HEADER,
        {
            "magic": b"QFI\xfb",
            "version": 3,
            "backing_file_offset": 0x0101,
            "backing_file_size": 0x0202,
            "cluster_bits": 16,
            "size": 0x0304050607080900,
            "crypt_method": 2,
            "l1_size": 7,
            "l1_table_offset": 0x30000,
            "refcount_table_offset": 0x10000,
            "refcount_table_clusters": 1,
            "nb_snapshots": 2,
            "snapshots_offset": 0x50000,
        },
        struct.pack(
            ">4sIQIIQIIQQIIQ",
            b"QFI\xfb",
            3,
            0x0101,
            0x0202,
            16,
            0x0304050607080900,
            2,
            7,
            0x30000,
            0x10000,
            1,
            2,
            0x50000,
        ),
    ),
}


@pytest.mark.parametrize("name", FIXED)
def test_fixed(name: str) -> None:
    shape, value, raw = FIXED[name]
    agree(shape, value, raw, fixed=True)


VARIABLE = {
    "COUNTED_STRING": (grammar.COUNTED_STRING, b"pc.ram", struct.pack(">B6s", 6, b"pc.ram")),
    "COUNTED_STRING empty": (grammar.COUNTED_STRING, b"", b"\0"),
    "COUNTED_STRING longest": (grammar.COUNTED_STRING, b"\xff" * 255, b"\xff" * 256),
    "CONFIGURATION": (
        grammar.CONFIGURATION,
        {"section_type": 7, "name": b"pc-i440fx-10.0"},
        struct.pack(">BI14s", 7, 14, b"pc-i440fx-10.0"),
    ),
    "SUBSECTION_HEAD": (
        grammar.SUBSECTION_HEAD,
        {"section_type": 5, "name": b"configuration/uuid", "version_id": 1},
        struct.pack(">BB18sI", 5, 18, b"configuration/uuid", 1),
    ),
    "capabilities": (
        CAPABILITIES,
        {"capabilities": [b"x-ignore-shared", b"mapped-ram"]},
        struct.pack(">IB15sB10s", 2, 15, b"x-ignore-shared", 10, b"mapped-ram"),
    ),
    "SECTION_HEAD": (
        grammar.SECTION_HEAD,
        {
            "section_type": 4,
            "section_id": 0x01020304,
            "idstr": b"timer",
            "instance_id": 0x05060708,
            "version_id": 0x090A0B0C,
        },
        struct.pack(">BIB5sII", 4, 0x01020304, 5, b"timer", 0x05060708, 0x090A0B0C),
    ),
    "COMMAND": (
        grammar.COMMAND,
        {"section_type": 8, "cmd": 0x0102, "data": b"abc"},
        struct.pack(">BHH3s", 8, 0x0102, 3, b"abc"),
    ),
    "COMMAND_RAM_DISCARD": (
        grammar.COMMAND_RAM_DISCARD,
        {
            "version": 0,
            "idstr": b"pc.ram",
            "nil": 0,
            "ranges": [{"start": 0x1000, "length": 0x2000}, {"start": 0x8000, "length": 0x1000}],
        },
        struct.pack(">BB6sBQQQQ", 0, 6, b"pc.ram", 0, 0x1000, 0x2000, 0x8000, 0x1000),
    ),
    "VMDESCRIPTION": (
        grammar.VMDESCRIPTION,
        {"section_type": 6, "json": b'{"devices": []}'},
        struct.pack(">BI15s", 6, 15, b'{"devices": []}'),
    ),
    "XBZRLE_PAYLOAD": (
        grammar.XBZRLE_PAYLOAD,
        {"encoding": 1, "length": 4, "data": b"\0\2AB"},
        struct.pack(">BH4s", 1, 4, b"\0\2AB"),
    ),
    "LZOP_HEADER": (
        grammar.LZOP_HEADER,
        {
            "magic": b"\x89LZO\0\r\n\x1a\n",
            "version": 0x1040,
            "library_version": 0x20A0,
            "version_needed": 0x0940,
            "method": 1,
            "level": 5,
            "flags": 0x3000801,
            "filter": 7,
            "mode": 0o100644,
            "mtime_low": 1,
            "mtime_high": 2,
            "name": b"x",
            "checksum": 3,
        },
        b"\x89LZO\0\r\n\x1a\n"
        + struct.pack(
            ">HHHBBIIIIIB1sI", 0x1040, 0x20A0, 0x940, 1, 5, 0x3000801, 7, 0o100644, 1, 2, 1, b"x", 3
        ),
    ),
    "LZOP_HEADER before 0.94": (
        grammar.LZOP_HEADER,
        {
            "magic": b"\x89LZO\0\r\n\x1a\n",
            "version": 0x0900,
            "library_version": 0x1000,
            "version_needed": None,
            "method": 1,
            "level": None,
            "flags": 1,
            "filter": None,
            "mode": 0,
            "mtime_low": 1,
            "mtime_high": None,
            "name": b"",
            "checksum": 3,
        },
        b"\x89LZO\0\r\n\x1a\n" + struct.pack(">HHBIIIBI", 0x900, 0x1000, 1, 1, 0, 1, 0, 3),
    ),
    "QCOW2_HEADER_V3": (
        grammar.QCOW2_HEADER_V3,
        {
            "incompatible_features": 0x18,
            "compatible_features": 1,
            "autoclear_features": 2,
            "refcount_order": 4,
            "header_length": 112,
            "compression_type": 1,
        },
        struct.pack(">QQQIIB", 0x18, 1, 2, 4, 112, 1),
    ),
    "QCOW2_HEADER_V3 before 5.1": (
        grammar.QCOW2_HEADER_V3,
        {
            "incompatible_features": 1,
            "compatible_features": 0,
            "autoclear_features": 0,
            "refcount_order": 4,
            "header_length": 104,
            "compression_type": None,
        },
        struct.pack(">QQQII", 1, 0, 0, 4, 104),
    ),
    "QCOW2_SNAPSHOT": (
        grammar.QCOW2_SNAPSHOT,
        {
            "l1_table_offset": 0x40000,
            "l1_size": 3,
            "id_str_size": 1,
            "name_size": 5,
            "date_sec": 0x60000000,
            "date_nsec": 999,
            "vm_clock_nsec": 0x0102030405060708,
            "vm_state_size": 0x00010203,
            "extra_data_size": 4,
            "extra_data": b"abcd",
            "id_str": b"1",
            "name": b"first",
        },
        struct.pack(
            ">QIHHIIQII4s1s5s",
            0x40000,
            3,
            1,
            5,
            0x60000000,
            999,
            0x0102030405060708,
            0x00010203,
            4,
            b"abcd",
            b"1",
            b"first",
        ),
    ),
    "COMPRESS_PAGE_PAYLOAD": (
        grammar.COMPRESS_PAGE_PAYLOAD,
        b"\x78\x9c....",
        struct.pack(">I6s", 6, b"\x78\x9c...."),
    ),
}


@pytest.mark.parametrize("name", VARIABLE)
def test_variable(name: str) -> None:
    shape, value, raw = VARIABLE[name]
    # GreedyRange takes all there is, as the data of a command ends where its length says.
    if name == "COMMAND_RAM_DISCARD":
        assert plain(shape.parse(raw)) == value
        assert shape.build(value) == raw
        return
    agree(shape, value, raw, fixed=False)


RAM_BLOCKS = [
    ({}, struct.pack(">B6sQ", 6, b"pc.ram", 1 << 28)),
    ({"host_page_size": 1 << 21}, struct.pack(">B6sQQ", 6, b"pc.ram", 1 << 28, 1 << 21)),
    ({"gpa": 0xFFFC0000}, struct.pack(">B6sQQ", 6, b"pc.ram", 1 << 28, 0xFFFC0000)),
    (
        {"gpa": 0xFFFC0000, "ignored": 1},
        struct.pack(">B6sQQB", 6, b"pc.ram", 1 << 28, 0xFFFC0000, 1),
    ),
    (
        {"host_page_size": 1 << 30, "gpa": 0, "ignored": 0},
        struct.pack(">B6sQQQB", 6, b"pc.ram", 1 << 28, 1 << 30, 0, 0),
    ),
]


@pytest.mark.parametrize(("optional", "raw"), RAM_BLOCKS)
def test_ram_block(optional: dict[str, int], raw: bytes) -> None:
    value = {
        "idstr": b"pc.ram",
        "used_length": 1 << 28,
        **{key: optional.get(key) for key in ("host_page_size", "gpa", "ignored")},
    }
    params = {key: key in optional for key in ("host_page_size", "gpa", "ignored")}
    agree(grammar.RAM_BLOCK, value, raw, fixed=False, **params)


@pytest.mark.parametrize(("name", "order"), [("little", "<"), ("big", ">")])
def test_save_header(name: str, order: str) -> None:
    value = {
        "magic": b"LibvirtQemudSave",
        "version": 2,
        "data_length": 0x10633,
        "was_running": 1,
        "format": 5,
        "cookie_offset": 0x547,
    }
    raw = b"LibvirtQemudSave" + struct.pack(f"{order}5I", 2, 0x10633, 1, 5, 0x547) + bytes(56)
    agree(grammar.save_header(name), {**value, "unused": bytes(56)}, raw, fixed=True)
    assert grammar.save_header(name).build(value) == raw


@pytest.mark.parametrize("flags", [0, 1, 2, 0x100, 0x200, 0x303])
@pytest.mark.parametrize(("size", "packed"), [(100, 50), (100, 100)])
def test_lzop_block(flags: int, size: int, packed: int) -> None:
    """Sums of the packed block only where it is packed."""
    value: dict[str, int | None] = {"size": size, "packed_size": packed}
    raw = struct.pack(">II", size, packed)
    for name, flag in (
        ("adler32", 1),
        ("crc32", 0x100),
        ("packed_adler32", 2),
        ("packed_crc32", 0x200),
    ):
        here = flags & flag and (packed < size or not name.startswith("packed"))
        value[name] = flag * 77 if here else None
        raw += struct.pack(">I", flag * 77) if here else b""
    agree(grammar.LZOP_BLOCK, value, raw, fixed=False, flags=flags)


@pytest.mark.parametrize("page_size", [1024, 4096, 65536])
def test_page_record_is_made_once_per_page_size(page_size: int) -> None:
    record = grammar.page_record(page_size)
    assert record.sizeof() == 8 + page_size
    assert grammar.page_record(page_size) is record


def test_xbzrle_payload_computes_its_length() -> None:
    assert grammar.XBZRLE_PAYLOAD.build({"encoding": 1, "data": b"\0\1x"}) == b"\1\0\3\0\1x"


@pytest.mark.parametrize(
    ("shape", "raw"),
    [
        (grammar.FILE_HEADER, b"QEVN\0\0\0\3"),
        (grammar.CONFIGURATION, b"\6\0\0\0\1x"),
        (grammar.SUBSECTION_HEAD, b"\4\1x\0\0\0\1"),
        (grammar.COMMAND, b"\7\0\1\0\0"),
        (grammar.VMDESCRIPTION, b"\5\0\0\0\2{}"),
        (grammar.COMMAND_RAM_DISCARD, b"\0\1x\1"),
    ],
)
def test_a_wrong_constant_is_an_error(shape: construct.Construct, raw: bytes) -> None:
    with pytest.raises(construct.ConstError):
        shape.parse(raw)
