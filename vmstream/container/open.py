"""The one way to open an input: whatever is around the stream is found by content and taken off.

A bare stream is handed on in the windows of its own source.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Self

from vmstream.container.layers import Container, Finding, Layer, ShiftedSource
from vmstream.container.libvirt import check_start, note_format, open_save_image
from vmstream.errors import LimitError, OutputError
from vmstream.transport.source import DigestSource, OpenSource, PipeSource, Source, spooled
from vmstream.wire.constants import (
    FOREIGN_MAGICS,
    MAX_UNPACKED,
    QCOW2_MAGIC,
    QEMU_VM_FILE_MAGIC,
)

# One in another; libvirt's compressed images have two, and a file of one compressed again three.
MAX_LAYERS = 4

# Layers that a message names.
_NAMED = 8

_HEAD = 16

# How far a stream is looked for that does not begin with the file, and what it begins with: its
# header, then the configuration or a section.
_LOOKED_FOR = 1 << 20
_STREAM = re.compile(re.escape(QEMU_VM_FILE_MAGIC) + rb"\0\0\0\x03[\x01\x04\x07\x08]")


# A compressed file: its kind, and what its first bytes look like.
_PACKED: dict[str, re.Pattern[bytes]] = {
    "gzip": re.compile(rb"\x1f\x8b\x08"),
    "bzip2": re.compile(rb"BZh[1-9]"),
    "xz": re.compile(rb"\xfd7zXZ\x00"),
    # Its frames may stand behind skippable ones, as those of pzstd do.
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),
    # Frames, and the legacy format of 'lz4 -l'.
    "lz4": re.compile(rb"\x04\x22\x4d\x18|\x02\x21\x4c\x18"),
    "lzop": re.compile(rb"\x89LZO\x00\r\n\x1a\n"),
}


def _open_packed(kind: str) -> Callable[[Source, Container], Source]:
    def opened(source: Source, container: Container) -> Source:
        # Costs a plain stream nothing.
        from vmstream.container import codecs
        from vmstream.container.lzop import lzop
        from vmstream.container.packed import UnpackedSource

        codec = lzop if kind == "lzop" else getattr(codecs, kind)
        if kind in _EXTRAS:
            codecs.optional_package(*_EXTRAS[kind])
        container.layers.append(Layer(kind, source))
        magic = _PACKED[kind]
        return UnpackedSource(
            source, kind, codec, lambda head: magic.match(head) is not None, container
        )

    return opened


def _open_qcow2(source: Source, container: Container) -> Source:
    from vmstream.container.qcow2 import open_vm_state

    return open_vm_state(source, container)


# Module, kind and extra of what only an extra installs: asked for before anything is read.
_EXTRAS = {"lz4": ("lz4.frame", "lz4", "lz4"), "lzop": ("lzallright", "lzop", "lzo")}

# Kind: what its first bytes look like, and what takes it off. The opener adds its `Layer` and
# returns the source of what is inside; one that needs to seek asks `source.seekable`, one that
# holds several streams takes `container.snapshot`.
_OPENERS: dict[str, tuple[re.Pattern[bytes], Callable[[Source, Container], Source]]] = {
    "libvirt": (re.compile(rb"LibvirtQ"), open_save_image),
    "qcow2": (re.compile(re.escape(QCOW2_MAGIC)), _open_qcow2),
    **{kind: (magic, _open_packed(kind)) for kind, magic in _PACKED.items()},
}


class OpenStream:
    """Open a path, or standard input for '-', and take off what is around the stream.

    A context manager.

    Args:
        path: Where it is.
        snapshot: Name or id of the snapshot to read, for what can hold several.
        digest: Take the SHA-256 of the input itself, if there is anything around the stream.
        spool: Directory for a copy of what comes in a pipe, so that it can be sought in.
        image_only: Stop at a libvirt save image, and leave what is in it alone.
        max_ram: Bytes that any input may unpack to; MAX_UNPACKED if `None`.
        max_layers: Layers that are taken off.

    Attributes:
        source: The stream. Its offsets are those of the stream itself, unpacked.
        container: What is around it.
        identity: Device and inode of the file, `None` for a pipe.

    Raises:
        OSError: It cannot be opened.
        StreamError: Something is around the stream whose head is damaged, or is not read here.
        OutputError: There is no such snapshot.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        snapshot: str | None = None,
        digest: bool = False,
        image_only: bool = False,
        spool: str | os.PathLike[str] | None = None,
        max_ram: int | None = None,
        max_layers: int = MAX_LAYERS,
    ) -> None:
        most = MAX_UNPACKED if max_ram is None else max_ram
        self.container = Container(snapshot=snapshot, most_unpacked=most)
        self._max_layers = max_layers
        self.source = OpenSource(path).source
        self.identity = self.source.identity
        if spool is not None and isinstance(self.source, PipeSource):
            pipe = self.source
            try:
                self.source = spooled(pipe, spool)
            finally:
                pipe.close()
        try:
            self._take_off(digest=digest, image_only=image_only)
            if self.container.snapshot is not None:
                raise OutputError(f"{self.source.name}: nothing here has snapshots")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the input."""
        self.source.close()

    def _take_off(self, *, digest: bool, image_only: bool) -> None:
        container = self.container
        while True:
            # One byte more asked for would be the fault of a layer that ends here.
            head = self.source.window(0, 1)[0][:_HEAD]
            kind = kind_of(head)
            image = container.layers[-1].image if container.layers else None
            if image is not None:
                if image_only:
                    return
                check_start(image, bytes(head))
                note_format(container, image, kind or "raw")
            if kind is None:
                self._skip_to_stream(bytes(head))
                return
            if len(container.layers) == self._max_layers:
                raise LimitError(
                    0,
                    f"over {self._max_layers} containers, one in another",
                    found=", ".join(la.kind for la in container.layers[:_NAMED]) + f", {kind}",
                    advice=f"--max-layers {self._max_layers + 1} goes on",
                )
            # An image is read here and there, so that nobody sees all of it in order.
            if digest and container.digest is None and kind != "qcow2":
                self.source = container.digest = DigestSource(self.source)
            self.source = _OPENERS[kind][1](self.source, container)

    # QEMU writes a stream behind what a file has in front (`file:PATH,offset=N`, since 8.2), which
    # may be anything. Offsets of mapped-ram stay those of the file.
    def _skip_to_stream(self, head: bytes) -> None:
        bare = not self.container.layers and not head.startswith(QEMU_VM_FILE_MAGIC)
        if not bare or kind_of_foreign(head):
            return
        view, base, _ = self.source.window(0, _LOOKED_FOR)
        found = _STREAM.search(view[-base:][:_LOOKED_FOR])
        if found is None:
            return
        at = found.start()
        self.container.layers.append(Layer("offset", self.source))
        self.container.note(
            Finding(
                "info", "offset", at, f"offset {at:#x}: the stream begins here, behind other bytes"
            )
        )
        self.source = ShiftedSource(self.source, at)


def kind_of_foreign(head: bytes) -> bool:
    """Whether these first bytes are of something known that is no stream, nor has one in it."""
    return any(head.startswith(magic) for magic in FOREIGN_MAGICS)


def kind_of(head: memoryview) -> str | None:
    """Return the kind of layer that these first bytes are of; `None` for what is no layer."""
    return next((kind for kind, (magic, _) in _OPENERS.items() if magic.match(head)), None)
