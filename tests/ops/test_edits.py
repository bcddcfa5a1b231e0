"""Edits of structure: each gives a legal stream, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import streamwriter as sw
from tests.decoding import decode
from tests.ops.test_rewrite import rewritten
from tests.streamwriter import Device, Field, RamBlock, StreamWriter, Subsection, simple_stream
from tests.truth import fixture_file, open_fixture
from vmstream.errors import EncodeError, LimitError, OutputError
from vmstream.ops import edits
from vmstream.ops.devices import read_devices
from vmstream.stream.events import Configuration, VMDescription
from vmstream.transport.source import OpenSource

PAGE = 4096
BODY = bytes(range(256)) * 16
TIMER = Device("timer", 0, 2, [Field("ticks", "int64", bytes(8))])
SUB = Subsection("rtc/irq", 1, [Field("n", "uint16", b"\0\1")])
RTC = Device("rtc", 0, 3, [Field("index", "uint8", b"\7")], [SUB])
RNG = Device("0000:00:02.0/rng", 0, 1, [Field("a", "uint8", b"\1")])


def edited(tmp_path: Path, data: bytes, **options: Any) -> bytes:
    """The stream with edits, read by a strict decoder."""
    (tmp_path / "in").write_bytes(data)
    report, code = rewritten(tmp_path / "in", **options)
    out = (tmp_path / "out").read_bytes()
    assert code == 0
    assert report.output_size == len(out)
    assert decode(out, strict=True).error is None
    return out


def refused(tmp_path: Path, data: bytes, why: str, **options: Any) -> None:
    (tmp_path / "in").write_bytes(data)
    with pytest.raises((EncodeError, OutputError), match=why):
        rewritten(tmp_path / "in", **options)
    assert not (tmp_path / "out").exists()


def stream(*devices: Device, **options: Any) -> bytes:
    return bytes(simple_stream(devices=devices or (TIMER, RTC, RNG), **options))


# -- the configuration ----------------------------------------------------------------------------


def test_configuration(tmp_path: Path) -> None:
    sets = (
        ("configuration.name", "pc-q35-7.1"),
        ("configuration.uuid", "00010203-0405-0607-0809-0a0b0c0d0e0f"),
        ("configuration.target_page_bits", "12"),
    )
    out = edited(tmp_path, stream(), sets=sets)
    w = StreamWriter()
    w.header()
    w.configuration("pc-q35-7.1", page_bits=12, uuid=bytes(range(16)))
    assert out.startswith(bytes(w))
    (found,) = decode(out).of(Configuration)
    assert (found.name, found.uuid) == (b"pc-q35-7.1", bytes(range(16)))
    # And back: an empty value leaves it out.
    sets = (("configuration.uuid", ""), ("configuration.target_page_bits", ""))
    back = edited(tmp_path, out, sets=(*sets, ("configuration.name", "pc-i440fx-7.2")))
    assert decode(back).of(Configuration)[0].subsections == ()


def test_the_description_of_the_configuration_follows(tmp_path: Path) -> None:
    """As the real QEMU describes it."""
    data = open_fixture("plain-11.1-pc")
    out = edited(tmp_path, data, sets=(("configuration.name", "pc-q35-longer-name"),))
    (text,) = (e.text for e in decode(out).of(VMDescription))
    assert b'{"name": "name", "type": "buffer", "size": 18}' in text
    back = edited(tmp_path, out, sets=(("configuration.name", "pc-i440fx-11.1"),))
    assert back == data


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("name", "", "has a name"),
        ("uuid", "12", "no UUID"),
        ("target_page_bits", "13", "pages of 4096 bytes"),
        ("target_page_bits", "99", "no page size"),
        ("target_page_bits", "x", "no page size"),
        ("capabilities", "mapped-ram", "how RAM stands in the stream"),
        ("capabilities", "x-ignore-shared", "how RAM stands in the stream"),
        ("x", "", "there is configuration.name"),
    ],
)
def test_what_a_configuration_cannot_be(tmp_path: Path, name: str, value: str, why: str) -> None:
    refused(tmp_path, stream(), why, sets=((f"configuration.{name}", value),))


def test_without_a_configuration(tmp_path: Path) -> None:
    data = open_fixture("own-old-pc-2.3")
    refused(tmp_path, data, "no configuration", sets=(("configuration.name", "x"),))


# -- fields ---------------------------------------------------------------------------------------


def test_fields(tmp_path: Path) -> None:
    data = stream()
    out = edited(tmp_path, data, sets=(("rtc/index", "9"), ("timer/*", "-1")))
    assert len(out) == len(data)
    with OpenSource(tmp_path / "out") as source:
        tree = read_devices(source).tree
    assert [n.value for n in tree.find("rtc/index")] == [9]
    assert [n.value for n in tree.find("timer/ticks")] == [-1]


def test_two_values_of_one_field(tmp_path: Path) -> None:
    refused(tmp_path, stream(), "two edits", sets=(("rtc/index", "9"), ("rtc/*", "8")))


def test_a_field_of_a_section_that_goes(tmp_path: Path) -> None:
    sets = (("rtc/index", "9"),)
    refused(tmp_path, stream(), "two edits", sets=sets, drop_sections=("rtc",))


# -- sections -------------------------------------------------------------------------------------


@pytest.mark.parametrize("footers", [True, False])
def test_a_section_goes(tmp_path: Path, footers: bool) -> None:
    out = edited(tmp_path, stream(footers=footers), drop_sections=("rtc",))
    want = stream(TIMER, Device(**{**RNG.__dict__, "section_id": 4}), footers=footers)
    want = (
        want if footers else stream(TIMER, RNG, footers=False).replace(b"\4\0\0\0\3", b"\4\0\0\0\4")
    )
    assert len(out) == len(want)
    assert b"rtc" not in out
    assert [d.path for d in tree_of(tmp_path / "out")] == ["timer[0]", "0000:00:02.0/rng[0]"]


def tree_of(path: Path) -> Any:
    with OpenSource(path) as source:
        found = read_devices(source)
        assert found.text is not None
        assert all(d.description for d in found.tree)
        return found.tree


def test_of_twins_the_second(tmp_path: Path) -> None:
    first, second = (Device("ide", 0, 1, [Field("a", "uint8", bytes([n]))]) for n in (1, 2))
    edited(tmp_path, stream(first, second, RTC), drop_sections=("ide[0]#2",))
    tree = tree_of(tmp_path / "out")
    assert [d.path for d in tree] == ["ide[0]", "rtc[0]"]
    assert [n.value for n in tree.find("ide/a")] == [1]


def test_an_iterable_section_goes_with_all_its_parts(tmp_path: Path) -> None:
    data = fixture_file("blockmig-5.2-pc", tmp_path).read_bytes()
    out = edited(tmp_path, data, drop_sections=("block",))
    assert len(data) - len(out) > 1 << 20
    found = decode(out, strict=True)
    assert not [e for e in found.events if getattr(e, "idstr", b"") == b"block"]


def test_ram_stays(tmp_path: Path) -> None:
    refused(tmp_path, stream(), "'ram'", drop_sections=("*",))
    refused(tmp_path, stream(), "nothing is named 'x'", drop_sections=("x",))


def test_a_subsection_goes(tmp_path: Path) -> None:
    out = edited(tmp_path, stream(), drop_subsections=("rtc/rtc/irq",))
    assert out == stream(TIMER, Device("rtc", 0, 3, RTC.fields), RNG)
    refused_in = stream()
    (tmp_path / "out").unlink()
    refused(tmp_path, refused_in, "no subsection", drop_subsections=("rtc/index",))


@pytest.mark.parametrize("name", ["plain-7.2-pc", "plain-5.2-pc", "plain-11.1-q35"])
def test_every_subsection_of_a_real_stream(tmp_path: Path, name: str) -> None:
    """Without any of them all sections are still described to the byte."""
    path = fixture_file(name, tmp_path)
    tree = tree_of(path)
    found = [n for n in tree.find("**") if n.type == "subsection" and "virtio" not in n.path]
    assert found
    for node in found:
        edited(tmp_path, path.read_bytes(), drop_subsections=(node.path,))
        after = tree_of(tmp_path / "out")
        assert not list(after.find(node.path))
        assert sum(d.size for d in tree) - sum(d.size for d in after) == node.size
        raw = {n.path for n in after.find("**") if n.type == "raw"}
        assert raw == {n.path for n in tree.find("**") if n.type == "raw"}


# -- packages -------------------------------------------------------------------------------------


def packaged() -> bytes:
    w = StreamWriter()
    w.header()
    w.configuration()
    w.postcopy_advise()
    w.ram_start([RamBlock("pc.ram", 4 * PAGE)])
    with w.ram_part():
        w.page("pc.ram", 0, BODY)
    w.ram_discard("pc.ram", [(0, PAGE)])
    inner = StreamWriter(footers=True)
    inner.postcopy_listen()
    inner.device(Device("timer", 0, 2, [Field("ticks", "int64", bytes(8))], section_id=7))
    inner.device(Device("rtc", 0, 3, RTC.fields, section_id=8))
    inner.postcopy_run()
    w.packaged(inner)
    with w.ram_part():
        for page in range(4):
            w.page("pc.ram", page * PAGE, BODY)
    with w.ram_end():
        pass
    w.eof()
    return bytes(w)


def test_a_package_states_its_new_length(tmp_path: Path) -> None:
    data = packaged()
    out = edited(tmp_path, data, drop_sections=("rtc",))
    gone = 13 + 3 + 1 + 1 + 5
    assert len(data) - len(out) in range(gone - 4, gone + 1)
    at = data.index(b"\x08\0\7\0\4") + 5
    assert out[at : at + 4] == sw.be32(
        int.from_bytes(data[at : at + 4], "big") - len(data) + len(out)
    )
    assert b"rtc" not in out


# -- names of blocks ------------------------------------------------------------------------------


@pytest.mark.parametrize("new", ["mem0", "a-rather-long-name", "sixsix"])
def test_a_block_gets_another_name(tmp_path: Path, new: str) -> None:
    def made(name: str) -> bytes:
        pages = {name: {0: BODY, PAGE: b""}, "pc.bios": {0: BODY}}
        return bytes(simple_stream(pages)) + bytes(3)

    assert edited(tmp_path, made("pc.ram"), renames=(("pc.ram", new),)) == made(new)


def test_in_discards_too(tmp_path: Path) -> None:
    data = packaged()
    out = edited(tmp_path, data, renames=(("pc.ram", "mem0"),))
    assert b"pc.ram" not in out
    # List, record, and the command, whose length counts the name.
    assert len(data) - len(out) == 2 * data.count(b"\6pc.ram") == 6
    assert edited(tmp_path, out, renames=(("mem0", "pc.ram"),)) == data


@pytest.mark.parametrize("name", ["live-10.0-q35", "postcopy-11.1-pc.ch0", "ignoreshared-10.0-pc"])
def test_of_real_streams_there_and_back(tmp_path: Path, name: str) -> None:
    data = open_fixture(name)
    block = next(n for n in ("mem", "mem0", "pc.ram", "ram") if sw.cstr8(n) in data)
    out = edited(tmp_path, data, renames=((block, "another"),))
    assert sw.cstr8(block) + b"\0\0\0\0" not in out
    assert edited(tmp_path, out, renames=(("another", block),)) == data


def test_entries_with_a_byte_more(tmp_path: Path) -> None:
    """x-ignore-shared of QEMU 4.0."""

    def made(name: str) -> bytes:
        w = StreamWriter()
        w.header()
        w.configuration(capabilities=["x-ignore-shared"])
        w.ram_start(
            [RamBlock("a", PAGE, gpa=0, ignored=0), RamBlock(name, PAGE, gpa=PAGE, ignored=0)]
        )
        with w.ram_part():
            w.page(name, 0, BODY)
            w.page("a", 0, BODY)
        with w.ram_end():
            pass
        w.eof()
        w.vmdescription()
        return bytes(w)

    assert edited(tmp_path, made("pc.ram"), renames=(("pc.ram", "m"),)) == made("m")


@pytest.mark.parametrize(
    ("renames", "why"),
    [
        ((("x", "y"),), "no block 'x'; the stream has 'pc.ram'"),
        ((("pc.ram", ""),), "1 to 255 bytes"),
        ((("pc.ram", "x" * 256),), "1 to 255 bytes"),
        ((("pc.ram", "pc.bios"),), "two blocks of one name"),
    ],
)
def test_names_that_cannot_be(tmp_path: Path, renames: Any, why: str) -> None:
    pages = {"pc.ram": {0: BODY}, "pc.bios": {0: BODY}}
    refused(tmp_path, bytes(simple_stream(pages)), why, renames=renames)


def test_names_that_change_places(tmp_path: Path) -> None:
    data = bytes(simple_stream({"a": {0: BODY}, "b": {0: b""}}))
    out = edited(tmp_path, data, renames=(("a", "b"), ("b", "a")))
    assert out == bytes(simple_stream({"b": {0: BODY}, "a": {0: b""}}))


def test_pages_on_other_channels(tmp_path: Path) -> None:
    refused(
        tmp_path, open_fixture("multifd-11.1-pc.ch0"), "other channels", renames=(("mem", "x"),)
    )


def test_mapped_ram_keeps_its_lengths(tmp_path: Path) -> None:
    data = open_fixture("mapped-10.0-pc")
    refused(tmp_path, data, "fixed places", renames=(("mem", "memory"),))
    refused(tmp_path, data, "fixed places", sets=(("configuration.name", "x"),))
    out = edited(tmp_path, data, renames=(("mem", "ram"),))
    assert len(out) == len(data)
    assert out == data.replace(b"\3mem\0\0\0\0\1", b"\3ram\0\0\0\0\1", 1)
    # Behind the pages lengths are free.
    assert len(edited(tmp_path, data, strip_vmdescription=True)) < len(data)


# -- the vmdescription ----------------------------------------------------------------------------


def test_it_goes_and_comes(tmp_path: Path) -> None:
    data = open_fixture("plain-7.2-pc")
    (tmp_path / "other").write_bytes(data)
    out = edited(tmp_path, data, strip_vmdescription=True)
    text = data.rindex(b'{"page_size"')
    assert out == data[: text - 5]
    assert edited(tmp_path, out, add_vmdescription=str(tmp_path / "other")) == data
    refused_args = {"add_vmdescription": str(tmp_path / "other")}
    (tmp_path / "out").unlink()
    refused(tmp_path, data, "takes it off", **refused_args)
    refused(tmp_path, out, "no vmdescription to take off", strip_vmdescription=True)
    assert edited(tmp_path, data, strip_vmdescription=True, **refused_args) == data


def test_names_of_a_borrowed_one(tmp_path: Path) -> None:
    """What is put in names the fields that are set, and is changed with the sections."""
    (tmp_path / "other").write_bytes(stream())
    out = edited(
        tmp_path, stream(vmdescription=False), add_vmdescription=str(tmp_path / "other"),
        sets=(("timer/ticks", "5"),), drop_sections=("rtc",),
    )  # fmt: skip
    want = Device("timer", 0, 2, [Field("ticks", "int64", (5).to_bytes(8, "big"))])
    assert len(out) == len(stream(want, RNG))
    assert [d.path for d in tree_of(tmp_path / "out")] == ["timer[0]", "0000:00:02.0/rng[0]"]


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ((TIMER, RTC), r"0000:00:02.0/rng\[0\] version 1 of 1 bytes is not there"),
        ((TIMER, RTC, RNG, RNG), r"0000:00:02.0/rng\[0\] version 1 of 1 bytes is not here"),
        ((TIMER, Device("rtc", 0, 3, RTC.fields), RNG), r"rtc\[0\] version 3 of 16 bytes"),
        ((TIMER, Device("rtc", 0, 2, RTC.fields, [SUB]), RNG), r"rtc\[0\] version 2"),
    ],
)
def test_one_of_another_machine(tmp_path: Path, other: tuple[Device, ...], why: str) -> None:
    (tmp_path / "other").write_bytes(stream(*other))
    data = stream(vmdescription=False)
    refused(tmp_path, data, why, add_vmdescription=str(tmp_path / "other"))


def test_no_place_for_one(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(stream())
    refused(tmp_path, packaged(), "no place", add_vmdescription=str(tmp_path / "other"))
    cut = stream(vmdescription=False)[:-1]
    refused(tmp_path, cut, "no place", add_vmdescription=str(tmp_path / "other"))


def test_damaged_streams_are_edited_where_they_are_whole(tmp_path: Path) -> None:
    data = stream()[:200]
    (tmp_path / "in").write_bytes(data)
    _, code = rewritten(tmp_path / "in", sets=(("configuration.name", "x"),))
    assert code == 3
    assert (tmp_path / "out").read_bytes().endswith(data[30:])


def test_more_places_than_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edits, "_MOST_SPLICES", 2)
    pages = {"a": {0: BODY}, "b": {0: BODY}}
    w = simple_stream(pages)
    (tmp_path / "in").write_bytes(bytes(w))
    with pytest.raises(LimitError, match="places to edit"):
        rewritten(tmp_path / "in", renames=(("a", "c"), ("b", "d")))
