"""`vmstream history`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    stream_argument,
)

if TYPE_CHECKING:
    from vmstream.ops.convergence import History
    from vmstream.report.models.history import VersionReport

_EPILOG = """\b
Examples:
  vmstream history dump.bin
  vmstream history dump.bin --top 50
  vmstream history dump.bin --page 0x100000
  vmstream history dump.bin --page pc.ram+0x100000 --hex
  vmstream history dump.bin --superseded old/
  vmstream history dump.bin --json | jq .passes
"""


@click.command("history", epilog=_EPILOG)
@stream_argument
@click.option(
    "--top",
    type=click.IntRange(0, 100_000),
    default=10,
    metavar="N",
    help="List so many of the pages that were sent most often (default 10).",
)
@click.option(
    "--page",
    metavar="ADDR|IDSTR+OFFSET",
    help="List every version of the page at this guest-physical address, or offset in a block.",
)
@click.option("--hex", "as_hex", is_flag=True, help="With --page, show the bytes that changed.")
@click.option(
    "--superseded",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write all versions of pages that were replaced into DIR.",
)
@click.option(
    "--max-superseded",
    type=byte_size,
    metavar="SIZE",
    help="Bytes that --superseded may write (default 16G).",
)
@click.option("--force", is_flag=True, help="Replace files in DIR.")
@click.option("--below-4g", type=byte_size, metavar="SIZE", help="Size of RAM below 4 GiB (x86).")
@channel_option
@snapshot_option
@click.option(
    "--spool",
    type=click.Path(exists=True, file_okay=False),
    metavar="DIR",
    help="With --superseded, keep in DIR pages that cannot be read in place, of compressed input.",
)
@page_size_option
@limit_options
@json_option
def command(
    stream: str,
    top: int,
    page: str | None,
    as_hex: bool,
    superseded: Path | None,
    max_superseded: int | None,
    force: bool,
    below_4g: int | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Tell how RAM was sent: passes, pages sent again, and what they were before.

    Precopy sends a page again whenever the guest has changed it, so a stream has earlier versions
    of pages. Passes over RAM are inferred from where the order of pages starts over.

    STREAM is a file, or - for standard input, which is enough for all but an address and
    --superseded. With --page and --json there is a JSON object a line.
    """
    if page is not None and superseded is not None:
        raise click.UsageError("--page or --superseded, not both")
    if as_hex and page is None:
        raise click.UsageError("--hex is for --page")
    if superseded is None and (force or max_superseded is not None):
        raise click.UsageError("--force and --max-superseded are for --superseded")
    if page is not None:
        return _page(stream, page, below_4g, options, as_hex=as_hex, as_json=as_json)
    from vmstream.report.jsonout import dumps
    from vmstream.report.render import render_history

    if superseded is not None:
        from vmstream.ops.history import check_file
        from vmstream.ops.memory import MemoryOptions
        from vmstream.ops.versions import MOST_SUPERSEDED, write_superseded

        check_file(stream, "--superseded")
    history = _history(stream, top, below_4g, options)
    report = history.report
    if superseded is not None:
        spool, max_ram = options["spool"], options["max_ram"]
        with open_input(stream, options) as (opened, channels), progress_bar("writing") as progress:
            report = write_superseded(
                opened,
                history,
                superseded,
                options=MemoryOptions(spool=spool, max_ram=max_ram),
                channels=channels,
                page_size=options["page_size"],
                most=MOST_SUPERSEDED if max_superseded is None else max_superseded,
                force=force,
                progress=progress,
            )
    if as_json:
        click.echo(dumps(report))
    else:
        render_history(report)
    return history.exit_code


def _history(stream: str, top: int, below_4g: int | None, options: dict[str, Any]) -> History:
    from vmstream.ops.convergence import read_history

    with open_input(stream, options) as (opened, channels), progress_bar("reading") as progress:
        return read_history(
            opened,
            channels,
            top=top,
            page_size=options["page_size"],
            below_4g=below_4g,
            max_ram=options["max_ram"],
            progress=progress,
        )


def _page(
    stream: str,
    page: str,
    below_4g: int | None,
    options: dict[str, Any],
    *,
    as_hex: bool,
    as_json: bool,
) -> int:
    from vmstream.ops.history import check_file
    from vmstream.ops.versions import page_of, page_versions
    from vmstream.report.jsonout import dumps
    from vmstream.report.render import console, render_findings
    from vmstream.report.versions import version_lines

    before: str | None = None

    def show(version: VersionReport) -> None:
        nonlocal before
        if as_json:
            click.echo(dumps(version, indent=None))
            return
        for line in version_lines(version, before):
            click.echo(line)
        before = version.data

    try:
        name, offset = page_of(page)
    except ValueError as error:
        raise click.UsageError(f"--page {page!r}: {error}") from error
    block: str | int | None = name
    gpa = None
    if block is None:
        # Where blocks stand is known at the end, so the stream is read twice.
        check_file(stream, "--page ADDR")
        gpa = offset
        block, offset = _history(stream, 0, below_4g, options).locate(gpa)
    with open_input(stream, options) as (opened, channels):
        summary = page_versions(
            opened,
            block,
            offset,
            show,
            gpa=gpa,
            channels=channels,
            page_size=options["page_size"],
            max_ram=options["max_ram"],
            with_data=as_hex,
        )
    render_findings(summary.findings.report(), console(sys.stderr))
    return summary.findings.exit_code
