"""Payloads of multifd, as the libraries of QEMU pack them, damaged, and out to fill memory."""

from __future__ import annotations

import os
import random
import tracemalloc
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
import zstandard

from tests.channelwriter import FLAGS, ChannelWriter
from vmstream.errors import IntegrityError
from vmstream.guest.multifd import COMPRESSIONS, PayloadReader, compression_of
from vmstream.stream.events import MultiFDPacket
from vmstream.wire.constants import MultiFDFlag

WORDS = [w for w in FLAGS if w != "none"]
STREAMED = ["zlib", "zstd"]
NO_PAGES = np.zeros(0, np.uint64)


def packet(
    payload: bytes, pages: int, word: str | int, *, number: int = 0, page_size: int = 4096
) -> MultiFDPacket:
    flags = word if isinstance(word, int) else FLAGS[word]
    offsets = np.arange(pages, dtype=np.uint64) * np.uint64(page_size)
    end = 1000 + len(payload)
    return MultiFDPacket(
        1000,
        end,
        MultiFDFlag(flags),
        number,
        128,
        0,
        offsets,
        NO_PAGES,
        page_size,
        memoryview(payload),
    )


def contents(seed: int = 1, page_size: int = 4096) -> Iterator[list[bytes]]:
    """Packets of pages: full ones and short ones, pages that pack well, badly and not at all."""
    rng = random.Random(seed)
    for count in (1, 128, 3, 77, 128):
        pages = []
        for _ in range(count):
            kind = rng.randrange(3)
            if kind == 0:
                pages.append(rng.randbytes(page_size))
            elif kind == 1:
                pages.append(rng.randbytes(16) * (page_size // 16))
            else:
                pages.append(bytes(page_size - 1) + b"\1")
        yield pages


@pytest.mark.parametrize("word", FLAGS)
def test_what_was_packed(word: str) -> None:
    writer, reader = ChannelWriter(compression=word), PayloadReader()
    for pages in contents():
        found = packet(writer.payload(pages), len(pages), word)
        assert compression_of(found) == word
        assert reader.pages(found) == b"".join(pages)
        # A SYNC packet between them has no pages, and its flags say nothing.
        assert len(reader.pages(packet(b"", 0, 1))) == 0


def test_words() -> None:
    assert list(COMPRESSIONS.values()) == list(FLAGS)
    assert compression_of(packet(b"", 0, 6)) == "unknown"


def test_without_compression_nothing_is_copied() -> None:
    found = packet(b"\1" * 8192, 2, "none")
    assert PayloadReader().pages(found).obj is found.payload.obj


@pytest.mark.parametrize("word", WORDS)
def test_damage(word: str) -> None:
    """What does not unpack to its pages is refused; of one stream, so is all behind it."""
    first, second, third = (p for p in list(contents())[:3])
    packed = [ChannelWriter(compression=word)] * 3
    blobs = [w.payload(p) for w, p in zip(packed, (first, second, third), strict=True)]
    for bad in (blobs[1][:-9], blobs[1] + b"\0\1\2\3", b"\xff" * 40, b"", blobs[1][5:]):
        reader = PayloadReader()
        assert reader.pages(packet(blobs[0], len(first), word)) == b"".join(first)
        with pytest.raises(IntegrityError, match=f"a payload of {word}") as error:
            reader.pages(packet(bad, len(second), word, number=9))
        assert (error.value.offset, error.value.context) == (1000, "packet 9")
        last = packet(blobs[2], len(third), word)
        if word in STREAMED:
            with pytest.raises(IntegrityError, match="behind one that does not unpack"):
                reader.pages(last)
        else:
            assert reader.pages(last) == b"".join(third)


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("lie", [-1, 1])
def test_another_number_of_pages(word: str, lie: int) -> None:
    pages = list(contents())[2]
    blob = ChannelWriter(compression=word).payload(pages)
    with pytest.raises(IntegrityError):
        PayloadReader().pages(packet(blob, len(pages) + lie, word))


def test_two_compressions_on_one_channel() -> None:
    reader = PayloadReader()
    reader.pages(packet(ChannelWriter(compression="zlib").payload([bytes(4096)]), 1, "zlib"))
    with pytest.raises(IntegrityError, match="another way"):
        reader.pages(packet(zstandard.compress(bytes(4096)), 1, "zstd"))
    with pytest.raises(IntegrityError, match="another way"):
        PayloadReader().pages(packet(b"x" * 99, 1, 6))


@pytest.mark.parametrize("word", WORDS)
def test_a_bomb(word: str) -> None:
    """A payload of 1 MiB at the most, of gigabytes: refused without unpacking them."""
    size = 256 << 20
    if word == "zstd":
        # Blocks of 4 bytes for 128 KiB each, as many as fit.
        head = zstandard.ZstdCompressor().compress(bytes(1 << 20))[:6]
        bomb = head + ((1 << 1 | (128 << 10) << 3).to_bytes(3, "little") + b"\0") * 200_000
    else:
        wbits = {"qpl": -15, "uadk": 15, "zlib": 15, "qatzip": 31}[word]
        engine = zlib.compressobj(9, wbits=wbits)
        bomb = b"".join(engine.compress(bytes(1 << 20)) for _ in range(size >> 20)) + engine.flush()
        if word in ("qpl", "uadk"):
            bomb = len(bomb).to_bytes(4, "big") + bomb
    assert len(bomb) < 1 << 20
    tracemalloc.start()
    with pytest.raises(IntegrityError):
        PayloadReader().pages(packet(bomb, 1, word))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


@pytest.mark.parametrize("word", WORDS)
def test_random_damage(word: str) -> None:
    """Only our error comes of it."""
    rng = random.Random(word)
    pages = list(contents())[2]
    whole = bytearray(ChannelWriter(compression=word).payload(pages))
    for _ in range(200):
        blob = bytearray(whole)
        for _ in range(rng.choice((1, 3))):
            blob[rng.randrange(len(blob))] = rng.randrange(256)
        try:
            found = PayloadReader().pages(packet(bytes(blob), len(pages), word))
        except IntegrityError:
            continue
        assert len(found) == len(b"".join(pages))


def test_page_sizes() -> None:
    for size in (256, 1024, 65536):
        pages = [os.urandom(size // 2) * 2 for _ in range((512 << 10) // size)]
        blob = ChannelWriter(compression="uadk", page_size=size).payload(pages)
        found = packet(blob, len(pages), "uadk", page_size=size)
        assert PayloadReader().pages(found) == b"".join(pages)
