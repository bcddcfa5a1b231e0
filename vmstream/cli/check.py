"""`vmstream check`."""

from __future__ import annotations

import click

from vmstream.cli.options import (
    json_option,
    limit_options,
    page_size_option,
    progress_bar,
    snapshot_option,
    spool_option,
    stream_argument,
)
from vmstream.container.open import OpenStream
from vmstream.ops.check import check
from vmstream.report.jsonout import dumps

_EPILOG = """\b
Examples:
  qemu-system-x86_64 -M q35 -dump-vmstate dest.json
  vmstream check dump.bin --against dest.json
  vmstream check dump.bin --against of-the-destination.bin
  vmstream check dump.bin --against dest.json --json | jq -r '.findings[].qemu[]'
"""


@click.command("check", epilog=_EPILOG)
@stream_argument
@click.option(
    "--against",
    required=True,
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="What the destination wrote: -dump-vmstate, or a stream of a machine started as it is.",
)
@snapshot_option
@spool_option
@page_size_option
@limit_options
@json_option
def command(
    stream: str,
    against: str,
    snapshot: str | None,
    spool: str | None,
    page_size: int | None,
    max_ram: int | None,
    max_layers: int,
    as_json: bool,
) -> int:
    """Say whether a destination will load a stream, in the words of its QEMU.

    STREAM is a file, or - for standard input.
    """
    with (
        OpenStream(
            stream, snapshot=snapshot, spool=spool, max_ram=max_ram, max_layers=max_layers
        ) as opened,
        OpenStream(against, max_ram=max_ram, max_layers=max_layers) as other,
        progress_bar("reading") as progress,
    ):
        report, code = check(
            opened.source,
            other.source,
            container=opened.container,
            against_container=other.container,
            page_size=page_size,
            max_ram=max_ram,
            progress=progress,
        )
    if as_json:
        click.echo(dumps(report))
    else:
        from vmstream.report.findings import render_check

        render_check(report)
    return code
