"""`vmstream hexdump`."""

from __future__ import annotations

from collections.abc import Callable

import click

from vmstream.cli.options import (
    byte_size,
    memory_options,
    memory_status,
    open_memory,
    open_virtual,
    stream_argument,
)

_EPILOG = """\b
Examples:
  vmstream hexdump dump.bin --phys 0x7c00 -n 512
  vmstream hexdump dump.bin --block pc.bios --offset 0x3fff0 -n 16
  vmstream hexdump dump.bin --virt 0xffffffff81000000 --cpu 1
  vmstream hexdump dump.bin --phys 1M -n 4M --raw | strings
"""

# Bytes that are read and shown at a time.
_STEP = 64 << 10


@click.command("hexdump", epilog=_EPILOG)
@stream_argument
@click.option("--phys", type=byte_size, metavar="ADDR", help="Guest-physical address to start at.")
@click.option(
    "--virt",
    type=byte_size,
    metavar="ADDR",
    help="Virtual address to start at, by the page tables of a CPU (x86, aarch64).",
)
@click.option("--cpu", type=click.IntRange(0), default=0, metavar="N", help="That CPU (default 0).")
@click.option("--block", metavar="IDSTR", help="Show this block instead of physical memory.")
@click.option(
    "--offset",
    type=byte_size,
    metavar="OFFSET",
    help="Offset in the block to start at (default 0).",
)
@click.option(
    "-n", "--length", type=byte_size, default="256", metavar="N", help="Bytes (default 256)."
)
@click.option(
    "--fill",
    type=click.IntRange(0, 255),
    metavar="BYTE",
    help="Show this byte where the guest has no RAM, which is an error otherwise.",
)
@click.option("--raw", is_flag=True, help="Write the bytes themselves.")
@memory_options
def command(
    stream: str,
    phys: int | None,
    virt: int | None,
    cpu: int,
    block: str | None,
    offset: int | None,
    length: int,
    fill: int | None,
    raw: bool,
    **options: object,
) -> int:
    """Show guest memory at an address, without extracting it.

    Addresses are guest-physical, with --virt virtual, and with --block offsets in the block. The
    stream is read once, to find the last version of each page.

    STREAM is a file, or - for standard input with --spool.
    """
    given = [at for at in (phys, virt, block) if at is not None]
    if len(given) != 1 or (offset is not None and block is None):
        raise click.UsageError(
            "give one of --phys ADDR, --virt ADDR, or --block IDSTR with --offset OFFSET"
        )
    if fill is not None and block is not None:
        raise click.UsageError("--fill is for physical memory")
    from vmstream.report.hexdump import hexdump

    with open_memory(stream, options) as memory:
        at = phys or virt or offset or 0
        read: Callable[..., bytes] = memory.read
        if virt is not None:
            read = open_virtual(stream, options, cpu, memory).read
        if block is not None:
            memory.check_block(memory.block_index(block), at, length)
        for begin in range(at, at + length, _STEP):
            count = min(_STEP, at + length - begin)
            data = (
                read(begin, count, fill=fill)
                if block is None
                else memory.read_block(block, begin, count)
            )
            if raw:
                click.echo(data, nl=False)
            else:
                click.echo("\n".join(hexdump(data, begin)))
        return memory_status(memory, physical=block is None)
