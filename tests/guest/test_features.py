"""Names of virtio bits."""

from __future__ import annotations

from vmstream.guest.features import STATUS, bit_names, features_said


def test_bits() -> None:
    assert bit_names(0b1111, STATUS) == "ACKNOWLEDGE|DRIVER|DRIVER_OK|FEATURES_OK"
    assert bit_names(0x30, STATUS) == "bit4|bit5"
    assert bit_names(0, STATUS) == ""


def test_features() -> None:
    assert features_said("block", 1 << 32 | 0x44) == "SEG_MAX|BLK_SIZE|VERSION_1"
    assert features_said("net", 1 << 5 | 1 << 29) == "MAC|RING_EVENT_IDX"
    assert features_said("", 1 << 5 | 1 << 28) == "bit5|RING_INDIRECT_DESC"
    assert features_said("net", 0) == "none"
