"""Read QEMU migration streams, and write them. Start with `vmstream.open(path)`.

The names below are the public interface; they are loaded when first used, since numpy and
construct take longer to import than the command line has.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from vmstream.version import __version__

if TYPE_CHECKING:
    from vmstream.errors import (
        AddressError,
        EncodeError,
        FormatError,
        IntegrityError,
        LimitError,
        OutputError,
        StreamError,
        TruncatedError,
        UnsupportedError,
        VmstreamError,
    )
    from vmstream.ops.memory import GuestMemory, MemoryFile
    from vmstream.ops.stream import Stream, open  # noqa: A004
    from vmstream.stream.encoder import Encoder
    from vmstream.stream.events import (
        Anomaly,
        ChannelEvent,
        ChannelHead,
        Command,
        Configuration,
        DeviceState,
        EndOfStream,
        Event,
        FileHeader,
        Gap,
        LiveRecord,
        MappedBlock,
        MappedPages,
        MultiFDPacket,
        Padding,
        PageBatch,
        Payload,
        RAMBlock,
        RAMBlockList,
        RAMControl,
        SectionFooter,
        SectionStart,
        VMDescription,
    )
    from vmstream.stream.writer import StreamWriter

_HOME = {
    "vmstream.errors": (
        "AddressError", "EncodeError", "FormatError", "IntegrityError", "LimitError",
        "OutputError", "StreamError", "TruncatedError", "UnsupportedError", "VmstreamError",
    ),
    "vmstream.ops.memory": ("GuestMemory", "MemoryFile"),
    "vmstream.ops.stream": ("Stream", "open"),
    "vmstream.stream.encoder": ("Encoder",),
    "vmstream.stream.events": (
        "Anomaly", "ChannelEvent", "ChannelHead", "Command", "Configuration", "DeviceState",
        "EndOfStream", "Event", "FileHeader", "Gap", "LiveRecord", "MappedBlock", "MappedPages",
        "MultiFDPacket", "Padding", "PageBatch", "Payload", "RAMBlock",
        "RAMBlockList", "RAMControl", "SectionFooter", "SectionStart", "VMDescription",
    ),
    "vmstream.stream.writer": ("StreamWriter",),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "AddressError", "Anomaly", "ChannelEvent", "ChannelHead", "Command", "Configuration",
    "DeviceState", "EncodeError", "Encoder", "EndOfStream", "Event", "FileHeader", "FormatError",
    "Gap",
    "GuestMemory", "IntegrityError", "LimitError", "LiveRecord", "MappedBlock", "MappedPages",
    "MemoryFile", "MultiFDPacket", "OutputError", "Padding", "PageBatch", "Payload", "RAMBlock",
    "RAMBlockList", "RAMControl", "SectionFooter", "SectionStart", "Stream", "StreamError",
    "StreamWriter",
    "TruncatedError", "UnsupportedError", "VMDescription", "VmstreamError", "__version__", "open",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'vmstream' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)
