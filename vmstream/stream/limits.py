"""How much RAM a stream may state: whoever accounts for it holds a few bits for each page."""

from __future__ import annotations

from vmstream.errors import LimitError
from vmstream.wire.constants import DEFAULT_PAGE_SIZE


def check_ram(most: int, total: int, page_size: int | None, offset: int, context: str) -> None:
    """Refuse RAM of too many pages.

    Args:
        most: Bytes of RAM, in pages of 4 KiB; so much less in smaller ones.
        total: Bytes of RAM that the block list states.
        page_size: Target page size, bytes, if it is known.
        offset: Where the list, or the evidence for the page size, stands.
        context: For the error.

    Raises:
        LimitError: There is more.
    """
    size = min(page_size or DEFAULT_PAGE_SIZE, DEFAULT_PAGE_SIZE)
    if total * DEFAULT_PAGE_SIZE > most * size:
        smaller = f" in pages of {size} bytes" if size < DEFAULT_PAGE_SIZE else ""
        raise LimitError(
            offset,
            f"RAM of {total} bytes{smaller}, if the block list is to be believed",
            context=context,
            expected=f"at most {most * size // DEFAULT_PAGE_SIZE}",
            advice=f"--max-ram {-(-total * DEFAULT_PAGE_SIZE // size >> 20)}M allows it",
        )
