"""`verify`: every rule that QEMU's loader applies and a stream itself can show."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmstream.container.layers import Container
from vmstream.errors import EXIT_FINDINGS, EXIT_OK, EXIT_TRUNCATED, IntegrityError, OutputError
from vmstream.guest.devices import DeviceTree, Node
from vmstream.guest.memory import Placement, RAMImage
from vmstream.ops.channels import Channels
from vmstream.ops.devices import Devices
from vmstream.ops.findings import MEANINGS, Meaning
from vmstream.ops.inspect import Summary
from vmstream.ops.pages import PageFold
from vmstream.ops.pipeline import Consumer, Progress, run
from vmstream.report.models.extract import EXTRACT_SCHEMA
from vmstream.report.models.names import readable
from vmstream.report.models.verify import VERIFY_SCHEMA, FindingReport, HashedFile, VerifyReport
from vmstream.stream.decoder import Decoder
from vmstream.stream.events import Anomaly
from vmstream.transport.source import DigestSource, OpenSource, Source, read_small, whole_digest
from vmstream.wire.constants import SectionType

_MOST_MANIFEST = 64 << 20
# Nodes of device state that are looked at, and places in it that are told of.
_MOST_NODES = 1 << 20
_MOST_PLACES = 100
_NULL = 0x30

_UNKNOWN = Meaning("See the message.", "see the message")


class _Nowhere:
    """Takes pages that are decoded to see whether they can be, and keeps none."""

    def write(self, offset: int, data: memoryview | bytes) -> None:
        """Keep nothing."""

    def write_pages(
        self,
        window: memoryview,
        positions: NDArray[np.int64],
        offsets: NDArray[np.int64],
        size: int,
        stride: int,
    ) -> None:
        """Keep nothing."""

    def zero(self, offset: int, length: int) -> None:
        """Keep nothing."""

    def read_pages(self, offsets: NDArray[np.int64], pages: NDArray[np.uint8]) -> None:
        """Give zeros: whether a difference is legal does not depend on what the page was.

        QEMU v10.1.0 migration/xbzrle.c xbzrle_decode_buffer().
        """
        pages[:] = 0


class _PageCheck(PageFold[RAMImage]):
    """Fold: decodes each page, and adds a finding for one that does not decode."""

    def open(self, page_size: int) -> RAMImage:
        """Make an image that goes nowhere."""
        blocks, sink = self._summary.blocks, _Nowhere()
        places = [Placement(i, 0, b.used_length, sink, 0) for i, b in enumerate(blocks)]
        return RAMImage(blocks, page_size, places, self._page_fault)


@dataclass(frozen=True, slots=True)
class Verified:
    """What one reading of a stream found.

    Attributes:
        summary: The account, with all findings.
        devices: Device state.
        decoder: As it ended.
        digest: SHA-256 of the input itself, if it was asked for.
    """

    summary: Summary
    devices: Devices
    decoder: Decoder
    digest: str | None = None


def examine(
    source: Source,
    *,
    page_size: int | None = None,
    progress: Progress | None = None,
    container: Container | None = None,
    channels: Channels | None = None,
    max_ram: int | None = None,
    hashed: bool = False,
    summary: Summary | None = None,
    beside: Sequence[Consumer] = (),
) -> Verified:
    """Read a stream with every page decoded, and hold its parts against each other.

    A fault is a finding, also that the input is no stream at all.

    Args:
        source: The input.
        page_size: Target page size in bytes, to overrule what the stream shows.
        progress: Called with (offset, size or None).
        container: What is around the stream; to be hashed, it is opened with a digest.
        channels: Recorded beside the main one.
        max_ram: RAM in bytes that a block list may state; MAX_RAM if `None`.
        hashed: Take the SHA-256 of the input itself.
        summary: A fresh one to use, which folds of `beside` may look at.
        beside: Folds that take each event, too.

    Memory:
        Device state, which the decoder bounds; 1 bit a page.
    """
    layers = container.layers if container is not None else []
    digest = container.digest if container is not None else None
    outermost = layers[0].source if layers else source
    if hashed and not layers and not source.seekable:
        digest = source = DigestSource(source)
    decoder = Decoder(page_size, max_ram=max_ram)
    summary, devices = summary or Summary(), Devices()
    with contextlib.ExitStack() as held:
        if digest is not None:
            held.callback(digest.finish)
        pages = _PageCheck(summary, channels, partial=True)
        run(source, decoder, [summary, devices, pages, *beside], progress, container, channels)
        found = digest.hexdigest() if hashed and digest is not None else None
    summary.finish()
    if summary.findings.error is None:
        for finding in _sections(summary, devices.tree):
            summary.findings.on(finding)
    if hashed and found is None:
        found = whole_digest(outermost)
    return Verified(summary, devices, decoder, found)


def verify(
    source: Source,
    *,
    page_size: int | None = None,
    progress: Progress | None = None,
    container: Container | None = None,
    channels: Channels | None = None,
    max_ram: int | None = None,
    manifest: Path | None = None,
) -> tuple[VerifyReport, int]:
    """Hold a stream against the rules of QEMU's loader, and of its manifest.

    Args:
        source: As of `examine`, and so are the others.
        page_size: Target page size, bytes.
        progress: Called with (offset, size or None).
        container: What is around the stream.
        channels: Recorded beside the main one.
        max_ram: RAM in bytes.
        manifest: As `extract-ram --manifest` wrote it.

    Returns:
        The document, and the exit status: that of the first error, but EXIT_TRUNCATED where the
        only fault is that the stream is cut off; else 1 with warnings.

    Raises:
        OutputError: The manifest is none.
        OSError: With the path.
    """
    stated = None if manifest is None else _read_manifest(manifest)
    seen = examine(
        source,
        page_size=page_size,
        progress=progress,
        container=container,
        channels=channels,
        max_ram=max_ram,
        hashed=stated is not None,
    )
    summary = seen.summary
    files = []
    if stated is not None and manifest is not None:
        files = [_file(stated["input"], stated["input_sha256"], seen.digest)]
        files += _hash_files(stated, manifest.parent)
        for finding in map(_file_finding, files):
            if finding is not None:
                summary.findings.on(finding)
    verdict, code = judge(summary)
    coverage = summary.coverage
    report = VerifyReport(
        schema=VERIFY_SCHEMA,
        input=source.name,
        size=summary.end if source.size is None else source.size,
        verdict=verdict,
        complete=summary.complete,
        machine=summary.machine,
        pages=sum(int(b.records.sum()) for b in coverage.blocks) if coverage else 0,
        sections=len(summary.sections),
        findings=[described(a) for a in sorted(summary.findings.kept, key=_order)],
        finding_count=summary.findings.count,
        manifest=files,
    )
    return report, code


def _order(finding: Anomaly) -> tuple[bool, str, int]:
    return finding.channel is not None, finding.channel or "", finding.offset


def described(finding: Anomaly) -> FindingReport:
    """Say what a finding means."""
    meaning = MEANINGS.get(finding.code, _UNKNOWN)
    advice = finding.error.advice if finding.error is not None else ""
    return FindingReport(
        finding.severity,
        finding.code,
        finding.offset,
        finding.message,
        meaning.text,
        advice or meaning.advice,
        finding.channel,
    )


def judge(summary: Summary) -> tuple[str, int]:
    """Return the verdict of a stream, and the exit status, as of `VerifyReport`."""
    error = summary.findings.error
    if error is None:
        sound = summary.complete and not summary.findings.exit_code
        return ("sound", EXIT_OK) if sound else ("doubtful", EXIT_FINDINGS)
    if error.code in ("unsupported", "limit"):
        return error.code, error.exit_code
    codes = {a.code for a in summary.findings.kept if a.severity == "error"}
    if codes == {"truncated"} and summary.read:
        return "truncated", EXIT_TRUNCATED
    return "corrupt", error.exit_code


# ---- device state against its description ------------------------------------------------------


def _sections(summary: Summary, tree: DeviceTree) -> Iterator[Anomaly]:
    full = [s.start for s in summary.sections if s.start.section_type == _FULL]
    times = Counter((s.idstr, s.instance_id) for s in full)
    last = {(s.idstr, s.instance_id): s.offset for s in full}
    for (idstr, instance), count in times.items():
        if count > 1:
            name = f"{readable(idstr)}[{instance}]"
            yield _note(
                "info", "section-twice", last[idstr, instance], f"{name} comes {count} times"
            )
    described = summary.vmdescription
    if described is None or described.layout is None:
        return
    bits = summary.configuration.target_page_bits if summary.configuration else None
    size = described.layout.page_size
    if bits and size and 1 << bits != size:
        what = f"pages of {1 << bits} bytes by the configuration, of {size} by the vmdescription"
        yield _note("warning", "page-size", described.offset, what)
    lost = Counter((d.idstr, d.instance_id) for d in described.layout.devices) - times
    # Iterable sections may have a description, too (virtio-mem).
    live = {(s.start.idstr, s.start.instance_id) for s in summary.sections}
    for idstr, instance in list(lost.keys() - live)[:_MOST_PLACES]:
        name = f"{readable(idstr)}[{instance}]"
        what = f"{name} is described, and has no section"
        yield _note("warning", "vmdescription-section", described.offset, what)
    yield from _state(tree)


_FULL = SectionType.QEMU_VM_SECTION_FULL


def _state(tree: DeviceTree) -> Iterator[Anomaly]:
    left, told = _MOST_NODES, 0
    plain = set(tree.undescribed)
    for device in tree:
        if device.path in plain:
            continue
        waiting = [device]
        while waiting:
            node = waiting.pop()
            left -= 1
            if left < 0 or told == _MOST_PLACES:
                return
            # Elements that are plain values can have nothing wrong.
            described = node.description
            if node.type != "array" or "struct" in described or described["type"] == "nullptr":
                waiting.extend(reversed(node.children))
            if (finding := _wrong(node)) is not None:
                told += 1
                yield finding


def _wrong(node: Node) -> Anomaly | None:
    if node.type == "array":
        return None
    # What follows the fields is subsections, each behind a frame with its name.
    inner = node.description.get("struct", node.description)
    rest = node.children[-1] if node.children else node
    if rest.type == "raw" and rest is not node and isinstance(inner, Mapping):
        framed = bool(inner.get("subsections"))
        what = "no frame of a subsection" if framed else "not in the vmdescription"
        what = f"{node.path}: {rest.size} bytes that are {what}"
        return _note("warning" if framed else "info", "device-state", rest.offset, what)
    # QEMU v10.1.0 migration/vmstate-types.c get_nullptr().
    if node.type == "nullptr" and node.raw[:1] != bytes([_NULL]):
        what = f"{node.path}: {node.raw[:1].hex()} in place of the marker of NULL"
        return _note("warning", "null-marker", node.offset, what)
    return None


def _note(severity: str, code: str, offset: int, what: str) -> Anomaly:
    return Anomaly(offset, offset, severity, code, f"offset {offset:#x}: {what}")


# ---- the manifest ------------------------------------------------------------------------------


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(read_small(path, _MOST_MANIFEST))
    except (ValueError, RecursionError) as exc:
        raise OutputError(f"{path}: no manifest: {exc}") from None
    if not isinstance(document, dict) or document.get("schema") != EXTRACT_SCHEMA:
        raise OutputError(f"{path}: no manifest: its schema is not {EXTRACT_SCHEMA}")
    text = str | None
    outputs, channels = document.get("outputs"), document.get("channels", [])
    legal = isinstance(document.get("input"), str)
    legal &= isinstance(document.get("input_sha256", 0), text)
    for entries in (outputs, channels):
        legal &= isinstance(entries, list) and all(
            isinstance(e, dict)
            and isinstance(e.get("path"), str)
            and "\0" not in e["path"]
            and isinstance(e.get("sha256"), text)
            for e in entries
        )
    if not legal:
        raise OutputError(f"{path}: no manifest: a field is missing, or of another type")
    return document


def _hash_files(stated: dict[str, Any], directory: Path) -> Iterator[HashedFile]:
    for entry in (*stated.get("channels", []), *stated["outputs"]):
        found = None
        if entry["path"] != "-" and entry["sha256"] is not None:
            # As they were given: from the working directory; or beside the manifest.
            given = Path(entry["path"])
            for path in (given, directory / given, directory / given.name):
                with contextlib.suppress(OSError):
                    if path.is_file():
                        with OpenSource(path) as source:
                            found = whole_digest(source)
                        break
        yield _file(entry["path"], entry["sha256"], found)


def _file(path: str, stated: str | None, found: str | None) -> HashedFile:
    return HashedFile(path, stated, found, stated is not None and stated == found)


def _file_finding(file: HashedFile) -> Anomaly | None:
    if file.same:
        return None
    if file.sha256 is None or file.found is None:
        why = "the manifest has no hash of it" if file.sha256 is None else "it cannot be read"
        return Anomaly(0, 0, "warning", "hash-missing", f"{file.path} was not compared: {why}")
    what = f"SHA-256 {file.found}, in the manifest {file.sha256}"
    error = IntegrityError(0, what, context=file.path)
    return Anomaly(0, 0, "error", "hash", f"{file.path}: {what}", error)
