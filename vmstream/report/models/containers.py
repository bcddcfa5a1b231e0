"""JSON contract: files that hold a stream."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SaveImageReport:
    """What the header and the XML of a libvirt save image say.

    Attributes:
        version: 1 to 3.
        byte_order: 'little' or 'big', of the host that wrote it.
        finished: The save came to its end.
        was_running: The guest ran when it was saved.
        format: 'raw', 'gzip', 'bzip2', 'xz', 'lzop', 'zstd', 'sparse' or 'unknown (N)', as the
            header states it; the layers tell what was found.
        name: Name of the domain, `None` if the XML does not tell.
        xml_size: Bytes of the domain XML.
        cookie_size: Bytes of the cookie, `None` if there is none.
        stream_offset: In the image, of the stream or of what it is compressed with.
    """

    version: int
    byte_order: str
    finished: bool
    was_running: bool
    format: str
    name: str | None
    xml_size: int
    cookie_size: int | None
    stream_offset: int


@dataclass(frozen=True, slots=True)
class SnapshotReport:
    """One internal snapshot of a qcow2 image.

    Attributes:
        id: Identifier, a number in text if QEMU made it.
        id_b64: The identifier in full, if it is not plain UTF-8.
        name: As given to savevm.
        name_b64: The name in full, if it is not plain UTF-8.
        date: When it was taken, by the clock of the host: UTC, ISO 8601, to the second.
        date_nsec: Nanoseconds of that.
        vm_clock_nsec: Clock of the guest, nanoseconds since it was started.
        vm_state_size: Length of the stream in it, bytes; 0 if it is of disks alone.
        disk_size: Size of the disk when it was taken, bytes; `None` if it is not stated.
        icount: Instructions executed, `None` if they were not counted.
    """

    id: str
    name: str
    date: str
    date_nsec: int
    vm_clock_nsec: int
    vm_state_size: int
    disk_size: int | None
    icount: int | None
    id_b64: str | None = None
    name_b64: str | None = None


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One layer around the stream.

    Attributes:
        kind: 'libvirt', 'qcow2', 'gzip', 'bzip2', 'xz', 'zstd', 'lz4' or 'lzop', or
            'offset' for other bytes in front of a stream.
        size: Bytes of the layer, header and all; `None` if it was not read to its end.
        libvirt: `None` for any other kind.
        snapshot: That of a qcow2 image whose VM state was read; `None` for any other kind.
    """

    kind: str
    size: int | None
    libvirt: SaveImageReport | None = None
    snapshot: SnapshotReport | None = None
