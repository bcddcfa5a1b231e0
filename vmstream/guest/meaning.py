"""What some bytes of device state mean, in words: an inference from their names and types."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from vmstream.guest import pci
from vmstream.guest.devices import Node

_NOT_ARMED = (1 << 64) - 1
# Of a MC146818: seconds, minutes, hours, day, month, year, register B, century.
_CLOCK = (0, 2, 4, 7, 8, 9)
_REGISTER_B, _CENTURY = 11, 0x32
_BINARY, _HOURS_24, _PM = 0x04, 0x02, 0x80


def meaning(node: Node) -> str | None:
    """Return what a value stands for, if that is known."""
    device = node.path.partition("[")[0]
    find = _OF_TYPE.get(node.type) or _OF_DEVICE.get((device, node.name)) or _OF_NAME.get(node.name)
    return (find(node) if find is not None else None) or node.said


def _timer(node: Node) -> str | None:
    return "not armed" if node.value == _NOT_ARMED else None


def _pci(node: Node) -> str | None:
    return pci.said(node.raw)


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


def _bits(words: Iterable[object], first: int = 0, size: int = 32) -> list[int]:
    return [
        first + size * n + bit
        for n, word in enumerate(words)
        for bit in range(size)
        if isinstance(word, int) and word >> bit & 1
    ]


# Bits of eight words, as numbers of vectors. Intel SDM 3A, section 10.8.4.
def _vectors(node: Node) -> str | None:
    words = [c.value for c in node.children]
    if len(words) != 8:
        return None
    set_ = _bits(words)
    return "vectors " + " ".join(f"{v:#x}" for v in set_) if set_ else "none"


# Intel SDM 3A, section 10.5.1: the order is QEMU's (hw/intc/apic_internal.h APIC_LVT_*).
_LVT = ("timer", "thermal", "perfmon", "LINT0", "LINT1", "error")
_DELIVERY = ("fixed", "lowest", "SMI", "3", "NMI", "INIT", "6", "ExtINT")
_MASKED = 1 << 16


def _lvt(node: Node) -> str | None:
    words = [c.value for c in node.children]
    if len(words) != len(_LVT):
        return None
    return ", ".join(
        f"{name} {_DELIVERY[word >> 8 & 7]} {word & 0xFF:#x}{' masked' if word & _MASKED else ''}"
        for name, word in zip(_LVT, words, strict=True)
        if isinstance(word, int)
    )


def _apic_base(node: Node) -> str | None:
    value = node.value
    if not isinstance(value, int):
        return None
    words = [f"base {value & ~0xFFF:#x}"]
    words += [
        name for bit, name in ((8, "BSP"), (10, "x2APIC"), (11, "enabled")) if value >> bit & 1
    ]
    return ", ".join(words)


# Redirection entries that are not masked. Intel 82093AA, section 3.2.4.
_LOGICAL, _LOW, _LEVEL = 1 << 11, 1 << 13, 1 << 15


def _redirection(node: Node) -> str | None:
    words = []
    for pin, child in enumerate(node.children):
        entry = child.value
        if not isinstance(entry, int):
            return None
        if not entry & _MASKED:
            words.append(
                f"pin {pin} {_DELIVERY[entry >> 8 & 7]} {entry & 0xFF:#x} to "
                f"{'logical' if entry & _LOGICAL else 'APIC'} {entry >> 56:#x}"
                f"{' low' if entry & _LOW else ''}{' level' if entry & _LEVEL else ''}"
            )
    return ", ".join(words) or "all masked"


# Of the second i8259 the numbers go on.
def _irqs(node: Node) -> str | None:
    second = node.path.startswith("i8259[1]")
    set_ = _bits([node.value], 8 if second else 0, 8)
    return "IRQ " + " ".join(map(str, set_)) if set_ else "none"


_OF_TYPE: dict[str, Callable[[Node], str | None]] = {"timer": _timer, "pci config": _pci}
_OF_NAME: dict[str, Callable[[Node], str | None]] = {"runstate": _text, "cmos_data": _rtc}
# Fields of one device, by the name of its section.
_OF_DEVICE: dict[tuple[str, str], Callable[[Node], str | None]] = {
    ("apic", "apicbase"): _apic_base,
    ("apic", "lvt"): _lvt,
    **{("apic", name): _vectors for name in ("isr", "irr", "tmr")},
    ("ioapic", "ioredtbl"): _redirection,
    **{("i8259", name): _irqs for name in ("irr", "imr", "isr", "elcr")},
}
