"""`vmstream extract-ram`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from vmstream.cli.options import (
    byte_size,
    input_options,
    json_option,
    open_input,
    progress_bar,
    shared_option,
    stream_argument,
)
from vmstream.ops.encode import COMPRESSIONS, STANDARD_OUTPUT
from vmstream.ops.extract import ExtractOptions, extract
from vmstream.ops.passes import LAST_PASS
from vmstream.report.jsonout import dumps

_EPILOG = """\b
Examples:
  vmstream extract-ram dump.bin -o ram.raw       offset in the file = guest-physical address
  vmstream extract-ram dump.bin --block pc.ram -o pc.ram.raw
  vmstream extract-ram dump.bin --all-blocks out/
  vmstream extract-ram dump.bin --format lime -o ram.lime
  vmstream extract-ram dump.bin --format elf -o ram.elf
  vmstream extract-ram dump.bin --format kdump -o ram.kdump      for crash, drgn, makedumpfile
  vmstream extract-ram dump.bin --format lime -o ram.lime.zst    compressed
  vmstream extract-ram dump.bin --format lime -o - | ssh host 'cat > ram.lime'
  vmstream extract-ram dump.bin --layout layout.json -o ram.raw
  vmstream extract-ram guest.save -o ram.raw     from an image of virsh save
  vmstream extract-ram main.bin --channel ch1.bin --channel ch2.bin -o ram.raw    multifd
  vmstream extract-ram dump.bin --pass 1 -o first.raw      as known behind the first pass
  vmstream extract-ram cut.bin --partial -o ram.raw
  cat dump.bin | vmstream extract-ram - -o ram.raw --manifest ram.json
"""


@click.command("extract-ram", epilog=_EPILOG)
@stream_argument
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, allow_dash=True),
    help="File to write, or - for standard output.",
)
@click.option("--block", metavar="IDSTR", help="Write this block instead of the image.")
@click.option(
    "--all-blocks",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write every block, and manifest.json, into DIR.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["raw", "lime", "elf", "kdump", "blocks"]),
    default="raw",
    help="What -o is: an image with holes where there is no RAM (raw, the default), a LiME file, "
    "an ELF core, a compressed kdump file, or a directory as of --all-blocks (blocks).",
)
@click.option(
    "--compress",
    type=click.Choice(COMPRESSIONS),
    help="Compress the output with gzip or zstd (by default where -o ends in .gz or .zst), or the "
    "pages of a kdump file with zlib (the default) or zstd.",
)
@click.option(
    "--layout",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Where blocks stand in the guest: JSON, a list of gpa, length, block, block_offset.",
)
@click.option(
    "--pass",
    "passes",
    type=click.IntRange(1, LAST_PASS),
    metavar="N",
    help="RAM as it was known behind the Nth pass, which `vmstream history` lists; not for formats "
    "with registers, which are of the end.",
)
@click.option("--rom", is_flag=True, help="Have ROM and flash in the image, too.")
@click.option("--below-4g", type=byte_size, metavar="SIZE", help="Size of RAM below 4 GiB (x86).")
@click.option("--partial", is_flag=True, help="Write what is there of a damaged stream.")
@click.option("--force", is_flag=True, help="Replace files that exist.")
@click.option(
    "--manifest",
    type=click.Path(path_type=Path),
    help="Write an account with SHA-256 of input and outputs.",
)
@shared_option
@input_options
@json_option
def command(
    stream: str,
    output: Path | None,
    block: str | None,
    all_blocks: Path | None,
    form: str,
    compress: str | None,
    layout: Path | None,
    passes: int | None,
    rom: bool,
    below_4g: int | None,
    partial: bool,
    force: bool,
    manifest: Path | None,
    shared_blocks: tuple[tuple[str, Path], ...],
    as_json: bool,
    **options: Any,
) -> int:
    """Rebuild guest RAM from a migration stream.

    Without --block or --all-blocks the output is the guest-physical image: the offset in the
    file is the guest-physical address, and what the guest has no RAM at is a hole in the file.
    LiME and ELF files have ranges of RAM alone, with their addresses.

    STREAM is a file, or - for standard input.
    """
    if (output is None) == (all_blocks is None) or (block is not None and all_blocks is not None):
        raise click.UsageError(
            "give -o FILE (with --block IDSTR for one block) or --all-blocks DIR"
        )
    if form != "raw" and (block is not None or (all_blocks is not None and form != "blocks")):
        raise click.UsageError(f"--format {form} is not for --block and --all-blocks")
    if form == "blocks" and output is not None:
        output, all_blocks = None, output
    to_pipe = output == STANDARD_OUTPUT
    if to_pipe and as_json:
        raise click.UsageError("-o - leaves no room for --json; --manifest FILE has the same")
    if layout is not None and (block is not None or all_blocks is not None):
        raise click.UsageError("--layout is for the guest-physical image")
    if layout is not None and below_4g is not None:
        raise click.UsageError("--layout and --below-4g: only one can decide")
    if rom and (block is not None or all_blocks is not None or layout is not None):
        raise click.UsageError("--rom is for the guest-physical image, by no --layout")
    if passes is not None and form in ("elf", "kdump"):
        raise click.UsageError(f"--pass is not for --format {form}: its registers are of the end")
    wanted = ExtractOptions(
        output, block, all_blocks, below_4g, partial, force, manifest, options["page_size"],
        tuple(sys.argv[1:]), shared_blocks, options["max_ram"], form, layout, rom, compress,
        Path(options["spool"]) if options["spool"] else None, passes,
    )  # fmt: skip
    with (
        open_input(stream, options, digest=manifest is not None) as (opened, beside),
        progress_bar("extracting") as progress,
    ):
        report, code = extract(opened.source, wanted, progress, opened.container, beside)
    if as_json:
        click.echo(dumps(report))
    else:
        from vmstream.report.render import console, render_extract

        render_extract(report, console(sys.stderr) if to_pipe else None)
    return code
