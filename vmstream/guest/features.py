"""Names of the bits and numbers of virtio: devices, status, features. VIRTIO 1.2."""

from __future__ import annotations

from collections.abc import Mapping

# Section 5: device types.
DEVICE_TYPES = {
    1: "net", 2: "block", 3: "console", 4: "entropy", 5: "balloon", 8: "scsi", 9: "9p", 16: "gpu",
    18: "input", 19: "vsock", 20: "crypto", 23: "iommu", 24: "mem", 25: "sound", 26: "fs",
    27: "pmem", 34: "scmi", 36: "i2c", 41: "gpio",
}  # fmt: skip
# The names that QEMU gives sections, as far as they are not 'virtio-' and the type.
KINDS = {f"virtio-{kind}": kind for kind in DEVICE_TYPES.values()} | {
    "virtio-blk": "block", "virtio-rng": "entropy", "virtio-9p-device": "9p",
    "virtio-serial": "console", "virtio-snd": "sound", "vhost-vsock": "vsock",
    "virtio-input-hid": "input",
}  # fmt: skip

# Section 2.1.
STATUS = {0: "ACKNOWLEDGE", 1: "DRIVER", 2: "DRIVER_OK", 3: "FEATURES_OK", 6: "NEEDS_RESET",
          7: "FAILED"}  # fmt: skip

# Section 6, and those of a transport or of before VIRTIO 1.0.
_TRANSPORT = {
    24: "NOTIFY_ON_EMPTY", 27: "ANY_LAYOUT", 28: "RING_INDIRECT_DESC", 29: "RING_EVENT_IDX",
    30: "BAD_FEATURE", 32: "VERSION_1", 33: "ACCESS_PLATFORM", 34: "RING_PACKED", 35: "IN_ORDER",
    36: "ORDER_PLATFORM", 37: "SR_IOV", 38: "NOTIFICATION_DATA", 39: "NOTIF_CONFIG_DATA",
    40: "RING_RESET", 41: "ADMIN_VQ",
}  # fmt: skip

_DEVICE = {
    "net": {
        0: "CSUM", 1: "GUEST_CSUM", 2: "CTRL_GUEST_OFFLOADS", 3: "MTU", 5: "MAC", 6: "GSO",
        7: "GUEST_TSO4", 8: "GUEST_TSO6", 9: "GUEST_ECN", 10: "GUEST_UFO", 11: "HOST_TSO4",
        12: "HOST_TSO6", 13: "HOST_ECN", 14: "HOST_UFO", 15: "MRG_RXBUF", 16: "STATUS",
        17: "CTRL_VQ", 18: "CTRL_RX", 19: "CTRL_VLAN", 20: "CTRL_RX_EXTRA", 21: "GUEST_ANNOUNCE",
        22: "MQ", 23: "CTRL_MAC_ADDR", 53: "VQ_NOTF_COAL", 54: "GUEST_USO4", 55: "GUEST_USO6",
        56: "HOST_USO", 57: "HASH_REPORT", 59: "GUEST_HDRLEN", 60: "RSS", 61: "RSC_EXT",
        62: "STANDBY", 63: "SPEED_DUPLEX",
    },
    "block": {
        0: "BARRIER", 1: "SIZE_MAX", 2: "SEG_MAX", 4: "GEOMETRY", 5: "RO", 6: "BLK_SIZE",
        7: "SCSI", 9: "FLUSH", 10: "TOPOLOGY", 11: "CONFIG_WCE", 12: "MQ", 13: "DISCARD",
        14: "WRITE_ZEROES", 15: "LIFETIME", 16: "SECURE_ERASE", 17: "ZONED",
    },
    "console": {0: "SIZE", 1: "MULTIPORT", 2: "EMERG_WRITE"},
    "balloon": {
        0: "MUST_TELL_HOST", 1: "STATS_VQ", 2: "DEFLATE_ON_OOM", 3: "FREE_PAGE_HINT",
        4: "PAGE_POISON", 5: "PAGE_REPORTING",
    },
    "scsi": {0: "INOUT", 1: "HOTPLUG", 2: "CHANGE", 3: "T10_PI"},
    "9p": {0: "MOUNT_TAG"},
    "gpu": {0: "VIRGL", 1: "EDID", 2: "RESOURCE_UUID", 3: "RESOURCE_BLOB", 4: "CONTEXT_INIT"},
    "vsock": {0: "STREAM", 1: "SEQPACKET", 2: "NO_IMPLIED_STREAM"},
    "crypto": {
        0: "REVISION_1", 1: "CIPHER_STATELESS_MODE", 2: "HASH_STATELESS_MODE",
        3: "MAC_STATELESS_MODE", 4: "AEAD_STATELESS_MODE", 5: "AKCIPHER_STATELESS_MODE",
    },
    "iommu": {
        0: "INPUT_RANGE", 1: "DOMAIN_RANGE", 2: "MAP_UNMAP", 3: "BYPASS", 4: "PROBE", 5: "MMIO",
        6: "BYPASS_CONFIG",
    },
    "mem": {0: "ACPI_PXM", 1: "UNPLUGGED_INACCESSIBLE", 2: "PERSISTENT_SUSPEND"},
    "fs": {0: "NOTIFICATION"},
    "pmem": {0: "SHMEM_REGION"},
}  # fmt: skip


def bit_names(value: int, names: Mapping[int, str]) -> str:
    """Name the bits that are set, lowest first, joined by '|'; one without a name by its number."""
    bits = (bit for bit in range(value.bit_length()) if value >> bit & 1)
    return "|".join(names.get(bit, f"bit{bit}") for bit in bits)


def features_said(kind: str, value: int) -> str:
    """Name the features of a device of a kind (as in `DEVICE_TYPES`), 'none' if there are none."""
    return bit_names(value, _TRANSPORT | _DEVICE.get(kind, {})) or "none"
