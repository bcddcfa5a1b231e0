"""`vmstream vmcoreinfo`."""

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
  vmstream vmcoreinfo dump.bin | grep OSRELEASE
  vmstream vmcoreinfo dump.bin --json | jq .note.gpa
"""


@click.command("vmcoreinfo", epilog=_EPILOG)
@stream_argument
@memory_options
@json_option
def command(stream: str, as_json: bool, **options: object) -> int:
    """Print the VMCOREINFO note of the guest's Linux kernel.

    It is read where the state of QEMU's vmcoreinfo device says; without that device memory is
    searched for it, which is inference.

    STREAM is a file, or - for standard input with --spool.
    """
    from vmstream.ops.kernel import vmcoreinfo, vmcoreinfo_report
    from vmstream.report.jsonout import dumps

    with open_memory(stream, options) as memory:
        found = vmcoreinfo(memory, open_tree(stream, options))
        if as_json:
            click.echo(dumps(vmcoreinfo_report(stream, found)))
        elif found.best is not None:
            click.echo(found.best.note.desc, nl=False)
        if found.best is None:
            click.echo(f"vmstream: {'; '.join(found.reasons)}", err=True)
            return EXIT_FINDINGS
        return memory_status(memory, physical=False)
