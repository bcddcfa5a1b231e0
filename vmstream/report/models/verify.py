"""JSON contract of `vmstream verify`."""

from __future__ import annotations

from dataclasses import dataclass

VERIFY_SCHEMA = "vmstream.verify/1"


@dataclass(frozen=True, slots=True)
class FindingReport:
    """What `vmstream verify` found.

    Attributes:
        severity: 'error', 'warning' or 'info'.
        code: Stable, as of the anomalies of other reports.
        offset: In the stream, or in the file `channel`; bytes.
        message: What it is here, for people.
        meaning: What the code means.
        advice: What to do.
        channel: File of the channel that the offset is in; `None` for the stream itself.
    """

    severity: str
    code: str
    offset: int
    message: str
    meaning: str
    advice: str
    channel: str | None = None


@dataclass(frozen=True, slots=True)
class HashedFile:
    """A file that a manifest names.

    Attributes:
        path: As in the manifest.
        sha256: As in the manifest; `None` if it has none.
        found: SHA-256 that the file has; `None` if it was not read.
        same: They are the same.
    """

    path: str
    sha256: str | None
    found: str | None
    same: bool


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """Document of `vmstream verify --json`.

    Attributes:
        schema: 'vmstream.verify/1'.
        input: Path, or 'standard input'.
        size: Of the stream, bytes, unpacked.
        verdict: 'sound'; 'doubtful', with warnings alone; 'truncated', sound up to where it is cut
            off; 'corrupt'; 'unsupported'; or 'limit', of a bound that the user can raise.
        complete: As in the inspect report.
        machine: Machine type, `None` without a configuration section.
        pages: Page records, of all channels; each was decoded.
        sections: How many, parts apart.
        findings: The first 1000, in the order of the stream.
        finding_count: How many there were.
        manifest: The input first, then the files of a manifest; empty without --manifest.
    """

    schema: str
    input: str
    size: int
    verdict: str
    complete: bool
    machine: str | None
    pages: int
    sections: int
    findings: list[FindingReport]
    finding_count: int
    manifest: list[HashedFile]
