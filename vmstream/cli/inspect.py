"""`vmstream inspect`."""

from __future__ import annotations

from typing import Any

import click

from vmstream.cli.options import (
    input_options,
    json_option,
    open_input,
    progress_bar,
    stream_argument,
    tell_error,
)
from vmstream.ops.inspect import inspect
from vmstream.report.jsonout import dumps

_EPILOG = """\b
Examples:
  vmstream inspect dump.bin
  vmstream inspect --quick dump.bin            head and tail alone, any size
  cat dump.bin | vmstream inspect -
  vmstream inspect guest.save                  an image of virsh save, or a compressed stream
  vmstream inspect main.bin --channel ch1.bin --channel ch2.bin    multifd, as recorded
  vmstream inspect --json dump.bin | jq .machine
  HMP: migrate "exec:vmstream inspect - > report.txt"
"""


@click.command("inspect", epilog=_EPILOG)
@stream_argument
@click.option("--devices", is_flag=True, help="List every device section.")
@click.option("--sections", is_flag=True, help="List every section, iterable ones too.")
@click.option("--passes", is_flag=True, help="List every pass over RAM.")
@click.option("--quick", is_flag=True, help="Read head and tail alone; no page counts.")
@input_options
@json_option
def command(
    stream: str,
    devices: bool,
    sections: bool,
    passes: bool,
    quick: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Account for a migration stream: machine, RAM, devices, end and findings.

    STREAM is a file, or - for standard input.
    """
    if quick and options["channels"]:
        raise click.UsageError("--quick counts no pages: leave out --channel")
    with (
        open_input(stream, options) as (opened, beside),
        progress_bar("reading") as progress,
    ):
        report, code = inspect(
            opened.source,
            page_size=options["page_size"],
            quick=quick,
            progress=progress,
            container=opened.container,
            channels=beside,
            max_ram=options["max_ram"],
        )
    if as_json:
        click.echo(dumps(report))
    else:
        from vmstream.report.render import render_inspect

        render_inspect(report, devices=devices, sections=sections, passes=passes)
    tell_error(report.anomalies)
    return code
