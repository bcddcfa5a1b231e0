"""`vmstream diff`."""

from __future__ import annotations

import contextlib
from typing import Any

import click

from vmstream.cli.options import (
    byte_size,
    channel_option,
    json_option,
    limit_options,
    open_input,
    page_size_option,
    progress_bar,
    snapshot_option,
)
from vmstream.errors import EXIT_FINDINGS, EXIT_OK, printable
from vmstream.ops.pipeline import Progress

_EPILOG = """\b
Examples:
  vmstream diff before.bin after.bin
  vmstream diff before.bin after.bin --devices-only --ignore timer --ignore '**clock*'
  vmstream diff before.bin after.bin --ram-only --hex
  vmstream diff dump.bin ram.raw

\b
Exit status: 0 the same, 1 different; 2 and above are trouble, as of every command.
"""


@click.command("diff", epilog=_EPILOG)
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option(
    "--ignore",
    multiple=True,
    metavar="GLOB",
    help="Leave out sections and fields of these paths, and what is in them; may be given again.",
)
@click.option("--hex", "rows", is_flag=True, help="Show the bytes of RAM that differ.")
@click.option("--ram-only", is_flag=True, help="Compare RAM alone.")
@click.option("--devices-only", is_flag=True, help="Compare all but RAM; quick, of a file.")
@click.option("--exit-zero", is_flag=True, help="Exit status 0 where they differ, too.")
@click.option("--below-4g", type=byte_size, metavar="SIZE", help="Size of RAM below 4 GiB (x86).")
@click.option("--partial", is_flag=True, help="Compare what is there of damaged streams.")
@channel_option
@click.option(
    "--channel-b",
    "channels_b",
    multiple=True,
    type=click.Path(exists=True),
    metavar="FILE",
    help="As --channel, which is for A, of B.",
)
@snapshot_option
@click.option("--snapshot-b", metavar="NAME", help="The snapshot to read in B.")
@click.option(
    "--spool",
    type=click.Path(exists=True, file_okay=False),
    metavar="DIR",
    help="Keep in DIR what cannot be read in place: a pipe, pages of compressed input.",
)
@page_size_option
@limit_options
@json_option
def command(
    a: str,
    b: str,
    ignore: tuple[str, ...],
    rows: bool,
    ram_only: bool,
    devices_only: bool,
    exit_zero: bool,
    channels_b: tuple[str, ...],
    snapshot_b: str | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Compare two streams, or a stream with a file of the guest's memory.

    Machine, sections, fields of devices by name, registers, and RAM as the streams leave it, page
    by page, whatever they are encoded in. Of A and B one can be a guest-physical image, an ELF
    core or a LiME file, whose memory is compared by guest-physical address.

    A and B are files; one may be - for standard input with --spool. In GLOB * is any text but
    '/', ** any text.
    """
    if ram_only and devices_only:
        raise click.UsageError("--ram-only or --devices-only, not both")
    if a == b == "-":
        raise click.UsageError("A or B is standard input, not both")
    from vmstream.ops.diff import DiffOptions, diff
    from vmstream.ops.memory import MemoryOptions

    chosen = DiffOptions(
        MemoryOptions(
            options["partial"], options["below_4g"], options["spool"], options["max_ram"]
        ),
        options["page_size"],
        ram=not devices_only,
        devices=not ram_only,
        ignore=ignore,
        rows=rows,
    )
    of_b = {**options, "snapshot": snapshot_b, "channels": channels_b}
    with (
        open_input(a, options) as (first, beside_a),
        open_input(b, of_b) as (second, beside_b),
        contextlib.ExitStack() as bars,
    ):

        def progress(what: str) -> Progress | None:
            bars.close()
            return bars.enter_context(progress_bar(what))

        report, fault = diff(first, second, chosen, (beside_a, beside_b), progress)
    if as_json:
        from vmstream.report.jsonout import dumps

        click.echo(dumps(report))
    else:
        from vmstream.report.diff import render_diff

        render_diff(report)
    for side in (report.a, report.b):
        for found in side.anomalies:
            if found.severity != "info":
                text = f"{side.input}: {found.severity}: {found.message}"
                click.echo(f"vmstream: {printable(text)}", err=True)
    return fault or (EXIT_OK if report.same or exit_zero else EXIT_FINDINGS)
