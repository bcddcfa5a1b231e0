"""`vmstream records`."""

from __future__ import annotations

from typing import Any

import click

from vmstream.cli.options import (
    input_options,
    json_option,
    open_input,
    progress_bar,
    stream_argument,
)
from vmstream.ops.records import KINDS, Records
from vmstream.report.jsonout import record

_EPILOG = """\b
Examples:
  vmstream records dump.bin | less
  vmstream records dump.bin --kind section --kind footer
  vmstream records dump.bin --range 0x1f0000:0x1f4000
  vmstream records dump.bin --json --kind xbzrle | jq -r .block_offset

\b
Kinds: header configuration section ram-blocks mapped-block pages normal zero xbzrle
compressed unset channel packet device-state ram-control live payload footer command eof
vmdescription padding gap anomaly block-chunk block-progress bitmap-start bitmap-bits
bitmap-complete htab-head htab-chunk storage-values storage-done vfio-tag vfio-data pbs-state
live-end
"""


# "0x100:0x200", "4096:", ":0x1000" as offsets.
def _range(text: str) -> tuple[int, int | None]:
    begin, colon, end = text.partition(":")
    try:
        low, high = int(begin or "0", 0), int(end, 0) if end else None
    except ValueError:
        low, high = 0, -1
    if not colon or low < 0 or (high is not None and high < low):
        raise click.BadParameter(f"{text!r} is no range: 0x100:0x200, 4096:, :0x1000")
    return low, high


@click.command("records", epilog=_EPILOG)
@stream_argument
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    metavar="KIND",
    type=click.Choice(KINDS),
    help="Only items of this kind; may be given again.",
)
@click.option(
    "--range",
    "span",
    type=_range,
    default="0:",
    metavar="START:END",
    help="Only items with bytes in this range of offsets; reading stops at its end.",
)
@input_options
@json_option
def command(
    stream: str,
    kinds: tuple[str, ...],
    span: tuple[int, int | None],
    as_json: bool,
    **options: Any,
) -> int:
    """List every item on the wire in order, pages as runs, with its offset and size.

    STREAM is a file, or - for standard input. With --json, one JSON object a line.
    """
    from vmstream.report.render import record_line

    begin, end = span
    with (
        open_input(stream, options) as (opened, beside),
        progress_bar("reading") as progress,
    ):
        records = Records(
            opened.source,
            page_size=options["page_size"],
            kinds=kinds,
            begin=begin,
            end=end,
            progress=progress,
            container=opened.container,
            channels=beside,
            max_ram=options["max_ram"],
        )
        for item in records:
            click.echo(record(item) if as_json else record_line(item))
    error = records.findings.error
    if error is not None:
        click.echo(f"vmstream: {error}", err=True)
    return records.findings.exit_code
