"""What `info registers` printed, to compare a stream with. Knows nothing of vmstream."""

from __future__ import annotations

import re


def by_cpu(text: str) -> dict[int, str]:
    """The text of each CPU, by its index."""
    parts = re.split(r"^CPU#(\d+)\s*\n", text, flags=re.MULTILINE)
    if len(parts) == 1:
        return {0: text}
    return dict(zip(map(int, parts[1::2]), parts[2::2], strict=True))


def numbers(text: str) -> dict[str, int]:
    """Every `NAME=hex`, `NAME hex` pair of a line, by the name in lower case."""
    found: dict[str, int] = {}
    for name, value in re.findall(r"([A-Za-z][\w/]*) *[= ] *([0-9a-f]{4,16})\b", text):
        found.setdefault(name.lower(), int(value, 16))
    # aarch64 has two digits.
    found |= {f"x{int(n[1:])}": v for n, v in found.items() if re.fullmatch(r"x0\d", n)}
    # ppc: four a line, named by the first.
    for first, *values in re.findall(r"^GPR(\d\d)((?: [0-9a-f]{16}){4})", text, re.MULTILINE):
        for i, value in enumerate(values[0].split()):
            found[f"gpr{int(first) + i}"] = int(value, 16)
    return found


def x86(text: str) -> dict[str, int]:
    """Registers of an x86 CPU by their names in 64 bits; segments as `cs`, `cs.base` and so on."""
    found: dict[str, int] = {}
    for name, value in re.findall(r"\b([A-Z]\w*) *=([0-9a-f]{8,16})\b", text):
        name = name.lower()
        name = {"efl": "rflags", "rfl": "rflags"}.get(name, re.sub(r"^e(?=\w\w$)", "r", name))
        found[name] = int(value, 16)
    for name, *words in re.findall(
        r"^(ES|CS|SS|DS|FS|GS|LDT|TR) *=([0-9a-f]{4}) ([0-9a-f]+) ([0-9a-f]+) ([0-9a-f]+)",
        text,
        re.MULTILINE,
    ):
        keys = (name.lower(), *(f"{name.lower()}.{part}" for part in ("base", "limit", "flags")))
        found |= {k: int(w, 16) for k, w in zip(keys, words, strict=True)}
    for name, base, limit in re.findall(
        r"^(GDT|IDT)= *([0-9a-f]+) ([0-9a-f]+)", text, re.MULTILINE
    ):
        found |= {f"{name.lower()}.base": int(base, 16), f"{name.lower()}.limit": int(limit, 16)}
    return found


def wide(text: str) -> dict[str, int]:
    """Floating-point and vector registers: fpr0, xmm00, ymm00, q00, v00, f0/ft0, fcw and so on."""
    found: dict[str, int] = {}
    for name, mantissa, exponent in re.findall(r"FPR(\d)=([0-9a-f]{16}) ([0-9a-f]{4})\b", text):
        found[f"fpr{name}"] = int(exponent + mantissa, 16)
    for name, value in re.findall(r"\b([XY]MM\d\d)=((?:[0-9a-f]{16} ?)+)", text):
        found[name.lower()] = int(value.replace(" ", ""), 16)
    for name, value in re.findall(r"\b([VQ]\d\d)=([0-9a-f]{16}:?[0-9a-f]{16})", text):
        found[name.lower()] = int(value.replace(":", ""), 16)
    for name, value in re.findall(r"\b(F[CST]W|MXCSR|FPSCR)[= ]([0-9a-f]{2,16})\b", text):
        found[name.lower()] = int(value, 16)
    for name, value in re.findall(r"\b(f\d+/f\w+) +([0-9a-f]{16})", text):
        found[name] = int(value, 16)
    for first, values in re.findall(r"^FPR(\d\d)((?: [0-9a-f]{16}){4})", text, re.MULTILINE):
        for i, value in enumerate(values.split()):
            found[f"fpr{int(first) + i}"] = int(value, 16)
    return found
