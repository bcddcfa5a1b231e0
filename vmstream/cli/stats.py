"""`vmstream stats`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vmstream.cli.options import (
    byte_size,
    channel_option,
    json_option,
    kept_option,
    limit_options,
    open_input,
    page_size_option,
    progress_bar,
    snapshot_option,
    stream_argument,
)

if TYPE_CHECKING:
    from vmstream.ops.whatif import Wanted

_EPILOG = """\b
Examples:
  vmstream stats dump.bin
  vmstream stats dump.bin --what-if zstd,zlib,xbzrle
  vmstream stats dump.bin --what-if zstd:1,zstd:3,zstd:9 --multifd-channels 8
  vmstream stats dump.bin --what-if xbzrle:64M,xbzrle:512M --json | jq .what_if
"""


@click.command("stats", epilog=_EPILOG)
@stream_argument
@click.option(
    "--what-if",
    "what_if",
    multiple=True,
    metavar="ENCODING,...",
    help="Measure what pages would come to in these: zstd, zlib (multifd), compress (the "
    "capability up to QEMU 8.2), xbzrle. With a level, zstd:3, or the cache, xbzrle:128M.",
)
@click.option(
    "--multifd-channels",
    "count",
    type=click.IntRange(1, 255),
    metavar="N",
    help="Channels that zstd and zlib are for (default 2, as of QEMU).",
)
@click.option(
    "--top",
    type=click.IntRange(0, 1000),
    default=5,
    metavar="N",
    help="List so many of the largest groups of pages that are alike (default 5).",
)
@channel_option
@snapshot_option
@kept_option
@page_size_option
@limit_options
@json_option
def command(
    stream: str,
    what_if: tuple[str, ...],
    count: int | None,
    top: int,
    as_json: bool,
    **options: Any,
) -> int:
    """Tell what the pages of a stream have, and what another encoding would have saved.

    How pages were sent is counted; what they have is looked at in the last version of each: zeros,
    patterns, entropy, pages that are alike. --what-if encodes every version that was sent anew,
    and measures; CPU times are those of this machine.

    STREAM is a file, or - for standard input with --spool.
    """
    wanted = _wanted(what_if)
    if count is not None and not any(w.name in ("zstd", "zlib") for w in wanted):
        raise click.UsageError("--multifd-channels is for --what-if zstd or zlib")
    from vmstream.ops.stats import read_stats
    from vmstream.ops.whatif import CHANNELS
    from vmstream.report.jsonout import dumps
    from vmstream.report.stats import render_stats

    with (
        open_input(stream, options) as (opened, channels),
        progress_bar("reading") as progress,
    ):
        report, status = read_stats(
            opened,
            channels,
            wanted=wanted,
            count=CHANNELS if count is None else count,
            top=top,
            spool=options["spool"],
            page_size=options["page_size"],
            max_ram=options["max_ram"],
            progress=progress,
            looking=progress,
        )
    if as_json:
        click.echo(dumps(report))
    else:
        render_stats(report)
    return status


def _wanted(what_if: tuple[str, ...]) -> list[Wanted]:
    if not what_if:
        return []
    from vmstream.ops.whatif import Wanted

    found: list[Wanted] = []
    for text in ",".join(what_if).split(","):
        try:
            one = Wanted.read(text.strip(), byte_size)
        except ValueError as error:
            raise click.UsageError(f"--what-if: {error}") from error
        if one not in found:
            found.append(one)
    return found
