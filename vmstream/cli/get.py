"""`vmstream get`."""

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
from vmstream.errors import printable
from vmstream.ops.devices import devices_report, find, plain_values, read_devices, with_schema
from vmstream.report.jsonout import dumps

_EPILOG = """\b
Examples:
  vmstream get dump.bin 'cpu[0]/env.eip'
  vmstream get dump.bin --hex 'cpu[0]/env.regs[4]'
  vmstream get dump.bin 'cpu[*]/env.cr[3]'           path and value of each, with a tab between
  vmstream get dump.bin 'globalstate/runstate'
"""


@click.command("get", epilog=_EPILOG)
@stream_argument
@click.argument("pattern", metavar="PATH")
@click.option("--hex", "as_hex", is_flag=True, help="Numbers in hex; they are decimal otherwise.")
@schema_option
@snapshot_option
@spool_option
@limit_options
@page_size_option
@json_option
def command(
    stream: str,
    pattern: str,
    as_hex: bool,
    schema: str | None,
    snapshot: str | None,
    spool: str | None,
    max_ram: int | None,
    max_layers: int,
    page_size: int | None,
    as_json: bool,
) -> int:
    """Print a value of device state, or each that a glob matches.

    Bytes are printed in hex, truth values as true and false, a NULL pointer as null.
    STREAM is a file, or - for standard input; PATH is as `vmstream devices` shows it.
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
        nodes = find(found, pattern, opened.source.name)
        if as_json:
            click.echo(dumps(devices_report(opened.source, found, nodes)))
        else:
            values = plain_values(nodes, as_hex=as_hex)
            for path, value in values:
                click.echo(value if len(values) == 1 else f"{printable(path)}\t{value}")
    tell_findings(found.findings)
    return found.exit_code
