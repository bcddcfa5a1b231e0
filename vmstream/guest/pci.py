"""Configuration space of a PCI device, in words. PCI Local Bus Specification 3.0, chapter 6."""

from __future__ import annotations

from collections.abc import Iterator

HEADER = 64
EXPRESS, SLOT_ID, MSIX = 0x10, 0x04, 0x11
# PCI Code and ID Assignment Specification 1.11, chapter 2.
_NAMES = {0x01: "PM", 0x03: "VPD", SLOT_ID: "slot id", 0x05: "MSI", 0x07: "PCI-X", 0x09: "vendor",
          0x0A: "debug port", 0x0C: "hot-plug", 0x0D: "subsystem", EXPRESS: "PCIe", MSIX: "MSI-X",
          0x12: "SATA", 0x13: "AF"}  # fmt: skip
_COMMAND_BITS = {0: "io", 1: "memory", 2: "bus-master", 10: "intx-off"}
_HEADER_TYPE, _CAPABILITIES = 0x0E, 0x34
_BRIDGE = 1
_BAR_IO, _BAR_64 = 1, 0x6
_MSI, _PM = 0x05, 0x01
_MOST = 48  # capabilities that a space of 256 bytes has room for


def number(config: bytes, at: int, size: int = 2) -> int:
    """Return a little-endian number; 0 behind the end."""
    return int.from_bytes(config[at : at + size], "little")


def capabilities(config: bytes, wanted: int | None = None) -> Iterator[int]:
    """Yield where capabilities stand, in the order of their list, each once.

    Args:
        config: Configuration space, 256 bytes or more.
        wanted: Their id, if not all are asked for.
    """
    at, seen = number(config, _CAPABILITIES, 1) & ~3, set[int]()
    while HEADER <= at < 0x100 and at + 4 <= len(config) and at not in seen and len(seen) < _MOST:
        seen.add(at)
        if wanted is None or config[at] == wanted:
            yield at
        at = config[at + 1] & ~3


def said(config: bytes) -> str | None:
    """Return what a configuration space says in words, `None` if it is too short."""
    if len(config) < HEADER:
        return None
    words = [f"{number(config, 0):04x}:{number(config, 2):04x}",
             f"class {number(config, 10):04x}", f"revision {config[8]:02x}"]  # fmt: skip
    command = number(config, 4)
    words += [name for bit, name in _COMMAND_BITS.items() if command >> bit & 1]
    bridge = config[_HEADER_TYPE] & 0x7F == _BRIDGE
    if bridge:
        primary, secondary, subordinate = config[0x18:0x1B]
        words.append(f"bus {primary}, secondary {secondary} to {subordinate}")
    words += _bars(config, 2 if bridge else 6)
    words += [_capability(config, at) for at in capabilities(config)]
    return ", ".join(words)


def _bars(config: bytes, count: int) -> Iterator[str]:
    n = 0
    while n < count:
        at, bar = 16 + 4 * n, number(config, 16 + 4 * n, 4)
        if bar & _BAR_IO:
            yield f"BAR{n} io {bar & ~3:#x}"
        elif bar & _BAR_64 == 4 and n + 1 < count:
            yield f"BAR{n} {number(config, at, 8) & ~0xF:#x}"
            n += 1
        elif bar:
            yield f"BAR{n} {bar & ~0xF:#x}"
        n += 1


# Where interrupts go and power is told, too; of others the name and place.
def _capability(config: bytes, at: int) -> str:
    kind, control = config[at], number(config, at + 2)
    text = f"{_NAMES.get(kind, f'capability {kind:#04x}')} at {at:#x}"
    if kind == _MSI:
        return f"{text} {'on' if control & 1 else 'off'}" + _msi(config, at, control)
    if kind == MSIX:
        state = "masked" if control >> 14 & 1 else "on"
        return f"{text} {state if control >> 15 else 'off'} ({(control & 0x7FF) + 1} vectors)"
    if kind == _PM:
        return f"{text} D{number(config, at + 4) & 3}"
    return text


def _msi(config: bytes, at: int, control: int) -> str:
    if not control & 1:
        return ""
    wide = control >> 7 & 1
    address = number(config, at + 4, 8 if wide else 4)
    return f" to {address:#x} data {number(config, at + (12 if wide else 8)):#x}"
