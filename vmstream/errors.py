"""The error tree, and the exit status of each class.

VmstreamError
  StreamError        the bytes are at fault
    TruncatedError     the input ended inside an item           exit 3
    FormatError        bytes contradict the grammar             exit 3
    IntegrityError     the grammar holds, two claims disagree   exit 3
    UnsupportedError   legal in QEMU, not read here             exit 4
  EncodeError        the caller asks for an invalid stream      exit 2
  LimitError         a stated memory bound would be passed      exit 5
  OutputError        the output cannot be made as asked         exit 2
  AddressError       the guest has no RAM there                 exit 2

Exit status 0 is "done", 1 "done, with findings", 2 a usage error, 6 an error of the
operating system (`OSError` passes through, with its path). `verify` ends with 7 where the only
fault is that the stream is cut off, so that 3 is damage there. Any other exception that leaves
the decoder is a bug.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_FINDINGS = 1
EXIT_USAGE = 2
EXIT_OS = 6
EXIT_TRUNCATED = 7


def quoted(name: bytes) -> str:
    """Name from a stream as it stands in a message: readable, and harmless."""
    return repr(name.decode("utf-8", "backslashreplace"))


def printable(text: str) -> str:
    """Escape what would not print, or would be taken for an instruction to the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class VmstreamError(Exception):
    """Base of all errors that vmstream raises on purpose."""

    exit_code = EXIT_USAGE


class StreamError(VmstreamError):
    """The bytes of the stream are at fault.

    Args:
        offset: Absolute offset in the stream, bytes, where the fault shows.
        what: The fact, in a few words.
        context: Where that is: section, block, record.
        expected: What would have been right.
        found: What is there.
        advice: What the user can do next.

    Attributes:
        behind: Of a fault in what holds the stream: offset in the stream from where on it can be
            read again.
    """

    exit_code = 3
    behind: int | None = None

    def __init__(
        self,
        offset: int,
        what: str,
        *,
        context: str = "",
        expected: str = "",
        found: str = "",
        advice: str = "",
    ) -> None:
        self.offset = offset
        self.what = what
        self.context = context
        self.expected = expected
        self.found = found
        self.advice = advice
        super().__init__(str(self))

    def __str__(self) -> str:
        where = f"offset {self.offset:#x}"
        if self.context:
            where += f", {self.context}"
        claims = [
            f"{word} {text}"
            for word, text in (("expected", self.expected), ("found", self.found))
            if text
        ]
        tail = f" ({', '.join(claims)})" if claims else ""
        return f"{where}: {self.what}{tail}" + (f"; {self.advice}" if self.advice else "")

    @property
    def code(self) -> str:
        """Stable word for this class in JSON: 'truncated', 'format', ..."""
        return type(self).__name__.removesuffix("Error").lower()


class TruncatedError(StreamError):
    """The input ended inside an item."""


class FormatError(StreamError):
    """Bytes contradict the grammar."""


class IntegrityError(StreamError):
    """The grammar holds, but two claims of the stream disagree."""


class UnsupportedError(StreamError):
    """Legal in QEMU, not read here."""

    exit_code = 4


class EncodeError(VmstreamError):
    """The caller asks for a stream that QEMU would not load."""


class LimitError(StreamError):
    """A stated memory bound would be passed."""

    exit_code = 5


class OutputError(VmstreamError):
    """The output cannot be made as asked: it exists, or the stream does not tell enough."""


class AddressError(VmstreamError):
    """The guest has no RAM at an address, or a block does not reach as far as an offset.

    Args:
        address: The first one that is not there, bytes.
        what: The fact, with the address.
    """

    def __init__(self, address: int, what: str) -> None:
        self.address = address
        super().__init__(what)
