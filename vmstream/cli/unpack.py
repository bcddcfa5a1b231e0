"""`vmstream unpack`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vmstream.cli.devicestate import schema_option
from vmstream.cli.options import (
    input_options,
    json_option,
    open_input,
    progress_bar,
    shared_option,
    stream_argument,
)
from vmstream.container.open import OpenStream
from vmstream.ops.devices import Devices, with_schema
from vmstream.ops.unpack import UnpackOptions, unpack
from vmstream.report.jsonout import dumps

_EPILOG = """\b
Examples:
  vmstream unpack dump.bin out/
  vmstream unpack main.bin out/ --channel ch1.bin --channel ch2.bin    multifd, postcopy-preempt
  vmstream unpack guest.save out/                an image of virsh save
  vmstream unpack old.bin out/ --schema dump.bin    names for a stream without a vmdescription
"""


@click.command(epilog=_EPILOG)
@stream_argument
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace what is in a directory that is not empty.")
@schema_option
@shared_option
@input_options
@json_option
def command(
    stream: str,
    directory: Path,
    force: bool,
    schema: str | None,
    shared_blocks: tuple[tuple[str, Path], ...],
    as_json: bool,
    **options: Any,
) -> int:
    """Write a stream as a directory of files that can be edited.

    The memory of each block is a sparse file, the state of each device JSON, and manifest.json says
    what there is. `vmstream build` makes a plain stream of it again.

    STREAM is a file, or - for standard input.
    """

    def name_state(found: Devices) -> None:
        if schema is not None:
            with OpenStream(schema) as other:
                with_schema(found, other.source, other.container)

    wanted = UnpackOptions(
        directory, force, options["page_size"], options["max_ram"], shared_blocks
    )
    with (
        open_input(stream, options) as (opened, beside),
        progress_bar("unpacking") as progress,
    ):
        report, code = unpack(opened.source, wanted, progress, opened.container, beside, name_state)
    if as_json:
        click.echo(dumps(report))
    else:
        from vmstream.report.render import render_unpack

        render_unpack(report)
    return code
