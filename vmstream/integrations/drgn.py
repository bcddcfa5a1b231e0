"""A `drgn.Program` over a stream, with no file in between."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmstream.errors import OutputError
from vmstream.guest.imagefile import plan
from vmstream.guest.notes import architecture, cpu_notes
from vmstream.ops.kernel import vmcoreinfo
from vmstream.ops.memory import GuestMemory
from vmstream.ops.stream import Stream
from vmstream.transport.spool import in_memory

if TYPE_CHECKING:
    from drgn import Program


def program(stream: Stream, memory: GuestMemory | None = None) -> Program:
    """Make a program of the Linux kernel of the guest.

    drgn gets what an extracted ELF core has in front of memory: the registers of each CPU and
    VMCOREINFO. Memory is read from the stream when drgn asks for it. Debug information is for the
    caller to load, as in any program of drgn's.

    Args:
        stream: Open, and kept open as long as the program is used; a file, not a pipe.
        memory: Of this stream, if it was asked for already.

    Raises:
        OutputError: drgn is not installed, memory has no VMCOREINFO, or the stream does not tell
            the layout.
        StreamError: As of `Stream.memory` and `Stream.devices`.

    Example:
        >>> with vmstream.open("dump.bin") as stream:
        ...     prog = vmstream.integrations.drgn.program(stream)
        ...     prog.load_debug_info(["vmlinux"])
        ...     print(prog["init_uts_ns"].name.release)
    """
    try:
        import drgn
    except ImportError as error:
        raise OutputError("drgn is not installed: pip install 'vmstream[drgn]' adds it") from error
    tree = stream.devices()
    held = stream.memory() if memory is None else memory
    found = vmcoreinfo(held, tree)
    if found.best is None:
        raise OutputError(f"no Linux kernel that drgn could open: {'; '.join(found.reasons)}")
    core = plan("elf", held.map, [*cpu_notes(tree), found.best.note], architecture(tree))
    made = drgn.Program()
    with in_memory(core.heads, core.size) as path:
        made.set_core_dump(path)

    def read(address: int, count: int, offset: int, physical: bool) -> bytes:
        return held.read(address, count)

    # What is given last counts: these lie over the segments of the core, which is empty.
    for region in held.map.regions:
        made.add_memory_segment(region.gpa, region.length, read, physical=True)
    return made
