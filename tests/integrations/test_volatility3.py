"""The layer of Volatility 3: what `vol` finds in streams, and how the layer behaves in it."""

from __future__ import annotations

import json
import pickle
import re
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import files
from pathlib import Path
from typing import Any

import pytest

from tests.commandline import environment, vmstream
from tests.containers import PACK, open_image, save_image
from tests.linux import Linux
from tests.qemu import Qemu
from tests.registers import x86
from tests.truth import (
    channel_names,
    check_block_bytes,
    fixture_file,
    load_manifest,
    open_fixture,
    qcow2_file,
    snapshot_manifests,
)
from vmstream.errors import AddressError
from vmstream.guest.cpus import CPU

pytest.importorskip("volatility3.framework")

from volatility3.framework import contexts, exceptions
from volatility3.framework.automagic import stacker
from volatility3.framework.layers import elf, intel, lime, physical, qemu, scanners

from vmstream.integrations.volatility3 import (
    PageTableStacker,
    StreamLayer,
    StreamStacker,
    page_tables,
)

MIB = 1 << 20
STACKERS = [StreamStacker, qemu.QemuStacker, PageTableStacker]


def stack(path: Path, **settings: Any) -> tuple[contexts.Context, list[str]]:
    """The context, and names of the layers that are put on a file, the highest first."""
    context = contexts.Context()
    for key, value in settings.items():
        context.config[f"vmstream.{key}"] = value
    context.config["file.location"] = path.as_uri()
    context.add_layer(physical.FileLayer(context, "file", "file"))
    # In the order of LayerStacker.
    order = sorted(STACKERS, key=lambda s: s.stack_order)
    names = stacker.LayerStacker.stack_layer(context, "file", order)
    context.layers["file"].destroy()
    return context, names


def layer_on(path: Path, **settings: Any) -> StreamLayer:
    context, names = stack(path, **settings)
    layer = context.layers[names[-2]]
    assert isinstance(layer, StreamLayer), names
    return layer


def check(layer: StreamLayer, manifest: dict[str, Any], block: str) -> None:
    """RAM from address 0 on is that block."""
    size = manifest["blocks"][block]["size"]
    assert check_block_bytes(manifest, block, layer.read(0, size))


# -- what is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("plain-11.1-pc", "pc.ram"),
        ("xbzrle-5.2-pc", "mem"),
        ("zlib-5.2-pc", "mem"),
        ("mapped-live-10.0-q35", "mem"),
    ],
)
def test_streams(name: str, block: str, tmp_path: Path) -> None:
    manifest = load_manifest(name)
    block = block if block in manifest["blocks"] else next(iter(manifest["blocks"]))
    check(layer_on(fixture_file(name, tmp_path)), manifest, block)


def test_save_images_and_compressed_files(tmp_path: Path) -> None:
    """A libvirt image, compressed within, and a stream that is: neither can be sought in."""
    name = "libvirt-9.0-xz"
    (tmp_path / "image").write_bytes(open_image(name))
    check(layer_on(tmp_path / "image"), load_manifest(name), "pc.ram")
    name = "plain-11.1-pc"
    (tmp_path / "packed.gz").write_bytes(PACK["gzip"](open_fixture(name)))
    layer = layer_on(tmp_path / "packed.gz")
    check(layer, load_manifest(name), "pc.ram")
    # CPU state comes by the way.
    assert layer.page_tables == layer_on(fixture_file(name, tmp_path)).page_tables


def test_snapshots(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = "savevm-11.1-pc"
    path = qcow2_file(name, tmp_path)
    for snapshot, manifest in snapshot_manifests(name).items():
        check(layer_on(path, snapshot=snapshot), manifest, "mem")
    _, names = stack(path)
    assert names == ["file"]
    assert "first" in caplog.text and "second" in caplog.text


def test_channels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = "multifd-11.1-pc"
    main, *others = [fixture_file(n, tmp_path) for n in (f"{name}.ch0", *channel_names(name))]
    check(layer_on(main, channels=[str(p) for p in others]), load_manifest(name), "mem")
    _, names = stack(main)
    assert not any(n.startswith("StreamLayer") for n in names)
    assert "channel" in caplog.text


def test_memory_above_a_hole(tmp_path: Path) -> None:
    """5 GiB, cut at the PCI hole: a scan passes over it, and finds what is above at its address."""
    layer = layer_on(fixture_file("big-10.0-q35", tmp_path))
    low, high = layer._guest.ranges
    assert low == (0, 2 << 30) and high == (4 << 30, 3 << 30)
    assert (layer.minimum_address, layer.maximum_address) == (0, (7 << 30) - 1)
    assert layer.is_valid(low[1] - 1) and layer.is_valid(4 << 30, 4096)
    assert not layer.is_valid(low[1] - 1, 2) and not layer.is_valid(-1)
    with pytest.raises(exceptions.InvalidAddressException) as caught:
        layer.read(low[1] - 1, 2)
    assert caught.value.invalid_address == low[1]
    assert layer.read(low[1] - 1, 3, pad=True)[1:] == bytes(2)
    found = layer.scan(
        layer.context,
        scanners.RegExScanner(rb"."),
        sections=[(low[1] - 2, 2), (low[1] + 10, 100), (3 << 30, (1 << 30) + 2)],
    )
    assert [*found] == [low[1] - 2, low[1] - 1, 4 << 30, (4 << 30) + 1]


# -- what is not ----------------------------------------------------------------------------------


def test_other_files_are_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", "vmstream")
    text = bytes(range(256)) * 1024
    # The last is what a guest could have in the first MiB of its memory.
    for data in (
        b"x",
        text,
        PACK["gzip"](text),
        b"\x7fELF" + text,
        text + open_fixture("plain-11.1-pc") + text,
    ):
        (tmp_path / "file").write_bytes(data)
        assert stack(tmp_path / "file")[1] == ["file"], data[:8]
    assert not caplog.records


def test_damaged_streams(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is there is read, and that it is not all is said."""
    name = "plain-11.1-pc"
    whole = open_fixture(name)
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    want = layer_on(fixture_file(name, tmp_path)).read(0, 16 * MIB)
    got = layer_on(tmp_path / "cut").read(0, 16 * MIB)
    pages = [(got[i : i + 4096], want[i : i + 4096]) for i in range(0, 16 * MIB, 4096)]
    assert all(g in (w, bytes(4096)) for g, w in pages) and any(g == w and any(g) for g, w in pages)
    assert "cut" in caplog.text and "offset 0x" in caplog.text
    for length in (1, 8, 20, 100):
        (tmp_path / "head").write_bytes(whole[:length])
        assert not any(n.startswith("StreamLayer") for n in stack(tmp_path / "head")[1])


def test_a_file_that_shrinks(tmp_path: Path) -> None:
    """A page that can no longer be read is no valid address, and with `pad` zeros."""
    path = fixture_file("plain-11.1-pc", tmp_path)
    layer = layer_on(path)
    want = layer.read(MIB, 2 * MIB)
    with path.open("r+b") as file:
        file.truncate(MIB)
    with pytest.raises(exceptions.InvalidAddressException, match="shorter than it was"):
        layer.read(MIB, 2 * MIB)
    got = layer.read(MIB, 2 * MIB, pad=True)
    pages = [(got[i : i + 4096], want[i : i + 4096]) for i in range(0, 2 * MIB, 4096)]
    assert all(g in (w, bytes(4096)) for g, w in pages) and any(g == w and any(g) for g, w in pages)


def test_shared_memory_is_no_valid_address(tmp_path: Path) -> None:
    _, names = stack(fixture_file("ignoreshared-10.0-pc", tmp_path))
    assert not any(n.startswith("StreamLayer") for n in names)


def test_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(exceptions.LayerException):
        layer_on(fixture_file("plain-11.1-pc", tmp_path)).write(0, b"x")


def test_a_copy_in_another_process(tmp_path: Path) -> None:
    """Scans with --parallelism hand the layer to workers."""
    layer = layer_on(fixture_file("plain-11.1-pc", tmp_path))
    copy = pickle.loads(pickle.dumps(layer))  # noqa: S301
    assert copy.read(MIB, 64) == layer.read(MIB, 64)


# -- page tables ----------------------------------------------------------------------------------

PG, PAE, LA57, LMA = 1 << 31, 1 << 5, 1 << 12, 1 << 10


def cpu(cr0: int = PG, cr3: int = 0, cr4: int = PAE, efer: int = LMA) -> CPU:
    return CPU(0, "x86", {"control": {"cr0": cr0, "cr3": cr3, "cr4": cr4, "efer": efer}}, "")


def ram(tables: dict[int, dict[int, int]]) -> Any:
    data = bytearray(0x10000)
    for at, entries in tables.items():
        for index, entry in entries.items():
            struct.pack_into("<Q", data, at + 8 * index, entry)

    def read(address: int, length: int) -> bytes:
        if address + length > len(data):
            raise AddressError(address, "no RAM")
        return bytes(data[address : address + length])

    return read


def test_kinds_of_page_tables() -> None:
    read = ram({})
    assert page_tables(cpu(cr3=0x2018), read) == (intel.Intel32e, 0x2000)
    assert page_tables(cpu(cr3=0x2020, efer=0), read) == (intel.IntelPAE, 0x2020)
    assert page_tables(cpu(cr3=0x2018, cr4=0, efer=0), read) == (intel.Intel, 0x2000)
    assert page_tables(cpu(cr0=1), read) is None
    assert page_tables(cpu(cr4=PAE | LA57), read) is None
    for efer, cr4 in ((LMA, PAE), (0, PAE), (0, 0)):
        assert page_tables(cpu(cr3=0xFFFF0000, cr4=cr4, efer=efer), read) is None
    assert page_tables(CPU(0, "riscv64", {}, ""), read) is None


def test_tables_of_a_program_under_page_table_isolation() -> None:
    """Accessed and NX differ between the two; the kernel is in one alone."""
    nx, accessed = 1 << 63, 1 << 5
    program = {3: 0x9067, 511: 0xA067}
    kernel = {3: 0x9067 & ~accessed | nx, 273: 0xB067, 511: 0xC067}
    lone = cpu(cr3=0x5000)
    assert page_tables(lone, ram({0x4000: kernel, 0x5000: program})) == (intel.Intel32e, 0x4000)
    # The page below is none of the kernel's for these tables.
    for other in ({}, {3: 0xD067, 273: 0xB067, 511: 0xC067}, {3: 0x9067, 511: 0xA067}):
        assert page_tables(lone, ram({0x4000: other, 0x5000: program})) == (intel.Intel32e, 0x5000)
    assert page_tables(cpu(cr3=0x4000), ram({0x4000: kernel})) == (intel.Intel32e, 0x4000)


# -- vol ------------------------------------------------------------------------------------------


def test_the_package_brings_what_volatility_imports() -> None:
    """Without it `vol` does not find the layer; `pip install` of this tree puts it there."""
    assert "volatility3/plugins/vmstream.py" in map(str, files("vmstream") or ())


def vol(path: Path, *args: str) -> list[dict[str, Any]]:
    code = "import sys; from volatility3.cli import main; sys.argv[0] = 'vol'; main()"
    run = subprocess.run(
        [sys.executable, "-c", code, "-q", "-r", "json", "--offline", "-f", path, *args],
        capture_output=True, env=environment(), timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr.decode()
    rows: list[dict[str, Any]] = json.loads(run.stdout)
    return rows


@pytest.mark.qemu
@pytest.mark.linux
def test_a_linux_guest(tmp_path: Path) -> None:
    """Its banner is at the same addresses in all: images, a stream, with XBZRLE, saved by libvirt.

    And where the kernel says that it has it, by the page tables of the CPU.
    """
    guest = Linux(script="grep ' linux_banner$' /proc/kallsyms", append="pti=on")
    stream, xbzrle = tmp_path / "stream", tmp_path / "xbzrle"
    with Qemu(["-M", "q35", "-accel", "tcg", "-m", "256M", *guest.args(tmp_path)]) as vm:
        vm.wait_serial(b"ALIVE 1")
        said = vm.path("guest.log").read_bytes()
        vm.stop()
        cr3 = x86(vm.registers())["cr3"]
        vm.migrate(f"exec:cat>{stream}")
        vm.cont()
        vm.set_capabilities(xbzrle=True)
        vm.set_parameters(max_bandwidth=64 * MIB, downtime_limit=1)
        vm.migrate(f"exec:cat>{xbzrle}", wait=False)
        vm.wait_passes(2)
        vm.set_parameters(max_bandwidth=1 << 34, downtime_limit=10000)
        vm.wait_migration()
    found = re.search(rb"([0-9a-f]{16}) \w linux_banner", said)
    assert found is not None
    virtual = int(found[1], 16)

    libvirt = tmp_path / "saved"
    libvirt.write_bytes(save_image(PACK["zstd"](stream.read_bytes()), number=5))
    images = {f: tmp_path / f"ram.{f}" for f in ("raw", "lime", "elf")}
    for name, image in images.items():
        run = vmstream("extract-ram", stream, "--format", name, "-o", image)
        assert run.status == 0, run.err
    # The stream with no options; of the others no operating system is looked for, to be quick.
    formats = json.dumps([s.__name__ for s in (*STACKERS, elf.Elf64Stacker, lime.LimeStacker)])
    quick = ("-e", f"automagic.LayerStacker.stackers={formats}")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(vol, stream, "banners.Banners")
        scans = [
            pool.submit(vol, path, *quick, "banners.Banners")
            for path in (xbzrle, libvirt, *images.values())
        ]
        pattern = ("regexscan.RegExScan", "--pattern", "Linux version [0-9]")
        matches = pool.submit(vol, stream, *quick, *pattern)
        truth, others = first.result(), [s.result() for s in scans]
        addresses = {row["Offset"] for row in matches.result()}
    assert any(row["Banner"].startswith("Linux version ") for row in truth)
    assert all(rows == truth for rows in others)
    # Volatility states virtual addresses in 48 bits.
    assert virtual & (1 << 48) - 1 in addresses
    layer = layer_on(stream)
    assert layer.page_tables == (intel.Intel32e, cr3 & 0x000F_FFFF_FFFF_E000)
    assert layer.metadata["page_map_offset"] == cr3 & 0x000F_FFFF_FFFF_E000
