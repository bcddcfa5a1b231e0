"""`convert`: a stream from whatever it is in to what takes it, plain, with all of its state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from vmstream.container.layers import Container, SaveImage
from vmstream.container.libvirt import save_head
from vmstream.container.packing import PackedOutput
from vmstream.errors import EncodeError, OutputError
from vmstream.ops.channels import Channels
from vmstream.ops.edits import Editing, RewriteOptions
from vmstream.ops.encode import STANDARD_OUTPUT, compression_of
from vmstream.ops.pipeline import Progress
from vmstream.ops.rewrite import rewrite
from vmstream.report.models.extract import ChannelInput
from vmstream.report.models.names import readable
from vmstream.report.models.rewrite import CONVERT_SCHEMA, ConvertReport
from vmstream.transport.sink import Output
from vmstream.transport.source import Source, read_small
from vmstream.wire.constants import MAX_SAVE_XML, QEMU_SAVE_FORMATS

TARGETS = ("stream", "mapped-ram", "libvirt", *(f"libvirt:{f}" for f in QEMU_SAVE_FORMATS))

_MAPPED = ("mapped-ram", "libvirt:sparse")


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """What is made of a stream.

    Attributes:
        output: The file, or '-' for standard output.
        to: One of TARGETS; 'libvirt' is 'libvirt:raw'.
        compress: 'none', 'gzip' or 'zstd', for a stream; by the suffix of `output` if `None`.
        xml: File with the domain XML, for a save image; that of the input if `None`.
        schema: Stream of the same machine whose vmdescription is put in.
        force: Replace a file.
        page_size: Target page size in bytes, if the user states it.
        max_ram: RAM in bytes that a block list may state; MAX_RAM if `None`.
        spool: Directory for pages that have no bytes in the input, and for an input that cannot be
            sought in; by default that of the output.
        shared_blocks: Names of blocks whose memory is in a file (x-ignore-shared), and the files;
            it comes into the output.
    """

    output: Path
    to: str = "stream"
    compress: str | None = None
    xml: Path | None = None
    schema: str | None = None
    force: bool = False
    page_size: int | None = None
    max_ram: int | None = None
    spool: str | None = None
    shared_blocks: tuple[tuple[str, Path], ...] = ()


class Around:
    """What is put around a stream: a head, and compression of all behind it.

    Args:
        codec: Of `PackedOutput`, `None` for none.
        head: Makes the head, once the stream is known.

    Attributes:
        offset: Where the stream, or what it is compressed to, begins in the output.
        size: Of the stream, bytes, once all was written.
        capabilities: Of the stream.
    """

    def __init__(self, codec: str | None, head: Callable[[Editing], bytes]) -> None:
        self.codec = codec
        self._head = head
        self._packed: PackedOutput | None = None
        self.offset = self.size = 0
        self.capabilities: tuple[bytes, ...] = ()

    def begin(self, out: Output, made: Editing) -> tuple[Output, int]:
        """Write the head; return where the stream goes, and the offset that it has there."""
        head, self.capabilities = self._head(made), made.capabilities
        self.offset = len(head)
        if head:
            out.write(0, head)
        if self.codec is None:
            return out, self.offset
        self._packed = PackedOutput(out, self.codec, self.offset)
        return self._packed, 0

    def finish(self, end: int) -> int:
        """Write what is left, behind a stream that ends there; return the size of the output."""
        if self._packed is None:
            self.size = end - self.offset
            return end
        self.size = end
        self._packed.finish()
        return self._packed.end


def convert(
    source: Source,
    options: ConvertOptions,
    progress: Progress | None = None,
    container: Container | None = None,
    channels: Channels | None = None,
) -> tuple[ConvertReport, int]:
    """Write a stream as another kind of file: each page once, and the device state to the byte.

    Args:
        source: The input. One that cannot be sought in is copied to a temporary file first.
        options: What is made of it.
        progress: Called with (offset, size or None).
        container: What is around the stream.
        channels: Recorded beside the main one.

    Returns:
        The account, and the exit status: that of the findings.

    Raises:
        EncodeError: The stream is not one that can be had in this form.
        OutputError: The output's name is taken, or options do not go together.
        StreamError: The input is no stream, or not complete.
        OSError: With the path.
    """
    to = "libvirt:raw" if options.to == "libvirt" else options.to
    kind, _, form = to.partition(":")
    if kind != "libvirt" and options.xml is not None:
        raise OutputError(f"--xml is for a save image of libvirt, not for {kind}")
    if kind == "stream":
        codec = compression_of("raw", options.output, options.compress)
    elif options.compress not in (None, "none"):
        other = ": --to libvirt:zstd compresses it" if kind == "libvirt" else ""
        raise OutputError(f"--compress is for a stream, not for {to}{other}")
    else:
        codec = None if form in ("", "raw", "sparse") else form
    if to in _MAPPED and options.output == STANDARD_OUTPUT:
        raise OutputError(f"{to} is read here and there, so it goes to a file, not to a pipe")
    if form and options.xml is None and _image(container) is None:
        raise EncodeError(
            "a save image has the domain's XML, and the input has none: --xml FILE takes what "
            "'virsh dumpxml' prints"
        )
    xml = None if options.xml is None else read_small(options.xml, MAX_SAVE_XML)
    around = Around(codec, (lambda made: _head(made, form, xml)) if form else lambda made: b"")
    edits = RewriteOptions(
        output=options.output,
        add_vmdescription=options.schema,
        force=options.force,
        page_size=options.page_size,
        max_ram=options.max_ram,
        spool=options.spool,
        squash=True,
        mapped=to in _MAPPED,
        shared_blocks=options.shared_blocks,
    )
    report, code = rewrite(source, edits, progress, container, channels, around)
    made = {f.name: getattr(report, f.name) for f in fields(report)}
    made |= {"schema": CONVERT_SCHEMA, "output": str(options.output)}
    return ConvertReport(
        **made,
        to=to,
        compression=codec,
        capabilities=[readable(c) for c in around.capabilities],
        stream_offset=around.offset,
        stream_size=around.size,
        channels=[
            ChannelInput(c.name, c.opened.source.size or c.end, None)
            for c in (channels.list if channels is not None else ())
        ],
    ), code


def _image(container: Container | None) -> SaveImage | None:
    layers = container.layers if container is not None else []
    return next((layer.image for layer in layers if layer.image is not None), None)


# What is in front of the stream in a save image. That of the input is one of this guest.
def _head(made: Editing, form: str, xml: bytes | None) -> bytes:
    image = _image(made.container)
    if image is not None:
        running, cookie = image.header.was_running, image.cookie
    else:
        running, cookie = _was_running(made), None
    return save_head(
        xml if xml is not None else image.xml if image is not None else b"",
        form,
        running=running,
        cookie=cookie,
    )


# QEMU goes by the same, unless it is started with -S. QEMU v10.1.0 migration/migration.c
# process_incoming_migration_bh().
def _was_running(made: Editing) -> bool:
    states = [n.raw for n in made.tree.find("globalstate/runstate")]
    return not states or bytes(states[0]).rstrip(b"\0") == b"running"
