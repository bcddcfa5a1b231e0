"""What `devices`, `get` and `cpus` share: their options, and the stream that they read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import click

from vmstream.cli.options import (
    json_option,
    limit_options,
    page_size_option,
    progress_bar,
    snapshot_option,
    spool_option,
)
from vmstream.container.open import OpenStream
from vmstream.errors import printable
from vmstream.ops.devices import Devices, read_devices, with_schema
from vmstream.transport.source import Source

schema_option = click.option(
    "--schema",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="Names for a stream without a vmdescription: another stream of the same "
    "machine, or JSON that qemu -dump-vmstate wrote.",
)


def device_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--schema and what every command that reads a stream has; all but --json as `options`."""
    for option in (json_option, page_size_option, limit_options, spool_option, snapshot_option):
        command = option(command)
    return schema_option(command)


@contextlib.contextmanager
def device_state(
    stream: str,
    *,
    schema: str | None,
    snapshot: str | None,
    spool: str | None,
    max_ram: int | None,
    max_layers: int,
    page_size: int | None,
) -> Iterator[tuple[Source, Devices]]:
    """Read the devices of a stream; behind it what is to be known about them goes to stderr."""
    with (
        OpenStream(
            stream, snapshot=snapshot, spool=spool, max_ram=max_ram, max_layers=max_layers
        ) as opened,
        progress_bar("reading") as progress,
    ):
        found = read_devices(
            opened.source,
            page_size=page_size,
            max_ram=max_ram,
            progress=progress,
            container=opened.container,
        )
        if schema is not None:
            with OpenStream(schema) as other:
                with_schema(found, other.source, other.container)
        yield opened.source, found
    for a in found.findings.kept:
        if a.code == "schema":
            click.echo(f"vmstream: {a.severity}: {printable(a.message)}", err=True)
    if found.findings.error is not None:
        click.echo(f"vmstream: {found.findings.error}", err=True)
