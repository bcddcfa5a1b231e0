"""`vmstream vmcoreinfo`: help and usage; what it prints is in `tests/ops/test_kernel.py`."""

from __future__ import annotations

from tests.commandline import vmstream


def test_help_and_usage() -> None:
    done = vmstream("vmcoreinfo", "--help")
    assert (done.status, done.err) == (0, "")
    assert "vmstream vmcoreinfo dump.bin --json" in done.out
    assert vmstream("vmcoreinfo").status == 2
    assert vmstream("vmcoreinfo", "-", stdin=b"").status in (3, 4)
