"""`vmstream check` as users run it."""

from __future__ import annotations

from pathlib import Path

from tests.commandline import vmstream
from tests.ops.test_check import dev, dump, stream
from tests.report.test_models import validator


def test_document_and_text(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(stream(dev(3)))
    (tmp_path / "d.json").write_bytes(dump())
    run = vmstream("check", "--json", tmp_path / "s", "--against", tmp_path / "d.json")
    assert (run.status, run.err) == (1, "")
    validator("check").validate(run.json())
    run = vmstream("check", "s", "--against", "d.json", cwd=tmp_path)
    assert run.out.splitlines()[:2] == [
        "s: would not load",
        "machine pc-q35-7.2; destination pc-q35-7.2, by d.json",
    ]
    assert "    qemu     savevm: unsupported version 3 for 'bus/dev' v2" in run.out
