"""`build`: a stream from a directory that `unpack` made, however it was edited since."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmstream.errors import EncodeError, LimitError, quoted
from vmstream.guest.devicejson import to_bytes
from vmstream.guest.devices import DeviceTree
from vmstream.guest.vmdesc import Document
from vmstream.ops.encode import STANDARD_OUTPUT
from vmstream.ops.lastpages import write_pages
from vmstream.ops.manifest import (
    BLOCKS,
    DEVICES,
    LIVE,
    MAX_MANIFEST,
    MAX_SECTIONS,
    MAX_UNSENT,
    RAM_VERSION,
    full_name,
    parse_manifest,
)
from vmstream.ops.pipeline import Progress
from vmstream.report.models.unpack import BUILD_SCHEMA, BuildReport, UnpackedBlock, UnpackedSection
from vmstream.stream.events import Configuration, RAMBlock
from vmstream.stream.limits import check_ram
from vmstream.stream.writer import StreamWriter
from vmstream.transport.directory import MANIFEST, InputDirectory
from vmstream.transport.sink import OutputFile, SavedFile, StandardOutput, check_free, check_parent
from vmstream.version import __version__
from vmstream.wire.constants import (
    CAP_IGNORE_SHARED,
    MAX_DEVICE_TAIL,
    MAX_RAM,
    MAX_RAM_BLOCKS,
    MAX_VMDESCRIPTION,
    TARGET_PAGE_BITS,
)
from vmstream.wire.parse import ConfigurationValues
from vmstream.wire.vmsd import body_size, load

# Bytes that are read at a time.
_AT_ONCE = 1 << 20
# A file of device state: two digits a byte, and what describes it.
_MAX_DEVICE = 4 * MAX_DEVICE_TAIL


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """Where the stream goes.

    Attributes:
        output: The file, or '-' for standard output.
        force: Replace a file.
        max_ram: RAM in bytes that the manifest may state; MAX_RAM if `None`.
    """

    output: Path
    force: bool = False
    max_ram: int | None = None


class BlockFiles:
    """Memory in files, one for each block: `Pages` of `ops.lastpages`.

    Args:
        blocks: The block list.
        page_size: Target page size, bytes.
        files: Of each block; `None` if its memory is not to be sent.
        unsent: Of each block, [offset, length] of pages that are not sent if they are zeros.

    Memory:
        1 MiB.
    """

    def __init__(
        self,
        blocks: tuple[RAMBlock, ...],
        page_size: int,
        files: Sequence[SavedFile | None],
        unsent: Sequence[Sequence[Sequence[int]]],
    ) -> None:
        self.blocks = blocks
        self.page_size = page_size
        self._files = files
        self._unsent = unsent
        self._buffer = np.empty((max(1, _AT_ONCE // page_size), page_size), np.uint8)

    def pages(self, block: int) -> Iterator[tuple[int, NDArray[np.uint8] | int]]:
        """Yield the pages of a block, as `Pages` says.

        Raises:
            EncodeError: The file is shorter than it was.
            OSError: With the path.
        """
        file, size = self._files[block], self.page_size
        if file is None:
            return
        used = self.blocks[block].used_length
        count, at = -(-used // size), 0
        unsent = np.array(self._unsent[block], np.int64).reshape(-1, 2)
        first, stop = unsent[:, 0] // size, -(-unsent.sum(axis=1) // size)
        for begin, end in file.extents(0, used):
            low, high = max(at, begin // size), -(-end // size)
            yield from _holes(at, low, first, stop, size)
            for page in range(low, high, len(self._buffer)):
                pages = self._read(file, page, min(high, page + len(self._buffer)), used)
                yield from _data(page, pages, first, stop)
            at = max(at, high)
        yield from _holes(at, count, first, stop, size)

    def _read(self, file: SavedFile, page: int, stop: int, used: int) -> NDArray[np.uint8]:
        pages = self._buffer[: stop - page]
        flat = pages.reshape(-1)
        length = min(stop * self.page_size, used) - page * self.page_size
        if file.read_into(page * self.page_size, flat[:length].data) < length:
            raise EncodeError(f"{file.path}: is shorter than it was")
        flat[length:] = 0
        return pages


# Pages of a hole, but for those in ranges [first, stop), which ascend.
def _holes(
    at: int, end: int, first: NDArray[np.int64], stop: NDArray[np.int64], size: int
) -> Iterator[tuple[int, int]]:
    for number in range(int(np.searchsorted(stop, at, "right")), len(first)):
        low, high = int(first[number]), int(stop[number])
        if low >= end:
            break
        if at < low:
            yield at * size, low - at
        at = max(at, high)
    if at < end:
        yield at * size, end - at


# Pages of data, but for those of zeros in these ranges.
def _data(
    page: int, pages: NDArray[np.uint8], first: NDArray[np.int64], stop: NDArray[np.int64]
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    size = pages.shape[1]
    number = np.arange(page, page + len(pages))
    after = np.searchsorted(first, number, "right")
    inside = (after > 0) & (number < stop[after - 1]) if len(stop) else np.zeros(0, np.bool_)
    if not inside.any():
        yield page * size, pages
        return
    left = ~inside | pages.view(np.uint64).any(axis=1)
    edges = np.flatnonzero(np.diff(left, prepend=False, append=False)).tolist()
    for low, high in zip(edges[::2], edges[1::2], strict=True):
        yield (page + low) * size, pages[low:high]


@dataclass(frozen=True, slots=True)
class _Section:
    """A section of the manifest, checked, and its body."""

    said: UnpackedSection
    idstr: bytes
    state: bytes = b""
    file: SavedFile | None = None


class _Stream:
    """What a directory has, checked."""

    def __init__(
        self, directory: InputDirectory, options: BuildOptions, stack: contextlib.ExitStack
    ) -> None:
        self._directory = directory
        self._stack = stack
        self._name = str(directory.path / MANIFEST)
        text = directory.read("", MANIFEST, MAX_MANIFEST)
        self.manifest = parse_manifest(text, self._name)
        self._check_page_size()
        self.configuration = self._configuration()
        self.pages = self._blocks(options)
        self.sections = self._sections()
        self.vmdescription, self.said = self._vmdescription()

    def wrong(self, where: str, what: str) -> EncodeError:
        """Make the error of a place in the manifest."""
        return EncodeError(f"{self._name}: {where}: {what}")

    def _check_page_size(self) -> None:
        made = self.manifest
        stated = made.configuration.target_page_bits if made.configuration else None
        sizes = [1 << bits for bits in TARGET_PAGE_BITS]
        if made.page_size not in sizes:
            raise self.wrong("page_size", f"is one of {sizes}, and not {made.page_size}")
        if stated is not None and (stated not in TARGET_PAGE_BITS or 1 << stated != made.page_size):
            raise self.wrong("configuration.target_page_bits", f"does not say {made.page_size}")

    def _configuration(self) -> ConfigurationValues | None:
        c = self.manifest.configuration
        if c is None:
            return None
        name = full_name(c.name, c.name_b64, f"{self._name}: configuration.name")
        if not name:
            raise self.wrong("configuration.name", "a machine type has a name")
        try:
            guest = None if c.uuid is None else uuid.UUID(c.uuid).bytes
        except ValueError:
            raise self.wrong("configuration.uuid", f"{c.uuid!r} is no UUID") from None
        there = {
            b"configuration/target-page-bits": c.target_page_bits,
            b"configuration/capabilities": c.capabilities,
            b"configuration/uuid": guest,
        }
        capabilities = tuple(
            full_name(word, None, f"{self._name}: configuration.capabilities")
            for word in c.capabilities or ()
        )
        subsections = tuple(key for key, value in there.items() if value is not None)
        return ConfigurationValues(name, c.target_page_bits, capabilities, guest, subsections)

    def _blocks(self, options: BuildOptions) -> BlockFiles:
        said = self.manifest.blocks
        if not 0 < len(said) <= MAX_RAM_BLOCKS:
            raise self.wrong("blocks", f"1 to {MAX_RAM_BLOCKS} of them, and not {len(said)}")
        total = sum(b.used_length for b in said)
        try:
            most = MAX_RAM if options.max_ram is None else options.max_ram
            check_ram(most, total, self.manifest.page_size, 0, self._name)
        except LimitError as error:
            raise self.wrong("blocks", f"{error.what}; {error.advice}") from None
        blocks: list[RAMBlock] = []
        files: list[SavedFile | None] = []
        for number, b in enumerate(said):
            where = f"blocks[{number}]"
            idstr = full_name(b.idstr, b.idstr_b64, f"{self._name}: {where}")
            if not 0 < len(idstr) < 256:
                raise self.wrong(where, f"a name has 1 to 255 bytes, and not {len(idstr)}")
            if idstr in [other.idstr for other in blocks]:
                raise self.wrong(where, f"two blocks of the name {quoted(idstr)}")
            self._check_unsent(where, b)
            blocks.append(RAMBlock(idstr, b.used_length, None, b.gpa))
            file = None
            if b.file is not None:
                file = self._stack.enter_context(self._directory.file(BLOCKS, b.file))
                if file.size != b.used_length:
                    raise EncodeError(
                        f"{file.path}: {file.size} bytes, but block {quoted(idstr)} has "
                        f"{b.used_length} by the manifest"
                    )
            files.append(file)
        capabilities = self.configuration.capabilities if self.configuration else ()
        ignored = CAP_IGNORE_SHARED in capabilities
        if any((b.gpa is not None) != ignored for b in blocks):
            raise self.wrong("blocks", "with x-ignore-shared each has a gpa, and without none")
        unsent = [b.unsent for b in said]
        return BlockFiles(tuple(blocks), self.manifest.page_size, files, unsent)

    def _check_unsent(self, where: str, block: UnpackedBlock) -> None:
        at = 0
        for given in block.unsent:
            if len(given) != 2 or given[0] % self.manifest.page_size or given[0] < at:
                raise self.wrong(f"{where}.unsent", "[offset, length] of pages, ascending")
            at = given[0] + given[1]
        if at > block.used_length or len(block.unsent) > MAX_UNSENT:
            raise self.wrong(f"{where}.unsent", "reaches beyond the block, or has too many")

    def _sections(self) -> list[_Section]:
        said = self.manifest.sections
        if len(said) > MAX_SECTIONS:
            raise self.wrong("sections", f"over {MAX_SECTIONS}")
        found, left = [], MAX_DEVICE_TAIL
        started: dict[int, bytes] = {}
        ram = []
        for number, s in enumerate(said):
            where = f"sections[{number}]"
            idstr = full_name(s.idstr, s.idstr_b64, f"{self._name}: {where}")
            if s.part not in ("start", "part", "end", "device"):
                raise self.wrong(f"{where}.part", f"is none: {s.part!r}")
            if s.part == "device":
                name = self._file_name(where, s)
                text = self._directory.read(DEVICES, name, _MAX_DEVICE)
                path = str(self._directory.path / DEVICES / name)
                try:
                    state = to_bytes(text.decode(), path)
                except UnicodeDecodeError:
                    raise EncodeError(f"{path}: no JSON: not UTF-8") from None
                left -= len(state)
                if left < 0:
                    raise self.wrong("sections", f"over {MAX_DEVICE_TAIL >> 20} MiB of devices")
                found.append(_Section(s, idstr, state))
                continue
            if s.part == "start":
                started[s.section_id] = idstr
            elif started.get(s.section_id) != idstr:
                raise self.wrong(where, f"no start of section {s.section_id} {quoted(idstr)}")
            if idstr == b"ram":
                if s.lengths or s.file is not None:
                    raise self.wrong(where, "the memory of 'ram' is that of the blocks")
                if s.version_id != RAM_VERSION:
                    raise self.wrong(where, f"'ram' is of version {RAM_VERSION}")
                ram.append(s.part)
                found.append(_Section(s, idstr))
            else:
                file = self._directory.file(LIVE, self._file_name(where, s))
                self._stack.enter_context(file)
                several = s.part == "part" or len(s.lengths) == 1
                if not s.lengths or not several or sum(s.lengths) != file.size:
                    raise EncodeError(
                        f"{file.path}: {file.size} bytes, and not what 'lengths' of the manifest "
                        f"add up to: {sum(s.lengths)}"
                    )
                found.append(_Section(s, idstr, file=file))
        if ram != ["start", "end"]:
            raise self.wrong("sections", "'ram' has a start and an end behind it, and each once")
        return found

    def _file_name(self, where: str, section: UnpackedSection) -> str:
        if section.file is None:
            raise self.wrong(f"{where}.file", "is the name of a file")
        return section.file

    # The vmdescription of what the stream has, and how it came to be.
    def _vmdescription(self) -> tuple[bytes | None, str]:
        if self.manifest.vmdescription is None:
            return None, "none"
        text = self._directory.read("", self.manifest.vmdescription, MAX_VMDESCRIPTION)
        name = str(self._directory.path / self.manifest.vmdescription)
        try:
            made = self._describe(text, name)
            load(made)
        except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as exc:
            raise EncodeError(f"{name}: no vmdescription: {exc}") from None
        return made, "kept" if made == text else "changed"

    def _describe(self, text: bytes, name: str) -> bytes:
        tree = DeviceTree([], text).document
        document = Document(tree, text)
        waiting: dict[tuple[bytes, int], list[Mapping[Any, Any]]] = {}
        for device in tree["devices"]:
            key = str(device["name"]).encode("utf-8", "surrogateescape")
            waiting.setdefault((key, int(device["instance_id"]) & 0xFFFFFFFF), []).append(device)
        for section in self.sections:
            there = waiting.get((section.idstr, section.said.instance_id), [])
            if section.said.part != "device" or not there:
                if section.said.described:
                    raise EncodeError(
                        f"{name}: describes no device {quoted(section.idstr)} "
                        f"{section.said.instance_id}, as the manifest says; a stream loads "
                        "without a vmdescription, too (null in the manifest)"
                    )
                continue
            # Of two of one name that is meant which has the size.
            fits = [d for d in there if body_size(d) == len(section.state)]
            device = (fits or there)[0]
            del there[next(i for i, d in enumerate(there) if d is device)]
            if not fits and section.said.described and not document.fit(device, section.state):
                raise EncodeError(
                    f"{self._directory.path / DEVICES / (section.said.file or '')}: "
                    f"{len(section.state)} bytes of state, which {name} does not describe"
                )
        for left in waiting.values():
            for device in left:
                document.drop_device(device)
        if self.configuration is not None:
            document.configure(self.configuration)
        return document.text() if document.changed else text

    def write(self, out: StreamWriter, progress: Progress | None, *, bodies: bool) -> None:
        """Write the stream, or but what stands around pages and parts."""
        c = self.configuration
        configuration = None
        if c is not None:
            configuration = Configuration(
                0, 0, c.name, c.target_page_bits, c.capabilities, c.uuid, c.subsections
            )
        out.header(configuration)
        for section in self.sections:
            said = section.said
            if said.part == "device":
                out.device(
                    section.idstr,
                    said.instance_id,
                    said.version_id,
                    section.state,
                    section_id=said.section_id,
                )
                continue
            at = 0
            for length in (said.lengths if bodies else said.lengths[:1]) or [0]:
                if said.part == "start":
                    key = (section.idstr, said.instance_id, said.version_id)
                    out.start(*key, section_id=said.section_id)
                else:
                    (out.end if said.part == "end" else out.part)(said.section_id)
                if section.file is not None and bodies:
                    self._copy(out, section.file, at, length)
                elif section.idstr == b"ram" and said.part == "start":
                    out.block_list(self.pages.blocks)
                elif section.idstr == b"ram" and bodies:
                    write_pages(self.pages, out, progress)
                out.close()
                at += length
        out.finish(self.vmdescription)

    def _copy(self, out: StreamWriter, file: SavedFile, at: int, length: int) -> None:
        buffer, end = memoryview(bytearray(min(length, _AT_ONCE))), at + length
        while at < end:
            done = file.read_into(at, buffer[: end - at])
            if not done:
                raise EncodeError(f"{file.path}: is shorter than it was")
            out.raw(buffer[:done])
            at += done


def build(path: Path, options: BuildOptions, progress: Progress | None = None) -> BuildReport:
    """Write a stream from a directory.

    Args:
        path: The directory.
        options: Where to.
        progress: Called with (bytes of RAM that are done, those there are).

    Raises:
        EncodeError: The manifest or a file says what is no stream; with file and place.
        OutputError: A name of the manifest leaves the directory, or the output's name is taken.
        OSError: With the path.

    Memory:
        The state of the devices, as in the decoder 256 MiB at the most, and 10 MiB.
    """
    to_file = options.output if options.output != STANDARD_OUTPUT else None
    if to_file is not None:
        check_free(to_file, force=options.force)
        check_parent(to_file)
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(InputDirectory(path))
        stream = _Stream(directory, options, stack)
        manifest = stream.manifest

        def writer(sink: Any) -> StreamWriter:
            return StreamWriter(sink, page_size=manifest.page_size, footers=manifest.footers)

        # What is refused is refused before anything is written.
        stream.write(writer(len), None, bodies=False)
        target: OutputFile | StandardOutput
        if to_file is not None:
            target = stack.enter_context(OutputFile(to_file, force=options.force))
        else:
            target = StandardOutput()
        out: StreamWriter = writer(lambda data: target.write(out.offset, data))
        stream.write(out, progress, bodies=True)
        if isinstance(target, OutputFile):
            target.commit()
    return BuildReport(
        schema=BUILD_SCHEMA,
        tool=f"vmstream {__version__}",
        input=str(path),
        output=str(options.output),
        output_size=out.offset,
        machine=manifest.configuration.name if manifest.configuration else None,
        blocks=len(manifest.blocks),
        devices=sum(s.part == "device" for s in manifest.sections),
        vmdescription=stream.said,
    )
