"""The list of snapshots: what the table of a real image says, and what odd ones do."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from tests.qcow2images import Saved, build
from tests.truth import qcow2_file, qcow2_names
from vmstream.errors import FormatError
from vmstream.ops.snapshots import snapshots
from vmstream.report.models.snapshots import SnapshotsReport
from vmstream.transport.source import OpenSource


def report_of(path: Path) -> tuple[SnapshotsReport, int]:
    with OpenSource(path) as source:
        return snapshots(source)


# As `qemu-img snapshot -l` and `qemu-img info` of QEMU 7.2 list them.
KNOWN = {
    "savevm-10.0-q35": [
        ("1", "first", "2026-11-23T01:01:25Z", 636),
        ("2", "second", "2026-11-23T01:01:25Z", 1140),
    ],
    "savevm-11.1-pc": [
        ("1", "first", "2026-11-23T01:01:23Z", 624),
        ("2", "second", "2026-11-23T01:01:24Z", 1129),
    ],
}


@pytest.mark.parametrize("name", qcow2_names())
def test_images_of_qemu(name: str, tmp_path: Path) -> None:
    path = qcow2_file(name, tmp_path)
    report, code = report_of(path)
    assert code == 0
    assert (report.schema, report.input) == ("vmstream.snapshots/1", str(path))
    assert report.input_size == path.stat().st_size
    assert (report.version, report.cluster_size, report.disk_size) == (3, 65536, 8 << 20)
    listed = [(s.id, s.name, s.date, s.vm_clock_nsec // 10**6) for s in report.snapshots]
    assert listed == KNOWN[name]


def test_without_snapshots(tmp_path: Path) -> None:
    report, code = report_of(build([]).write(tmp_path / "d"))
    assert (report.snapshots, report.notes, code) == ([], [], 0)


def test_odd_entries(tmp_path: Path) -> None:
    """Names that are no text, dates of any number, nothing stated."""
    ends = {"date_sec": (1 << 32) - 1, "date_nsec": (1 << 32) - 1, "vm_clock_nsec": (1 << 64) - 1}
    image = build([Saved(b"\xff\0", b"x", id=b"\xfe", fields=ends), Saved("disk", b"", extra=b"")])
    report, code = report_of(image.write(tmp_path / "d"))
    odd, disk = report.snapshots
    assert code == 0
    assert odd.name_b64 == base64.b64encode(b"\xff\0").decode()
    assert odd.id_b64 == base64.b64encode(b"\xfe").decode()
    assert (odd.date, odd.date_nsec) == ("2106-02-07T06:28:15Z", (1 << 32) - 1)
    assert odd.vm_clock_nsec == (1 << 64) - 1
    assert (disk.vm_state_size, disk.disk_size, disk.icount) == (0, None, None)
    assert (disk.name_b64, disk.id_b64) == (None, None)


@pytest.mark.parametrize("features", [1, 2, 3, 4])
def test_notes_are_findings(features: int, tmp_path: Path) -> None:
    report, code = report_of(build([Saved("a", b"x")], features=features).write(tmp_path / "d"))
    assert code == 1
    assert len(report.notes) == features.bit_count()
    assert len(report.snapshots) == 1


def test_no_image(tmp_path: Path) -> None:
    (tmp_path / "d").write_bytes(b"QEVM\0\0\0\3")
    with pytest.raises(FormatError, match="not a qcow2 image"):
        report_of(tmp_path / "d")
