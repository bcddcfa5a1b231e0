"""The index of guest memory in a file, so that a stream need not be read again.

docs/architecture.md has its layout. The file is evidence like any other: nothing in it is trusted
that was not checked against the stream as it is.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from vmstream.container.open import OpenStream
from vmstream.errors import FormatError, IntegrityError, UnsupportedError
from vmstream.guest.index import Input, PageIndex
from vmstream.guest.physical import Evidence
from vmstream.ops.extract import CMOS_SIZE
from vmstream.stream.events import Anomaly, RAMBlock
from vmstream.transport.sink import SavedFile, SparseFile
from vmstream.transport.source import FileSource, OpenSource
from vmstream.version import __version__
from vmstream.wire.constants import TARGET_PAGE_SIZES

# The last byte is the version.
_MAGIC = b"vmstream index\0\1"
_HEAD = struct.Struct("<16sQQ32s")
_AREA = 4096
_MOST_JSON = 64 << 20

# What is compared of an input, with words for it.
_COMPARED = {
    "size": "length",
    "modified_ns": "time of modification",
    "sha256": "content",
    "layers": "containers or snapshot",
}


@dataclass(frozen=True, slots=True)
class Known:
    """What a stream tells of its memory, beside what is in it.

    Attributes:
        evidence: For the guest-physical map, without the ACPI tables.
        elsewhere: Blocks whose memory the stream leaves to a file that was not given.
        findings: What was odd.
        exit_code: What they amount to.
    """

    evidence: Evidence
    elsewhere: frozenset[int]
    findings: tuple[Anomaly, ...]
    exit_code: int


class Area:
    """The pages of an index that are kept in its file; what was not written is zeros."""

    def __init__(self, file: SparseFile) -> None:
        self._file = file

    def write(self, offset: int, data: memoryview | bytes) -> None:
        """Write contiguous bytes."""
        self._file.write(_AREA + offset, data)

    def write_pages(
        self,
        window: memoryview,
        positions: NDArray[np.int64],
        offsets: NDArray[np.int64],
        size: int,
        stride: int,
    ) -> None:
        """Write pages, as `SparseFile.write_pages`."""
        self._file.write_pages(window, positions, offsets + _AREA, size, stride)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill a buffer from `offset` on; return the bytes there were, fewer only at the end."""
        return self._file.read_into(_AREA + offset, buffer)


def describe(
    opened: Sequence[OpenStream], shared_blocks: Sequence[tuple[str, Path]]
) -> dict[str, Any]:
    """Describe inputs as they are, for an index to be held against.

    Args:
        opened: The main channel, then the others.
        shared_blocks: Names of blocks whose memory is in a file, and the files.

    Raises:
        UnsupportedError: One is a pipe.
    """
    inputs = []
    for stream in opened:
        layers = stream.container.layers
        if stream.identity is None:
            raise _no_file()
        made = _print_of(layers[0].source if layers else stream.source)
        snapshots = [layer.snapshot for layer in layers]
        named = [None if s is None else _text(s.id_str) for s in snapshots]
        inputs.append(made | {"layers": [[y.kind, s] for y, s in zip(layers, named, strict=True)]})
    shared = []
    for name, path in shared_blocks:
        with OpenSource(path) as source:
            shared.append({"block": name, **_print_of(source)})
    return {"inputs": inputs, "shared": shared}


def _no_file() -> UnsupportedError:
    return UnsupportedError(
        0, "an index is kept of files, and the input is a pipe", advice="save it to a file"
    )


def _print_of(source: object) -> dict[str, Any]:
    if not isinstance(source, FileSource):
        raise _no_file()
    size, modified, digest = source.fingerprint()
    return {"size": size, "modified_ns": modified, "sha256": digest}


def save(
    out: SparseFile, index: PageIndex, known: Known, given: dict[str, Any], *, partial: bool
) -> None:
    """Write all but the pages, which are in the `Area` of the file.

    Args:
        out: The file.
        index: The index.
        known: The rest.
        given: What `describe` gave before the inputs were read.
        partial: The inputs may be damaged.
    """
    size, evidence = index.page_size, known.evidence
    at, digest = _AREA + size * sum(_pages(index.blocks, size)), hashlib.sha256()
    for part in index.places():
        data = part.astype("<u8").tobytes()
        digest.update(data)
        if part.any():
            out.write(at, data)
        at += len(data)
    document = {
        "tool": f"vmstream {__version__}",
        "page_size": size,
        "partial": partial,
        "blocks": [[_text(b.idstr), b.used_length, b.host_page_size, b.gpa] for b in index.blocks],
        **given,
        "evidence": {
            "machine": _text(evidence.machine),
            "cmos": _text(evidence.cmos),
            "idstrs": sorted(map(_text, evidence.idstrs)),
            "virtio_mem": [[_text(k), _text(v)] for k, v in evidence.virtio_mem.items()],
            "northbridge": _text(evidence.northbridge),
        },
        "elsewhere": sorted(known.elsewhere),
        "findings": [
            {f.name: getattr(a, f.name) for f in fields(a) if f.name != "error"}
            for a in known.findings
        ],
        "exit_code": known.exit_code,
        "places_sha256": digest.hexdigest(),
    }
    text = json.dumps(document).encode()
    out.write(at, text)
    out.write(0, _HEAD.pack(_MAGIC, at, len(text), hashlib.sha256(text).digest()))


def load(
    file: SavedFile,
    inputs: Sequence[tuple[Input | None, int]],
    given: dict[str, Any],
    *,
    page_size: int | None,
    partial: bool,
    most_pages: int,
) -> tuple[PageIndex, Known]:
    """Read an index, and check it against the inputs.

    Args:
        file: The file.
        inputs: The inputs and their lengths, in the order of `given`.
        given: What `describe` gives.
        page_size: What the page size has to be, if that is stated.
        partial: A damaged stream is asked for.
        most_pages: Pages that are indexed.

    Raises:
        FormatError: It is no index.
        IntegrityError: It is damaged, or an input or option is not what it was.
        LimitError: There are more pages.
    """
    at, document = _document(file)
    try:
        size = _number(document["page_size"])
        if document["partial"] is not False and not partial:
            _refuse(file, at, "it was made with --partial, which was not asked for")
        if page_size not in (None, size):
            _refuse(file, at, f"it has pages of {size} bytes, not of {page_size}")
        _compare(file, document, given)
        blocks = tuple(
            RAMBlock(_bytes(name), _number(used), _maybe(host), _maybe(gpa))
            for name, used, host, gpa in document["blocks"]
        )
        if size not in TARGET_PAGE_SIZES or not blocks:
            raise ValueError(size)
        known = _known(document, blocks)
        index = PageIndex(blocks, size, [i for i, _ in inputs], Area(file), most_pages=most_pages)
        total = sum(_pages(blocks, size))
        begin = _AREA + size * total
        if begin + 8 * total != at:
            raise ValueError(at)
        digest = hashlib.sha256()

        def read(buffer: memoryview) -> None:
            nonlocal begin
            begin += file.read_into(begin, buffer)
            digest.update(buffer)

        index.restore(read, [length for _, length in inputs])
        if digest.hexdigest() != document["places_sha256"]:
            raise ValueError(at)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        _refuse(file, at, "it is damaged", error)
    return index, known


def _document(file: SavedFile) -> tuple[int, dict[str, Any]]:
    head = bytearray(_HEAD.size)
    file.read_into(0, memoryview(head))
    magic, at, length, digest = _HEAD.unpack(head)
    if magic[:-1] != _MAGIC[:-1]:
        raise FormatError(0, "not an index of vmstream", context=str(file.path))
    if magic != _MAGIC:
        _refuse(file, 15, f"it is of version {magic[-1]}, which this vmstream does not read")
    if length > _MOST_JSON or at + length != file.size:
        _refuse(file, 16, "it is damaged: its length is not what it states")
    text = bytearray(length)
    file.read_into(at, memoryview(text))
    if hashlib.sha256(text).digest() != digest:
        _refuse(file, at, "it is damaged")
    try:
        document = json.loads(text)
        if not isinstance(document, dict):
            raise TypeError("no object")
    except (ValueError, TypeError, RecursionError) as error:
        _refuse(file, at, "it is damaged", error)
    return at, document


def _compare(file: SavedFile, then: dict[str, Any], now: dict[str, Any]) -> None:
    for kind, what in (("inputs", "channels"), ("shared", "files of shared blocks")):
        if len(then[kind]) != len(now[kind]):
            _refuse(file, 0, f"it was made with another number of {what}")
        for number, (old, new) in enumerate(zip(then[kind], now[kind], strict=True)):
            changed = [word for key, word in _COMPARED.items() if old.get(key) != new.get(key)]
            if old.get("block") != new.get("block"):
                changed.append("block")
            if changed:
                name = "the stream"
                if kind == "shared":
                    name = f"the file of block {new['block']!r}"
                elif number:
                    name = f"channel {number}"
                _refuse(file, 0, f"{name} is not what it was: other {', '.join(changed)}")


def _known(document: dict[str, Any], blocks: tuple[RAMBlock, ...]) -> Known:
    found = document["evidence"]
    evidence = Evidence(
        _maybe_bytes(found["machine"]),
        blocks,
        _maybe_bytes(found["cmos"]),
        frozenset(map(_bytes, found["idstrs"])),
        None,
        {_bytes(k): _bytes(v) for k, v in found["virtio_mem"]},
        _maybe_bytes(found["northbridge"]),
    )
    if evidence.cmos is not None and len(evidence.cmos) != CMOS_SIZE:
        raise ValueError(evidence.cmos)
    findings = tuple(
        Anomaly(
            _number(a["offset"]),
            _number(a["end"]),
            str(a["severity"]),
            str(a["code"]),
            str(a["message"]),
            channel=None if a["channel"] is None else str(a["channel"]),
        )
        for a in document["findings"]
    )
    elsewhere = frozenset(map(_number, document["elsewhere"]))
    code = _number(document["exit_code"])
    if code > 6:
        raise ValueError(code)
    return Known(evidence, elsewhere, findings, code)


def _refuse(file: SavedFile, offset: int, what: str, error: Exception | None = None) -> NoReturn:
    raise IntegrityError(
        offset,
        f"the index {file.path} does not fit: {what}",
        advice="delete it to have it made anew",
    ) from error


def _pages(blocks: Sequence[RAMBlock], size: int) -> list[int]:
    return [-(-b.used_length // size) for b in blocks]


def _text(data: bytes | None) -> Any:
    return None if data is None else base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _maybe_bytes(text: str | None) -> bytes | None:
    return None if text is None else _bytes(text)


def _number(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value < 1 << 64:
        raise ValueError(value)
    return int(value)


def _maybe(value: object) -> int | None:
    return None if value is None else _number(value)
