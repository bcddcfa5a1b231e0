"""`vmstream cpus`."""

from __future__ import annotations

from typing import Any

import click

from vmstream.cli.devicestate import device_options, device_state
from vmstream.cli.options import stream_argument
from vmstream.ops.devices import cpus_report
from vmstream.report.jsonout import dumps

_EPILOG = """\b
Examples:
  vmstream cpus dump.bin
  vmstream cpus dump.bin --json | jq .cpus[0].registers.general.rip
"""


@click.command("cpus", epilog=_EPILOG)
@stream_argument
@device_options
def command(stream: str, as_json: bool, **options: Any) -> int:
    """Show the registers of each CPU.

    STREAM is a file, or - for standard input.
    """
    with device_state(stream, **options) as (source, found):
        report = cpus_report(source, found)
        if as_json:
            click.echo(dumps(report))
        else:
            from vmstream.report.devices import render_cpus

            render_cpus(report)
    return found.exit_code
