"""Findings as text."""

from __future__ import annotations

import io

from vmstream.report.findings import render_verify
from vmstream.report.models.verify import VERIFY_SCHEMA, FindingReport, HashedFile, VerifyReport
from vmstream.report.render import console


def test_verify() -> None:
    finding = FindingReport("error", "format", 16, "what\x1b[31m", "It means.", "do that", "ch1")
    report = VerifyReport(
        VERIFY_SCHEMA, "a\nb", 5000, "corrupt", False, None, 12, 3, [finding], 3,
        [HashedFile("x", "0", "0", True), HashedFile("y", "0", "1", False),
         HashedFile("z", "0", None, False)],
    )  # fmt: skip
    text = io.StringIO()
    render_verify(report, console(text))
    assert text.getvalue().splitlines() == [
        "a\\nb: corrupt",
        "4.883 KiB, 3 sections, 12 page records, each decoded; machine not stated",
        "manifest     x: same",
        "manifest     y: differs",
        "manifest     z: not compared",
        "error: what\\x1b[31m",
        "    in       ch1",
        "    code     format",
        "    means    It means.",
        "    do       do that",
        "... and 2 more",
    ]
