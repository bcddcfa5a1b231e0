"""`vmstream receive`: usage; tests/ops/test_receive.py has a QEMU."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.commandline import on_terminal, vmstream


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


def test_the_address_has_a_line_of_its_own_beside_the_bar(tmp_path: Path) -> None:
    run = on_terminal(
        "receive", "--listen", "tcp:127.0.0.1:0", "-o", tmp_path / "rec", "--timeout", "0.3"
    )
    assert re.search(r"\x1b\[2Klistening on tcp:127\.0\.0\.1:\d+\r\n", run.out), run.out
