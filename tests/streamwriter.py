"""Build migration streams byte by byte, legal or broken, and keep the truth about them.

An oracle for the parser: it shares no code with vmstream and stands on `struct.pack` alone, so a
misreading of the format has to be made twice to go unnoticed.

    w = StreamWriter()
    w.header()
    w.configuration("pc-i440fx-7.2")
    w.ram_start([RamBlock("pc.ram", 0x4000)])
    with w.ram_part():
        w.page("pc.ram", 0x0000, body)
        w.zero("pc.ram", 0x1000)
    with w.ram_end():
        pass
    w.device(Device("timer", fields=[Field("cpu_ticks_offset", "int64", bytes(8))]))
    w.eof()
    w.vmdescription()
    w.data, w.items, w.blocks, w.counts   # the stream and what is true of it

Every method appends exactly the bytes its name says and nothing checks legality, except where a
call could only be a mistake of the test itself. Breaking a stream on purpose is done by leaving
calls out, by odd arguments, by raw(), or by patching `data` at the offset of an item.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

# Item types (the byte in front of each item of the top level).
EOF = 0x00
SECTION_START = 0x01
SECTION_PART = 0x02
SECTION_END = 0x03
SECTION_FULL = 0x04
SUBSECTION = 0x05
VMDESCRIPTION = 0x06
CONFIGURATION = 0x07
COMMAND = 0x08
SECTION_FOOTER = 0x7E

# Flags in the low bits of a RAM word.
FLAG_ZERO = 0x002
FLAG_MEM_SIZE = 0x004
FLAG_PAGE = 0x008
FLAG_EOS = 0x010
FLAG_CONTINUE = 0x020
FLAG_XBZRLE = 0x040
FLAG_HOOK = 0x080
FLAG_COMPRESS_PAGE = 0x100
FLAG_MULTIFD_FLUSH = 0x200

# Commands.
CMD_OPEN_RETURN_PATH = 1
CMD_PING = 2
CMD_POSTCOPY_ADVISE = 3
CMD_POSTCOPY_LISTEN = 4
CMD_POSTCOPY_RUN = 5
CMD_POSTCOPY_RAM_DISCARD = 6
CMD_PACKAGED = 7
CMD_ENABLE_COLO = 8
CMD_POSTCOPY_RESUME = 9
CMD_RECV_BITMAP = 10
CMD_SWITCHOVER_START = 11


def u8(value: int) -> bytes:
    return struct.pack(">B", value)


def be16(value: int) -> bytes:
    return struct.pack(">H", value)


def be32(value: int) -> bytes:
    return struct.pack(">I", value)


def be64(value: int) -> bytes:
    return struct.pack(">Q", value)


def cstr8(text: str | bytes) -> bytes:
    """A counted string: one length byte, no NUL."""
    raw = text.encode() if isinstance(text, str) else text
    return u8(len(raw)) + raw


def section_header(kind: int, section_id: int, idstr: str, instance: int, version: int) -> bytes:
    """START or FULL, up to its payload."""
    return u8(kind) + be32(section_id) + cstr8(idstr) + be32(instance) + be32(version)


def footer(section_id: int) -> bytes:
    return u8(SECTION_FOOTER) + be32(section_id)


def subsection(name: str, version: int, payload: bytes) -> bytes:
    return u8(SUBSECTION) + cstr8(name) + be32(version) + payload


# -- XBZRLE -----------------------------------------------------------------------------------


def uleb14(value: int) -> bytes:
    """The two-byte-at-most ULEB128 of XBZRLE."""
    if not 0 <= value < 1 << 14:
        raise ValueError(value)
    return u8(value) if value < 0x80 else u8(0x80 | (value & 0x7F)) + u8(value >> 7)


def xbzrle_encode(old: bytes, new: bytes) -> bytes:
    """The difference as QEMU's encoder writes it: b"" if nothing changed."""
    out = bytearray()
    at, size = 0, len(new)
    while at < size:
        same = at
        while at < size and old[at] == new[at]:
            at += 1
        if at == size:
            break  # bytes behind the last literal stay as they are: not encoded
        literal = at
        while at < size and old[at] != new[at]:
            at += 1
        out += uleb14(literal - same) + uleb14(at - literal) + new[literal:at]
    return bytes(out)


def xbzrle_apply(page: bytearray, payload: bytes) -> None:
    """Patch a page. Only for payloads that are legal."""
    source = at = 0

    def number() -> int:
        nonlocal source
        value = payload[source]
        source += 1
        if value & 0x80:
            value = (value & 0x7F) | payload[source] << 7
            source += 1
        return value

    while source < len(payload):
        at += number()
        count = number()
        literal = payload[source : source + count]
        if len(literal) != count or at + count > len(page):
            raise ValueError("not a legal XBZRLE payload: pass truth=False to write it anyway")
        page[at : at + count] = literal
        at += count
        source += count


# -- records of iterable sections other than ram -------------------------------------------------

# (kind, bytes), for live_records(). The kinds are what a reader must call them.
LiveBytes = tuple[str, bytes]

BLOCK_CHUNK = 1 << 20


def block_chunk(
    device: str | bytes, offset: int, data: bytes | None, *, flags: int = 0
) -> LiveBytes:
    """A MiB of a disk, None for one of zeros; data of another length is a broken stream."""
    flags |= 0x01 if data is not None else 0x09
    return "block-chunk", be64(offset | flags) + cstr8(device) + (data or b"")


def block_progress(percent: int) -> LiveBytes:
    return "block-progress", be64(percent << 9 | 0x04)


def block_end() -> LiveBytes:
    return "live-end", be64(0x02)


def _bitmap(flags: int, node: str | bytes | None, name: str | bytes | None) -> bytes:
    """Flags and names; None leaves a name out, so that it is that of the chunk before."""
    out = b""
    if node is not None:
        flags, out = flags | 0x08, cstr8(node)
    if name is not None:
        flags, out = flags | 0x04, out + cstr8(name)
    return u8(flags) + out


def bitmap_start(
    node: str | bytes | None, name: str | bytes | None, granularity: int = 65536, flags: int = 1
) -> LiveBytes:
    return "bitmap-start", _bitmap(0x10, node, name) + be32(granularity) + u8(flags)


def bitmap_complete(node: str | None = None, name: str | None = None) -> LiveBytes:
    return "bitmap-complete", _bitmap(0x20, node, name)


def bitmap_bits(
    sector: int,
    sectors: int,
    bits: bytes | None,
    node: str | bytes | None = None,
    name: str | bytes | None = None,
    *,
    size: int | None = None,
) -> LiveBytes:
    """Bits of so many sectors from one on, None for none set."""
    out = _bitmap(0x40 if bits is not None else 0x42, node, name) + be64(sector) + be32(sectors)
    if bits is not None:
        out += be64(len(bits) if size is None else size) + bits
    return "bitmap-bits", out


def bitmap_end() -> LiveBytes:
    return "live-end", u8(0x01)


def htab_head(shift: int) -> LiveBytes:
    """The size as a power of two in a START, else 0; -1 for a guest without a table."""
    return "htab-head", struct.pack(">i", shift)


def htab_chunk(index: int, entries: Sequence[bytes], invalid: int = 0) -> LiveBytes:
    return "htab-chunk", be32(index) + be16(len(entries)) + be16(invalid) + b"".join(entries)


def htab_end() -> LiveBytes:
    return "live-end", bytes(8)


def storage_values(gpa: int, values: bytes, *, count: int | None = None) -> LiveBytes:
    """Storage attributes (or keys) of s390, a byte a page."""
    return "storage-values", be64(gpa | 0x02) + be64(
        len(values) if count is None else count
    ) + values


def storage_done() -> LiveBytes:
    return "storage-done", be64(0x08)


def storage_end() -> LiveBytes:
    return "live-end", be64(0x01)


def storage_error() -> LiveBytes:
    return "storage-error", be64(0x04)


def vfio_tag(number: int) -> LiveBytes:
    """Tags: 1 end of state, 2 configuration, 3 set-up, 5 initial data sent, 6 ready to load."""
    return "live-end" if number == 1 else "vfio-tag", be64(0xFFFFFFFFEF100000 | number)


def vfio_data(data: bytes, *, size: int | None = None) -> LiveBytes:
    head = be64(0xFFFFFFFFEF100004) + be64(len(data) if size is None else size)
    return "vfio-data", head + data


def pbs_state(data: bytes, *, size: int | None = None) -> LiveBytes:
    return "pbs-state", be64(len(data) if size is None else size) + data


# -- device state -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Field:
    """A field: its bytes, and what the vmdescription says of them.

    With `array_len` the description's size is that of one element. `size` overrides what the
    description says (a lie); `extra` adds keys, e.g. {"struct": {...}}.
    """

    name: str
    type: str
    data: bytes
    array_len: int | None = None
    index: int | None = None
    size: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        size = self.size
        if size is None:
            size = len(self.data) // (self.array_len or 1)
        description: dict[str, Any] = {"name": self.name}
        if self.array_len is not None:
            description["array_len"] = self.array_len
        if self.index is not None:
            description["index"] = self.index
        return {**description, "type": self.type, **self.extra, "size": size}


@dataclass(frozen=True)
class Subsection:
    """A subsection; `name` is the full one, "<vmsd name>/<x>"."""

    name: str
    version: int = 1
    fields: Sequence[Field] = ()
    subsections: Sequence[Subsection] = ()

    def payload(self) -> bytes:
        body = b"".join(f.data for f in self.fields)
        body += b"".join(s.payload() for s in self.subsections)
        return subsection(self.name, self.version, body)

    def describe(self) -> dict[str, Any]:
        return _vmsd(self.name, self.version, self.fields, self.subsections)


@dataclass(frozen=True)
class Device:
    """A FULL section. With `old_style` the description is one field "data" of type "buffer"."""

    name: str
    instance_id: int = 0
    version: int = 1
    fields: Sequence[Field] = ()
    subsections: Sequence[Subsection] = ()
    vmsd_name: str | None = None
    vmsd_version: int | None = None
    old_style: bytes | None = None
    section_id: int | None = None

    def payload(self) -> bytes:
        if self.old_style is not None:
            return self.old_style
        body = b"".join(f.data for f in self.fields)
        return body + b"".join(s.payload() for s in self.subsections)

    def describe(self) -> dict[str, Any]:
        description: dict[str, Any] = {"name": self.name, "instance_id": self.instance_id}
        if self.old_style is not None:
            size = len(self.old_style)
            data = {"name": "data", "size": size, "type": "buffer"}
            return {**description, "size": size, "fields": [data]}
        name = self.vmsd_name
        if name is None:
            name = self.name.rpartition("/")[2]
        version = self.version if self.vmsd_version is None else self.vmsd_version
        return {**description, **_vmsd(name, version, self.fields, self.subsections)}


def _vmsd(
    name: str, version: int, fields: Sequence[Field], subsections: Sequence[Subsection]
) -> dict[str, Any]:
    described: dict[str, Any] = {"vmsd_name": name, "version": version}
    described["fields"] = [f.describe() for f in fields]
    if subsections:
        described["subsections"] = [s.describe() for s in subsections]
    return described


def describe(
    devices: Sequence[Device], page_size: int = 4096, configuration: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The object of a vmdescription. `configuration` stands first, as in 8.2 and later."""
    head = {} if configuration is None else {"configuration": configuration}
    return {**head, "page_size": page_size, "devices": [d.describe() for d in devices]}


def json_text(value: Any, style: str = "6.0") -> bytes:
    """JSON as QEMU 6.0 and later print it, or as the qjson of 2.3 to 5.2 ("qjson") did."""
    return (_qjson(value) if style == "qjson" else json.dumps(value)).encode("ascii")


def _qjson(value: Any) -> str:
    if isinstance(value, dict):
        inner = ", ".join(f'"{key}" : {_qjson(item)}' for key, item in value.items())
        return "{ " + inner + " }"
    if isinstance(value, list):
        return "[ " + ", ".join(_qjson(item) for item in value) + " ]"
    return json.dumps(value)


# -- the stream -------------------------------------------------------------------------------


@dataclass(frozen=True)
class RamBlock:
    """An entry of the RAM block list; None leaves a field out."""

    idstr: str
    length: int
    page_size: int | None = None
    gpa: int | None = None
    ignored: int | None = None

    def entry(self) -> bytes:
        out = cstr8(self.idstr) + be64(self.length)
        if self.page_size is not None:
            out += be64(self.page_size)
        if self.gpa is not None:
            out += be64(self.gpa)
        if self.ignored is not None:
            out += u8(self.ignored)
        return out


@dataclass(frozen=True)
class Item:
    """Something that was written: data[offset:stop]. For a section the payload is an item too.

    kind: HEADER CONFIGURATION START PART END FULL PAYLOAD LIVE FOOTER COMMAND PACKAGE EOF
          VMDESCRIPTION PADDING RAW, and for RAM words BLOCKS ZERO PAGE XBZRLE COMPRESS_PAGE HOOK
          MULTIFD_FLUSH EOS. START..FULL cover the section's head only.
    attrs: what is worth comparing, e.g. section_id, idstr, block, address, named, body (offset of
          the page's bytes), command.
    """

    kind: str
    offset: int
    stop: int
    attrs: dict[str, Any] = field(default_factory=dict)


class StreamWriter:
    """Accumulates a stream and the truth about it.

    data        the bytes so far
    items       what was written, in order (nested ones behind the PACKAGE that holds them)
    blocks      idstr -> content of the RAM block when all records are applied in order
    touched     idstr -> addresses of the pages that had any record
    counts      idstr -> Counter of records by kind
    words       Counter of records that belong to no block (EOS, MULTIFD_FLUSH, HOOK)
    devices     the devices written, for vmdescription()
    description the object the vmdescription holds, None if there is none

    ram_version 3 is the flat space of QEMU 0.10 to 0.12: no names, no CONTINUE; its content is
    blocks[""].
    """

    def __init__(
        self, page_size: int = 4096, *, footers: bool = True, ram_version: int = 4
    ) -> None:
        self.page_size = page_size
        self.footers = footers
        self.ram_version = ram_version
        self.data = bytearray()
        self.items: list[Item] = []
        self.blocks: dict[str, bytearray] = {}
        self.touched: dict[str, set[int]] = {}
        self.counts: dict[str, Counter[str]] = {}
        self.words: Counter[str] = Counter()
        self.devices: list[Device] = []
        self.description: dict[str, Any] | None = None
        self.last_block: str | None = None
        self.ram_id = 1
        self._next_id = 1

    def __bytes__(self) -> bytes:
        return bytes(self.data)

    def __repr__(self) -> str:  # hypothesis prints this when an example fails
        kinds = Counter(item.kind for item in self.items)
        sizes = {name: len(content) for name, content in self.blocks.items()}
        return (
            f"<StreamWriter {len(self.data)} bytes, page_size={self.page_size}, "
            f"footers={self.footers}, blocks={sizes}, items={dict(kinds)}>"
        )

    @property
    def offset(self) -> int:
        """Where the next byte goes."""
        return len(self.data)

    def items_of(self, *kinds: str) -> list[Item]:
        return [item for item in self.items if item.kind in kinds]

    def _add(self, kind: str, raw: bytes, **attrs: Any) -> Item:
        item = Item(kind, self.offset, self.offset + len(raw), attrs)
        self.data += raw
        self.items.append(item)
        return item

    def new_section_id(self) -> int:
        self._next_id += 1
        return self._next_id

    def raw(self, raw: bytes) -> Item:
        """Any bytes at all."""
        return self._add("RAW", raw)

    # -- framing ------------------------------------------------------------------------------

    def header(self, magic: bytes = b"QEVM", version: int = 3) -> Item:
        return self._add("HEADER", magic + be32(version), version=version)

    def configuration(
        self,
        machine: str = "pc-i440fx-7.2",
        *,
        page_bits: int | None = None,
        capabilities: Sequence[str] | None = None,
        uuid: bytes | None = None,
        subsections: bytes = b"",
    ) -> Item:
        """The configuration section; `subsections` are raw bytes behind the known ones."""
        name = machine.encode()
        out = u8(CONFIGURATION) + be32(len(name)) + name
        if page_bits is not None:
            out += subsection("configuration/target-page-bits", 1, be32(page_bits))
        if capabilities is not None:
            body = be32(len(capabilities)) + b"".join(cstr8(c) for c in capabilities)
            out += subsection("configuration/capabilities", 1, body)
        if uuid is not None:
            out += subsection("configuration/uuid", 1, uuid)
        return self._add(
            "CONFIGURATION",
            out + subsections,
            machine=machine,
            page_bits=page_bits,
            capabilities=None if capabilities is None else list(capabilities),
            uuid=uuid,
        )

    def start(self, section_id: int, idstr: str, instance_id: int = 0, version_id: int = 1) -> Item:
        """Head of a SECTION_START."""
        return self._head("START", SECTION_START, section_id, idstr, instance_id, version_id)

    def full(self, section_id: int, idstr: str, instance_id: int = 0, version_id: int = 1) -> Item:
        """Head of a SECTION_FULL."""
        return self._head("FULL", SECTION_FULL, section_id, idstr, instance_id, version_id)

    def _head(
        self, kind: str, type_: int, section_id: int, idstr: str, instance_id: int, version_id: int
    ) -> Item:
        return self._add(
            kind,
            section_header(type_, section_id, idstr, instance_id, version_id),
            section_id=section_id,
            idstr=idstr,
            instance_id=instance_id,
            version_id=version_id,
        )

    def part(self, section_id: int) -> Item:
        """Head of a SECTION_PART."""
        return self._add("PART", u8(SECTION_PART) + be32(section_id), section_id=section_id)

    def end(self, section_id: int) -> Item:
        """Head of a SECTION_END."""
        return self._add("END", u8(SECTION_END) + be32(section_id), section_id=section_id)

    def payload(self, raw: bytes) -> Item:
        return self._add("PAYLOAD", raw)

    def footer(self, section_id: int, *, always: bool = False) -> Item | None:
        """A footer, if this stream has footers."""
        if not (self.footers or always):
            return None
        return self._add("FOOTER", footer(section_id), section_id=section_id)

    def live_section(
        self, kind: str, section_id: int, payload: bytes, idstr: str = "", version_id: int = 1
    ) -> None:
        """A START, PART or END of a handler other than ram, with footer."""
        if kind == "START":
            self.start(section_id, idstr, 0, version_id)
        elif kind == "PART":
            self.part(section_id)
        else:
            self.end(section_id)
        self.payload(payload)
        self.footer(section_id)

    def live_records(
        self,
        kind: str,
        section_id: int,
        records: Sequence[LiveBytes],
        idstr: str = "",
        version_id: int = 1,
    ) -> None:
        """The same with a body of records, each an item LIVE of its own."""
        if kind == "START":
            self.start(section_id, idstr, 0, version_id)
        elif kind == "PART":
            self.part(section_id)
        else:
            self.end(section_id)
        for name, raw in records:
            self._add("LIVE", raw, record=name, section_id=section_id)
        self.footer(section_id)

    # -- ram ----------------------------------------------------------------------------------

    def ram_start(
        self,
        blocks: Sequence[RamBlock],
        *,
        section_id: int = 1,
        total: int | None = None,
        version_id: int | None = None,
        tail: bytes = b"",
    ) -> None:
        """The whole START of ram: head, block list, `tail`, EOS, footer."""
        self.ram_id = section_id
        self._next_id = max(self._next_id, section_id) if section_id < 1 << 31 else self._next_id
        self.start(section_id, "ram", 0, self.ram_version if version_id is None else version_id)
        self.block_list(blocks, total=total)
        if tail:
            self.raw(tail)
        self.eos()
        self.footer(section_id)

    def block_list(self, blocks: Sequence[RamBlock], *, total: int | None = None) -> Item:
        """The MEM_SIZE word and its list; `total` lies about the sum."""
        if total is None:
            total = sum(block.length for block in blocks)
        out = be64(total | FLAG_MEM_SIZE)
        if self.ram_version == 3:
            self._new_block("", total)
        else:
            for block in blocks:
                out += block.entry()
                self._new_block(block.idstr, block.length)
        return self._add("BLOCKS", out, total=total, blocks=list(blocks))

    def _new_block(self, idstr: str, length: int) -> None:
        self.blocks[idstr] = bytearray(length)
        self.touched[idstr] = set()
        self.counts[idstr] = Counter()

    @contextmanager
    def ram_part(self) -> Iterator[StreamWriter]:
        """A PART of ram around the records written inside; EOS and footer follow."""
        self.part(self.ram_id)
        yield self
        self.eos()
        self.footer(self.ram_id)

    @contextmanager
    def ram_end(self) -> Iterator[StreamWriter]:
        """The END of ram around the records written inside; EOS and footer follow."""
        self.end(self.ram_id)
        yield self
        self.eos()
        self.footer(self.ram_id)

    def page_head(self, block: str, address: int, flags: int, named: bool | None = None) -> bytes:
        """Word and, unless CONTINUE, name. named=None: as QEMU does, CONTINUE if it can be.

        named=False for a block other than the last is a broken stream: the reader will take the
        record for one of `last_block`.
        """
        if self.ram_version == 3:
            return be64(address | flags)
        if named is None:
            named = block != self.last_block
        if named:
            self.last_block = block
            return be64(address | flags) + cstr8(block)
        return be64(address | flags | FLAG_CONTINUE)

    def _record(
        self, kind: str, flag: int, block: str, address: int, named: bool | None, body: bytes
    ) -> Item:
        head = self.page_head(block, address, flag, named)
        # A record with CONTINUE belongs to the last block, whatever the caller calls it.
        owner = "" if self.ram_version == 3 else self.last_block
        if owner in self.counts:
            self.counts[owner][kind] += 1
            self.touched[owner].add(address)
        return self._add(
            kind,
            head + body,
            block=owner,
            address=address,
            named=len(head) > 8,
            body=self.offset + len(head),
        )

    def _set(self, item: Item, content: bytes) -> None:
        block = self.blocks.get(item.attrs["block"])
        address = item.attrs["address"]
        # A page out of bounds changes nothing: there the stream is broken on purpose.
        if block is not None and address + len(content) <= len(block):
            block[address : address + len(content)] = content

    def zero(self, block: str, address: int, fill: int = 0, *, named: bool | None = None) -> Item:
        item = self._record("ZERO", FLAG_ZERO, block, address, named, u8(fill))
        self._set(item, u8(fill) * self.page_size)
        return item

    def page(self, block: str, address: int, body: bytes, *, named: bool | None = None) -> Item:
        """A whole page. A body of another length than page_size is a broken stream."""
        item = self._record("PAGE", FLAG_PAGE, block, address, named, body)
        self._set(item, body)
        return item

    def xbzrle(
        self,
        block: str,
        address: int,
        payload: bytes,
        *,
        named: bool | None = None,
        encoding: int = 1,
        length: int | None = None,
        truth: bool = True,
    ) -> Item:
        """An XBZRLE record with this payload; truth=False if the payload is illegal."""
        head = u8(encoding) + be16(len(payload) if length is None else length)
        item = self._record("XBZRLE", FLAG_XBZRLE, block, address, named, head + payload)
        if truth:
            content = self.blocks[item.attrs["block"]]
            page = content[address : address + self.page_size]
            xbzrle_apply(page, payload)
            self._set(item, bytes(page))
        return item

    def xbzrle_to(
        self, block: str, address: int, new: bytes, *, named: bool | None = None
    ) -> Item | None:
        """The XBZRLE record that turns the present page into `new`; None if QEMU sends none."""
        old = self.blocks[block][address : address + self.page_size]
        payload = xbzrle_encode(bytes(old), new)
        if not payload or len(payload) > self.page_size:
            return None
        return self.xbzrle(block, address, payload, named=named)

    def compress_page(
        self,
        block: str,
        address: int,
        blob: bytes,
        *,
        named: bool | None = None,
        length: int | None = None,
        truth: bool = True,
    ) -> Item:
        """A COMPRESS_PAGE record with this zlib stream; truth=False if it does not inflate."""
        head = be32(len(blob) if length is None else length)
        item = self._record("COMPRESS_PAGE", FLAG_COMPRESS_PAGE, block, address, named, head + blob)
        if truth:
            self._set(item, zlib.decompress(blob))
        return item

    def _word(self, kind: str, word: int) -> Item:
        self.words[kind] += 1
        return self._add(kind, be64(word))

    def eos(self) -> Item:
        return self._word("EOS", FLAG_EOS)

    def multifd_flush(self) -> Item:
        return self._word("MULTIFD_FLUSH", FLAG_MULTIFD_FLUSH)

    def hook(self) -> Item:
        return self._word("HOOK", FLAG_HOOK)

    # -- commands -----------------------------------------------------------------------------

    def command(self, command: int, payload: bytes = b"", *, length: int | None = None) -> Item:
        head = u8(COMMAND) + be16(command) + be16(len(payload) if length is None else length)
        return self._add("COMMAND", head + payload, command=command, payload=payload)

    def open_return_path(self) -> Item:
        return self.command(CMD_OPEN_RETURN_PATH)

    def ping(self, value: int) -> Item:
        return self.command(CMD_PING, be32(value))

    def postcopy_advise(self, page_sizes: int = 4096, target_page_size: int | None = None) -> Item:
        target = self.page_size if target_page_size is None else target_page_size
        return self.command(CMD_POSTCOPY_ADVISE, be64(page_sizes) + be64(target))

    def postcopy_listen(self) -> Item:
        return self.command(CMD_POSTCOPY_LISTEN)

    def postcopy_run(self) -> Item:
        return self.command(CMD_POSTCOPY_RUN)

    def ram_discard(self, block: str, ranges: Sequence[tuple[int, int]]) -> Item:
        """POSTCOPY_RAM_DISCARD of (start, length) ranges; in the truth they become zero."""
        body = u8(0) + cstr8(block) + u8(0)
        for start, length in ranges:
            body += be64(start) + be64(length)
            if block in self.blocks:
                self.blocks[block][start : start + length] = bytes(length)
        return self.command(CMD_POSTCOPY_RAM_DISCARD, body)

    def switchover_start(self) -> Item:
        return self.command(CMD_SWITCHOVER_START)

    def packaged(self, nested: StreamWriter | bytes, *, length: int | None = None) -> Item:
        """PACKAGED and the bytes behind it. The items of a nested writer are taken over."""
        inner = bytes(nested)
        self.command(CMD_PACKAGED, be32(len(inner) if length is None else length))
        base = self.offset
        package = self._add("PACKAGE", inner)
        if isinstance(nested, StreamWriter):
            for item in nested.items:
                attrs = dict(item.attrs)
                if "body" in attrs:
                    attrs["body"] += base
                self.items.append(Item(item.kind, base + item.offset, base + item.stop, attrs))
            self.devices += nested.devices
        return package

    # -- devices and the end ------------------------------------------------------------------

    def device(self, device: Device) -> Item:
        """A FULL section; it will be in the vmdescription. Returns the item of its payload."""
        section_id = device.section_id
        if section_id is None:
            section_id = self.new_section_id()
        self.full(section_id, device.name, device.instance_id, device.version)
        item = self.payload(device.payload())
        self.footer(section_id)
        self.devices.append(device)
        return item

    def eof(self) -> Item:
        return self._add("EOF", u8(EOF))

    def vmdescription(
        self,
        description: dict[str, Any] | None = None,
        *,
        text: bytes | None = None,
        style: str = "6.0",
        length: int | None = None,
    ) -> Item:
        """The vmdescription, by default of the devices written. `text` replaces the JSON."""
        if description is None:
            description = describe(self.devices, self.page_size)
        if text is None:
            text = json_text(description, style)
            self.description = description
        head = u8(VMDESCRIPTION) + be32(len(text) if length is None else length)
        return self._add("VMDESCRIPTION", head + text, text=text)

    def padding(self, size: int, fill: int = 0) -> Item:
        return self._add("PADDING", u8(fill) * size)


def simple_stream(
    pages: dict[str, dict[int, bytes]] | None = None,
    *,
    sizes: dict[str, int] | None = None,
    page_size: int = 4096,
    footers: bool = True,
    vmdescription: bool = True,
    devices: Sequence[Device] = (),
) -> StreamWriter:
    """A small legal stream in one call: pages[block][address] = content (b"" for a zero page)."""
    pages = {"pc.ram": {0: bytes(range(256)) * (page_size // 256)}} if pages is None else pages
    writer = StreamWriter(page_size, footers=footers)
    writer.header()
    bits = page_size.bit_length() - 1
    writer.configuration(page_bits=None if bits == 12 else bits)
    blocks = []
    for name, content in pages.items():
        length = (sizes or {}).get(name, max(content, default=0) + page_size)
        blocks.append(RamBlock(name, length))
    writer.ram_start(blocks)
    with writer.ram_part():
        for name, content in pages.items():
            for address, body in content.items():
                if body:
                    writer.page(name, address, body)
                else:
                    writer.zero(name, address)
    with writer.ram_end():
        pass
    for device in devices:
        writer.device(device)
    writer.eof()
    if vmdescription:
        writer.vmdescription()
    return writer
