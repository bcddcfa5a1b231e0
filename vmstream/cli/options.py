"""Options and helpers that several commands share."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vmstream.container.open import MAX_LAYERS, OpenStream
from vmstream.errors import EXIT_FINDINGS, printable
from vmstream.ops.channels import Channels
from vmstream.ops.pipeline import Progress
from vmstream.wire.constants import TARGET_PAGE_SIZES

if TYPE_CHECKING:
    from vmstream.guest.devices import DeviceTree
    from vmstream.ops.memory import GuestMemory, MemoryOptions
    from vmstream.ops.virtual import VirtualMemory
    from vmstream.report.models.anomalies import AnomalyReport
    from vmstream.report.models.verify import FindingReport

stream_argument = click.argument("stream", metavar="STREAM")
json_option = click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")


snapshot_option = click.option(
    "--snapshot", metavar="NAME", help="The snapshot to read, by name or id, in a qcow2 image."
)


_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def byte_size(text: str) -> int:
    """Type of an option: "3G", "0xc0000000", "3221225472" as bytes."""
    match = re.fullmatch(r"(0x[0-9a-f]+|\d+)([kmgt]?)(?:i?b)?", text.lower())
    if match is None:
        raise click.BadParameter(f"{text!r} is no size: 3G, 0xc0000000, 3221225472")
    return int(match[1], 0) * _UNITS[match[2]]


def limit_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--max-ram and --max-layers: what a stream may state and unpack to."""
    command = click.option(
        "--max-layers",
        type=click.IntRange(1, 64),
        default=MAX_LAYERS,
        metavar="N",
        help=f"Containers to take off, one in another (default {MAX_LAYERS}).",
    )(command)
    return click.option(
        "--max-ram",
        type=byte_size,
        metavar="SIZE",
        help="RAM that the stream may state, and bytes that any input may unpack to "
        "(default 4T of RAM, 8G unpacked).",
    )(command)


spool_option = click.option(
    "--spool",
    type=click.Path(exists=True, file_okay=False),
    metavar="DIR",
    help="Copy a pipe to a file in DIR first, for what takes seeking.",
)


kept_option = click.option(
    "--spool",
    type=click.Path(exists=True, file_okay=False),
    metavar="DIR",
    help="Keep in DIR what cannot be read in place: a pipe, pages of compressed input.",
)


def channel_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--channel: the channels that were recorded beside the main one."""
    return click.option(
        "--channel",
        "channels",
        multiple=True,
        type=click.Path(exists=True),
        metavar="FILE",
        help="A channel of multifd or postcopy-preempt, recorded beside STREAM, or a directory "
        "of them; may be given again, in any order.",
    )(command)


def _shared(text: str) -> tuple[str, Path]:
    # A file's name may have '=' in it, and so may a block's: the first one with a file behind it.
    parts = text.split("=")
    for i in range(1, len(parts)):
        path = Path("=".join(parts[i:]))
        if path.is_file():
            return "=".join(parts[:i]), path
    raise click.BadParameter(f"{text!r} is no IDSTR=FILE with a file that exists")


shared_option = click.option(
    "--shared-block",
    "shared_blocks",
    multiple=True,
    type=_shared,
    metavar="IDSTR=FILE",
    help="Memory of a block that the stream leaves to a file (x-ignore-shared).",
)


def open_channels(
    paths: tuple[str, ...], opened: OpenStream, max_ram: int | None
) -> contextlib.AbstractContextManager[Channels | None]:
    """Open what --channel names; nothing for nothing."""
    if not paths:
        return contextlib.nullcontext()
    return Channels(paths, opened.identity, max_ram=max_ram)


def memory_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of the commands that read guest memory in place: what `open_memory` takes."""
    own = (
        click.option(
            "--below-4g", type=byte_size, metavar="SIZE", help="Size of RAM below 4 GiB (x86)."
        ),
        click.option("--partial", is_flag=True, help="Read what is there of a damaged stream."),
        shared_option,
        channel_option,
        snapshot_option,
        kept_option,
        click.option(
            "--index",
            type=click.Path(dir_okay=False, path_type=Path),
            metavar="FILE",
            help="Keep the index in FILE, or use the one there, if STREAM has not changed.",
        ),
        page_size_option,
        limit_options,
    )
    for option in reversed(own):
        command = option(command)
    return command


def output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """-o, which has to be given, and --force."""
    command = click.option("--force", is_flag=True, help="Replace a file that exists.")(command)
    return click.option(
        "-o",
        "--output",
        type=click.Path(path_type=Path),
        required=True,
        help="File to write; - for stdout.",
    )(command)


@contextlib.contextmanager
def whole_output(
    output: Path, *, force: bool, keep: tuple[int, int] | None = None
) -> Iterator[Callable[[bytes], None]]:
    """Give what writes an output that is made in memory; what speaks against it is said first.

    Args:
        output: As of `output_options`.
        force: Likewise.
        keep: As of `check_free`.
    """
    from vmstream.transport.sink import StandardOutput, check_free, check_parent, write_whole

    if str(output) == "-":
        yield StandardOutput().append
        return
    check_free(output, force=force, keep=keep)
    check_parent(output)
    yield lambda data: write_whole(output, data, force=force)


def input_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What `open_input` takes, and --page-size: of commands that read a stream in one go."""
    own = (channel_option, snapshot_option, spool_option, page_size_option, limit_options)
    for option in reversed(own):
        command = option(command)
    return command


@contextlib.contextmanager
def open_input(
    stream: str, options: dict[str, Any], *, digest: bool = False
) -> Iterator[tuple[OpenStream, Channels | None]]:
    """Open a stream and its channels, as `input_options` and `memory_options` say.

    Args:
        stream: A file, or - for standard input.
        options: Of the command.
        digest: As of `OpenStream`.
    """
    max_ram = options["max_ram"]
    with (
        OpenStream(
            stream,
            snapshot=options["snapshot"],
            spool=options["spool"],
            max_ram=max_ram,
            max_layers=options["max_layers"],
            digest=digest,
        ) as opened,
        open_channels(options["channels"], opened, max_ram) as beside,
    ):
        yield opened, beside


def memory_settings(options: dict[str, Any]) -> MemoryOptions:
    """How memory is indexed, as `memory_options` say."""
    from vmstream.ops.memory import MemoryOptions

    return MemoryOptions(
        options["partial"],
        options["below_4g"],
        options["spool"],
        options["max_ram"],
        options["shared_blocks"],
        options["index"],
    )


@contextlib.contextmanager
def open_memory(stream: str, options: dict[str, Any]) -> Iterator[GuestMemory]:
    """Open a stream and index its memory, as `memory_options` say."""
    from vmstream.ops.memory import read_memory

    with open_input(stream, options) as (opened, beside):
        with progress_bar("indexing") as progress:
            memory = read_memory(
                opened,
                memory_settings(options),
                beside,
                page_size=options["page_size"],
                progress=progress,
            )
        with memory:
            yield memory


def open_virtual(
    stream: str, options: dict[str, Any], cpu: int, memory: GuestMemory
) -> VirtualMemory:
    """Memory by the virtual addresses of a CPU, whose registers the stream is read for."""
    from vmstream.ops.virtual import VirtualMemory, cpu_of

    with OpenStream(
        stream,
        snapshot=options["snapshot"],
        max_ram=options["max_ram"],
        max_layers=options["max_layers"],
    ) as opened:
        found = cpu_of(
            opened.source, cpu, page_size=options["page_size"], container=opened.container
        )
    return VirtualMemory(memory, found)


def open_tree(stream: str, options: dict[str, Any]) -> DeviceTree | None:
    """The devices of a stream that is read for its memory, too; `None` of a pipe."""
    from vmstream.ops.devices import read_devices

    if stream == "-":
        return None
    with OpenStream(
        stream,
        snapshot=options["snapshot"],
        max_ram=options["max_ram"],
        max_layers=options["max_layers"],
    ) as opened:
        if not opened.source.seekable:
            return None
        size = options["page_size"]
        return read_devices(opened.source, page_size=size, container=opened.container).tree


def memory_status(memory: GuestMemory, *, physical: bool) -> int:
    """Say on stderr what speaks against the memory that was read; return the exit status.

    Args:
        memory: What was read.
        physical: By guest-physical addresses, so that doubts about the layout count.
    """
    by_weight = sorted(memory.findings, key=lambda f: f.severity != "error")
    for finding in by_weight[:1] if memory.exit_code else ():
        click.echo(f"vmstream: {finding.severity}: {printable(finding.message)}", err=True)
    doubts = memory.map.doubts if physical else ()
    for doubt in doubts:
        click.echo(f"vmstream: warning: {printable(doubt)}", err=True)
    return memory.exit_code or (EXIT_FINDINGS if doubts else 0)


def page_size_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--page-size: overrule the page size that the stream shows."""
    return click.option(
        "--page-size",
        type=click.Choice([str(s) for s in sorted(TARGET_PAGE_SIZES)]),
        callback=lambda _ctx, _param, value: int(value) if value else None,
        help="Target page size in bytes, if the stream shows the wrong one.",
    )(command)


@contextlib.contextmanager
def progress_bar(what: str) -> Iterator[Progress | None]:
    """Show a bar with rate and time left on stderr, if that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress as Bar,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda offset, size: bar.update(task, completed=offset, total=size)


def tell_error(found: Sequence[AnomalyReport | FindingReport]) -> None:
    """Repeat the first error of a report on stderr, where a pipe's user sees it."""
    first = next((a for a in found if a.severity == "error"), None)
    if first is not None:
        click.echo(f"vmstream: {first.message}", err=True)
