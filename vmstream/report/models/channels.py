"""JSON contract: channels of multifd and postcopy-preempt."""

from __future__ import annotations

from dataclasses import dataclass, field

from vmstream.report.models.pages import PageCounts


@dataclass(frozen=True, slots=True)
class DeviceStateReport:
    """Device state that travelled in multifd channels.

    Attributes:
        idstr: Name of the device.
        instance_id: Instance.
        packets: How many.
        size: Bytes of state, summed.
        idstr_b64: The name in full, if it is not plain UTF-8.
    """

    idstr: str
    instance_id: int
    packets: int
    size: int
    idstr_b64: str | None = None


@dataclass(frozen=True, slots=True)
class ChannelReport:
    """A channel beside the main one.

    Attributes:
        name: Its file.
        kind: 'multifd' or 'preempt'.
        channel_id: Number that a multifd channel states.
        size: Bytes of the channel that were read.
        packets: Of multifd, how many.
        syncs: How many of those end a generation.
        compression: Of multifd: 'none', 'zlib', 'zstd', 'qpl', 'uadk' or 'qatzip'; more than one
            if the packets disagree.
        pages: Pages on the channel, by kind; 'compressed' those in compressed packets.
        device_states: The first 1000 devices with state on the channel.
    """

    name: str
    kind: str
    channel_id: int | None
    size: int
    packets: int
    syncs: int
    compression: list[str]
    pages: PageCounts
    device_states: list[DeviceStateReport] = field(default_factory=list)
