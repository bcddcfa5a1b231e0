"""`vmstream devices`."""

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
from vmstream.ops.devices import devices_report, find, read_devices, with_schema
from vmstream.report.jsonout import dumps

_EPILOG = """\b
Examples:
  vmstream devices dump.bin                     every device, one a line
  vmstream devices dump.bin 'cpu[0]'            all of its state by name
  vmstream devices dump.bin '*/virtio-net'
  vmstream devices dump.bin '**/irq*'
  vmstream devices dump.bin --json '**' | jq -r '.nodes[].path'

\b
In GLOB * is any text but '/', ** any text, ? a character; brackets are brackets.
"""


@click.command("devices", epilog=_EPILOG)
@stream_argument
@click.argument("pattern", metavar="[GLOB]", required=False)
@schema_option
@snapshot_option
@spool_option
@limit_options
@page_size_option
@json_option
def command(
    stream: str,
    pattern: str | None,
    schema: str | None,
    snapshot: str | None,
    spool: str | None,
    max_ram: int | None,
    max_layers: int,
    page_size: int | None,
    as_json: bool,
) -> int:
    """Show the state of devices by the names that the vmdescription has for it.

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
        tree = found.tree
        nodes = list(tree) if pattern is None else find(found, pattern, opened.source.name)
        deep = as_json or pattern is not None
        report = devices_report(opened.source, found, nodes, deep=deep)
    if as_json:
        click.echo(dumps(report))
    else:
        from vmstream.report.devices import render_devices

        render_devices(report)
    tell_findings(found.findings)
    return found.exit_code
