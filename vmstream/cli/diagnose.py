"""`vmstream diagnose`."""

from __future__ import annotations

from typing import IO, Any

import click

from vmstream.cli.options import (
    input_options,
    json_option,
    open_input,
    progress_bar,
    stream_argument,
)
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
@input_options
@json_option
def command(
    stream: str,
    log: IO[bytes],
    as_json: bool,
    **options: Any,
) -> int:
    """Explain why a QEMU did not load a stream, and point at the bytes.

    STREAM is a file, or - for standard input.
    """
    if stream == "-" and log.name in ("-", "<stdin>"):
        raise click.UsageError("STREAM and --log are both standard input")
    text = log.read(MAX_LOG)
    with (
        open_input(stream, options) as (opened, beside),
        progress_bar("reading") as progress,
    ):
        report, code = diagnose(
            opened.source,
            text,
            page_size=options["page_size"],
            progress=progress,
            container=opened.container,
            channels=beside,
            max_ram=options["max_ram"],
        )
    if as_json:
        click.echo(dumps(report))
    else:
        from vmstream.report.findings import render_diagnose

        render_diagnose(report)
    return code
