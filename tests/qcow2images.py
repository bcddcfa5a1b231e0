"""qcow2 images with snapshots, built through the grammar, with any kind of cluster.

    image = build([Saved("first", stream), Saved("second", other, kinds="data zero packed")])
    image.data                   # the file
    image.truth[0]               # what the VM state reads as: kinds `zero` and `hole` are zeros
    image.places["l2", 0]        # where tables and entries are, to spoil them

Whether the layouts are right is shown by images of QEMU, not by these.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

from vmstream.wire import grammar

FULL = (1 << 32) - 1
PACKED = 1 << 62
COPIED = 1 << 63


@dataclass(frozen=True)
class Saved:
    """A snapshot. `kinds` are those of its clusters, over and over: data, zero (with a cluster),
    empty (zero without), hole, packed, and with extended L2 entries sub.

    `fields` replace those of the entry; `extra` its extra data.
    """

    name: str | bytes
    stream: bytes
    kinds: str = "data"
    id: str | bytes = "1"
    extra: bytes | None = None
    fields: dict[str, int] = field(default_factory=dict)


@dataclass
class Image:
    data: bytearray
    truth: list[bytes]
    places: dict[tuple[str, int], int]
    cluster: int

    def put(self, at: int, shape: str, value: int) -> Image:
        """Replace a big-endian number."""
        struct.pack_into(">" + shape, self.data, at, value)
        return self

    def get(self, at: int) -> int:
        number: int = struct.unpack_from(">Q", self.data, at)[0]
        return number

    def write(self, path: Path) -> Path:
        path.write_bytes(self.data)
        return path


def pack(data: bytes, compression: int) -> bytes:
    if compression == 1:
        return zstandard.ZstdCompressor().compress(data)
    packer = zlib.compressobj(9, zlib.DEFLATED, -12)
    return packer.compress(data) + packer.flush()


def build(
    saved: Sequence[Saved],
    *,
    version: int = 3,
    cluster_bits: int = 9,
    extended: bool = False,
    compression: int = 0,
    disk_size: int = 1 << 20,
    backwards: bool = False,
    header: dict[str, Any] | None = None,
    features: int = 0,
) -> Image:
    """`backwards` puts clusters that follow each other in the guest in front of each other."""
    if extended:
        cluster_bits = max(cluster_bits, 14)
    cluster = 1 << cluster_bits
    size = 16 if extended else 8
    entries = cluster // size
    first = -(-disk_size // (entries * cluster))
    places: dict[tuple[str, int], int] = {}
    truth: list[bytes] = []
    body = bytearray(cluster)  # the header's cluster

    def take(data: bytes) -> int:
        """At the next cluster."""
        at = len(body)
        body.extend(data + bytes(-len(data) % cluster))
        return at

    table, tables = bytearray(), itertools.count()
    for number, snapshot in enumerate(saved):
        pieces = [
            snapshot.stream[i : i + cluster].ljust(cluster, b"\0")
            for i in range(0, len(snapshot.stream), cluster)
        ]
        kinds = list(itertools.islice(itertools.cycle(snapshot.kinds.split()), len(pieces)))
        words: list[bytes] = [b""] * len(pieces)
        known = list(pieces)
        order = range(len(pieces))
        for i in reversed(order) if backwards else order:
            entry, bitmap = COPIED, FULL
            kind = kinds[i]
            if kind == "data":
                entry |= take(pieces[i])
            elif kind == "packed":
                packed = pack(pieces[i], compression)
                # Off a sector's start, as QEMU packs them behind each other.
                at = take(bytes(77) + packed) + 77
                sectors = (at % 512 + len(packed) - 1) // 512
                entry, bitmap = PACKED | sectors << (62 - (cluster_bits - 8)) | at, 0
            elif kind == "sub":
                # Half of the subclusters are there, a quarter reads as zeros, a quarter is not.
                entry |= take(pieces[i])
                part = cluster // 32
                bitmap = sum(1 << n for n in range(0, 32, 2))
                bitmap |= sum(1 << (32 + n) for n in range(1, 32, 4))
                known[i] = b"".join(
                    pieces[i][n * part : (n + 1) * part] if n % 2 == 0 else bytes(part)
                    for n in range(32)
                )
            else:
                entry = {"zero": 1, "empty": 1, "hole": 0}[kind]
                bitmap = FULL << 32 if entry and extended else 0
                if kind == "zero":
                    entry |= COPIED | take(pieces[i])
                if extended:
                    entry &= ~1
                known[i] = bytes(cluster)
            words[i] = struct.pack(">QQ", entry, bitmap) if extended else struct.pack(">Q", entry)
        truth.append(b"".join(known)[: len(snapshot.stream)])
        l1 = [0] * first
        for i in range(0, len(words), entries):
            at = take(b"".join(words[i : i + entries]).ljust(cluster, b"\0"))
            places["l2", next(tables)] = at
            l1.append(COPIED | at)
        places["l1", number] = take(struct.pack(f">{len(l1)}Q", *l1))
        places["vm-l1", number] = places["l1", number] + 8 * first
        places["entry", number] = len(table)  # in the table
        extra = struct.pack(">QQQ", len(snapshot.stream), disk_size, (1 << 64) - 1)
        value = {
            "l1_table_offset": places["l1", number], "l1_size": len(l1),
            "date_sec": 1_700_000_000 + number, "date_nsec": 5, "vm_clock_nsec": 123_456_789,
            "vm_state_size": len(snapshot.stream) if len(snapshot.stream) < 1 << 32 else 0,
            "extra_data": extra if snapshot.extra is None else snapshot.extra,
            "id_str": snapshot.id.encode() if isinstance(snapshot.id, str) else snapshot.id,
            "name": snapshot.name.encode() if isinstance(snapshot.name, str) else snapshot.name,
        }  # fmt: skip
        table += grammar.QCOW2_SNAPSHOT.build(value | snapshot.fields)
        table += bytes(-len(table) % 8)
    places["table", 0] = take(bytes(table)) if table else 0
    for number in range(len(saved)):
        places["entry", number] += places["table", 0]
    start = {
        "version": version, "backing_file_offset": 0, "backing_file_size": 0,
        "cluster_bits": cluster_bits, "size": disk_size, "crypt_method": 0, "l1_size": 0,
        "l1_table_offset": 0, "refcount_table_offset": 0, "refcount_table_clusters": 0,
        "nb_snapshots": len(saved), "snapshots_offset": places["table", 0],
    }  # fmt: skip
    features |= (8 if compression else 0) | (16 if extended else 0)
    more = {
        "incompatible_features": features, "compatible_features": 0, "autoclear_features": 0,
        "refcount_order": 4, "header_length": 112, "compression_type": compression,
    }  # fmt: skip
    given = header or {}
    raw = grammar.QCOW2_HEADER.build(start | {k: v for k, v in given.items() if k in start})
    if version >= 3:
        raw += grammar.QCOW2_HEADER_V3.build(more | {k: v for k, v in given.items() if k in more})
    body[: len(raw)] = raw
    return Image(body, truth, places, cluster)
