"""`vmstream banner`: help and usage; what it prints is in `tests/ops/test_kernel.py`."""

from __future__ import annotations

from tests.commandline import vmstream


def test_help_and_usage() -> None:
    done = vmstream("banner", "--help")
    assert (done.status, done.err) == (0, "")
    assert "vmstream banner dump.bin --json" in done.out
    assert vmstream("banner").status == 2
    assert vmstream("banner", "-", stdin=b"").status in (3, 4)
