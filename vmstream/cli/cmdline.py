"""`vmstream cmdline`."""

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
from vmstream.errors import printable
from vmstream.ops.cmdline import cmdline_report, read_stated, shell_lines, told
from vmstream.report.jsonout import dumps

_EPILOG = """\b
Examples:
  vmstream cmdline dump.bin
  vmstream cmdline dump.bin 2> not-stated.txt > run.sh
  vmstream cmdline dump.bin --json | jq .not_stated
"""


@click.command("cmdline", epilog=_EPILOG)
@stream_argument
@json_option
@page_size_option
@limit_options
@spool_option
@snapshot_option
def command(
    stream: str,
    as_json: bool,
    page_size: int | None,
    max_ram: int | None,
    max_layers: int,
    spool: str | None,
    snapshot: str | None,
) -> int:
    """Write the QEMU command line that a destination needs, as far as the stream states it.

    STREAM is a file, or - for standard input. The command goes to standard output; what the stream
    cannot tell (CPU model, disks, networks) has a stand-in where QEMU needs one, and is listed on
    standard error.
    """
    with (
        OpenStream(
            stream, snapshot=snapshot, spool=spool, max_ram=max_ram, max_layers=max_layers
        ) as opened,
        progress_bar("reading") as progress,
    ):
        found = read_stated(
            opened.source,
            page_size=page_size,
            max_ram=max_ram,
            progress=progress,
            container=opened.container,
        )
        report = cmdline_report(opened.source, found, opened.container)
    if as_json:
        click.echo(dumps(report))
    else:
        for line in shell_lines(report):
            click.echo(line)
        for line in told(report):
            click.echo(f"vmstream: {printable(line)}", err=True)
    if found.findings.error is not None:
        click.echo(f"vmstream: {found.findings.error}", err=True)
    return found.exit_code
