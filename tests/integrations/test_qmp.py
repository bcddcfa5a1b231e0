"""`Monitor`: commands, and what goes wrong in words of ours."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.qemu import Qemu
from vmstream.errors import OutputError
from vmstream.integrations import qmp
from vmstream.integrations.qmp import Monitor, RefusedError

ARGS = ["-M", "none", "-qmp", "unix:other.qmp,server=on,wait=off"]


@pytest.mark.qemu
def test_commands_and_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    with Qemu(ARGS) as vm:
        with Monitor(vm.path("other.qmp")) as monitor:
            assert monitor.run("query-version") == vm.qmp("query-version")
            with pytest.raises(RefusedError, match="QEMU refuses nonsense: The command nonsense"):
                monitor.run("nonsense")
            assert monitor.run_with(0, "add-fd", opaque="x")["fdset-id"] == 0
            assert [s["fdset-id"] for s in vm.qmp("query-fdsets")] == [0]
        # The monitor of the tests' own talks to us already; the other is free for the next one.
        monkeypatch.setattr(qmp, "_GREETING_TIMEOUT", 0.3)
        with pytest.raises(OutputError, match="one client at a time"):
            Monitor(vm.path("guest.qmp"))
        monkeypatch.undo()
        with Monitor(vm.path("other.qmp")) as monitor:
            vm.kill()
            with pytest.raises(OutputError, match="the connection to QEMU broke"):
                monitor.run("query-version")


def test_nobody_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        Monitor(tmp_path / "no")
    assert caught.value.filename == str(tmp_path / "no")
    monkeypatch.setitem(sys.modules, "qemu.qmp", None)
    with pytest.raises(OutputError, match=r"pip install 'vmstream\[capture\]'"):
        Monitor(tmp_path / "no")
