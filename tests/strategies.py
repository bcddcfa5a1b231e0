"""Hypothesis strategies: whole random streams, made by tests.streamwriter.

`streams()` gives a finished StreamWriter: `bytes(writer)` is a legal stream, and the writer knows
what a reader must find in it. Page bodies are meant to mislead: among random bytes and zeros there
are pages made of things that look like record heads, EOS words, footers, sections and the end of
the stream, aligned or not, with the stream's own names and section ids.
"""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Sequence

from hypothesis import strategies as st

from tests import streamwriter as sw
from tests.streamwriter import Device, Field, RamBlock, StreamWriter, Subsection

PAGE_SIZES = (4096, 4096, 4096, 4096, 4096, 1024, 8192, 16384, 65536)
BLOCK_NAMES = (
    "pc.ram",
    "mem",
    "ram-node0",
    "pc.bios",
    "/rom@etc/acpi/tables",
    "0000:00:02.0/vga.vram",
)
FAKE_JSON = b'{"page_size": 2048, "devices": []}'
SECTION_IDS = (0, 1, 2, 3, 0x7E, 0x10, 0x7FFFFFFF, 0xFFFFFFFE)
# Page bodies and payloads are derived from a drawn seed, because hypothesis's own buffer is far
# smaller than a page; it still shrinks what matters, the order and kind of the records.
SEEDS = st.integers(0, 1 << 32)

block_names = st.one_of(
    st.sampled_from(BLOCK_NAMES),
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=255),
)


SHARE = float(os.environ.get("VMSTREAM_EXAMPLES", "0.25"))


def examples(number: int) -> int:
    """How many examples to try: `number` with VMSTREAM_EXAMPLES=1, a quarter of it by default.

    What is tried differs from run to run, so that a test sees more with each.
    """
    return max(1, round(number * SHARE))


def some(places: range) -> range:
    """Of places that all have to be tried as many as of examples, other ones each time."""
    step = max(1, round(1 / SHARE))
    return places[random.randrange(step) :: step]


def lookalikes(names: Sequence[str], section_id: int, page_size: int) -> list[bytes]:
    """Byte strings that mean something in a stream of these blocks."""
    heads = [
        sw.be64(sw.FLAG_EOS),
        sw.be64(sw.FLAG_EOS) + sw.footer(section_id),
        sw.be64(sw.FLAG_EOS) + sw.footer(section_id) + sw.u8(sw.SECTION_PART) + sw.be32(section_id),
        sw.be64(sw.FLAG_EOS) + sw.u8(sw.SECTION_END) + sw.be32(section_id),
        sw.footer(section_id),
        sw.be64(page_size | sw.FLAG_ZERO | sw.FLAG_CONTINUE) + b"\0",
        sw.be64(sw.FLAG_PAGE | sw.FLAG_CONTINUE),
        sw.be64(sw.FLAG_XBZRLE | sw.FLAG_CONTINUE) + b"\1" + sw.be16(4) + b"\0\2AB",
        sw.be64(sw.FLAG_MULTIFD_FLUSH),
        sw.section_header(sw.SECTION_FULL, 9, "timer", 0, 2),
        sw.section_header(sw.SECTION_START, section_id, "ram", 0, 4),
        sw.u8(sw.EOF) + sw.u8(sw.VMDESCRIPTION) + sw.be32(len(FAKE_JSON)) + FAKE_JSON,
        sw.u8(sw.COMMAND) + sw.be16(sw.CMD_SWITCHOVER_START) + sw.be16(0),
        b"QEVM" + sw.be32(3),
    ]
    for name in names:
        heads.append(sw.be64(sw.FLAG_PAGE) + sw.cstr8(name))
        heads.append(sw.be64(page_size | sw.FLAG_ZERO) + sw.cstr8(name) + b"\0")
        heads.append(sw.be64(page_size | sw.FLAG_MEM_SIZE) + sw.cstr8(name) + sw.be64(page_size))
    return heads


def fake_heads(rng: random.Random, looks: Sequence[bytes], size: int) -> bytes:
    """`size` bytes of lookalikes: one repeated or all kinds mixed, in any alignment."""
    start = bytes(rng.randrange(9))
    if rng.random() < 0.5:
        unit = rng.choice(looks)
        out = start + unit * (size // len(unit) + 1)
    else:
        parts = [start]
        total = len(start)
        while total < size:
            part = rng.choice(looks) + bytes(rng.choice((0, 0, 0, 1, 7, 8, 40)))
            parts.append(part)
            total += len(part)
        out = b"".join(parts)
    # The end of the page is where a reader gets lost or finds itself: let it be lookalike too.
    return out[:size] if rng.random() < 0.5 else out[-size:]


def page_body(kind: str, seed: int, size: int, looks: Sequence[bytes]) -> bytes:
    """A page of one of the kinds in BODY_KINDS."""
    rng = random.Random(seed)
    if kind == "zeros":
        return bytes(size)
    if kind == "ones":
        return b"\xff" * size
    if kind == "fake":
        return fake_heads(rng, looks, size)
    if kind == "mixed":
        edge = rng.randrange(size)
        return rng.randbytes(edge) + fake_heads(rng, looks, size)[edge:]
    if kind == "sparse":
        body = bytearray(size)
        body[rng.randrange(size)] = rng.randrange(1, 256)
        return bytes(body)
    return rng.randbytes(size)


BODY_KINDS = ("random", "zeros", "fake", "fake", "mixed", "sparse", "ones")


@st.composite
def devices(draw: st.DrawFn, looks: Sequence[bytes] = (), max_devices: int = 4) -> list[Device]:
    """Devices with distinct (name, instance_id); payloads are random, or lookalikes if given."""
    names = ("timer", "cpu", "cpu_common", "0000:00:02.0/virtio-net", "fw_cfg", "vmmouse", "slirp")
    ids = draw(
        st.lists(
            st.tuples(st.sampled_from(names), st.integers(0, 2)),
            max_size=max_devices,
            unique=True,
        )
    )
    found = []
    for name, instance in ids:
        rng = random.Random(draw(SEEDS))

        def data(size: int, rng: random.Random = rng) -> bytes:
            return fake_heads(rng, looks, size) if looks and size > 8 else rng.randbytes(size)

        version = draw(st.integers(0, 12))
        if name == "slirp":
            old = data(draw(st.integers(0, 200)))
            found.append(Device(name, instance, version, old_style=old))
            continue
        fields = [
            Field("a", "uint32", data(4)),
            Field("b", "uint64", data(8 * 3), array_len=3),
            Field("c", "buffer", data(draw(st.integers(1, 300)))),
        ][: draw(st.integers(0, 3))]
        vmsd = name.rpartition("/")[2]
        inner = Subsection(f"{vmsd}/one/two", 1, [Field("deep", "uint8", data(1))])
        subsections = [
            Subsection(f"{vmsd}/one", 1, [Field("x", "uint16", data(2))], [inner]),
            Subsection(f"{vmsd}/empty", 2),
        ][: draw(st.integers(0, 2))]
        found.append(Device(name, instance, version, fields, subsections))
    return found


@st.composite
def streams(
    draw: st.DrawFn,
    *,
    max_pages: int = 60,
    page_sizes: Sequence[int] = PAGE_SIZES,
    footers: bool | None = None,
    vmdescription: bool | None = None,
    announce: str = "configuration",
    fills: bool = False,
    xbzrle: bool = False,
    compress: bool = False,
    noise: bool = True,
) -> StreamWriter:
    """A whole legal stream.

    footers, vmdescription: None lets each be drawn. Without either a reader cannot know where a
        device's state ends; such a stream then has no devices.
    announce: how a page size other than 4096 can be known: by the "configuration" section (and the
        vmdescription, if there is one), or "any": in some streams by the vmdescription alone, which
        a reader of a pipe sees too late.
    fills: ZERO records with a fill byte other than 0 (QEMU up to 1.4).
    xbzrle, compress: allow such records.
    noise: commands and empty PARTs between the sections.
    """
    page_size = draw(st.sampled_from(page_sizes))
    with_footers = draw(st.booleans()) if footers is None else footers
    described = draw(st.booleans()) if vmdescription is None else vmdescription
    max_pages = max(4, min(max_pages, max_pages * 4096 * 4 // page_size))

    names = draw(st.lists(block_names, min_size=1, max_size=3, unique=True))
    ram_id = draw(st.sampled_from(SECTION_IDS))
    looks = lookalikes(names, ram_id, page_size)
    counts = [draw(st.integers(1, max(1, max_pages // 4))) for _ in names]

    writer = StreamWriter(page_size, footers=with_footers)
    writer.header()
    _configure(draw, writer, described, announce)
    writer.ram_start(
        [RamBlock(name, pages * page_size) for name, pages in zip(names, counts, strict=True)],
        section_id=ram_id,
    )

    kinds = ["ZERO", "PAGE", "PAGE"]
    kinds += ["XBZRLE"] * xbzrle + ["COMPRESS_PAGE"] * compress
    record = st.tuples(
        st.sampled_from(kinds),
        st.integers(0, len(names) - 1),
        st.integers(0, 1 << 16),
        st.sampled_from((None, None, None, True)),  # a name QEMU would not repeat is legal too
        st.sampled_from(BODY_KINDS),
        SEEDS,
    )
    # Each sublist is a PART; passes come from pages that are drawn again.
    parts = draw(st.lists(st.lists(record, max_size=max_pages // 3), max_size=5))
    left = max_pages
    for records in parts:
        if noise and draw(st.integers(0, 9)) == 0:
            writer.switchover_start()
        with writer.ram_part():
            for kind, which, index, named, body, seed in records[:left]:
                address = index % counts[which] * page_size
                content = page_body(body, seed, page_size, looks)
                fill = seed % 256 if fills else 0
                _write(writer, kind, names[which], address, named, content, fill)
        left -= min(left, len(records))
    if draw(st.integers(0, 9)) != 0:  # background snapshots have no END of ram
        with writer.ram_end():
            for which, pages in enumerate(counts):
                if left and draw(st.booleans()):
                    left -= 1
                    writer.zero(names[which], (pages - 1) * page_size)

    if with_footers or described:
        # Only a description can tell a lookalike in a payload from a footer.
        for device in draw(devices(looks if described else ())):
            writer.device(device)
    writer.eof()
    if described:
        writer.vmdescription(style=draw(st.sampled_from(("6.0", "qjson"))))
    return writer


def _configure(draw: st.DrawFn, writer: StreamWriter, described: bool, announce: str) -> None:
    bits: int | None = writer.page_size.bit_length() - 1
    usual = writer.page_size == 4096
    only_json = announce == "any" and described
    if (usual or only_json) and draw(st.integers(0, 3)) == 0:
        return  # machine types up to 2.3 have no configuration section
    if (usual or only_json) and draw(st.booleans()):
        bits = None
    writer.configuration(
        draw(st.sampled_from(("pc-i440fx-7.2", "pc-q35-10.0", "virt-9.0"))),
        page_bits=bits,
        uuid=draw(st.one_of(st.none(), st.binary(min_size=16, max_size=16))),
    )


def _write(
    writer: StreamWriter,
    kind: str,
    block: str,
    address: int,
    named: bool | None,
    content: bytes,
    fill: int,
) -> None:
    if kind == "ZERO":
        writer.zero(block, address, fill, named=named)
    elif kind == "COMPRESS_PAGE":
        writer.compress_page(block, address, zlib.compress(content), named=named)
    elif kind == "XBZRLE" and address in writer.touched[block]:
        # Change a stretch of what is there: a page of other bytes altogether would not be sent so.
        size = writer.page_size
        at = content[0] * 7 % size
        old = bytes(writer.blocks[block][address : address + size])
        new = old[:at] + content[at : at + 300] + old[at + 300 :]
        writer.xbzrle_to(block, address, new, named=named)
    else:
        writer.page(block, address, content, named=named)


@st.composite
def cut_streams(draw: st.DrawFn) -> tuple[StreamWriter, int]:
    """A stream and a length at which to cut it off."""
    writer = draw(streams(max_pages=20))
    return writer, draw(st.integers(0, len(writer.data) - 1))


@st.composite
def corrupted_streams(draw: st.DrawFn, max_changes: int = 4) -> bytes:
    """A stream with a few bytes changed outside of page bodies, where it hurts."""
    writer = draw(streams(max_pages=20))
    data = bytearray(writer.data)
    for _ in range(draw(st.integers(1, max_changes))):
        item = draw(st.sampled_from(writer.items))
        stop = min(item.stop, item.attrs.get("body", item.stop))
        if item.offset < stop:
            data[draw(st.integers(item.offset, stop - 1))] = draw(st.integers(0, 255))
    return bytes(data)


DISK_NAMES = ("vda", "ide0-hd0", "drive-virtio-disk0", "\u00e4\u00f6", "../../x")
LIVE_IDS = {
    "block": 0x21,
    "dirty-bitmap": 0x22,
    "spapr/htab": 0x7E,
    "s390-storage_attributes": 0x7E000000,
    "0000:00:03.0/vfio": 0x25,
    "pbs-state": 0x26,
}


@st.composite
def live_bodies(draw: st.DrawFn, idstr: str) -> list[tuple[str, list[sw.LiveBytes]]]:
    """Bodies of the parts of an iterable section other than ram, as (START, PART or END, records).

    Data is of lookalikes, the footers of the section among them.
    """
    section_id = LIVE_IDS[idstr]
    rng = random.Random(draw(SEEDS))
    looks = lookalikes(("pc.ram",), section_id, 4096)
    looks += [sw.be64(2), sw.be64(1), sw.be64(0xFFFFFFFFEF100001), b"\1" * 8]
    few = st.integers(0, 3)

    def data(size: int) -> bytes:
        return fake_heads(rng, looks, size) if size > 8 else rng.randbytes(size)

    def part(kind: str) -> list[sw.LiveBytes]:
        if idstr == "block":
            chunks = [
                sw.block_chunk(
                    draw(st.sampled_from(DISK_NAMES)),
                    draw(st.integers(0, 5)) << 20,
                    draw(st.sampled_from((None, None, None, b"\0" * 4096, data(4096)))),
                )
                for _ in range(draw(few))
            ]
            whole = [(k, raw + raw[-4096:] * 255 if len(raw) > 4096 else raw) for k, raw in chunks]
            return [*whole, sw.block_progress(draw(st.integers(0, 100))), sw.block_end()]
        if idstr == "dirty-bitmap":
            if kind == "START":
                return [
                    sw.bitmap_start("node0", "a", 512),
                    sw.bitmap_start(None, "b", 65536, 2),
                    sw.bitmap_start("node1", None, 1 << 20, 4),
                    sw.bitmap_end(),
                ]
            bits = [
                sw.bitmap_bits(
                    draw(st.integers(0, 99)), 1 + rng.randrange(256), data(32), "node0", "a"
                )
                for _ in range(draw(few))
            ]
            bits += [sw.bitmap_bits(0, 1 << 20, None, "node1", "b") for _ in range(draw(few))]
            done = [sw.bitmap_complete("node0", "b")] if kind == "END" else []
            return [*bits, *done, sw.bitmap_end()]
        if idstr == "spapr/htab":
            if kind == "START":
                return [sw.htab_head(18)]
            entries = [
                sw.htab_chunk(draw(st.integers(1, 100)), [data(16)] * draw(few), draw(few))
                for _ in range(draw(few))
            ]
            return [sw.htab_head(0), *entries, sw.htab_end()]
        if idstr == "s390-storage_attributes":
            values = [
                sw.storage_values(
                    draw(st.integers(0, 1 << 40)) << 12, data(draw(st.integers(0, 90)))
                )
                for _ in range(draw(few) if kind != "START" else 0)
            ]
            return [*values, *([sw.storage_done()] if kind == "END" else []), sw.storage_end()]
        if idstr == "pbs-state":
            return [sw.pbs_state(data(draw(st.integers(0, 200))))]
        if kind == "START":
            return [sw.vfio_tag(3), sw.vfio_tag(1)]
        state = [sw.vfio_data(data(draw(st.integers(0, 200)))) for _ in range(draw(few))]
        end = 1 if kind == "END" else draw(st.sampled_from((1, 5, 6)))
        return [*state, sw.vfio_tag(end)]

    kinds = ["START"]
    if idstr != "pbs-state":
        kinds += ["PART"] * draw(few) + ["END"]
    return [(kind, part(kind)) for kind in kinds]


@st.composite
def live_streams(draw: st.DrawFn, *, disks: bool = False) -> StreamWriter:
    """A stream with iterable sections besides ram, in front of it or behind, in turns with it.

    disks: with block migration, which makes the streams some MiB long.
    """
    writer = StreamWriter(1024, footers=draw(st.booleans()))
    writer.header()
    writer.configuration(page_bits=10)
    names = draw(
        st.lists(
            st.sampled_from([n for n in LIVE_IDS if disks or n != "block"]),
            min_size=1,
            unique=True,
        )
    )
    bodies = {name: draw(live_bodies(name)) for name in names}
    version = {"s390-storage_attributes": 0}
    first = draw(st.booleans())
    if first:
        writer.ram_start([RamBlock("pc.ram", 4096)])
    for name, parts in bodies.items():
        writer.live_records(*_live(name, parts.pop(0)), name, version.get(name, 1))
    if not first:
        writer.ram_start([RamBlock("pc.ram", 4096)])
    while any(bodies.values()):
        with writer.ram_part():
            writer.page("pc.ram", 1024, b"\x5a" * 1024)
            writer.zero("pc.ram", 2048)
        for name, parts in bodies.items():
            if parts:
                writer.live_records(*_live(name, parts.pop(0)))
    with writer.ram_end():
        writer.zero("pc.ram", 0)
    for device in draw(devices(max_devices=2)):
        writer.device(device)
    writer.eof()
    writer.vmdescription()
    return writer


def _live(name: str, part: tuple[str, list[sw.LiveBytes]]) -> tuple[str, int, list[sw.LiveBytes]]:
    return part[0], LIVE_IDS[name], part[1]
