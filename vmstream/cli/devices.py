"""`vmstream devices`."""

from __future__ import annotations

from typing import Any

import click

from vmstream.cli.devicestate import device_options, device_state
from vmstream.cli.options import stream_argument
from vmstream.ops.devices import devices_report, find
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
@device_options
def command(stream: str, pattern: str | None, as_json: bool, **options: Any) -> int:
    """Show the state of devices by the names that the vmdescription has for it.

    STREAM is a file, or - for standard input.
    """
    with device_state(stream, **options) as (source, found):
        nodes = list(found.tree) if pattern is None else find(found, pattern, source.name)
        report = devices_report(source, found, nodes, deep=as_json or pattern is not None)
        if as_json:
            click.echo(dumps(report))
        else:
            from vmstream.report.devices import render_devices

            render_devices(report)
    return found.exit_code
