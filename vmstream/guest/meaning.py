"""What some bytes of device state mean, in words: an inference from their names and types."""

from __future__ import annotations

from collections.abc import Callable

from vmstream.guest.devices import Node

_NOT_ARMED = (1 << 64) - 1
_PCI_HEADER = 64
# PCI Local Bus Specification 3.0, section 6.2.
_COMMAND_BITS = {0: "io", 1: "memory", 2: "bus-master", 10: "intx-off"}
_BRIDGE = 1
_BAR_IO, _BAR_64 = 1, 0x6
# Of a MC146818: seconds, minutes, hours, day, month, year, register B, century.
_CLOCK = (0, 2, 4, 7, 8, 9)
_REGISTER_B, _CENTURY = 11, 0x32
_BINARY, _HOURS_24, _PM = 0x04, 0x02, 0x80


def meaning(node: Node) -> str | None:
    """Return what a value stands for, if that is known."""
    find = _OF_TYPE.get(node.type) or _OF_NAME.get(node.name)
    return (find(node) if find is not None else None) or node.said


def _timer(node: Node) -> str | None:
    return "not armed" if node.value == _NOT_ARMED else None


def _pci(node: Node) -> str | None:
    data = node.raw
    if len(data) < _PCI_HEADER:
        return None

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], "little")

    command = number(4, 2)
    words = [f"{number(0, 2):04x}:{number(2, 2):04x}", f"class {number(10, 2):04x}",
             f"revision {data[8]:02x}"]  # fmt: skip
    words += [name for bit, name in _COMMAND_BITS.items() if command >> bit & 1]
    bars = 2 if data[14] & 0x7F == _BRIDGE else 6
    n = 0
    while n < bars:
        bar = number(16 + 4 * n, 4)
        if bar & _BAR_IO:
            words.append(f"BAR{n} io {bar & ~3:#x}")
        elif bar & _BAR_64 == 4 and n + 1 < bars:
            words.append(f"BAR{n} {number(16 + 4 * n, 8) & ~0xF:#x}")
            n += 1
        elif bar:
            words.append(f"BAR{n} {bar & ~0xF:#x}")
        n += 1
    return ", ".join(words)


def _text(node: Node) -> str | None:
    text = node.raw.rstrip(b"\0")
    return text.decode() if text and text.isascii() and text.decode().isprintable() else None


def _rtc(node: Node) -> str | None:
    data = bytes(c.value for c in node.children if isinstance(c.value, int)) or node.raw
    if len(data) <= _CENTURY:
        return None
    mode = data[_REGISTER_B]
    hour = data[4]
    values = [hour & ~_PM if at == 4 and not mode & _HOURS_24 else data[at] for at in _CLOCK]
    values.append(data[_CENTURY])
    if not mode & _BINARY:
        values = [v // 16 * 10 + v % 16 for v in values]
    second, minute, hours, day, month, year, century = values
    if not mode & _HOURS_24:
        hours = hours % 12 + (12 if hour & _PM else 0)
    if not (second < 60 and minute < 60 and hours < 24 and 0 < day < 32 and 0 < month < 13):
        return None
    return f"{100 * century + year:04}-{month:02}-{day:02} {hours:02}:{minute:02}:{second:02}"


# Bits of eight words, as numbers of vectors. Intel SDM 3A, section 10.8.4.
def _vectors(node: Node) -> str | None:
    words = [c.value for c in node.children]
    if not node.path.startswith("apic[") or len(words) != 8:
        return None
    set_ = [
        32 * n + bit
        for n, word in enumerate(words)
        for bit in range(32)
        if isinstance(word, int) and word >> bit & 1
    ]
    return "vectors " + " ".join(f"{v:#x}" for v in set_) if set_ else "none"


# Intel SDM 3A, section 10.5.1: the order is QEMU's (hw/intc/apic_internal.h APIC_LVT_*).
_LVT = ("timer", "thermal", "perfmon", "LINT0", "LINT1", "error")
_DELIVERY = ("fixed", "lowest", "SMI", "3", "NMI", "INIT", "6", "ExtINT")
_MASKED = 1 << 16


def _lvt(node: Node) -> str | None:
    words = [c.value for c in node.children]
    if not node.path.startswith("apic[") or len(words) != len(_LVT):
        return None
    return ", ".join(
        f"{name} {_DELIVERY[word >> 8 & 7]} {word & 0xFF:#x}{' masked' if word & _MASKED else ''}"
        for name, word in zip(_LVT, words, strict=True)
        if isinstance(word, int)
    )


def _apic_base(node: Node) -> str | None:
    value = node.value
    if not node.path.startswith("apic[") or not isinstance(value, int):
        return None
    words = [f"base {value & ~0xFFF:#x}"]
    words += [
        name for bit, name in ((8, "BSP"), (10, "x2APIC"), (11, "enabled")) if value >> bit & 1
    ]
    return ", ".join(words)


_OF_TYPE: dict[str, Callable[[Node], str | None]] = {"timer": _timer, "pci config": _pci}
_OF_NAME: dict[str, Callable[[Node], str | None]] = {
    "runstate": _text,
    "cmos_data": _rtc,
    "apicbase": _apic_base,
    "lvt": _lvt,
    "isr": _vectors,
    "irr": _vectors,
    "tmr": _vectors,
}
