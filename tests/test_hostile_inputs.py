"""Damage to real inputs of every kind, through the commands: our errors alone, and no false file.

The streams, images and compressed files of tests/fixtures, cut and changed in places that a seed
decides. Each is listed, inspected and extracted, strictly and with --partial.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.containers import PACK, image_names, open_image
from tests.decoding import assert_tiles, owned
from tests.strategies import examples
from tests.truth import (
    block_sums,
    data_extents,
    fixture_names,
    open_fixture,
    qcow2_names,
    read_qcow2,
    snapshot_manifests,
    write_sparse,
)
from vmstream.container.open import OpenStream
from vmstream.errors import VmstreamError
from vmstream.ops.extract import ExtractOptions, extract
from vmstream.ops.inspect import inspect
from vmstream.ops.pipeline import events
from vmstream.report.models.inspect import InspectReport
from vmstream.stream.decoder import Decoder
from vmstream.stream.events import Anomaly, Event

PAGE = 4096
# How often each input is cut, and how often changed.
CUTS, CHANGES = examples(16), examples(20)


@dataclass(frozen=True)
class Kind:
    """An input. `one_pass`: no page is sent twice, so what a cut leaves is right."""

    name: str
    read: Callable[[], bytes]
    one_pass: bool = False
    snapshot: str | None = None

    def __str__(self) -> str:
        return self.name if self.snapshot is None else f"{self.name}-{self.snapshot}"


def streams() -> list[Kind]:
    """One of each kind of stream; what is left out is like one that is here, or large."""
    one_pass = {
        "plain-7.2-pc", "old-5.2-pc-1.0", "old-5.2-pc-i440fx-2.1", "old-5.2-pc-i440fx-2.3",
        "novmdesc-11.1-pc", "s390x-10.0", "riscv64-10.0-virt", "ppc64-10.0-pseries",
        "bgsnapshot-11.1-pc", "mapped-10.0-pc", "mapped-multifd-11.1-pc",
    }  # fmt: skip
    several = {
        "live-5.2-pc", "xbzrle-5.2-pc", "zlib-5.2-pc", "zlib-xbzrle-5.2-pc", "postcopy-11.1-pc.ch0",
        "mapped-live-10.0-q35", "multifd-7.2-pc.ch0", "multifd-11.1-pc.ch0",
        "ignoreshared-10.0-pc", "mapped-ignoreshared-11.1-pc", "interrupted-11.1-pc",
    }  # fmt: skip
    assert one_pass | several <= set(fixture_names())
    return [
        Kind(name, lambda name=name: open_fixture(name), name in one_pass)
        for name in sorted(one_pass | several)
    ]


@lru_cache(maxsize=1)
def packed(kind: str) -> bytes:
    return PACK[kind](open_fixture("own-microvm"))


KINDS = [
    *streams(),
    *(Kind(name, lambda name=name: open_image(name), True) for name in image_names()),
    *(Kind(f"{kind}-file", lambda kind=kind: packed(kind), True) for kind in PACK),
    *(
        Kind(name, lambda name=name: read_qcow2(name), True, snapshot)
        for name in qcow2_names()
        for snapshot in snapshot_manifests(name)
    ),
]


class Hurt:
    """A damaged input in a directory of its own, and what the commands make of it."""

    def __init__(self, kind: Kind, data: bytes, directory: Path) -> None:
        self.kind = kind
        self.path, self.out = directory / "input", directory / "out"
        write_sparse(self.path, data)

    def opened(self) -> OpenStream:
        return OpenStream(self.path, snapshot=self.kind.snapshot)

    def list(self) -> list[Event] | None:
        """The events of a lenient decoder tile whatever there is; None if nothing is readable."""
        found: list[Event] = []
        try:
            opened = self.opened()
        except VmstreamError:
            return None
        with opened:
            decoder = Decoder()
            for event in events(opened.source, decoder, container=opened.container):
                # Bytes in an event must be readable when it is given out.
                found.append(owned(event) if len(found) % 16 == 0 else event)
            end = max((e.end for e in found if not isinstance(e, Anomaly)), default=0)
            # Findings of a container have the offsets of the container.
            assert_tiles((e for e in found if not isinstance(e, Anomaly)), end)
            if not opened.container.layers:
                assert end == self.path.stat().st_size
        return found

    def inspected(self) -> tuple[InspectReport | None, int]:
        try:
            with self.opened() as opened:
                report, code = inspect(opened.source, container=opened.container)
        except VmstreamError as error:
            return None, error.exit_code
        assert code in (0, 1, 3, 4, 5)
        assert (code in (0, 1)) == all(a.severity != "error" for a in report.anomalies)
        return report, code

    def extracted(self, **options: Any) -> int:
        """The exit status; a refusal leaves no file behind, and success leaves one."""
        try:
            with self.opened() as opened:
                _, code = extract(
                    opened.source,
                    ExtractOptions(output=self.out, **options),
                    container=opened.container,
                )
        except VmstreamError as error:
            code, written = error.exit_code, False
        else:
            written = True
        names = {p.name for p in self.path.parent.iterdir()}
        assert names == ({"input", "out"} if written else {"input"})
        return code if written else -code

    def check(self) -> tuple[InspectReport | None, int]:
        """What is promised for any bytes; the report and the status of strict extraction."""
        found = self.list()
        report, code = self.inspected()
        assert (found is None) <= (report is None)
        strict = self.extracted()
        if strict >= 0:
            assert strict in (0, 1)
            assert code in (0, 1)
            self.out.unlink()
        if code in (3, 5):
            assert strict < 0
        lenient = self.extracted(partial=True)
        # What is good enough for strict extraction is for the other.
        assert strict < 0 or lenient == strict
        return report, strict


def image_of(kind: Kind, data: bytes, directory: Path) -> Path | None:
    """What the undamaged input has; None if it is refused."""
    whole = Hurt(kind, data, directory)
    return whole.out if whole.extracted() >= 0 else None


def wrong_pages(part: Path, whole: Path) -> list[int]:
    """Offsets of pages that are neither zero nor those of `whole`; holes are not read."""
    assert part.stat().st_size == whole.stat().st_size
    found: list[int] = []
    with part.open("rb") as one, whole.open("rb") as two:
        for start, stop in data_extents(one.fileno(), part.stat().st_size):
            size = stop - start
            parts = [os.pread(f.fileno(), size, start) for f in (one, two)]
            first, second = (np.frombuffer(p, np.uint8).reshape(-1, PAGE) for p in parts)
            rows = (first != second).any(axis=1) & first.any(axis=1)
            found += [start + PAGE * int(row) for row in np.flatnonzero(rows)]
    return found


def offsets(data: bytes, dice: random.Random, count: int) -> list[int]:
    """Anywhere, and near the two ends, where the structure is."""
    size = len(data)
    near = [(0, min(size, 2000)), (max(0, size - size // 20), size), (0, size)]
    return [dice.randrange(*near[i % 3]) for i in range(count)]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_cut(kind: Kind, tmp_path: Path) -> None:
    data = kind.read()
    directory = tmp_path / "whole"
    directory.mkdir()
    whole = image_of(kind, data, directory)
    for i, cut in enumerate(offsets(data, random.Random(str(kind)), CUTS)):
        directory = tmp_path / str(i)
        directory.mkdir()
        hurt = Hurt(kind, data[:cut], directory)
        report, strict = hurt.check()
        if strict >= 0:
            # Whole but for the vmdescription, or for clusters that the snapshot does not use.
            assert report is not None
            assert report.complete
            assert whole is not None
            assert block_sums(hurt.out, whole=False) == block_sums(whole, whole=False)
        if hurt.out.exists() and kind.one_pass:
            assert whole is not None
            assert wrong_pages(hurt.out, whole) == []
        for path in (hurt.path, hurt.out):
            path.unlink(missing_ok=True)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_changed(kind: Kind, tmp_path: Path) -> None:
    data = kind.read()
    dice = random.Random(f"changed {kind}")
    for i, at in enumerate(offsets(data, dice, CHANGES)):
        changed = bytearray(data)
        for place in (at, dice.randrange(len(data)))[: dice.choice((1, 2))]:
            changed[place] = dice.choice((0, 1, 0x10, 0x7E, 0xFF, changed[place] ^ 1 << at % 8))
        directory = tmp_path / str(i)
        directory.mkdir()
        hurt = Hurt(kind, bytes(changed), directory)
        report, strict = hurt.check()
        if strict >= 0:
            assert report is not None
            assert report.complete
        for path in (hurt.path, hurt.out):
            path.unlink(missing_ok=True)
