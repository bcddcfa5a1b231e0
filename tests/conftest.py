"""Settings for all tests, and what the marker `qemu` means."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

from tests import libvirtd, linux
from tests.browser import find_browser
from tests.qemu import find_qemu
from tests.strategies import examples

# How long an example takes depends on the machine, and says nothing about the code.
settings.register_profile("vmstream", deadline=None, max_examples=examples(100))
settings.load_profile("vmstream")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked `qemu` are skipped without QEMU, or fail if VMSTREAM_REQUIRE_QEMU is 1.

    `qemu("s390x", ...)` is for other emulators than that of x86_64; the mark nearest to the test
    counts. Those marked `linux` need the kernel of `tests.linux`, too, and those marked `browser`
    need Chromium. Those marked `libvirt` are skipped without one.
    """
    if item.get_closest_marker("libvirt") is not None and (lacking := libvirtd.missing()):
        pytest.skip(lacking)
    mark = item.get_closest_marker("qemu")
    wanted = (mark.args or ("x86_64",)) if mark is not None else ()
    missing = [f"qemu-system-{arch} on PATH" for arch in wanted if find_qemu(arch) is None]
    if item.get_closest_marker("linux") is not None and not linux.KERNEL.exists():
        missing.append(f"kernel {linux.KERNEL}, which scripts/test brings as root on Debian")
    if item.get_closest_marker("browser") is not None and find_browser() is None:
        missing.append("chromium on PATH")
    if not missing:
        return
    why = f"no {', '.join(missing)}"
    if os.environ.get("VMSTREAM_REQUIRE_QEMU") == "1":
        pytest.fail(f"{why}, and VMSTREAM_REQUIRE_QEMU=1", pytrace=False)
    pytest.skip(why)
