"""`vmstream extract-block`."""

from __future__ import annotations

from pathlib import Path

import click

from vmstream.cli.options import (
    byte_size,
    json_option,
    limit_options,
    page_size_option,
    progress_bar,
    snapshot_option,
    spool_option,
    stream_argument,
)
from vmstream.container.open import OpenStream
from vmstream.ops.extract_block import BlockOptions, extract_block
from vmstream.report.jsonout import dumps

_EPILOG = """\b
Examples:
  vmstream inspect dump.bin                      names the disks
  vmstream extract-block dump.bin --device vda -o vda.raw
  vmstream extract-block dump.bin --device vda --size 10G -o vda.raw
  vmstream extract-block dump.bin --all disks/
"""


@click.command("extract-block", epilog=_EPILOG)
@stream_argument
@click.option("--device", metavar="NAME", help="The disk to write, by its name in the stream.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write it to.")
@click.option(
    "--all",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write every disk into DIR.",
)
@click.option("--size", type=byte_size, metavar="SIZE", help="Size of the disk.")
@click.option("--partial", is_flag=True, help="Write what is there of a damaged stream.")
@click.option("--force", is_flag=True, help="Replace files that exist.")
@snapshot_option
@spool_option
@limit_options
@page_size_option
@json_option
def command(
    stream: str,
    device: str | None,
    output: Path | None,
    directory: Path | None,
    size: int | None,
    partial: bool,
    force: bool,
    snapshot: str | None,
    spool: str | None,
    max_ram: int | None,
    max_layers: int,
    page_size: int | None,
    as_json: bool,
) -> int:
    """Write the disks of a block migration (migrate -b) as sparse raw images.

    The size of a disk is not in the stream. Without --size the file ends with the last chunk that
    was sent: chunks have 1 MiB, so it may be up to a MiB longer than the disk.

    STREAM is a file, or - for standard input.
    """
    if (device is None or output is None) if directory is None else (device or output or size):
        raise click.UsageError("give --device NAME and -o FILE, or --all DIR")
    options = BlockOptions(device, output, directory, size, partial, force, page_size, max_ram)
    with (
        OpenStream(
            stream, snapshot=snapshot, spool=spool, max_ram=max_ram, max_layers=max_layers
        ) as opened,
        progress_bar("extracting") as progress,
    ):
        report, code = extract_block(opened.source, options, progress, opened.container)
    if as_json:
        click.echo(dumps(report))
    else:
        from vmstream.report.render import render_extract_block

        render_extract_block(report)
    return code
