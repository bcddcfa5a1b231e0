"""`vmstream verify`."""

from __future__ import annotations

from pathlib import Path
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
from vmstream.ops.verify import verify
from vmstream.report.jsonout import dumps

_EPILOG = """\b
Examples:
  vmstream verify dump.bin
  cat dump.bin | vmstream verify -
  vmstream verify dump.bin --manifest ram.json     and the images written from it
  vmstream verify main.bin --channel ch1.bin --channel ch2.bin
  vmstream verify --json dump.bin | jq -r '.findings[].code'

\b
Exit status: 0 sound, 1 doubtful (warnings), 3 corrupt, 4 not supported, 7 only cut off.
"""


@click.command("verify", epilog=_EPILOG)
@stream_argument
@click.option(
    "--manifest",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Compare hashes of the input and of the images that extract-ram --manifest names.",
)
@input_options
@json_option
def command(
    stream: str,
    manifest: Path | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Hold a stream against the rules of QEMU's loader, as far as it can show them.

    Every page is decoded, and device state is compared with its description. Each finding says
    what it means and what to do.

    STREAM is a file, or - for standard input.
    """
    with (
        open_input(stream, options, digest=manifest is not None) as (opened, beside),
        progress_bar("verifying") as progress,
    ):
        report, code = verify(
            opened.source,
            page_size=options["page_size"],
            progress=progress,
            container=opened.container,
            channels=beside,
            max_ram=options["max_ram"],
            manifest=manifest,
        )
    if as_json:
        click.echo(dumps(report))
    else:
        from vmstream.report.findings import render_verify

        render_verify(report)
    tell_error(report.findings)
    return code
