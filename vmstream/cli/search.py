"""`vmstream search`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vmstream.cli.options import (
    json_option,
    memory_options,
    memory_settings,
    memory_status,
    open_input,
    open_memory,
    stream_argument,
)

if TYPE_CHECKING:
    from vmstream.report.models.search import HitReport

_EPILOG = """\b
Examples:
  vmstream search dump.bin "root:x:0:0"
  vmstream search dump.bin --hex "55 aa" --limit 10
  vmstream search dump.bin --regex "https?://[a-z.]+/" --json | jq -r .gpa
  vmstream search dump.bin "password=" --history
"""


@click.command("search", epilog=_EPILOG)
@stream_argument
@click.argument("pattern")
@click.option("--hex", "as_hex", is_flag=True, help="PATTERN is bytes as hex digits.")
@click.option("--regex", is_flag=True, help="PATTERN is a regular expression, of bytes.")
@click.option("--block", metavar="IDSTR", help="Search this block instead of physical memory.")
@click.option("--history", is_flag=True, help="Search versions of pages that were replaced, too.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="End at the Nth hit.")
@memory_options
@json_option
def command(
    stream: str,
    pattern: str,
    as_hex: bool,
    regex: bool,
    block: str | None,
    history: bool,
    limit: int | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Find text or bytes in guest memory, also across pages.

    A line for each hit: guest-physical address, block and offset, and what is there. Text is
    searched for as UTF-8. A match of a regular expression has at most 64 KiB. With --json, one
    JSON object a line.

    With --history hits come in the order in which versions of pages were replaced, the last
    versions at the end, each with the offset of its record. The stream is read twice.

    STREAM is a file, or - for standard input with --spool.
    """
    from vmstream.ops.search import expression, literal, search

    try:
        # An argument of the command line may be other bytes than UTF-8.
        text = pattern.encode("utf-8", "surrogateescape")
        if as_hex and regex:
            raise ValueError("--hex or --regex, not both")
        needle = expression(text) if regex else literal(bytes.fromhex(pattern) if as_hex else text)
    except ValueError as error:
        raise click.UsageError(f"PATTERN {pattern!r}: {error}") from error
    from vmstream.report.hexdump import hit_line
    from vmstream.report.jsonout import dumps

    def show(hit: HitReport) -> None:
        click.echo(dumps(hit, indent=None) if as_json else hit_line(hit))

    if history:
        from vmstream.ops.history import check_file, search_history

        check_file(stream)
    with open_memory(stream, options) as memory:
        if history:
            with open_input(stream, options) as (opened, channels):
                seen = search_history(
                    opened,
                    memory,
                    needle,
                    show,
                    options=memory_settings(options),
                    channels=channels,
                    page_size=options["page_size"],
                    block=block,
                    limit=limit,
                )
            if seen.remark:
                click.echo(f"vmstream: {seen.remark}", err=True)
        else:
            for hit in search(memory, needle, block=block, limit=limit):
                show(hit)
        return memory_status(memory, physical=block is None)
