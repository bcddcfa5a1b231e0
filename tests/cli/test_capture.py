"""`vmstream capture`: usage; tests/integrations/test_capture.py has a QEMU."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commandline import vmstream


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-o", "-", "--json"], "no room"),
        (["-o", "-", "--mapped-ram"], "no room"),
        (["-o", "out", "--mapped-ram", "--zstd"], "in no order"),
        (["-o", "out", "--xbzrle"], "give --live"),
        (["-o", "out", "--background-snapshot", "--stop"], "no --stop"),
        (["-o", "out", "--manifest", "there"], "--force"),
    ],
)
def test_usage(options: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("mine")
    run = vmstream("capture", "--qmp", "no.qmp", *options, cwd=tmp_path)
    assert (run.status, run.out) == (2, "")
    assert said in run.err
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "give one of --qmp SOCKET and --libvirt DOMAIN"),
        (["--qmp", "a", "--libvirt", "b"], "give one of"),
        (["--qmp", "a", "--connect", "b"], "--connect is for --libvirt"),
        (["--libvirt", "a", "--background-snapshot"], "--background-snapshot is not for --libvirt"),
        (["--libvirt", "a", "--mapped-ram"], "convert --to mapped-ram"),
        (["--libvirt", "a", "--live", "--xbzrle"], "--xbzrle is not for --libvirt: it sends whole"),
        (["--libvirt", "a", "--zstd"], "snapshot_image_format"),
        (["--libvirt", "a", "--live", "--stop"], "it lets the guest run on at the end"),
        (["--libvirt", "a", "-o", "-"], "-o - is not for --libvirt"),
    ],
)
def test_usage_of_libvirt(options: list[str], said: str, tmp_path: Path) -> None:
    run = vmstream("capture", "-o", "out", *options, cwd=tmp_path)
    assert (run.status, run.out) == (2, "")
    assert said in " ".join(run.err.split())
    assert list(tmp_path.iterdir()) == []


def test_no_monitor(tmp_path: Path) -> None:
    run = vmstream("capture", "--qmp", "no.qmp", "-o", "out", cwd=tmp_path)
    assert run.status == 6
    assert run.err == "vmstream: no.qmp: No such file or directory\n"
    assert list(tmp_path.iterdir()) == []
