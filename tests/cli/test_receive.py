"""`vmstream receive`: usage; tests/ops/test_receive.py has a QEMU."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commandline import vmstream


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--listen", "tcp:0.0.0.0:0", "-o", "rec"], 2, "--allow-remote"),
        (["--listen", "nowhere", "-o", "rec"], 2, "no address"),
        (["--listen", "unix:sock", "-o", "full"], 2, "--force"),
        (["--listen", "unix:no/sock", "-o", "rec"], 6, "no/sock"),
        (["--listen", "unix:sock", "-o", "rec", "--timeout", "0.3"], 2, "nothing came for 0.3 s"),
        (["--listen", "unix:sock", "-o", "rec", "--timeout", "0"], 2, "--timeout"),
    ],
)
def test_refusals(options: list[str], status: int, said: str, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    run = vmstream("receive", *options, cwd=tmp_path)
    assert (run.status, run.out) == (status, "")
    assert said in run.err
    assert run.err.startswith("listening on unix:sock\n") is said.startswith("nothing came")
    assert [p.name for p in tmp_path.iterdir()] == ["full"]
