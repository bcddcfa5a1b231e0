"""`vmstream cpus`."""

from __future__ import annotations

import click

from vmstream.cli.options import (
    json_option,
    limit_options,
    open_schema,
    page_size_option,
    progress_bar,
    schema_option,
    snapshot_option,
    spool_option,
    stream_argument,
    tell_findings,
)
from vmstream.container.open import OpenStream
from vmstream.ops.devices import cpus_report, read_devices, with_schema
from vmstream.report.jsonout import dumps

_EPILOG = """\b
Examples:
  vmstream cpus dump.bin
  vmstream cpus dump.bin --json | jq .cpus[0].registers.general.rip
"""


@click.command("cpus", epilog=_EPILOG)
@stream_argument
@schema_option
@snapshot_option
@spool_option
@limit_options
@page_size_option
@json_option
def command(
    stream: str,
    schema: str | None,
    snapshot: str | None,
    spool: str | None,
    max_ram: int | None,
    max_layers: int,
    page_size: int | None,
    as_json: bool,
) -> int:
    """Show the registers of each CPU.

    STREAM is a file, or - for standard input.
    """
    with (
        OpenStream(
            stream, snapshot=snapshot, spool=spool, max_ram=max_ram, max_layers=max_layers
        ) as opened,
        open_schema(schema) as other,
        progress_bar("reading") as progress,
    ):
        found = read_devices(
            opened.source,
            page_size=page_size,
            max_ram=max_ram,
            progress=progress,
            container=opened.container,
        )
        if other is not None:
            with_schema(found, other.source, other.container)
        report = cpus_report(opened.source, found)
    if as_json:
        click.echo(dumps(report))
    else:
        from vmstream.report.devices import render_cpus

        render_cpus(report)
    tell_findings(found.findings)
    return found.exit_code
