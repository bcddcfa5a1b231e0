"""`vmstream heatmap`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from vmstream.cli.options import (
    byte_size,
    input_options,
    open_input,
    output_options,
    progress_bar,
    stream_argument,
    whole_output,
)
from vmstream.errors import printable

_EPILOG = """\b
Examples:
  vmstream heatmap dump.bin -o map.png
  vmstream heatmap dump.bin -o map.png --by times
  vmstream heatmap main.bin --channel channels/ -o map.png
  vmstream heatmap - -o - <dump.bin | display
"""


@click.command("heatmap", epilog=_EPILOG)
@stream_argument
@output_options
@click.option(
    "--by",
    type=click.Choice(["kind", "times", "pass"]),
    default="kind",
    help="What colours tell: the kind of the last record of a page (the default), how often it "
    "was sent, or the pass that sent it last.",
)
@click.option("--below-4g", type=byte_size, metavar="SIZE", help="Size of RAM below 4 GiB (x86).")
@input_options
def command(
    stream: str, output: Path, force: bool, by: str, below_4g: int | None, **options: Any
) -> int:
    """Draw RAM as a PNG picture.

    Each block is drawn to scale, row by row, the largest first. A cell is a page or, of a guest
    that is too large for that, several, so that no picture has many more than 1,000 x 1,000 pixels.
    It then has the colour of the most telling of them: XBZRLE before compressed, normal, never
    sent and zero; the most times; the last pass.

    STREAM is a file, or - for standard input.
    """
    from vmstream.ops.rammap import read_map
    from vmstream.report.picture import heatmap_png
    from vmstream.report.render import console, render_findings

    with (
        open_input(stream, options) as (opened, channels),
        whole_output(output, force=force, keep=opened.identity) as write,
        progress_bar("reading") as progress,
    ):
        found = read_map(
            opened,
            channels,
            page_size=options["page_size"],
            below_4g=below_4g,
            max_ram=options["max_ram"],
            progress=progress,
        )
        name = opened.source.name
        picture, width, height = heatmap_png(found.map, by, name, found.machine)
        write(picture)
    to_pipe = str(output) == "-"
    click.echo(f"{printable(str(output))}: {width} x {height} pixels", err=to_pipe)
    render_findings(found.findings.report(), console(sys.stderr))
    if by != "kind" and found.remark:
        click.echo(f"vmstream: {found.remark}", err=True)
    return found.exit_code
