"""`vmstream capture`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from vmstream.cli.options import json_option, progress_bar
from vmstream.errors import printable
from vmstream.integrations.capture import MAX_PASSES, CaptureOptions, capture
from vmstream.ops.encode import STANDARD_OUTPUT
from vmstream.report.jsonout import dumps

_EPILOG = """\b
Examples:
  vmstream capture --qmp /run/guest.qmp -o dump.bin
  vmstream capture --qmp guest.qmp -o dump.bin --live --verify --manifest dump.json
  vmstream capture --qmp guest.qmp -o dump.zst --zstd
  vmstream capture --qmp guest.qmp -o dump.bin --mapped-ram          QEMU 9.0 on
  vmstream capture --qmp guest.qmp -o - | ssh host 'cat > dump.bin'

\b
The guest needs a monitor of its own for this:
  qemu-system-x86_64 ... -qmp unix:/run/guest.qmp,server=on,wait=off
"""


@click.command(epilog=_EPILOG)
@click.option(
    "--qmp",
    type=click.Path(path_type=Path),
    required=True,
    metavar="SOCKET",
    help="The unix socket of a QMP monitor of the guest.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, allow_dash=True),
    required=True,
    help="File to write; - for stdout.",
)
@click.option(
    "--stopped", "mode", flag_value="stopped", default="stopped",
    help="Pause the guest meanwhile: memory of one moment, each page once (the default).",
)  # fmt: skip
@click.option(
    "--live", "mode", flag_value="live", help="Let it run, and send again what it changes."
)
@click.option(
    "--background-snapshot", "mode", flag_value="background-snapshot",
    help="Let it run, and send memory as it was at the start (QEMU 6.0 on, userfaultfd).",
)  # fmt: skip
@click.option(
    "--passes",
    type=click.IntRange(1),
    default=MAX_PASSES,
    metavar="N",
    help=f"With --live: pause the guest after N passes, to end (default {MAX_PASSES}).",
)
@click.option("--xbzrle", is_flag=True, help="With --live: send again as differences.")
@click.option("--mapped-ram", is_flag=True, help="Each page at a place of its own (QEMU 9.0 on).")
@click.option("--zstd", is_flag=True, help="Compress what comes, while it comes.")
@click.option(
    "--resume/--stop", default=True,
    help="Have the guest go on if it ran (the default), or leave it stopped.",
)  # fmt: skip
@click.option("--verify", is_flag=True, help="Read the file afterwards, as inspect does.")
@click.option(
    "--manifest",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the account with SHA-256 to FILE, as --json prints it.",
)
@click.option("--force", is_flag=True, help="Replace files that exist.")
@json_option
def command(
    qmp: Path,
    output: Path,
    mode: str,
    passes: int,
    xbzrle: bool,
    mapped_ram: bool,
    zstd: bool,
    resume: bool,
    verify: bool,
    manifest: Path | None,
    force: bool,
    as_json: bool,
) -> int:
    """Have a running QEMU write its migration stream, and leave the guest as it was.

    Capabilities and parameters that the capture sets are set back, and a guest that ran goes on,
    also when the capture is interrupted or the disk is full.
    """
    to_pipe = output == STANDARD_OUTPUT
    if to_pipe and (as_json or verify or mapped_ram):
        raise click.UsageError("-o - leaves no room for --json, --verify and --mapped-ram")
    if mapped_ram and zstd:
        raise click.UsageError("--mapped-ram is written in no order, so --zstd cannot follow")
    if xbzrle and mode != "live":
        raise click.UsageError("--xbzrle is for pages that are sent again: give --live")
    if mode == "background-snapshot" and not resume:
        raise click.UsageError("--background-snapshot is for a guest that goes on: no --stop")
    from vmstream.transport.sink import check_free, write_text

    if manifest is not None:
        check_free(manifest, force=force)
    options = CaptureOptions(
        qmp, output, mode, not resume, mapped_ram, xbzrle, zstd, passes, verify,
        as_json or manifest is not None, force,
    )  # fmt: skip

    def tell(text: str) -> None:
        click.echo(f"vmstream: not put back: {printable(text)}", err=True)

    with progress_bar("capturing") as progress:
        report, code = capture(options, progress, tell)
    if manifest is not None:
        write_text(manifest, dumps(report) + "\n", force=force)
    if as_json:
        click.echo(dumps(report))
    else:
        from vmstream.report.render import console, render_capture

        render_capture(report, console(sys.stderr) if to_pipe else None)
    for anomaly in (a for a in report.anomalies if a.severity != "info"):
        click.echo(f"vmstream: {anomaly.severity}: {printable(anomaly.message)}", err=True)
    return code
