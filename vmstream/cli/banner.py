"""`vmstream banner`."""

from __future__ import annotations

import click

from vmstream.cli.options import (
    json_option,
    memory_options,
    memory_status,
    open_memory,
    open_tree,
    stream_argument,
)
from vmstream.errors import EXIT_FINDINGS

_EPILOG = """\b
Examples:
  vmstream banner dump.bin
  vmstream banner dump.bin --json | jq -r .candidates[].text
"""


@click.command("banner", epilog=_EPILOG)
@stream_argument
@memory_options
@json_option
def command(stream: str, as_json: bool, **options: object) -> int:
    """Print the banner of the guest's Linux kernel: "Linux version ...".

    Memory is searched for it, which is inference. Of several the one is taken that agrees with
    the kernel's VMCOREINFO; --json lists all, with addresses.

    STREAM is a file, or - for standard input with --spool.
    """
    from vmstream.ops.kernel import banner_report
    from vmstream.report.jsonout import dumps

    with open_memory(stream, options) as memory:
        report = banner_report(stream, memory, open_tree(stream, options))
        if as_json:
            click.echo(dumps(report))
        elif report.banner is not None:
            click.echo(report.banner)
        if report.banner is None:
            click.echo("vmstream: no banner of a Linux kernel in memory", err=True)
            return EXIT_FINDINGS
        return memory_status(memory, physical=False)
