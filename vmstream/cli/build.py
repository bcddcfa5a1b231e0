"""`vmstream build`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from vmstream.cli.options import byte_size, json_option, progress_bar
from vmstream.ops.build import BuildOptions, build
from vmstream.ops.encode import STANDARD_OUTPUT
from vmstream.report.jsonout import dumps

_EPILOG = """\b
Examples:
  vmstream build --from-dir out/ -o new.bin
  vmstream build --from-dir out/ -o - | ssh host 'cat > new.bin'
"""


@click.command(epilog=_EPILOG)
@click.option(
    "--from-dir",
    "directory",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="What vmstream unpack wrote.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, allow_dash=True),
    required=True,
    help="File to write; - for stdout.",
)
@click.option("--force", is_flag=True, help="Replace a file that exists.")
@click.option(
    "--max-ram",
    type=byte_size,
    metavar="SIZE",
    help="RAM that the manifest may state (default 4T).",
)
@json_option
def command(directory: Path, output: Path, force: bool, max_ram: int | None, as_json: bool) -> int:
    """Make a plain migration stream of a directory.

    What was edited there is checked: values against their types, lengths of files against the
    manifest. The vmdescription follows.
    """
    to_pipe = output == STANDARD_OUTPUT
    if to_pipe and as_json:
        raise click.UsageError("-o - leaves no room for --json")
    with progress_bar("building") as progress:
        report = build(directory, BuildOptions(output, force, max_ram), progress)
    if as_json:
        click.echo(dumps(report))
    else:
        from vmstream.report.render import console, render_build

        render_build(report, console(sys.stderr) if to_pipe else None)
    return 0
