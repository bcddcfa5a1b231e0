"""`extract-block`: the disks of a block migration as files, exact or not at all."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from vmstream.container.layers import Container
from vmstream.errors import (
    FormatError,
    IntegrityError,
    LimitError,
    OutputError,
    TruncatedError,
    UnsupportedError,
)
from vmstream.ops.inspect import Summary, layer_reports
from vmstream.ops.live import Disks
from vmstream.ops.pipeline import Findings, Progress, run
from vmstream.report.models.extract_block import (
    EXTRACT_BLOCK_SCHEMA,
    DiskReport,
    ExtractBlockReport,
)
from vmstream.report.models.names import readable
from vmstream.stream.decoder import Decoder
from vmstream.stream.events import Anomaly, Event, LiveRecord
from vmstream.transport.sink import (
    OutputFile,
    check_free,
    check_parent,
    output_directory,
    safe_names,
)
from vmstream.transport.source import Source
from vmstream.version import __version__
from vmstream.wire.constants import BDRV_MAX_LENGTH, BLK_MIG_BLOCK_SIZE
from vmstream.wire.live import BlockChunk

_SECTION = b"block"


@dataclass(frozen=True, slots=True)
class BlockOptions:
    """What to write.

    Attributes:
        device: Name of the one disk to write; with `output`.
        output: File for it.
        directory: Directory for every disk; instead of these.
        size: Size of the disk in bytes, which the stream does not tell.
        partial: Write what is there of a damaged stream.
        force: Replace files.
        page_size: Target page size in bytes, if the user states it.
        max_ram: RAM in bytes that a block list may state; MAX_RAM if `None`.
    """

    device: str | None = None
    output: Path | None = None
    directory: Path | None = None
    size: int | None = None
    partial: bool = False
    force: bool = False
    page_size: int | None = None
    max_ram: int | None = None


class _Writer:
    """Fold: writes chunks where they belong. Data goes from the window to the file."""

    def __init__(self, options: BlockOptions, stack: contextlib.ExitStack, source: Source) -> None:
        self._options = options
        self._stack = stack
        self._source = source
        self.disks = Disks()
        self.files: dict[bytes, OutputFile | None] = {}

    def on(self, event: Event) -> None:
        if not isinstance(event, LiveRecord) or not isinstance(event.record, BlockChunk):
            return
        chunk = event.record
        self.disks.add(event.offset, chunk)
        if chunk.device not in self.files:
            self.files[chunk.device] = self._open(chunk.device)
        out = self.files[chunk.device]
        if out is None:
            return
        size = self._options.size
        if size is not None and chunk.device_offset >= size:
            raise OutputError(
                f"disk {self._options.device!r} has data at {chunk.device_offset:#x}: "
                f"it is larger than {size} bytes"
            )
        if not chunk.zero:
            out.write_sparse(chunk.device_offset, event.data, over=self.disks.again)
        elif self.disks.again:
            out.clear(chunk.device_offset, BLK_MIG_BLOCK_SIZE)

    # The output of a disk whose first chunk came; `None` if it is not asked for.
    def _open(self, device: bytes) -> OutputFile | None:
        options = self._options
        if options.directory is None:
            if readable(device) != options.device or options.output is None:
                return None
            if any(self.files.values()):
                raise OutputError(f"two disks read as {options.device!r}: --all writes them both")
            path = options.output
        else:
            if not self.files:
                self._stack.enter_context(output_directory(options.directory))
            # The names so far get what they got before.
            path = options.directory / safe_names([*self.files, device], ".raw")[-1]
        check_free(path, force=options.force, keep=self._source.identity)
        return self._stack.enter_context(OutputFile(path, force=options.force))

    def finish(self, findings: Findings) -> list[DiskReport]:
        """Give the files their sizes, and account for them."""
        found = []
        for device, out in self.files.items():
            if out is None:
                continue
            disk = self.disks.devices[device]
            size = disk.end if self._options.size is None else self._options.size
            out.resize(size)
            if size > disk.end:
                message = (
                    f"disk {readable(device)!r}: no chunk was sent of its last "
                    f"{size - disk.end} bytes"
                )
                findings.on(Anomaly(0, 0, "warning", "chunks-missing", message))
            source = "inferred" if self._options.size is None else "argument"
            found.append(DiskReport(str(out.path), size, source, disk.report(device)))
        return found


def extract_block(
    source: Source,
    options: BlockOptions,
    progress: Progress | None = None,
    container: Container | None = None,
) -> tuple[ExtractBlockReport, int]:
    """Write the disks of a block migration.

    Args:
        source: The input.
        options: What to write.
        progress: Called with (offset, size or None).
        container: What is around the stream.

    Returns:
        The account, and the exit status.

    Raises:
        StreamError: The stream is damaged and `partial` was not asked for. Nothing is left behind.
        OutputError: The stream has no such disk, a name is taken, or the size is too small.
        OSError: With the path.
    """
    if options.size is not None and options.size > BDRV_MAX_LENGTH:
        raise OutputError(f"no disk has {options.size} bytes")
    if options.output is not None:
        check_free(options.output, force=options.force, keep=source.identity)
        check_parent(options.output)
    decoder = Decoder(options.page_size, strict=not options.partial, max_ram=options.max_ram)
    summary = Summary()
    with contextlib.ExitStack() as stack:
        writer = _Writer(options, stack, source)
        try:
            run(source, decoder, [summary, writer], progress, container)
        except (TruncatedError, FormatError, IntegrityError) as error:
            error.advice = error.advice or "--partial writes what is there"
            raise
        fault = summary.findings.error
        if fault is not None and (
            not summary.read or isinstance(fault, (UnsupportedError, LimitError))
        ):
            raise fault
        summary.finish()
        _check_found(writer, options)
        if not options.partial and not all(
            s.ended for s in summary.sections if s.start.idstr == _SECTION
        ):
            raise IntegrityError(
                summary.end,
                "the block migration did not end: disks may lack chunks",
                advice="--partial writes what is there",
            )
        outputs = writer.finish(summary.findings)
        for out in writer.files.values():
            if out is not None:
                out.commit()
    layers = container.layers if container is not None else []
    outermost = layers[0].source if layers else source
    report = ExtractBlockReport(
        schema=EXTRACT_BLOCK_SCHEMA,
        tool=f"vmstream {__version__}",
        input=source.name,
        input_size=summary.end if outermost.size is None else outermost.size,
        complete=summary.complete,
        partial=options.partial,
        machine=summary.machine,
        outputs=outputs,
        anomalies=summary.findings.report(),
        layers=layer_reports(container),
    )
    return report, summary.findings.exit_code


def _check_found(writer: _Writer, options: BlockOptions) -> None:
    names = [readable(device) for device in writer.files]
    if not names:
        raise OutputError("the stream has no disks: it is of no block migration ('migrate -b')")
    if options.device is not None and options.device not in names:
        raise OutputError(f"no disk {options.device!r}; the stream has: {', '.join(names)}")
