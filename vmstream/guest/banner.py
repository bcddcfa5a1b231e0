"""The banner of a Linux kernel in memory: the line that its log starts with. Inference."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vmstream.guest.vmcoreinfo import Stretch

START = b"Linux version "

# Linux init/version.c linux_banner: release, who built it and with what, version. Format strings
# have a '%' for the release. Bytes of a line that are looked at, and lines that are kept.
_BANNER = re.compile(rb"Linux version ([0-9]+\.[!-$&-~]{1,64}) \([ -~]{1,700} #[0-9][ -~]{1,200}")
_LONGEST = 1024
_MOST_FOUND = 256


@dataclass(frozen=True, slots=True)
class Banner:
    """A banner in memory.

    Attributes:
        text: The line.
        release: Of the kernel.
        gpa: Guest-physical address of the first of them; `None` if it is not known.
        count: How often it stands in memory.
        whole: It ends in a newline and NUL, as in the kernel's image.
    """

    text: str
    release: str
    gpa: int | None
    count: int = 1
    whole: bool = False


class Banners:
    """Fold over the places where a banner may start."""

    def __init__(self) -> None:
        self._found: dict[str, Banner] = {}

    def add(self, stretch: Stretch, at: int) -> None:
        """Look at one place."""
        buffer = bytearray(min(stretch.length - at, _LONGEST))
        stretch.read_into(at, memoryview(buffer))
        match = _BANNER.match(bytes(buffer))
        if match is None:
            return
        text, whole = match[0].decode(), buffer[match.end() : match.end() + 2] == b"\n\0"
        old = self._found.get(text)
        if old is not None:
            self._found[text] = replace(old, count=old.count + 1, whole=old.whole or whole)
        elif len(self._found) < _MOST_FOUND:
            release = match[1].decode()
            self._found[text] = Banner(text, release, stretch.address(at), 1, whole)

    def ranked(self, release: str | None) -> Sequence[Banner]:
        """Return what was found: of this release first, then whole ones, then frequent ones."""
        return sorted(
            self._found.values(),
            key=lambda b: (b.release == release, b.whole, b.count),
            reverse=True,
        )
