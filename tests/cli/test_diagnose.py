"""`vmstream diagnose` as users run it."""

from __future__ import annotations

from pathlib import Path

from tests.commandline import vmstream
from tests.ops.test_diagnose import STREAM
from tests.report.test_models import validator

LOG = b"qemu-system-x86_64: savevm: unsupported version 2 for 'bus/dev' v1\n"


def test_document_and_text(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(STREAM)
    run = vmstream("diagnose", "--json", tmp_path / "s", "--log", "-", stdin=LOG)
    assert (run.status, run.err) == (0, "")
    validator("diagnose").validate(run.json())
    (tmp_path / "log").write_bytes(LOG)
    run = vmstream("diagnose", "s", "--log", "log", cwd=tmp_path)
    first, at, cause, advice = run.out.splitlines()
    assert first == f"line 1: {LOG.decode().strip()}"
    assert at.endswith(", bus/dev[0]")
    assert cause.startswith("    cause ")
    assert advice.startswith("    do ")


def test_nothing_known_and_two_of_standard_input(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(STREAM)
    run = vmstream("diagnose", tmp_path / "s", "--log", "-", stdin=b"")
    assert (run.status, run.out) == (1, "no message of a migration that is known\n")
    assert vmstream("diagnose", "-", "--log", "-", stdin=b"").status == 2
