"""What speaks against loading a stream, by -dump-vmstate or another stream."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.decoding import BytesSource
from tests.streamwriter import Device, Field, RamBlock, StreamWriter, Subsection
from tests.truth import open_fixture
from vmstream.errors import OutputError, StreamError
from vmstream.ops.check import check
from vmstream.report.models.check import CheckReport

SUB = Subsection("dev/more", 1, (Field("x", "uint32", bytes(4)),))
FIELDS = (Field("a", "uint32", bytes(4)), Field("n", "int32 equal", bytes(3) + b"\4"))


def stream(
    *devices: Device,
    machine: str = "pc-q35-7.2",
    blocks: dict[str, int] | None = None,
    switchover_start: bool = False,
    **config: Any,
) -> bytes:
    size = 1 << config.get("page_bits", 12)
    w = StreamWriter(size)
    w.header()
    w.configuration(machine, **config)
    blocks = {"pc.ram": 2} if blocks is None else blocks
    w.ram_start([RamBlock(name, n * size) for name, n in blocks.items()])
    if switchover_start:
        w.command(11)
    with w.ram_end():
        for name, n in blocks.items():
            for page in range(n):
                w.zero(name, page * size)
    for device in devices:
        w.device(device)
    w.eof()
    w.vmdescription()
    return bytes(w)


def dump(machine: str = "pc-q35-7.2", newest: int = 2, oldest: int = 1, more: bool = True) -> bytes:
    fields = [
        {"field": name, "version_id": 0, "field_exists": False, "size": 4, "num": 1}
        for name in ("a", "n")
    ]
    sub = {
        "name": "dev/more",
        "version_id": 1,
        "minimum_version_id": 1,
        "Fields": [{"field": "x", "version_id": 0, "field_exists": False, "size": 4, "num": 1}],
    }
    vmsd = {"name": "dev", "version_id": newest, "minimum_version_id": oldest, "Fields": fields}
    if more:
        vmsd["Subsections"] = [sub]
    kind = {"Name": "x", "version_id": newest, "minimum_version_id": oldest, "Description": vmsd}
    return json.dumps({"vmschkmachine": {"Name": machine}, "dev": kind}).encode()


def held(one: bytes, other: bytes) -> CheckReport:
    report, code = check(BytesSource(one), BytesSource(other))
    assert code == (report.verdict != "loads")
    return report


def dev(version: int = 2, fields: tuple[Field, ...] = FIELDS, *subs: Subsection) -> Device:
    return Device("bus/dev", version=version, fields=fields, subsections=subs)


@pytest.mark.parametrize("device", [dev(), dev(1), dev(2, FIELDS, SUB)])
def test_loads(device: Device) -> None:
    for other in (dump(), stream(device)):
        report = held(stream(device), other)
        assert (report.verdict, report.findings) == ("loads", [])


REFUSED = {
    "machine": (stream(machine="pc-q35-9.0"), dump(), "Machine type received is 'pc-q35-9.0' and"),
    "version": (stream(dev(3)), dump(), "savevm: unsupported version 3 for 'bus/dev' v2"),
    "version-old": (stream(dev(1)), dump(oldest=2), "dev: incoming version_id 1 is too old for"),
    "subsection": (
        stream(dev(2, FIELDS, SUB)),
        dump(more=False),
        "error while loading state for instance 0x0 of device 'bus/dev'",
    ),
    "size": (stream(dev(2, FIELDS[:1])), dump(), "Missing section footer for bus/dev"),
    "page-size": (
        stream(page_bits=12),
        stream(page_bits=14),
        "Received TARGET_PAGE_BITS is 12 but local is 14",
    ),
    "capability": (
        stream(capabilities=["foo"]),
        stream(),
        "Capability foo is off, but received capability is on",
    ),
    "ram-block": (stream(blocks={"a": 1}), stream(blocks={}), 'Unknown ramblock "a", cannot'),
    "ram-length": (
        stream(blocks={"a": 1}),
        stream(blocks={"a": 3}),
        "Size mismatch: a: 0x1000 != 0x3000: Invalid argument",
    ),
    "section": (stream(dev()), stream(), "Unknown savevm section or instance 'bus/dev' 0. Make"),
    "value": (
        stream(dev()),
        stream(dev(2, (FIELDS[0], Field("n", "int32 equal", bytes(3) + b"\x10")))),
        "10 != 4",
    ),
}


@pytest.mark.parametrize("code", REFUSED)
def test_refused(code: str) -> None:
    one, other, line = REFUSED[code]
    report = held(one, other)
    assert report.verdict == "refused"
    first = next(f for f in report.findings if f.effect == "refused")
    assert (first.code, first.qemu[0][: len(line)]) == (code, line)
    assert first.qemu[-1].startswith("load of migration failed: ")
    assert first.advice
    assert 0 < first.offset < len(one)


STATE = "error while loading state for instance 0x0 of device"
CHAINED = {
    "machine": "post load hook failed for: configuration, version_id: 1, minimum_version: 0: "
    "Machine type received is 'pc-q35-7.2' and local is 'pc-q35-11.1'",
    "version": "unsupported version 3 for 'bus/dev' v2",
    "version-old": f"{STATE} 'bus/dev': dev: incoming version_id 1 is too old for local minimum "
    "version_id 2",
    "subsection": f"{STATE} 'bus/dev': VM subsection 'dev/more' in 'dev' does not exist",
    "section": "Unknown section or instance 'bus/dev' 0. Make sure that your current VM setup "
    "matches your saved VM setup, including any hotplugged devices",
    "ram-block": f"{STATE} 'ram': Failed to load vmstate version_id: 4, ret: -22",
    "value": f"{STATE} 'bus/dev': Failed to load element of type int32 equal for n",
}
NEW = "pc-q35-11.1"


@pytest.mark.parametrize(
    ("code", "one", "other"),
    [
        ("machine", stream(), dump(NEW)),
        ("version", stream(dev(3), machine=NEW), dump(NEW)),
        ("version-old", stream(dev(1), machine=NEW), dump(NEW, oldest=2)),
        ("subsection", stream(dev(2, FIELDS, SUB), machine=NEW), dump(NEW, more=False)),
        ("section", stream(dev(), machine=NEW), stream(machine=NEW)),
        ("ram-block", stream(machine=NEW, blocks={"a": 1}), stream(machine=NEW, blocks={})),
        (
            "value",
            stream(dev(), machine=NEW),
            stream(dev(2, (FIELDS[0], Field("n", "int32 equal", bytes(4)))), machine=NEW),
        ),
    ],
)
def test_words_of_qemu_10_2(code: str, one: bytes, other: bytes) -> None:
    """As QEMU 11.1 says it, in one line."""
    finding = next(f for f in held(one, other).findings if f.effect == "refused")
    assert finding.code == code
    said = "load of migration failed: Invalid argument: " + CHAINED[code]
    assert finding.qemu[-1] == said


def test_a_subsection_of_a_struct() -> None:
    inner = {
        "vmsd_name": "in",
        "version": 1,
        "fields": [FIELDS[0].describe()],
        "subsections": [{"vmsd_name": "in/x", "version": 1, "fields": [FIELDS[0].describe()]}],
    }
    data = bytes(4) + b"\x05\x04in/x" + b"\0\0\0\1" + bytes(4)
    device = dev(2, (Field("s", "struct", data, extra={"struct": inner}),))
    four = {"field": "a", "version_id": 0, "field_exists": False, "size": 4}
    known = {"name": "in", "version_id": 1, "minimum_version_id": 1, "Fields": [four]}
    for sub, effect in (("in/x", "loads"), ("in/y", "refused")):
        more = {"name": sub, "version_id": 1, "minimum_version_id": 1, "Fields": [four]}
        vmsd = {"name": "dev", "version_id": 2, "minimum_version_id": 1, "Fields": [
            {"field": "s", "version_id": 0, "field_exists": False, "size": 8,
             "Description": known | {"Subsections": [more]}},
        ]}  # fmt: skip
        kind = {"Name": "x", "version_id": 2, "minimum_version_id": 1, "Description": vmsd}
        text = {"vmschkmachine": {"Name": "pc-q35-7.2"}, "dev": kind}
        report = held(stream(device), json.dumps(text).encode())
        assert report.verdict == effect
    (finding,) = report.findings
    assert finding.qemu == [
        "Failed to load dev:s",
        "error while loading state for instance 0x0 of device 'bus/dev'",
        "load of migration failed: No such file or directory",
    ]


def nic(first: int, more: int = 0) -> Device:
    config = Field("config", "pci config", bytes([first, *range(1, 62), more, 0]))
    pci = {"vmsd_name": "PCIDevice", "version": 2, "fields": [config.describe()]}
    return Device("pci/nic", fields=(Field("d", "struct", config.data, extra={"struct": pci}),))


def test_config_space() -> None:
    assert held(stream(nic(1)), stream(nic(1, 9))).verdict == "loads"
    one = stream(nic(1))
    (finding,) = held(one, stream(nic(2))).findings
    assert (finding.code, finding.offset) == ("pci-config", one.index(bytes([1, 1, 2, 3])))
    assert finding.qemu[0].endswith("Bad config data: i=0x0 read: 1 device: 2 cmask: ")
    assert finding.qemu[1] == "Failed to load PCIDevice:config"


@pytest.mark.parametrize(("machine", "verdict"), [("pc-q35-7.2", "doubtful"), (NEW, "loads")])
def test_a_command_that_is_too_new(machine: str, verdict: str) -> None:
    sent = stream(machine=machine, switchover_start=True)
    source = BytesSource(sent)
    source.seekable = False
    report, _ = check(source, BytesSource(stream(machine=machine)))
    assert report.verdict == verdict
    if report.findings:
        assert report.findings[0].qemu[0] == "MIG_CMD 0xb unknown (len 0x0)"
    assert check(source, source)[0].verdict == "loads"


def test_names_of_what_does_not_fit() -> None:
    (finding,) = held(stream(dev(2, FIELDS[:1])), dump()).findings
    assert "missing: n" in finding.message
    assert finding.source == "inferred"


@pytest.mark.parametrize(
    ("one", "other", "code"),
    [
        (stream(Device("bus/none")), dump(), "section"),
        (stream(dev(1)), stream(dev(2)), "version-older"),
        (stream(), stream(dev()), "section-kept"),
        (stream(), stream(blocks={"pc.ram": 2, "vga": 1}), "ram-block-kept"),
    ],
)
def test_doubts(one: bytes, other: bytes, code: str) -> None:
    report = held(one, other)
    assert (report.verdict, [f.code for f in report.findings]) == ("doubtful", [code])


def test_tables_of_the_firmware_are_resized() -> None:
    name = "/rom@etc/acpi/tables"
    report = held(stream(blocks={name: 2}), stream(blocks={name: 4}))
    assert (report.verdict, [f.effect for f in report.findings]) == ("loads", ["info"])


def test_real_streams() -> None:
    """Of one machine, with and without a description; and of two."""
    plain, without = open_fixture("own-plain-pc"), open_fixture("own-novmdesc-pc")
    assert held(plain, without).verdict == "loads"
    assert held(without, plain).verdict == "loads"
    report = held(plain, open_fixture("own-plain-q35"))
    assert report.verdict == "refused"
    assert report.findings[0].code == "machine"


def test_what_cannot_be_held_against() -> None:
    with pytest.raises(OutputError, match="no schema"):
        held(stream(), b"{}")
    with pytest.raises(StreamError):
        held(stream()[:-500], dump())
    with pytest.raises(StreamError):
        held(stream(), b"no stream")
