"""`vmstream diagnose`."""

from __future__ import annotations

from typing import IO

import click

from vmstream.cli.options import (
    channel_option,
    json_option,
    limit_options,
    open_channels,
    page_size_option,
    progress_bar,
    snapshot_option,
    spool_option,
    stream_argument,
)
from vmstream.container.open import OpenStream
from vmstream.ops.diagnose import MAX_LOG, diagnose
from vmstream.report.jsonout import dumps

_EPILOG = """\b
Examples:
  vmstream diagnose dump.bin --log qemu.log
  vmstream diagnose dump.bin --log - < qemu.log
  vmstream diagnose dump.bin --log /var/log/libvirt/qemu/GUEST.log --json
"""


@click.command("diagnose", epilog=_EPILOG)
@stream_argument
@click.option(
    "--log",
    required=True,
    type=click.File("rb"),
    metavar="FILE",
    help="What the QEMU wrote that did not load it; - for standard input.",
)
@channel_option
@snapshot_option
@spool_option
@page_size_option
@limit_options
@json_option
def command(
    stream: str,
    log: IO[bytes],
    channels: tuple[str, ...],
    snapshot: str | None,
    spool: str | None,
    page_size: int | None,
    max_ram: int | None,
    max_layers: int,
    as_json: bool,
) -> int:
    """Explain why a QEMU did not load a stream, and point at the bytes.

    STREAM is a file, or - for standard input.
    """
    if stream == "-" and log.name in ("-", "<stdin>"):
        raise click.UsageError("STREAM and --log are both standard input")
    text = log.read(MAX_LOG)
    with (
        OpenStream(
            stream, snapshot=snapshot, spool=spool, max_ram=max_ram, max_layers=max_layers
        ) as opened,
        open_channels(channels, opened, max_ram) as beside,
        progress_bar("reading") as progress,
    ):
        report, code = diagnose(
            opened.source,
            text,
            page_size=page_size,
            progress=progress,
            container=opened.container,
            channels=beside,
            max_ram=max_ram,
        )
    if as_json:
        click.echo(dumps(report))
    else:
        from vmstream.report.findings import render_diagnose

        render_diagnose(report)
    return code
