"""`vmstream xml`."""

from __future__ import annotations

import sys

import click

from vmstream.cli.options import stream_argument
from vmstream.container.open import OpenStream
from vmstream.errors import printable
from vmstream.ops.domain import domain_xml

_EPILOG = """\b
Examples:
  vmstream xml guest.save > guest.xml
  vmstream xml --cookie guest.save
  cat guest.save | vmstream xml -
"""


@click.command("xml", epilog=_EPILOG)
@stream_argument
@click.option("--cookie", is_flag=True, help="Write libvirt's own data beside it instead.")
def command(stream: str, cookie: bool) -> int:
    """Write the domain XML of a libvirt save image, as it stands there.

    STREAM is an image of virsh save (it may be compressed once more), or - for standard input.
    On a terminal, what would not print is escaped.
    """
    with OpenStream(stream, image_only=True) as opened:
        text = domain_xml(opened.container, opened.source.name, cookie=cookie)
    if sys.stdout.isatty():
        lines = text.decode("utf-8", "backslashreplace").splitlines()
        click.echo("\n".join(printable(line.expandtabs()) for line in lines))
    else:
        click.echo(text, nl=False)
    return 0
