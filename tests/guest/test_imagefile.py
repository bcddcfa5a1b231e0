"""What stands where in LiME files and ELF cores, by readers that are not ours."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given, strategies as st

from tests.dumps import DumpRange, elf_ranges, lime_ranges
from vmstream.guest.imagefile import FORMATS, Note, Plan, joined, note_segment, plan
from vmstream.guest.physical import PhysicalMap, Region

PAGE = 4096
MIB, GIB = 1 << 20, 1 << 30

# Machine family: what an ELF header says, as readelf names it.
MACHINES = {
    "pc": ("EM_X86_64", True),
    "q35": ("EM_X86_64", True),
    "microvm": ("EM_X86_64", True),
    "isapc": ("EM_X86_64", True),
    "arm virt": ("EM_AARCH64", True),
    "riscv virt": ("EM_RISCV", True),
    "m68k virt": ("EM_68K", False),
    "pseries": ("EM_PPC64", False),
    "s390-ccw-virtio": ("EM_S390", False),
    "unknown": ("EM_NONE", True),
}


def layout(*regions: tuple[int, int, int, int], family: str = "pc") -> PhysicalMap:
    return PhysicalMap(tuple(Region(*r) for r in regions), None, "machine rule", (), family=family)


# Two nodes that follow each other, with the hole of a PC in the second one.
NUMA = layout((0, 2 * GIB, 0, 0), (2 * GIB, GIB, 1, 0), (4 * GIB, GIB, 1, GIB))


def written(path: Path, made: Plan) -> Path:
    """The file without its RAM."""
    with path.open("wb") as file:
        file.truncate(made.size)
        for offset, head in made.heads:
            file.seek(offset)
            file.write(head)
    assert path.stat().st_size == made.size
    return path


def test_raw_is_the_map() -> None:
    made = plan("raw", NUMA)
    assert made.regions == NUMA.regions
    assert (made.size, made.heads) == (5 * GIB, ())


def test_joined() -> None:
    assert joined(NUMA) == [(0, 3 * GIB), (4 * GIB, GIB)]
    assert joined(layout((8192, 4096, 0, 0), (0, 4096, 1, 0), (4096, 0, 2, 0))) == [
        (0, 4096),
        (8192, 4096),
    ]
    assert joined(layout()) == []


def test_lime(tmp_path: Path) -> None:
    """A head for each contiguous range; the last address is one of the range."""
    made = plan("lime", NUMA)
    found = lime_ranges(written(tmp_path / "x", made))
    assert found == [DumpRange(0, 3 * GIB, 32), DumpRange(4 * GIB, GIB, 3 * GIB + 64)]
    assert [r.gpa for r in made.regions] == [32, 2 * GIB + 32, 3 * GIB + 64]
    assert made.heads[1][1] == bytes.fromhex(
        "454d694c 01000000 0000000001000000 ffffff3f01000000 0000000000000000"
    )


@pytest.mark.parametrize("family", MACHINES)
def test_elf(family: str, tmp_path: Path) -> None:
    regions = [(r.gpa, r.length, r.block, r.block_offset) for r in NUMA.regions]
    made = plan("elf", layout(*regions, family=family))
    path = written(tmp_path / "x", made)
    with path.open("rb") as file:
        elf = ELFFile(file)
        number, little = MACHINES[family]
        head = elf.header
        assert (elf.elfclass, elf.little_endian) == (64, little)
        assert (head["e_type"], head["e_machine"]) == ("ET_CORE", number)
        assert head["e_ident"]["EI_VERSION"] == head["e_version"] == "EV_CURRENT"
        assert head["e_ident"]["EI_OSABI"] == "ELFOSABI_SYSV"
        assert (head["e_ehsize"], head["e_phentsize"], head["e_phoff"]) == (64, 56, 64)
        assert (head["e_entry"], head["e_shoff"], head["e_shnum"], head["e_flags"]) == (0, 0, 0, 0)
        segments = list(elf.iter_segments())
        assert [s["p_type"] for s in segments] == ["PT_LOAD", "PT_LOAD"]
        for s in segments:
            assert s["p_vaddr"] == s["p_paddr"]
            assert s["p_memsz"] == s["p_filesz"]
            assert s["p_offset"] % 65536 == 0 == s["p_align"]
    assert elf_ranges(path) == [
        DumpRange(0, 3 * GIB, 65536),
        DumpRange(4 * GIB, GIB, 3 * GIB + 65536),
    ]
    assert [r.gpa for r in made.regions] == [65536, 2 * GIB + 65536, 3 * GIB + 65536]


NOTES: tuple[Note, ...] = (
    ("CORE", 1, bytes(range(1, 100))),
    ("CORE", 1, b"ab"),
    ("QEMU", 0, b""),
    ("VMCOREINFO", 0, b"OSRELEASE=6.1\n"),
)


@pytest.mark.parametrize("family", ["pc", "s390-ccw-virtio"])
def test_notes(family: str, tmp_path: Path) -> None:
    """In front of RAM, and the first segment; RAM stays where it would be without them."""
    bare = plan("elf", layout((0, MIB, 0, 0), family=family))
    made = plan("elf", layout((0, MIB, 0, 0), family=family), NOTES)
    assert made.regions == bare.regions
    assert made.size == bare.size
    with written(tmp_path / "x", made).open("rb") as file:
        elf = ELFFile(file)
        assert [s["p_type"] for s in elf.iter_segments()] == ["PT_NOTE", "PT_LOAD"]
        segment = elf.get_segment(0)
        assert segment["p_offset"] + segment["p_filesz"] <= elf.get_segment(1)["p_offset"]
        found = [(n["n_name"], n["n_descdata"]) for n in segment.iter_notes()]
        assert found == [(name, content) for name, _, content in NOTES]


def test_note_segment() -> None:
    """Name with its NUL and content, each padded to 4 bytes; the sizes are without padding."""
    assert note_segment([("CORE", 1, b"abc")], big_endian=False) == (
        b"\5\0\0\0" b"\3\0\0\0" b"\1\0\0\0" b"CORE\0\0\0\0" b"abc\0"
    )  # fmt: skip
    assert note_segment([("QEM", 7, b"abcd")], big_endian=True) == (
        b"\0\0\0\4" b"\0\0\0\4" b"\0\0\0\7" b"QEM\0" b"abcd"
    )  # fmt: skip
    assert note_segment([], big_endian=True) == b""


def test_many_notes_push_ram_behind_them() -> None:
    made = plan("elf", layout((0, MIB, 0, 0)), [("CORE", 1, bytes(1000))] * 200)
    assert made.regions[0].gpa == 4 * 65536
    assert len(made.heads[0][1]) <= made.regions[0].gpa


@pytest.mark.parametrize("form", ["lime", "elf"])
def test_a_map_without_bytes(form: str, tmp_path: Path) -> None:
    made = plan(form, layout((0, 0, 0, 0)))
    assert made.regions == (Region(0, 0, 0, 0),)
    written(tmp_path / "x", made)
    assert (lime_ranges if form == "lime" else elf_ranges)(tmp_path / "x") == []


@given(
    pieces=st.lists(
        st.tuples(st.integers(0, 3), st.integers(1, 40), st.booleans()), min_size=1, max_size=20
    ),
    form=st.sampled_from(FORMATS),
)
def test_every_byte_has_one_place(
    pieces: list[tuple[int, int, bool]], form: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Regions do not overlap in the file, nor heads, and a range has its regions in order."""
    at, regions = 0, []
    for gap, pages, odd in pieces:
        at += gap * PAGE
        length = pages * PAGE - (100 if odd else 0)
        regions.append((at, length, 0, at))
        at += pages * PAGE
    made = plan(form, layout(*regions))
    taken = [(o, o + len(h)) for o, h in made.heads]
    taken += [(r.gpa, r.gpa + r.length) for r in made.regions]
    taken.sort()
    assert all(a[1] <= b[0] for a, b in pairwise(taken))
    assert taken[-1][1] == made.size
    if form == "raw":
        return
    path = written(tmp_path_factory.mktemp("plan") / "x", made)
    ranges = (lime_ranges if form == "lime" else elf_ranges)(path)
    for (gpa, length, _, _), placed in zip(regions, made.regions, strict=True):
        (inside,) = [r for r in ranges if r.gpa <= gpa and gpa + length <= r.gpa + r.length]
        assert placed.gpa - inside.offset == gpa - inside.gpa
    path.unlink()
