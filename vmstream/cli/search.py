"""`vmstream search`."""

from __future__ import annotations

import click

from vmstream.cli.options import (
    json_option,
    memory_options,
    memory_status,
    open_memory,
    stream_argument,
)

_EPILOG = """\b
Examples:
  vmstream search dump.bin "root:x:0:0"
  vmstream search dump.bin --hex "55 aa" --limit 10
  vmstream search dump.bin --regex "https?://[a-z.]+/" --json | jq -r .gpa
"""


@click.command("search", epilog=_EPILOG)
@stream_argument
@click.argument("pattern")
@click.option("--hex", "as_hex", is_flag=True, help="PATTERN is bytes as hex digits.")
@click.option("--regex", is_flag=True, help="PATTERN is a regular expression, of bytes.")
@click.option("--block", metavar="IDSTR", help="Search this block instead of physical memory.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="End at the Nth hit.")
@memory_options
@json_option
def command(
    stream: str,
    pattern: str,
    as_hex: bool,
    regex: bool,
    block: str | None,
    limit: int | None,
    as_json: bool,
    **options: object,
) -> int:
    """Find text or bytes in guest memory, also across pages.

    A line for each hit: guest-physical address, block and offset, and what is there. Text is
    searched for as UTF-8. A match of a regular expression has at most 64 KiB. With --json, one
    JSON object a line.

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

    with open_memory(stream, options) as memory:
        for hit in search(memory, needle, block=block, limit=limit):
            click.echo(dumps(hit, indent=None) if as_json else hit_line(hit))
        return memory_status(memory, physical=block is None)
