"""The Linux guest of the tests: it boots, loads modules and lives."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.linux import Linux
from tests.qemu import Qemu

pytestmark = [pytest.mark.qemu, pytest.mark.linux]


def test_the_guest_boots_and_loads_modules(tmp_path: Path) -> None:
    linux = Linux(modules=["qemu_fw_cfg", "virtio_blk", "virtio_pci"], script="cat /proc/modules")
    args = ["-M", "q35", "-accel", "tcg", "-m", "256M", *linux.args(tmp_path)]
    with Qemu(args) as vm:
        vm.wait_serial(b"ALIVE 2")
        text = vm.path("guest.log").read_text()
    loaded = {line.split()[0] for line in text.splitlines() if "Live 0x" in line}
    assert {"qemu_fw_cfg", "virtio_blk", "virtio_pci", "virtio_ring", "virtio"} <= loaded
