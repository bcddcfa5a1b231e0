"""The loop and the findings."""

from __future__ import annotations

import pytest

from tests.decoding import BytesSource, CutSource, decode, facts, owned
from tests.streamwriter import simple_stream
from vmstream.errors import (
    FormatError,
    IntegrityError,
    LimitError,
    StreamError,
    TruncatedError,
    UnsupportedError,
)
from vmstream.ops.pipeline import Findings, events, run
from vmstream.stream.decoder import Decoder
from vmstream.stream.events import Anomaly, Event, FileHeader

DATA = bytes(simple_stream({"pc.ram": {i * 4096: bytes([i]) * 4096 for i in range(1, 30)}}))


def finding(severity: str, error: StreamError | None = None) -> Anomaly:
    return Anomaly(5, 5, severity, "code", "message", error)


class Keep:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def on(self, event: Event) -> None:
        self.events.append(owned(event))


def test_events_of_a_source() -> None:
    want = facts(decode(DATA).events)
    assert facts(map(owned, events(BytesSource(DATA), Decoder()))) == want
    source = CutSource(DATA)
    assert facts(map(owned, events(source, Decoder()))) == want
    assert source.windows > 2


def test_every_consumer_gets_every_event() -> None:
    first, second = Keep(), Keep()
    run(BytesSource(DATA), Decoder(), [first, second])
    assert facts(first.events) == facts(second.events) == facts(decode(DATA).events)
    run(BytesSource(DATA), Decoder(), [])


def test_progress_at_each_window() -> None:
    told: list[tuple[int, int | None]] = []
    source = CutSource(DATA)
    run(source, Decoder(), [], lambda offset, size: told.append((offset, size)))
    assert len(told) == source.windows
    assert told[0] == (0, len(DATA))
    assert [at for at, _ in told] == sorted(at for at, _ in told)


def test_a_strict_decoder_raises_through() -> None:
    kept = Keep()
    with pytest.raises(TruncatedError):
        run(BytesSource(DATA[:5000]), Decoder(strict=True), [kept])
    assert kept.events


def test_no_findings() -> None:
    findings = Findings()
    findings.on(FileHeader(0, 8))
    assert (findings.count, findings.kept, findings.error, findings.exit_code) == (0, [], None, 0)
    assert findings.report() == []


@pytest.mark.parametrize(
    ("severities", "code"), [(["info"], 0), (["warning"], 1), (["info", "warning", "info"], 1)]
)
def test_exit_status_without_errors(severities: list[str], code: int) -> None:
    findings = Findings()
    for severity in severities:
        findings.on(finding(severity))
    assert findings.exit_code == code
    assert [a.severity for a in findings.report()] == severities


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (TruncatedError, 3),
        (FormatError, 3),
        (IntegrityError, 3),
        (UnsupportedError, 4),
        (LimitError, 5),
    ],
)
def test_the_first_error_makes_the_exit_status(kind: type[StreamError], code: int) -> None:
    findings = Findings()
    findings.on(finding("warning"))
    findings.on(finding("error", kind(5, "what")))
    for other in (FormatError(6, "what"), UnsupportedError(6, "what"), LimitError(6, "what")):
        findings.on(finding("error", other))
    assert findings.exit_code == code
    assert type(findings.error) is kind


def test_findings_are_bounded() -> None:
    findings = Findings()
    for _ in range(Findings.MAX_KEPT + 500):
        findings.on(finding("info"))
    findings.on(finding("warning"))
    findings.on(finding("error", FormatError(5, "what")))
    assert len(findings.kept) == len(findings.report()) == Findings.MAX_KEPT
    assert findings.count == Findings.MAX_KEPT + 502
    # What is not kept counts all the same.
    assert findings.exit_code == 3
