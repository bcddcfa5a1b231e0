"""`rewrite`: a stream with edits, each a splice of the input."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from vmstream.container.layers import Container
from vmstream.errors import (
    EXIT_FINDINGS,
    EncodeError,
    StreamError,
)
from vmstream.ops.edits import CONFIGURATION, Editing, RewriteOptions
from vmstream.ops.encode import STANDARD_OUTPUT
from vmstream.ops.inspect import layer_reports
from vmstream.ops.memory import GuestMemory, MemoryOptions, index_memory
from vmstream.ops.patch import patch_ram, random_access
from vmstream.ops.pipeline import Consumer, Progress, events, run
from vmstream.ops.splice import Ahead, Nowhere, write_spliced
from vmstream.report import models
from vmstream.stream.decoder import Decoder
from vmstream.stream.events import (
    Event,
)
from vmstream.transport.sink import Copier, OutputFile, StandardOutput, check_free, check_parent
from vmstream.transport.source import Source
from vmstream.version import __version__

_MOST_CHANGES = 4096


def rewrite(
    source: Source,
    options: RewriteOptions,
    progress: Progress | None = None,
    container: Container | None = None,
) -> tuple[models.RewriteReport, int]:
    """Write a stream with edits; with none, a copy.

    Args:
        source: The input, one to seek in.
        options: The edits.
        progress: Called with (offset, size or None).
        container: What is around the stream; it is left out of the output.

    Returns:
        The account, and the exit status: that of the findings.

    Raises:
        EncodeError: An edit cannot be made, or its result would be no valid stream.
        OutputError: Nothing is of that name, or the output's name is taken.
        StreamError: The input is no stream. UnsupportedError: It cannot be sought in.
        OSError: With the path.
    """
    access, size = random_access(source), source.size or 0
    to_file = options.output if options.output != STANDARD_OUTPUT else None
    if to_file is not None:
        check_free(to_file, force=options.force, keep=source.identity)
        check_parent(to_file)
    made = Editing(source, options, container)
    summary = made.summary
    decoder = Decoder(options.page_size, max_ram=options.max_ram)
    with contextlib.ExitStack() as stack:
        memory, ahead, folds = None, None, made.folds
        out: OutputFile | StandardOutput | Nowhere = Nowhere()
        if to_file is not None:
            out = stack.enter_context(OutputFile(to_file, force=options.force))
            if isinstance(access, Copier) and _keeps_places(options):
                ahead = stack.enter_context(Ahead(access, size, out))
                folds.append(ahead)
        elif options.output is not None:
            out = StandardOutput()
        if options.patches:
            memory = stack.enter_context(_memory(made, folds, decoder, progress))
        else:
            run(source, decoder, folds, progress, container)
        if not summary.read and summary.findings.error is not None:
            raise summary.findings.error
        if made.places.mapped and source.origin:
            raise EncodeError("mapped-ram behind other bytes: its offsets are those of the file")
        try:
            made.edit()
            if memory is not None:
                patch_ram(made, memory, stack, progress)
        except RecursionError:
            raise EncodeError("the vmdescription is nested too deep to be changed") from None
        splices = made.finish()
        written, output_size = write_spliced(
            access,
            size,
            splices,
            out,
            sparse=bool(made.places.mapped),
            copied=ahead.stop() if ahead is not None else 0,
            progress=progress,
        )
        if isinstance(out, OutputFile):
            out.commit()
    summary.finish()
    for found in memory.findings if memory is not None else ():
        if found not in summary.findings.kept:
            summary.findings.on(found)
    changes = [
        models.ChangeReport(s.what, s.begin, s.end, at, length)
        for s, (at, length) in zip(splices[:_MOST_CHANGES], written, strict=False)
    ]
    report = models.RewriteReport(
        schema=models.REWRITE_SCHEMA,
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
    return not options.renames and not any(
        path.startswith(CONFIGURATION) for path, _ in options.sets
    )


# Guest memory, by a walk that the other folds take part in.
def _memory(
    made: Editing, folds: Sequence[Consumer], decoder: Decoder, progress: Progress | None
) -> GuestMemory:
    def all_events() -> Iterator[Event]:
        for event in events(made.source, decoder, progress, made.container):
            for fold in folds:
                fold.on(event)
            yield event

    options = made.options
    memory_options = MemoryOptions(True, options.below_4g, options.spool, options.max_ram)
    try:
        return index_memory(all_events(), made.source, memory_options)
    except StreamError:
        made.check_pages_here("--patch-ram", "write the change to a stream that has its pages")
        raise
