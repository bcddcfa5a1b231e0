"""`vmstream convert`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from vmstream.cli.options import (
    channel_option,
    json_option,
    limit_options,
    open_input,
    page_size_option,
    progress_bar,
    shared_option,
    snapshot_option,
    spool_option,
    stream_argument,
)
from vmstream.ops.convert import TARGETS, ConvertOptions, convert
from vmstream.ops.encode import STANDARD_OUTPUT
from vmstream.report.jsonout import dumps
from vmstream.transport.compress import SUFFIXES

_EPILOG = """\b
Examples:
  vmstream convert dump.bin plain.bin
  vmstream convert dump.bin plain.bin.zst
  vmstream convert dump.bin mapped.bin --to mapped-ram
  vmstream convert dump.bin guest.save --to libvirt:zstd --xml guest.xml
  vmstream convert guest.save plain.bin
  vmstream convert main.bin plain.bin --channel channels/
"""


@click.command(epilog=_EPILOG)
@stream_argument
@click.argument("output", metavar="OUT", type=click.Path(path_type=Path))
@click.option(
    "--to",
    type=click.Choice(TARGETS),
    default="stream",
    metavar="KIND",
    help="stream (default), mapped-ram, or libvirt:FORMAT with raw, gzip, bzip2, xz, lzop, zstd or "
    "sparse.",
)
@click.option(
    "--compress",
    type=click.Choice(["none", *SUFFIXES]),
    help="Compress a stream as a whole; by the suffix of OUT (.gz, .zst) if not given.",
)
@click.option(
    "--xml",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Domain XML for a save image, as 'virsh dumpxml' prints it; that of STREAM, if it is one.",
)
@click.option(
    "--schema",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="Put in the vmdescription of another stream of the same machine, where there is none "
    "(postcopy).",
)
@click.option("--force", is_flag=True, help="Replace a file that exists.")
@channel_option
@shared_option
@snapshot_option
@spool_option
@limit_options
@page_size_option
@json_option
def command(
    stream: str,
    output: Path,
    to: str,
    compress: str | None,
    xml: Path | None,
    schema: str | None,
    force: bool,
    shared_blocks: tuple[tuple[str, Path], ...],
    max_ram: int | None,
    page_size: int | None,
    spool: str | None,
    as_json: bool,
    **options: object,
) -> int:
    """Write a stream as another kind of file, from whatever kind it is.

    Each page is written once, as it was left; device state stays to the byte. Recordings of multifd
    (--channel) and of postcopy become streams that load from a file. OUT is a file, or - for
    standard output.

    STREAM is a file, or - for standard input.
    """
    to_pipe = output == STANDARD_OUTPUT
    if to_pipe and as_json:
        raise click.UsageError("standard output leaves no room for --json")
    wanted = ConvertOptions(
        output, to, compress, xml, schema, force, page_size, max_ram, spool, shared_blocks
    )  # fmt: skip
    options |= {"max_ram": max_ram, "spool": spool}
    with open_input(stream, options) as (opened, beside), progress_bar("converting") as progress:
        report, code = convert(opened.source, wanted, progress, opened.container, beside)
    if as_json:
        click.echo(dumps(report))
    else:
        from vmstream.report.render import console, render_convert

        render_convert(report, console(sys.stderr) if to_pipe else None)
    return code
