"""`vmstream verify` as users run it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commandline import vmstream
from tests.report.test_models import validator
from tests.truth import fixture_file, open_fixture


@pytest.mark.parametrize(
    ("name", "status", "verdict"),
    [("own-plain-pc", 0, "sound"), ("interrupted-11.1-pc", 7, "truncated")],
)
def test_document_and_status(name: str, status: int, verdict: str, tmp_path: Path) -> None:
    run = vmstream("verify", "--json", fixture_file(name, tmp_path))
    assert run.status == status
    assert ("the input ends" in run.err) == (status != 0)
    document = run.json()
    validator("verify").validate(document)
    assert document["verdict"] == verdict


def test_text(tmp_path: Path) -> None:
    run = vmstream("verify", "-", stdin=open_fixture("interrupted-11.1-pc"))
    assert run.status == 7
    first, *rest = run.out.splitlines()
    assert first == "standard input: truncated"
    assert any(line.startswith("error: offset 0x486dcf") for line in rest)
    assert any(line.startswith("    do ") for line in rest)


def test_what_is_no_stream() -> None:
    run = vmstream("verify", "-", stdin=b"no stream at all")
    assert (run.status, run.out.splitlines()[0]) == (3, "standard input: corrupt")
