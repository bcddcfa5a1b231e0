"""The `vmstream` command: its subcommands, loaded when used, and what errors become."""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys

import click

from vmstream.errors import EXIT_OS, VmstreamError, printable
from vmstream.version import __version__

# Name: (module, attribute, one line of help). Importing a command costs numpy and construct,
# so help alone must not.
_COMMANDS = {
    "inspect": ("vmstream.cli.inspect", "command", "Account for a stream on one screen."),
    "records": ("vmstream.cli.records", "command", "List every item on the wire, in order."),
    "extract-ram": ("vmstream.cli.extract_ram", "command", "Rebuild guest RAM from a stream."),
    "extract-block": (
        "vmstream.cli.extract_block",
        "command",
        "Write the disks of a block migration.",
    ),
    "verify": ("vmstream.cli.verify", "command", "Hold a stream against the rules of the loader."),
    "check": ("vmstream.cli.check", "command", "Say whether a destination will load a stream."),
    "diagnose": ("vmstream.cli.diagnose", "command", "Explain why a QEMU did not load a stream."),
    "rewrite": ("vmstream.cli.rewrite", "command", "Write a stream anew with edits."),
    "convert": (
        "vmstream.cli.convert",
        "command",
        "Write a stream as another kind of file: plain, mapped-ram, a save image of libvirt.",
    ),
    "unpack": ("vmstream.cli.unpack", "command", "Write a stream as files to edit."),
    "build": ("vmstream.cli.build", "command", "Make a stream of such files."),
    "devices": ("vmstream.cli.devices", "command", "Show device state by name."),
    "get": ("vmstream.cli.get", "command", "Print one value of device state, or several."),
    "cpus": ("vmstream.cli.cpus", "command", "Show the registers of each CPU."),
    "cmdline": ("vmstream.cli.cmdline", "command", "Write the QEMU command line it needs."),
    "hexdump": ("vmstream.cli.hexdump", "command", "Show guest memory at an address."),
    "search": ("vmstream.cli.search", "command", "Find text or bytes in guest memory."),
    "diff": ("vmstream.cli.diff", "command", "Compare two streams, or a stream with an image."),
    "history": (
        "vmstream.cli.history",
        "command",
        "Tell how RAM was sent: passes, pages sent again, and what they were before.",
    ),
    "stats": (
        "vmstream.cli.stats",
        "command",
        "Tell what pages have, and what another encoding would have saved.",
    ),
    "heatmap": ("vmstream.cli.heatmap", "command", "Draw RAM as a picture: what of it was sent."),
    "report": (
        "vmstream.cli.report",
        "command",
        "Write a page of HTML to look at a stream in a browser.",
    ),
    "vmcoreinfo": ("vmstream.cli.vmcoreinfo", "command", "Print the VMCOREINFO of a Linux guest."),
    "banner": ("vmstream.cli.banner", "command", "Print the banner of the guest's Linux kernel."),
    "xml": ("vmstream.cli.xml", "command", "Write the domain XML of a libvirt save image."),
    "capture": (
        "vmstream.cli.capture",
        "command",
        "Have a running QEMU write its stream, over QMP.",
    ),
    "receive": (
        "vmstream.cli.receive",
        "command",
        "Be the destination of a migration, and record it.",
    ),
    "snapshots": ("vmstream.cli.snapshots", "command", "List the savevm snapshots of a qcow2."),
}

_CLOSED_PIPE = 141  # what a shell reports for SIGPIPE
_INTERRUPTED = 130

_EPILOG = """\b
Capture a stream:
  QMP   {"execute": "migrate", "arguments": {"uri": "exec:cat>dump.bin"}}
  HMP   migrate "exec:cat>dump.bin"

\b
Examples:
  vmstream inspect dump.bin
  vmstream extract-ram dump.bin -o ram.raw
  cat dump.bin | vmstream records - | head

\b
Exit status: 0 done, 1 done with findings, 2 usage, 3 the stream is truncated or damaged,
4 not supported, 5 a memory limit, 6 an error of the operating system; 7 of verify: only cut off.
"""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute, _ = _COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in _COMMANDS.items()])


@click.group(
    cls=_Commands, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, prog_name="vmstream")
def cli() -> None:
    """Read QEMU migration streams: account for them, and rebuild guest RAM from them."""


# End by an exception, so that unfinished outputs are removed.
def _terminate(signum: int, _frame: object) -> None:
    raise SystemExit(128 + signum)


def main(args: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    signal.signal(signal.SIGTERM, _terminate)
    if sys.stdout is None:
        sys.stdout = io.StringIO()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = _run(sys.argv[1:] if args is None else args)
        sys.stdout.flush()
    except BrokenPipeError:
        status = _CLOSED_PIPE
    except OSError as exc:
        name = f"{os.fsdecode(exc.filename)}: " if exc.filename else ""
        _tell(f"{name}{exc.strerror or exc}")
        status = EXIT_OS
    else:
        return status
    # The interpreter flushes at exit, and would tell of what failed once more.
    sys.stdout = io.StringIO()
    return status


# Not click's own main(), which turns a closed pipe into status 1.
def _run(args: list[str]) -> int:
    try:
        with cli.make_context("vmstream", list(args)) as context:
            status = cli.invoke(context)
    except click.exceptions.Exit as exc:
        return exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _INTERRUPTED
    except click.ClickException as exc:
        exc.show()
        return exc.exit_code
    except VmstreamError as exc:
        _tell(str(exc))
        return exc.exit_code
    return status if isinstance(status, int) else 0


def _tell(message: str) -> None:
    click.echo(f"vmstream: {printable(message)}", err=True)
