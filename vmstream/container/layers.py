"""What was found around a stream, and the source that leaves out a header in front of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from vmstream.errors import LimitError, StreamError, UnsupportedError
from vmstream.transport.source import DigestSource, RandomAccess, Source, Window
from vmstream.wire.constants import MAX_EXPANSION, MAX_UNPACKED
from vmstream.wire.parse import Qcow2Snapshot, SaveHeader


@dataclass(frozen=True, slots=True)
class Finding:
    """Something odd about a layer, as the commands report it.

    Attributes:
        severity: 'warning' or 'info'.
        code: Stable word for the kind of finding.
        offset: Absolute offset in the bytes of the layer.
        message: For people, with the layer and the offset.
    """

    severity: str
    code: str
    offset: int
    message: str


@dataclass(frozen=True, slots=True)
class SaveImage:
    """What a libvirt save image says of itself.

    Attributes:
        header: The numbers of its header.
        format: Name of the format that the header states.
        name: Name of the domain, if the XML tells.
        xml: The domain XML, without the NUL behind it.
        cookie: The cookie, libvirt's own XML; `None` if there is none.
        stream_offset: Where the stream, or what it is compressed with, stands in the image.
    """

    header: SaveHeader
    format: str
    name: str | None
    xml: bytes
    cookie: bytes | None
    stream_offset: int


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer around the stream.

    Attributes:
        kind: 'libvirt', 'qcow2', 'gzip', 'bzip2', 'xz', 'zstd', 'lz4' or 'lzop', or
            'offset' for other bytes in front of a stream.
        source: Its bytes, header and all; the size is known once they were read.
        image: What a libvirt save image says of itself.
        snapshot: The snapshot of a qcow2 image whose VM state is read.
    """

    kind: str
    source: Source
    image: SaveImage | None = None
    snapshot: Qcow2Snapshot | None = None


@dataclass(slots=True)
class Container:
    """All layers around a stream, the outermost first; none for a bare stream.

    Attributes:
        layers: The layers.
        digest: The input itself with its SHA-256, if that was asked for and there are layers.
        snapshot: Name or id of a snapshot that is asked for; the layer that has it sets `None`.
        most_unpacked: Bytes that any input may unpack to.
        packed: Counts the bytes that the outermost compressed layer has taken; `None` without one.
    """

    layers: list[Layer] = field(default_factory=list)
    digest: DigestSource | None = None
    snapshot: str | None = None
    most_unpacked: int = MAX_UNPACKED
    packed: Callable[[], int] | None = None
    _noted: list[Finding] = field(default_factory=list)

    def check_expansion(self, given: int, input_size: int, offset: int, context: str) -> None:
        """Refuse what unpacks to more than is plausible.

        Up to `most_unpacked` bytes any expansion is: a guest of zero pages shrinks without end.
        Beyond, data is to come of the input itself, however many layers are between: a long
        stream of many passes is as legal as a short one.

        Args:
            given: Bytes that a layer has given, or claims to have.
            input_size: Bytes of the input that they come from.
            offset: Where the layer stands, for the error.
            context: The layer, for the error.

        Raises:
            LimitError: It is more.
        """
        if given > self.most_unpacked and given > MAX_EXPANSION * input_size:
            raise LimitError(
                offset,
                f"{input_size} bytes of input unpack to {given} or more, as a bomb does",
                context=context,
                expected=f"at most {self.most_unpacked}, or {MAX_EXPANSION} times the input",
                advice="--max-ram SIZE allows SIZE bytes",
            )

    def note(self, finding: Finding) -> None:
        """Keep a finding until it is taken."""
        self._noted.append(finding)

    def take_findings(self) -> list[Finding]:
        """Return the findings since the last call; some come while the stream is read."""
        found, self._noted = self._noted, []
        return found


class ShiftedSource:
    """Another source from some offset on, in the same windows."""

    def __init__(self, inner: Source, start: int) -> None:
        self.inner = inner
        self.start = start
        self.name = inner.name
        self.seekable = inner.seekable
        self.identity = inner.identity
        self.origin = inner.origin + start

    @property
    def size(self) -> int | None:
        """Bytes, `None` while it is not known."""
        return None if self.inner.size is None else max(0, self.inner.size - self.start)

    def window(self, offset: int, need: int) -> Window:
        """Pass a window on, without what is in front."""
        try:
            view, base, at_end = self.inner.window(self.start + offset, need)
        except StreamError as error:
            if error.behind is not None:
                error.behind -= self.start
            raise
        cut = min(max(0, self.start - base), len(view))
        return view[cut:], base + cut - self.start, at_end

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill a buffer from `offset` on; return the bytes there were, fewer only at the end.

        Raises:
            UnsupportedError: The inner source cannot be sought in.
        """
        if not isinstance(self.inner, RandomAccess):
            raise UnsupportedError(offset, "this input cannot be sought in")
        return self.inner.read_into(self.start + offset, buffer)

    def close(self) -> None:
        """Close the inner source."""
        self.inner.close()
