"""`vmstream snapshots`."""

from __future__ import annotations

import click

from vmstream.cli.options import json_option
from vmstream.ops.snapshots import snapshots
from vmstream.report.jsonout import dumps
from vmstream.transport.source import OpenSource

_EPILOG = """\b
Examples:
  vmstream snapshots disk.qcow2
  vmstream snapshots disk.qcow2 --json | jq -r .snapshots[].name
"""


@click.command("snapshots", epilog=_EPILOG)
@click.argument("image", metavar="DISK")
@json_option
def command(image: str, as_json: bool) -> int:
    """List the internal snapshots of a qcow2 image (savevm), and which have VM state.

    DISK is a qcow2 image. It is read in place, and never written to.
    """
    with OpenSource(image) as source:
        report, code = snapshots(source)
    if as_json:
        click.echo(dumps(report))
    else:
        from vmstream.report.render import render_snapshots

        render_snapshots(report)
    return code
