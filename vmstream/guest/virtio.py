"""The state of a virtio device, which the vmdescription has as one field of type 'virtio'.

QEMU writes it by hand, so its layout is taken from QEMU v10.1.0 hw/virtio/virtio.c virtio_save()
and the `save_config` and `save_queue` of each transport (hw/virtio/virtio-pci.c, virtio-mmio.c).
`describe` gives a description of the shape that the vmdescription has, for the bytes at hand. It is
an inference, and there is none unless everything adds up to the size of the field.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from vmstream.guest.features import DEVICE_TYPES, KINDS, STATUS, bit_names, features_said
from vmstream.wire.vmsd import ELEMENTS, MEANING, SUBSECTION_FRAME, body_size, field_size

Field = dict[Any, Any]
Vmsd = dict[str, Any]

MAX_QUEUES = 1024  # VIRTIO_QUEUE_MAX
_MAX_RING = 1 << 15
_MAX_FRAMES = 64  # a guest can write what looks like one
_BIG_ENDIAN = 2  # VIRTIO_DEVICE_ENDIAN_BIG
_VERSION_1 = 32

_VENDOR, _MODERN = 0x1AF4, 0x1040
_PCI_SUBSYSTEM, _PCI_CAPABILITIES = 0x2E, 0x34
_CAP_EXPRESS, _CAP_MSIX = 0x10, 0x11
_PCI_CONFIG, _PCIE_CONFIG = 256, 4096

# VIRTIO 1.2, section 5: (name, bytes) of the configuration of each device, as far as is told here.
_CONFIGS: dict[str, tuple[tuple[str, int], ...]] = {
    "net": (("mac", 0), ("status", 2), ("max_virtqueue_pairs", 2), ("mtu", 2), ("speed", 4),
            ("duplex", 1), ("rss_max_key_size", 1), ("rss_max_indirection_table_length", 2),
            ("supported_hash_types", 4)),
    "block": (("capacity", 8), ("size_max", 4), ("seg_max", 4), ("cylinders", 2), ("heads", 1),
              ("sectors", 1), ("blk_size", 4), ("physical_block_exp", 1), ("alignment_offset", 1),
              ("min_io_size", 2), ("opt_io_size", 4), ("writeback", 1), ("unused0", 1),
              ("num_queues", 2), ("max_discard_sectors", 4), ("max_discard_seg", 4),
              ("discard_sector_alignment", 4), ("max_write_zeroes_sectors", 4),
              ("max_write_zeroes_seg", 4), ("write_zeroes_may_unmap", 1)),
    "console": (("cols", 2), ("rows", 2), ("max_nr_ports", 4), ("emerg_wr", 4)),
    "balloon": (("num_pages", 4), ("actual", 4), ("free_page_hint_cmd_id", 4), ("poison_val", 4)),
    "scsi": (("num_queues", 4), ("seg_max", 4), ("max_sectors", 4), ("cmd_per_lun", 4),
             ("event_info_size", 4), ("sense_size", 4), ("cdb_size", 4), ("max_channel", 2),
             ("max_target", 2), ("max_lun", 4)),
    "gpu": (("events_read", 4), ("events_clear", 4), ("num_scanouts", 4), ("num_capsets", 4)),
    "vsock": (("guest_cid", 8),),
    "iommu": (("page_size_mask", 8), ("input_range.start", 8), ("input_range.end", 8),
              ("domain_range.start", 4), ("domain_range.end", 4), ("probe_size", 4),
              ("bypass", 1)),
    "mem": (("block_size", 8), ("node_id", 2), ("padding", 0), ("addr", 8), ("region_size", 8),
            ("usable_region_size", 8), ("plugged_size", 8), ("requested_size", 8)),
    "pmem": (("start", 8), ("size", 8)),
    "sound": (("jacks", 4), ("streams", 4), ("chmaps", 4)),
}  # fmt: skip
_SIX_BYTES = 6  # the two fields of size 0 above

# Body of each subsection that is known: one value, or an entry for each queue.
_SINGLE = {
    "virtio/device_endian": ("device_endian", "uint8", 1),
    "virtio/64bit_features": ("guest_features", "uint64", 8),
    "virtio/128bit_features": ("guest_features_ex[1]", "uint64", 8),
    "virtio/broken": ("broken", "bool", 1),
    "virtio/started": ("started", "bool", 1),
    "virtio/disabled": ("disabled", "bool", 1),
}
_PER_QUEUE = {
    "virtio/virtqueues": (("vring.avail", "uint64", 8), ("vring.used", "uint64", 8)),
    "virtio/ringsize": (("vring.num_default", "uint32", 4),),
    "virtio/packed_virtqueues": (
        ("last_avail_idx", "uint16", 2), ("last_avail_wrap_counter", "bool", 1),
        ("used_idx", "uint16", 2), ("used_wrap_counter", "bool", 1), ("inuse", "uint32", 4),
    ),
    # QEMU v10.1.0 hw/virtio/virtio-pci.c vmstate_virtio_pci_modern_queue_state: low half first.
    "virtio_pci/modern_state": (
        ("num", "uint16", 2), ("unused", "buffer", 1), ("enabled", "bool", 1),
        ("desc", "uint32", 4), ("desc.high", "uint32", 4), ("avail", "uint32", 4),
        ("avail.high", "uint32", 4), ("used", "uint32", 4), ("used.high", "uint32", 4),
    ),
}  # fmt: skip
_IN_FRONT = {
    "virtio_pci/modern_state": (("dfselect", "uint32", 4), ("gfselect", "uint32", 4),
                                ("guest_features[0]", "uint32", 4),
                                ("guest_features[1]", "uint32", 4)),
}  # fmt: skip
_FRAME = re.compile(rb"\x05(.)(virtio(?:/|_pci/)\w+)", re.DOTALL)


class _Misfit(ValueError):
    pass


class _Reader:
    """Fields one behind the other; each is checked to be there."""

    def __init__(self, body: memoryview, at: int = 0) -> None:
        self.body, self.at = body, at
        self.fields: list[Field] = []

    def number(self, name: str, size: int, *, signed: bool = False, **more: Any) -> int:
        value = int.from_bytes(self.take(name, f"{'' if signed else 'u'}int{8 * size}", size))
        self.fields[-1].update(more)
        return value

    def take(self, name: str, kind: str, size: int, **more: Any) -> memoryview:
        if not 0 <= size <= len(self.body) - self.at:
            raise _Misfit
        self.at += size
        if size:
            self.fields.append({"name": name, "type": kind, "size": size, **more})
        return self.body[self.at - size : self.at]

    def structs(self, name: str, of: Sequence[Field], count: int) -> memoryview:
        size = sum(f["size"] for f in of)
        taken = self.take(name, "struct", size * count)
        if count:
            self.fields[-1].update(size=size, array_len=count, struct={"fields": list(of)})
        return taken

    def say(self, words: str) -> None:
        if words:
            self.fields[-1][MEANING] = words


class _Found(NamedTuple):
    transport: str
    fields: list[Field]
    kind: str  # of the device, as in VIRTIO; '' if it is not known
    vectors: bool  # a vector for each queue
    align: bool  # an alignment for each queue


def describe(body: memoryview, name: str) -> Mapping[str, Any] | None:
    """Return what the bytes of a virtio device are, as a vmsd of the vmdescription.

    Args:
        body: The field of type 'virtio'.
        name: Of the section: its last part tells the device where its transport does not.

    Returns:
        A description of as many bytes as there are, or `None` if they are not as is known here.
        Fields can have the key `MEANING`.
    """
    for transport in (_pci, _mmio):
        reader = _Reader(body)
        try:
            found = transport(reader)
            return _device(_Reader(body, reader.at), found, name)
        except _Misfit:
            continue
    return None


def _pci(reader: _Reader) -> _Found:
    # QEMU v10.1.0 hw/pci/pci.c vmstate_pci_device, hw/pci/msix.c msix_save().
    reader.number("version_id", 4, signed=True)
    head = bytes(reader.body[reader.at : reader.at + _PCI_CONFIG])
    if len(head) < _PCI_CONFIG:
        raise _Misfit
    express = any(_capabilities(head, _CAP_EXPRESS))
    size = _PCIE_CONFIG if express else _PCI_CONFIG
    config = bytes(reader.take("config", "pci config", size))

    def number(at: int, bytes_: int = 2) -> int:
        return int.from_bytes(config[at : at + bytes_], "little")

    if number(0) != _VENDOR:
        raise _Misfit
    reader.take("irq_state", "int32", 4, array_len=4)
    reader.at += 12
    vectors = next((number(at + 2) & 0x7FF for at in _capabilities(config, _CAP_MSIX)), None)
    if vectors is not None:
        entry = [_little("address", 8), _little("data", 4), _little("control", 4)]
        reader.structs("msix_table", entry, vectors + 1)
        reader.take("msix_pba", "buffer", (vectors + 8) // 8)
        reader.number("config_vector", 2)
    device = number(2)
    number_of = device - _MODERN if device >= _MODERN else number(_PCI_SUBSYSTEM)
    kind = DEVICE_TYPES.get(number_of, "")
    return _Found("pci", reader.fields, kind, vectors is not None, align=False)


def _mmio(reader: _Reader) -> _Found:
    # QEMU v10.1.0 hw/virtio/virtio-mmio.c virtio_mmio_save_config()
    reader.number("host_features_sel", 4)
    reader.number("guest_features_sel", 4)
    if reader.number("guest_page_shift", 4) >= 64:
        raise _Misfit
    return _Found("mmio", reader.fields, "", vectors=False, align=True)


def _capabilities(config: bytes, wanted: int) -> Iterator[int]:
    at, seen = config[_PCI_CAPABILITIES] & ~3, 0
    while 0x40 <= at < 0xFF and seen < 48:
        if config[at] == wanted:
            yield at
        at, seen = config[at + 1] & ~3, seen + 1


def _little(name: str, size: int) -> Field:
    return {"name": name, "type": f"uint{8 * size} little", "size": size}


def _plain(fields: Iterable[tuple[str, str, int]]) -> list[Field]:
    return [{"name": n, "type": t, "size": s} for n, t, s in fields]


# virtio_save() from where the transport has written its part.
def _device(reader: _Reader, found: _Found, name: str) -> Vmsd:
    kind = found.kind or KINDS.get(name.rpartition("/")[2].partition("[")[0], "")
    reader.say(bit_names(reader.number("status", 1), STATUS) or "reset")
    reader.number("isr", 1)
    reader.number("queue_sel", 2)
    low = reader.number("guest_features", 4)
    reader.say(features_said(kind, low))
    config_field, size = len(reader.fields) + 1, reader.number("config_len", 4)
    config = reader.take("config", "buffer", size)
    count = reader.number("queues", 4)
    # Without queues nothing but an identity tells a device from any bytes.
    if count > MAX_QUEUES or (not count and found.transport == "mmio"):
        raise _Misfit
    queue = [("vring.num", "uint32", 4), ("vring.align", "uint32", 4), ("vring.desc", "uint64", 8),
             ("last_avail_idx", "uint16", 2), ("vector", "uint16", 2)]  # fmt: skip
    if not found.vectors:
        del queue[4]
    if not found.align:
        del queue[1]
    rings = reader.structs("vq", _plain(queue), count)
    step = len(rings) // count if count else 1
    if any(not 0 < int.from_bytes(rings[at : at + 4]) <= _MAX_RING
           for at in range(0, len(rings), step)):  # fmt: skip
        raise _Misfit
    at, subsections, stated = _subsections(reader.body, reader.at, count, kind)
    specific = _Reader(reader.body[:at], reader.at)
    try:
        _SPECIFIC.get(kind, _unknown)(specific)
    except _Misfit:
        specific = _Reader(reader.body[:at], reader.at)
    specific.take("unknown", "buffer", at - specific.at)
    features = stated.get("virtio/64bit_features", low)
    little = bool(features >> _VERSION_1 & 1) or stated.get("virtio/device_endian") != _BIG_ENDIAN
    if size:
        reader.fields[config_field] = _config(config, kind, little=little)
    fields = [*_struct(found.transport, found.fields), *reader.fields]
    fields += _struct("device", specific.fields)
    return {"fields": fields, "subsections": subsections}


def _struct(name: str, fields: list[Field]) -> Iterator[Field]:
    size = sum(map(field_size, fields))
    if size:
        yield {"name": name, "type": "struct", "size": size, "struct": {"fields": fields}}


# The subsections that end the body: where they start, what they are, and the numbers of those with
# one value. Those that nothing is known of go on to the next one.
def _subsections(
    body: memoryview, start: int, queues: int, kind: str
) -> tuple[int, list[Vmsd], dict[str, int]]:
    frames = [m.start() for m in _FRAME.finditer(body, start) if m[1][0] == len(m[2])]
    for first in frames[:_MAX_FRAMES]:
        at, found, stated = first, [], {}
        try:
            while at < len(body):
                sub, number = _subsection(body, at, frames, queues, kind)
                found.append(sub)
                stated[sub["vmsd_name"]] = number
                at += SUBSECTION_FRAME + len(sub["vmsd_name"]) + body_size(sub)
        except _Misfit:
            continue
        return first, found, stated
    return len(body), [], {}


def _subsection(
    body: memoryview, at: int, frames: Sequence[int], queues: int, kind: str
) -> tuple[Vmsd, int]:
    frame = _FRAME.match(body, at)
    if frame is None or frame[1][0] != len(frame[2]):
        raise _Misfit
    name = frame[2].decode()
    reader = _Reader(body, frame.end())
    made: Vmsd = {"vmsd_name": name, "version": reader.number("version", 4)}
    reader.fields.clear()
    value = 0
    if name in _SINGLE:
        value = int.from_bytes(reader.take(*_SINGLE[name]))
        if name == "virtio/64bit_features":
            reader.say(features_said(kind, value))
    elif name in _PER_QUEUE:
        for field in _IN_FRONT.get(name, ()):
            reader.take(*field)
        entry = _plain(_PER_QUEUE[name])
        reader.structs("vq", entry, queues)
        # An entry for each queue that there could be.
        rest = sum(f["size"] for f in entry) * (MAX_QUEUES - queues)
        reader.take("unused", "buffer", rest)
    elif name == "virtio/extra_state" and _FRAME.match(body, reader.at):
        made["subsections"] = [_subsection(body, reader.at, (), queues, kind)[0]]
    else:
        end = next((f for f in frames if f >= reader.at), len(body))
        reader.take("unknown", "buffer", end - reader.at)
    made["fields"] = reader.fields
    return made, value


def _unknown(_reader: _Reader) -> None:
    pass


# The configuration as a struct, if it is that of a known device.
def _config(data: memoryview, kind: str, *, little: bool) -> Field:
    if kind not in _CONFIGS:
        return {"name": "config", "type": "buffer", "size": len(data)}
    order = " little" if little else ""
    fields: list[Field] = []
    left = len(data)
    for name, size in _CONFIGS[kind]:
        wide = size or _SIX_BYTES
        if wide > left:
            break
        made: Field = {"name": name, "type": f"uint{8 * size}{order}", "size": wide}
        if not size:
            made["type"] = "buffer"
        if name == "mac":
            made[MEANING] = data[:_SIX_BYTES].hex(":")
        fields.append(made)
        left -= wide
    if left:
        fields.append({"name": "more", "type": "buffer", "size": left})
    return {"name": "config", "type": "struct", "size": len(data), "struct": {"fields": fields}}


# QEMU v10.1.0 hw/net/virtio-net.c vmstate_virtio_net_device, as far as it is there always.
def _net(reader: _Reader) -> None:
    mac = reader.take("mac", "buffer", _SIX_BYTES)
    reader.say(mac.hex(":"))
    reader.number("tx_waiting", 4)
    reader.number("mergeable_rx_bufs", 4)
    reader.number("status", 2)
    reader.number("promisc", 1)
    reader.number("allmulti", 1)
    in_use = reader.number("mac_table.in_use", 4)
    for n in range(min(in_use, 64)):
        reader.say(reader.take(f"mac_table.macs[{n}]", "buffer", _SIX_BYTES).hex(":"))
    if in_use > 64:
        raise _Misfit
    reader.take("vlans", "buffer", 512)
    reader.number("has_vnet_hdr", 4)
    for name in ("mac_table.multi_overflow", "mac_table.uni_overflow", "alluni", "nomulti", "nouni",
                 "nobcast", "has_ufo"):  # fmt: skip
        reader.number(name, 1)


# QEMU v10.1.0 hw/virtio/virtio-balloon.c vmstate_virtio_balloon_device
def _balloon(reader: _Reader) -> None:
    reader.number("num_pages", 4)
    reader.number("actual", 4)


# QEMU v10.1.0 hw/virtio/virtio-iommu.c vmstate_virtio_iommu_device: trees and a list.
def _iommu(reader: _Reader) -> None:
    def struct(fields: Sequence[tuple[str, str, int]]) -> Vmsd:
        return {"fields": [{"name": n, "type": t, "size": s} for n, t, s in fields]}

    def tree(
        name: str, key: Sequence[tuple[str, str, int]] | None, read: Any, *, counted: bool = True
    ) -> Field:
        start, elements = reader.at, []
        stated = number(4) if counted else None
        while number(1) == 1:
            if key is not None:
                reader.at += sum(size for *_, size in key)
                elements.append(struct(key))
            elif counted:
                reader.at += 8
            elements.append(read())
        there = len(elements) // (2 if key is not None else 1)
        if stated is not None and there != stated:
            raise _Misfit
        made = {"name": name, "type": "gtree" if counted else "qlist", "size": reader.at - start}
        return {**made, ELEMENTS: elements}

    def number(size: int) -> int:
        if reader.at + size > len(reader.body):
            raise _Misfit
        reader.at += size
        return int.from_bytes(reader.body[reader.at - size : reader.at])

    def plain(*fields: tuple[str, str, int]) -> Vmsd:
        number(sum(size for *_, size in fields))
        return struct(fields)

    def mapping() -> Vmsd:
        return plain(("phys_addr", "uint64", 8), ("flags", "uint32", 4))

    def endpoint() -> Vmsd:
        return plain(("id", "uint32", 4))

    def domain() -> Vmsd:
        made = plain(("id", "uint32", 4))
        interval = (("low", "uint64", 8), ("high", "uint64", 8))
        made["fields"].append(tree("mappings", interval, mapping))
        made["fields"].append(tree("endpoint_list", None, endpoint, counted=False))
        made["fields"] += plain(("bypass", "bool", 1))["fields"]
        return made

    reader.fields.append(tree("domains", None, domain))
    reader.number("config.bypass", 1)


_SPECIFIC = {"net": _net, "balloon": _balloon, "iommu": _iommu}
