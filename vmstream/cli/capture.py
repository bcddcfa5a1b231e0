"""`vmstream capture`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from vmstream.cli.options import json_option, progress_bar
from vmstream.errors import printable
from vmstream.integrations.capture import MAX_PASSES
from vmstream.ops.encode import STANDARD_OUTPUT
from vmstream.report.jsonout import dumps

_EPILOG = """\b
Examples:
  vmstream capture --qmp /run/guest.qmp -o dump.bin
  vmstream capture --qmp guest.qmp -o dump.bin --live --verify --manifest dump.json
  vmstream capture --qmp guest.qmp -o dump.zst --zstd
  vmstream capture --qmp guest.qmp -o dump.bin --mapped-ram          QEMU 9.0 on
  vmstream capture --qmp guest.qmp -o - | ssh host 'cat > dump.bin'
  vmstream capture --libvirt guest -o guest.save

\b
The guest needs a monitor of its own for --qmp:
  qemu-system-x86_64 ... -qmp unix:/run/guest.qmp,server=on,wait=off
"""

# Options of QMP's, and why libvirt has no such thing.
_NOT_OF_LIBVIRT = {
    "-o -": "it writes a file that it seeks in",
    "--background-snapshot": "it has none for memory; --live lets the guest run",
    "--mapped-ram": "it writes that (sparse) only where the domain ends, with "
    "virsh save; 'vmstream convert --to mapped-ram' makes it of a save image",
    "--xbzrle": "it sends whole pages",
    "--zstd": "snapshot_image_format in /etc/libvirt/qemu.conf has it compress; or "
    "'vmstream convert' the image",
    "--live --stop": "it lets the guest run on at the end; leave out --live, or virsh suspend",
}


@click.command(epilog=_EPILOG)
@click.option(
    "--qmp",
    type=click.Path(path_type=Path),
    metavar="SOCKET",
    help="The unix socket of a QMP monitor of the guest.",
)
@click.option(
    "--libvirt", "domain", metavar="DOMAIN",
    help="A domain of libvirt instead, by name, UUID or id: writes a save image.",
)  # fmt: skip
@click.option(
    "--connect", metavar="URI", help="With --libvirt: the connection, as that of virsh -c."
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
    qmp: Path | None,
    domain: str | None,
    connect: str | None,
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
    also when the capture is interrupted or killed, or the disk is full.

    With --libvirt, libvirt writes the image that virsh save does, but the domain does not end.
    """
    to_pipe = output == STANDARD_OUTPUT
    if (qmp is None) == (domain is None):
        raise click.UsageError("give one of --qmp SOCKET and --libvirt DOMAIN")
    if connect is not None and domain is None:
        raise click.UsageError("--connect is for --libvirt")
    if domain is not None:
        asked = {
            "-o -": to_pipe, "--background-snapshot": mode == "background-snapshot",
            "--mapped-ram": mapped_ram, "--xbzrle": xbzrle, "--zstd": zstd,
            "--live --stop": mode == "live" and not resume,
        }  # fmt: skip
        for option in (option for option, given in asked.items() if given):
            raise click.UsageError(f"{option} is not for --libvirt: {_NOT_OF_LIBVIRT[option]}")
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
    digest = as_json or manifest is not None

    def tell(text: str) -> None:
        click.echo(f"vmstream: not put back: {printable(text)}", err=True)

    with progress_bar("capturing") as progress:
        if qmp is not None:
            from vmstream.integrations.capture import CaptureOptions, capture

            report, code = capture(
                CaptureOptions(
                    qmp, output, mode, not resume, mapped_ram, xbzrle, zstd, passes, verify,
                    digest, force,
                ), progress, tell,
            )  # fmt: skip
        else:
            from vmstream.integrations.libvirt import DomainOptions, capture_domain

            report, code = capture_domain(
                DomainOptions(
                    str(domain), output, connect, mode == "live", not resume, passes, verify,
                    digest, force,
                ), progress, tell,
            )  # fmt: skip
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
