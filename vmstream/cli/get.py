"""`vmstream get`."""

from __future__ import annotations

from typing import Any

import click

from vmstream.cli.devicestate import device_options, device_state
from vmstream.cli.options import stream_argument
from vmstream.errors import printable
from vmstream.ops.devices import devices_report, find, plain_values
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
@device_options
def command(stream: str, pattern: str, as_hex: bool, as_json: bool, **options: Any) -> int:
    """Print a value of device state, or each that a glob matches.

    Bytes are printed in hex, truth values as true and false, a NULL pointer as null.
    STREAM is a file, or - for standard input; PATH is as `vmstream devices` shows it.
    """
    with device_state(stream, **options) as (source, found):
        nodes = find(found, pattern, source.name)
        if as_json:
            click.echo(dumps(devices_report(source, found, nodes)))
        else:
            values = plain_values(nodes, as_hex=as_hex)
            for path, value in values:
                click.echo(value if len(values) == 1 else f"{printable(path)}\t{value}")
    return found.exit_code
