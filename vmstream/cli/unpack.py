"""`vmstream unpack`."""

from __future__ import annotations

from pathlib import Path

import click

from vmstream.cli.devicestate import schema_option
from vmstream.cli.options import (
    channel_option,
    json_option,
    limit_options,
    open_channels,
    page_size_option,
    progress_bar,
    shared_option,
    snapshot_option,
    spool_option,
    stream_argument,
)
from vmstream.container.open import OpenStream
from vmstream.ops.devices import Devices, with_schema
from vmstream.ops.unpack import UnpackOptions, unpack
from vmstream.report.jsonout import dumps

_EPILOG = """\b
Examples:
  vmstream unpack dump.bin out/
  vmstream unpack main.bin out/ --channel ch1.bin --channel ch2.bin    multifd, postcopy-preempt
  vmstream unpack guest.save out/                an image of virsh save
  vmstream unpack old.bin out/ --schema dump.bin    names for a stream without a vmdescription
"""


@click.command(epilog=_EPILOG)
@stream_argument
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace what is in a directory that is not empty.")
@schema_option
@shared_option
@channel_option
@snapshot_option
@spool_option
@page_size_option
@limit_options
@json_option
def command(
    stream: str,
    directory: Path,
    force: bool,
    schema: str | None,
    shared_blocks: tuple[tuple[str, Path], ...],
    channels: tuple[str, ...],
    snapshot: str | None,
    spool: str | None,
    page_size: int | None,
    max_ram: int | None,
    max_layers: int,
    as_json: bool,
) -> int:
    """Write a stream as a directory of files that can be edited.

    The memory of each block is a sparse file, the state of each device JSON, and manifest.json says
    what there is. `vmstream build` makes a plain stream of it again.

    STREAM is a file, or - for standard input.
    """

    def name_state(found: Devices) -> None:
        if schema is not None:
            with OpenStream(schema) as other:
                with_schema(found, other.source, other.container)

    options = UnpackOptions(directory, force, page_size, max_ram, shared_blocks)
    with (
        OpenStream(
            stream, snapshot=snapshot, spool=spool, max_ram=max_ram, max_layers=max_layers
        ) as opened,
        open_channels(channels, opened, max_ram) as beside,
        progress_bar("unpacking") as progress,
    ):
        report, code = unpack(
            opened.source, options, progress, opened.container, beside, name_state
        )
    if as_json:
        click.echo(dumps(report))
    else:
        from vmstream.report.render import render_unpack

        render_unpack(report)
    return code
