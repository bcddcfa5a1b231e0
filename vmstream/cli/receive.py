"""`vmstream receive`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from vmstream.cli.options import json_option, progress_bar
from vmstream.errors import printable
from vmstream.ops.receive import ReceiveOptions, receive
from vmstream.report.jsonout import dumps

_EPILOG = """\b
Examples:
  vmstream receive --listen unix:/run/mig.sock -o rec/
  vmstream receive --listen tcp:127.0.0.1:4444 -o rec/ --timeout 60
  vmstream receive --listen tcp:127.0.0.1:0 -o rec/    a free port

\b
At the source:
  (qemu) migrate -d unix:/run/mig.sock
"""


@click.command(epilog=_EPILOG)
@click.option(
    "--listen",
    required=True,
    metavar="ADDRESS",
    help="Where to wait: unix:PATH or tcp:HOST:PORT, as QEMU writes it.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Directory for the channels: main.bin, ch0.bin and so on.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Give up when nothing comes for so long (default: never).",
)
@click.option(
    "--switchover-ack", is_flag=True, help="The source, QEMU 8.1 to 11.0, has this capability."
)
@click.option("--allow-remote", is_flag=True, help="Listen elsewhere than on loopback.")
@click.option("--force", is_flag=True, help="DIR may have something in it.")
@json_option
def command(
    listen: str,
    output: Path,
    timeout: float | None,
    switchover_ack: bool,
    allow_remote: bool,
    force: bool,
    as_json: bool,
) -> int:
    """Be the destination of a migration: record its channels, answer the source, verify them.

    When a source can connect, stderr says so: "listening on ADDRESS", with the port that it got.
    The guest is never run. At the source the migration completes, and the guest is stopped there.
    """
    options = ReceiveOptions(listen, output, timeout, allow_remote, force, switchover_ack)
    with progress_bar("receiving") as progress:
        report, code = receive(options, progress, _listening)
    if as_json:
        click.echo(dumps(report))
    else:
        from vmstream.report.render import render_receive

        render_receive(report)
    for anomaly in (a for a in report.anomalies if a.severity != "info"):
        click.echo(f"vmstream: {anomaly.severity}: {printable(anomaly.message)}", err=True)
    return code


def _listening(address: str) -> None:
    # As rich has replaced it, which puts the line above the bar.
    click.echo(f"listening on {printable(address)}", file=sys.stderr)
