"""The numbers, against the values that the format document gives."""

from __future__ import annotations

from vmstream.wire import constants
from vmstream.wire.constants import MigCmd, RAMSaveFlag, SectionType


def test_file() -> None:
    assert constants.QEMU_VM_FILE_MAGIC == bytes([0x51, 0x45, 0x56, 0x4D])
    assert constants.QEMU_VM_FILE_VERSION == 3


def test_section_types() -> None:
    assert {t.name: t.value for t in SectionType} == {
        "QEMU_VM_EOF": 0x00,
        "QEMU_VM_SECTION_START": 0x01,
        "QEMU_VM_SECTION_PART": 0x02,
        "QEMU_VM_SECTION_END": 0x03,
        "QEMU_VM_SECTION_FULL": 0x04,
        "QEMU_VM_SUBSECTION": 0x05,
        "QEMU_VM_VMDESCRIPTION": 0x06,
        "QEMU_VM_CONFIGURATION": 0x07,
        "QEMU_VM_COMMAND": 0x08,
        "QEMU_VM_SECTION_FOOTER": 0x7E,
    }


def test_commands() -> None:
    assert {c.name: c.value for c in MigCmd} == {
        "INVALID": 0,
        "OPEN_RETURN_PATH": 1,
        "PING": 2,
        "POSTCOPY_ADVISE": 3,
        "POSTCOPY_LISTEN": 4,
        "POSTCOPY_RUN": 5,
        "POSTCOPY_RAM_DISCARD": 6,
        "PACKAGED": 7,
        "ENABLE_COLO": 8,
        "POSTCOPY_RESUME": 9,
        "RECV_BITMAP": 10,
        "SWITCHOVER_START": 11,
    }


def test_ram_flags() -> None:
    assert {f.name: f.value for f in RAMSaveFlag} == {
        "FULL": 0x001,
        "ZERO": 0x002,
        "MEM_SIZE": 0x004,
        "PAGE": 0x008,
        "EOS": 0x010,
        "CONTINUE": 0x020,
        "XBZRLE": 0x040,
        "HOOK": 0x080,
        "COMPRESS_PAGE": 0x100,
        "MULTIFD_FLUSH": 0x200,
    }
    assert sum(RAMSaveFlag) == constants.RAM_FLAG_MASK == 0x3FF
    assert constants.PAGE_KINDS == 0x002 | 0x008 | 0x040 | 0x100
    assert constants.ENCODING_FLAG_XBZRLE == 0x01


def test_page_sizes() -> None:
    assert sorted(constants.TARGET_PAGE_SIZES) == [256, *(1 << bits for bits in range(10, 17))]
    assert constants.TARGET_PAGE_SIZES[0] == constants.DEFAULT_PAGE_SIZE == 4096
    # Below the smallest page not all flags have room.
    assert constants.RAM_LOW_FLAG_MASK == min(constants.TARGET_PAGE_SIZES) - 1
    assert constants.RAM_FLAG_MASK < 1024


def test_flags_of_iterable_sections() -> None:
    """Against QEMU's numbers, typed in anew."""
    assert [int(f) for f in constants.BlkMigFlag] == [1, 2, 4, 8]
    assert [int(f) for f in constants.DirtyBitmapMigFlag] == [1, 2, 4, 8, 16, 32, 64, 128]
    assert [int(f) for f in constants.DirtyBitmapStartFlag] == [1, 2, 4]
    assert [int(f) for f in constants.StattrFlag] == [1, 2, 4, 8]
    assert [int(f) for f in constants.VFIOMigFlag] == [
        (1 << 64) - (1 << 32) + 0xEF100000 + i for i in range(1, 7)
    ]
    assert constants.BLK_MIG_BLOCK_SIZE == 1048576
    assert constants.BDRV_SECTOR_SIZE == 512
    assert constants.MAX_BITMAP_BUFFER == 10240


def test_capabilities() -> None:
    assert constants.CAP_IGNORE_SHARED == b"x-ignore-shared"
    assert constants.CAP_MAPPED_RAM == b"mapped-ram"


def test_foreign_magics() -> None:
    assert {
        b"LibvirtQemudSave\0",
        b"LibvirtQemudPart\0",
        b"QFI\xfb",
        bytes([0x11, 0x22, 0x33, 0x44]),
    } <= {
        m + rest for m in constants.FOREIGN_MAGICS for rest in (b"", b"emudSave\0", b"emudPart\0")
    }
    assert not any(m.startswith(b"QEVM") for m in constants.FOREIGN_MAGICS)
