"""`rewrite`: a stream with edits, each a splice of the input."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from vmstream.container.layers import Container
from vmstream.errors import EXIT_FINDINGS, EncodeError, StreamError
from vmstream.ops.channels import Channels
from vmstream.ops.edits import CONFIGURATION, Editing, RewriteOptions
from vmstream.ops.encode import STANDARD_OUTPUT
from vmstream.ops.inspect import layer_reports
from vmstream.ops.memory import GuestMemory, MemoryOptions, index_memory
from vmstream.ops.patch import patch_ram
from vmstream.ops.pipeline import Consumer, Progress, events
from vmstream.ops.splice import Ahead, Nowhere, write_spliced
from vmstream.report.models.rewrite import REWRITE_SCHEMA, ChangeReport, RewriteReport
from vmstream.stream.decoder import Decoder
from vmstream.stream.events import Anomaly, Event
from vmstream.transport.sink import (
    Copier,
    Output,
    OutputFile,
    StandardOutput,
    check_free,
    check_parent,
)
from vmstream.transport.source import RandomAccess, Source, spooled
from vmstream.version import __version__

_MOST_CHANGES = 4096


class Around(Protocol):
    """What is put around a stream."""

    def begin(self, out: Output, made: Editing) -> tuple[Output, int]:
        """Write what is in front; return where the stream goes, and the offset it has there."""
        ...

    def finish(self, end: int) -> int:
        """Write what is left, behind a stream that ends there; return the size of the output."""
        ...


def rewrite(
    source: Source,
    options: RewriteOptions,
    progress: Progress | None = None,
    container: Container | None = None,
    channels: Channels | None = None,
    around: Around | None = None,
) -> tuple[RewriteReport, int]:
    """Write a stream with edits; with none, a copy.

    Args:
        source: The input. One that cannot be sought in is copied to a temporary file first.
        options: The edits.
        progress: Called with (offset, size or None).
        container: What is around the stream; it is left out of the output.
        channels: Recorded beside the main one.
        around: What is put around the result.

    Returns:
        The account, and the exit status: that of the findings.

    Raises:
        EncodeError: An edit cannot be made, or its result would be no valid stream.
        OutputError: Nothing is of that name, or the output's name is taken.
        StreamError: The input is no stream, or not complete and to be made plain.
        OSError: With the path.
    """
    to_file = options.output if options.output != STANDARD_OUTPUT else None
    if to_file is not None:
        check_free(to_file, force=options.force, keep=source.identity)
        check_parent(to_file)
    decoder = Decoder(options.page_size, max_ram=options.max_ram)
    with contextlib.ExitStack() as stack:
        source, access, size = stack.enter_context(_in_place(source, options))
        made = Editing(source, access, options, container)
        summary, memory, ahead, folds = made.summary, None, None, made.folds
        out: Output = Nowhere()
        if to_file is not None:
            out = stack.enter_context(OutputFile(to_file, force=options.force))
            if isinstance(access, Copier) and _keeps_places(options):
                ahead = stack.enter_context(Ahead(access, size, out))
                folds.append(ahead)
        elif options.output is not None:
            out = StandardOutput()
        walk = _folded(made, folds, decoder, progress, channels)
        if options.patches or options.squash:
            memory = stack.enter_context(_memory(made, walk, channels))
        else:
            for _ in walk:
                pass
        if not summary.read and summary.findings.error is not None:
            raise summary.findings.error
        if made.places.mapped and source.origin and not options.squash:
            raise EncodeError("mapped-ram behind other bytes: its offsets are those of the file")
        try:
            made.edit()
            if memory is not None:
                patch_ram(made, memory, stack, progress)
                made.squash(memory, progress)
        except RecursionError:
            raise EncodeError("the vmdescription is nested too deep to be changed") from None
        splices = made.finish()
        target, at = (out, 0) if around is None else around.begin(out, made)
        written, output_size = write_spliced(
            access,
            size,
            splices,
            target,
            at=at,
            sparse=bool(made.places.mapped) and not options.squash,
            copied=ahead.stop() if ahead is not None else 0,
            progress=progress,
        )
        if around is not None:
            output_size = around.finish(output_size)
        if isinstance(out, OutputFile):
            out.commit()
    summary.finish()
    described = summary.vmdescription
    stripped = options.strip_vmdescription and options.add_vmdescription is None
    if stripped and described is not None and decoder.footers is False:
        at = described.offset
        message = (
            "the stream has no section footers: without the vmdescription where device state ends "
            "is inferred from what looks like headers, or not told at all; QEMU loads it"
        )
        summary.findings.on(Anomaly(at, at, "warning", "stripped-unframed", message))
    for found in memory.findings if memory is not None else ():
        if found not in summary.findings.kept:
            summary.findings.on(found)
    changes = [
        ChangeReport(s.what, s.begin, s.end, at, length)
        for s, (at, length) in zip(splices[:_MOST_CHANGES], written, strict=False)
    ]
    report = RewriteReport(
        schema=REWRITE_SCHEMA,
        tool=f"vmstream {__version__}",
        input=source.name,
        input_size=size,
        output=None if options.output is None else str(options.output),
        output_size=output_size,
        machine=summary.machine,
        change_count=len(splices),
        changes=changes,
        doubts=list(made.doubts),
        anomalies=summary.findings.report(),
        layers=layer_reports(container),
    )
    return report, summary.findings.exit_code or (EXIT_FINDINGS if made.doubts else 0)


# Whether no edit moves all that is behind the front of the stream.
def _keeps_places(options: RewriteOptions) -> bool:
    return not (options.squash or options.renames) and not any(
        path.startswith(CONFIGURATION) for path, _ in options.sets
    )


# What is written in another order than it comes is read here and there.
@contextlib.contextmanager
def _in_place(
    source: Source, options: RewriteOptions
) -> Iterator[tuple[Source, RandomAccess, int]]:
    if source.seekable and source.size is not None and isinstance(source, RandomAccess):
        yield source, source, source.size
        return
    next(events(source, Decoder(strict=True)))  # what is no stream is the first thing to say
    copy = spooled(source, _room(options))
    try:
        yield copy, copy, copy.size or 0
    finally:
        copy.close()


# Directory for temporary files.
def _room(options: RewriteOptions) -> str | Path:
    if options.spool is None and options.output not in (None, STANDARD_OUTPUT):
        return options.output.parent
    return options.spool or tempfile.gettempdir()


def _folded(
    made: Editing,
    folds: Sequence[Consumer],
    decoder: Decoder,
    progress: Progress | None,
    channels: Channels | None,
) -> Iterator[Event]:
    for event in events(made.source, decoder, progress, made.container, channels):
        for fold in folds:
            fold.on(event)
        yield event


# Guest memory, by a walk that the other folds take part in.
def _memory(made: Editing, walk: Iterator[Event], channels: Channels | None) -> GuestMemory:
    options = made.options
    memory_options = MemoryOptions(
        not options.squash,
        options.below_4g,
        _room(options),
        options.max_ram,
        options.shared_blocks,
    )
    try:
        return index_memory(walk, made.source, memory_options, channels)
    except StreamError as error:
        if options.squash and made.summary.read:
            error.advice = "vmstream extract-ram --partial writes the memory that is there"
        else:
            made.check_pages_here("--patch-ram", "write the change to a stream that has its pages")
        raise
