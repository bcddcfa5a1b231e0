"""`vmstream rewrite`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from vmstream.cli.options import (
    byte_size,
    json_option,
    limit_options,
    page_size_option,
    progress_bar,
    snapshot_option,
    spool_option,
    stream_argument,
)
from vmstream.container.open import OpenStream
from vmstream.ops.edits import RewriteOptions
from vmstream.ops.encode import STANDARD_OUTPUT
from vmstream.ops.rewrite import rewrite
from vmstream.report.jsonout import dumps

_EPILOG = """\b
Examples:
  vmstream rewrite dump.bin -o new.bin --set configuration.name=pc-q35-7.1
  vmstream rewrite dump.bin -o new.bin --set 'cpu[0]/env.eip=0x7c00'
  vmstream rewrite dump.bin -o new.bin --patch-ram 0x7c00=boot.bin
  vmstream rewrite dump.bin -o new.bin --patch-ram pc.ram+0x1000=hex:9090
  vmstream rewrite dump.bin -o new.bin --drop-section '**/e1000'
  vmstream rewrite dump.bin -o new.bin --rename-block pc.ram=mem0
  vmstream rewrite dump.bin -o small.bin --squash
  vmstream rewrite dump.bin --dry-run --set '**/halted=1'

\b
PATH and GLOB are as `vmstream devices` shows them and `vmstream get` takes them.
"""


def _pair(_ctx: object, _param: object, given: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    for text in given:
        if "=" not in text:
            raise click.BadParameter(f"{text!r} has no '='")
    return tuple((before, after) for before, _, after in (t.partition("=") for t in given))


@click.command(epilog=_EPILOG)
@stream_argument
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="File to write; - for stdout."
)
@click.option(
    "--set",
    "sets",
    multiple=True,
    callback=_pair,
    metavar="PATH=VALUE",
    help="A field of device state, or configuration.name, .uuid, .target_page_bits, "
    ".capabilities; an empty value leaves an optional one out.",
)
@click.option(
    "--patch-ram",
    "patches",
    multiple=True,
    callback=_pair,
    metavar="ADDR=FILE|hex:...",
    help="Bytes of guest memory, at a guest-physical address or at IDSTR+OFFSET.",
)
@click.option("--drop-section", multiple=True, metavar="GLOB", help="Leave out a section.")
@click.option("--drop-subsection", multiple=True, metavar="GLOB", help="Leave out a subsection.")
@click.option(
    "--rename-block",
    "renames",
    multiple=True,
    callback=_pair,
    metavar="OLD=NEW",
    help="Give a RAM block another name.",
)
@click.option("--strip-vmdescription", is_flag=True, help="Take the vmdescription off.")
@click.option(
    "--add-vmdescription",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="Put in that of another stream, whose sections are the same by name, version and size.",
)
@click.option(
    "--squash",
    is_flag=True,
    help="Make the stream plain: each page once, in its last version, in the order of the blocks.",
)
@click.option("--dry-run", is_flag=True, help="Say what would change, and write nothing.")
@click.option("--force", is_flag=True, help="Replace a file that exists.")
@click.option("--below-4g", type=byte_size, metavar="SIZE", help="Size of RAM below 4 GiB (x86).")
@snapshot_option
@spool_option
@limit_options
@page_size_option
@json_option
def command(
    stream: str,
    output: Path | None,
    sets: tuple[tuple[str, str], ...],
    patches: tuple[tuple[str, str], ...],
    drop_section: tuple[str, ...],
    drop_subsection: tuple[str, ...],
    renames: tuple[tuple[str, str], ...],
    strip_vmdescription: bool,
    add_vmdescription: str | None,
    squash: bool,
    dry_run: bool,
    force: bool,
    below_4g: int | None,
    snapshot: str | None,
    spool: str | None,
    max_ram: int | None,
    max_layers: int,
    page_size: int | None,
    as_json: bool,
) -> int:
    """Write a stream anew with edits.

    What no edit names stays as it is, to the byte. An edit whose result QEMU would not load is
    refused. What is around the stream (a save image, a qcow2 image) is left out.

    STREAM is a file, or - for standard input.
    """
    if output is None and not dry_run:
        raise click.UsageError("give -o FILE, or --dry-run")
    output = None if dry_run else output
    to_pipe = output == STANDARD_OUTPUT
    if to_pipe and as_json:
        raise click.UsageError("-o - leaves no room for --json")
    options = RewriteOptions(
        output, sets, patches, drop_section, drop_subsection, renames, strip_vmdescription,
        add_vmdescription, force, page_size, below_4g, max_ram, spool, squash,
    )  # fmt: skip
    with (
        OpenStream(
            stream, snapshot=snapshot, spool=spool, max_ram=max_ram, max_layers=max_layers
        ) as opened,
        progress_bar("rewriting") as progress,
    ):
        report, code = rewrite(opened.source, options, progress, opened.container)
    if as_json:
        click.echo(dumps(report))
    else:
        from vmstream.report.render import console, render_rewrite

        render_rewrite(report, console(sys.stderr) if to_pipe else None)
    return code
