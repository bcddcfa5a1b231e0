"""Letters of pictures."""

from __future__ import annotations

from vmstream.report.font import HEIGHT, WIDTH, text_pixels


def test_letters() -> None:
    assert text_pixels("").shape == (HEIGHT, 0)
    pixels = text_pixels("T-\u00e9\n?")
    assert pixels.shape == (HEIGHT, 5 * WIDTH)
    rows = ["".join(" #"[p] for p in row) for row in pixels[:, : 2 * WIDTH].tolist()]
    assert [row.rstrip() for row in rows[2:11]] == [
        "#####", "  #", "  #", "  #", "  #   #####", "  #", "  #", "  #", "  #",
    ]  # fmt: skip
    unknown, other = pixels[:, 2 * WIDTH : 3 * WIDTH], pixels[:, 4 * WIDTH :]
    assert (unknown == other).all()
    seen = {text_pixels(chr(c)).tobytes() for c in range(0x20, 0x7F)}
    assert len(seen) == 95
