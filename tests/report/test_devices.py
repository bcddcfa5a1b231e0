"""Device state and CPUs as text."""

from __future__ import annotations

import io

from tests.decoding import BytesSource
from tests.truth import open_fixture
from vmstream.ops.devices import cpus_report, devices_report, find, read_devices
from vmstream.report.devices import render_cpus, render_devices
from vmstream.report.models.devices import DevicesReport, NodeReport
from vmstream.report.render import console


def text_of(report: DevicesReport) -> list[str]:
    out = io.StringIO()
    render_devices(report, console(out))
    return out.getvalue().splitlines()


def report_of(*nodes: NodeReport) -> DevicesReport:
    return DevicesReport("s", "x", None, "stream", list(nodes), [])


def test_values() -> None:
    lines = text_of(
        report_of(
            NodeReport("a[0]", "device", 0x20, 2048, 3, None),
            NodeReport("a[0]/n", "uint32", 0x20, 4, None, 300),
            NodeReport("a[0]/i", "int32", 0x24, 4, None, -5),
            NodeReport("a[0]/b", "bool", 0x28, 1, None, True),
            NodeReport("a[0]/z", "buffer", 0x29, 3, None, "000000"),
            NodeReport("a[0]/x", "buffer", 0x2C, 40, None, "0102" * 20),
            NodeReport("a[0]/l", "array", 0x60, 8, None, [1, 0, 0, 2]),
            NodeReport("a[0]/p", "nullptr", 0x70, 1, None, None),
            NodeReport("a[0]/s", "struct", 0x71, 1, None, None),
            NodeReport("a[0]/s/t", "timer", 0x71, 8, None, 2**64 - 1, "not armed"),
            NodeReport("a[0]/a/b", "subsection", 0x80, 9, 1, None),
            NodeReport("b\x1b[0]", "device", 0x90, 0, 1, None),
        )
    )
    assert lines == [
        "a[0]  v3  2 KiB at 0x20",
        "  n  0x12c",
        "  i  -5",
        "  b  true",
        "  z  buffer, 3 bytes:  zeros",
        "  x  buffer, 40 bytes:  " + "01 02 " * 16 + "...",
        "  l  4 numbers:  0x1 0x0 x2 0x2",
        "  p  NULL",
        "  s",
        "    t  0xffffffffffffffff  (not armed)",
        "    b  v1  9 bytes at 0x80",
        "b\\x1b[0]  v1  0 bytes at 0x90",
    ]


def test_of_a_stream() -> None:
    source = BytesSource(open_fixture("plain-11.1-q35"), "x")
    found = read_devices(source)
    lines = text_of(devices_report(source, found, found.tree, deep=False))
    assert len(lines) == len(found.tree)
    nodes = find(found, "cpu[0]/env.cr[3]", "x")
    assert text_of(devices_report(source, found, nodes)) == ["cpu[0]/env.cr[3]  0x0"]
    out = io.StringIO()
    render_cpus(cpus_report(source, found), console(out))
    text = out.getvalue()
    assert "CPU#0  x86, protected mode, 32-bit code, CPL 0\n" in text
    assert "CPU#1  x86, protected mode, 32-bit code, CPL 0, halted\n" in text
    assert "rip 0000000000007d46" in text
    assert "cs 0008 0000000000000000 ffffffff 00cf9a00" in text
