"""`vmstream report`."""

from __future__ import annotations

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
  vmstream report dump.bin -o report.html
  vmstream report main.bin --channel channels/ -o report.html
  vmstream report - -o - <dump.bin >report.html
"""


@click.command("report", epilog=_EPILOG)
@stream_argument
@output_options
@click.option("--below-4g", type=byte_size, metavar="SIZE", help="Size of RAM below 4 GiB (x86).")
@input_options
def command(stream: str, output: Path, force: bool, below_4g: int | None, **options: Any) -> int:
    """Write a page of HTML to look at a stream in a browser.

    It has a summary, what `vmstream verify` finds, a map of RAM, passes, sections to scale, devices
    by name with a search, and registers. It is one file of less than 5 MB whatever the stream,
    and a browser asks no network for it. A damaged stream is told of as far as it goes.

    STREAM is a file, or - for standard input.
    """
    from vmstream.ops.report import read_report
    from vmstream.report.html import page

    with (
        open_input(stream, options) as (opened, channels),
        whole_output(output, force=force, keep=opened.identity) as write,
        progress_bar("reading") as progress,
    ):
        found, code = read_report(
            opened,
            channels,
            page_size=options["page_size"],
            below_4g=below_4g,
            max_ram=options["max_ram"],
            progress=progress,
        )
        text = page(found)
        write(text)
    told = f"{len(text):,} bytes, the stream is {found.verdict}, findings: {found.finding_count:,}"
    click.echo(f"{printable(str(output))}: {told}", err=str(output) == "-")
    worst = next((f for f in found.findings if f.severity == "error"), None)
    if worst is not None:
        click.echo(f"vmstream: {printable(worst.message)}", err=True)
    return code
