"""QEMU's numbers under QEMU's names, each with its source and the releases that use it."""

from __future__ import annotations

from enum import IntEnum, IntFlag

# QEMU v10.1.0 migration/qemu-file-types / savevm.h: QEMU_VM_FILE_MAGIC, QEMU_VM_FILE_VERSION.
QEMU_VM_FILE_MAGIC = b"QEVM"
QEMU_VM_FILE_VERSION = 3  # since 0.10; 2 is refused since 0.12


_OPENED = "vmstream.open() looks inside"

# What the bytes may be instead, by the first of them, and how to get at the stream. `container`
# takes off most of these before a decoder sees them.
FOREIGN_MAGICS: dict[bytes, tuple[str, str]] = {
    b"LibvirtQ": ("a libvirt save image", _OPENED),
    b"QFI\xfb": ("a qcow2 image", _OPENED),
    b"\x1f\x8b": ("gzip data", _OPENED),
    b"\x28\xb5\x2f\xfd": ("zstd data", _OPENED),
    b"\xfd7zXZ\x00": ("xz data", _OPENED),
    b"BZh": ("bzip2 data", _OPENED),
    b"\x04\x22\x4d\x18": ("lz4 data", _OPENED),
    b"\x02\x21\x4c\x18": ("lz4 data", _OPENED),
    b"\x89LZO": ("lzop data", _OPENED),
    b"\x11\x22\x33\x44": (
        "a multifd channel",
        "read the main channel, with the file of this one as --channel",
    ),
}


class SectionType(IntEnum):
    """First byte of an item. QEMU v10.1.0 migration/savevm.h."""

    QEMU_VM_EOF = 0x00
    QEMU_VM_SECTION_START = 0x01
    QEMU_VM_SECTION_PART = 0x02
    QEMU_VM_SECTION_END = 0x03
    QEMU_VM_SECTION_FULL = 0x04
    QEMU_VM_SUBSECTION = 0x05  # since 0.13, inside device state only
    QEMU_VM_VMDESCRIPTION = 0x06  # since 2.3, after EOF only
    QEMU_VM_CONFIGURATION = 0x07  # since 2.4, behind the file header only
    QEMU_VM_COMMAND = 0x08  # since 2.5
    QEMU_VM_SECTION_FOOTER = 0x7E  # since 2.4


# RAM is one flat space in this version of its section. QEMU v0.12.0 vl.c ram_save_live().
FLAT_RAM = 3


class MigRPMsg(IntEnum):
    """Messages on the return path. QEMU v10.1.0 migration/migration.h enum mig_rp_message_type.

    Each has its type and the length of its data in 16 bits each, then the data.
    """

    SHUT = 1
    PONG = 2
    SWITCHOVER_ACK = 7  # since 8.1


class MigCmd(IntEnum):
    """Commands. QEMU v10.1.0 migration/savevm.c enum qemu_vm_cmd.

    3.0 numbered POSTCOPY_RESUME 8 and RECV_BITMAP 9; 3.1 inserted ENABLE_COLO.
    """

    INVALID = 0
    OPEN_RETURN_PATH = 1
    PING = 2
    POSTCOPY_ADVISE = 3
    POSTCOPY_LISTEN = 4
    POSTCOPY_RUN = 5
    POSTCOPY_RAM_DISCARD = 6
    PACKAGED = 7
    ENABLE_COLO = 8  # since 3.1
    POSTCOPY_RESUME = 9
    RECV_BITMAP = 10
    SWITCHOVER_START = 11  # since 10.0


def command_name(cmd: int) -> str:
    """QEMU's name of a command number; 'unknown' for one it does not have."""
    return MigCmd(cmd).name if cmd in MigCmd._value2member_map_ else "unknown"


# Bytes of data that the loader takes, empty where any. QEMU v10.1.0 migration/savevm.c
# mig_cmd_args; 9 with data is RECV_BITMAP of 3.0.
COMMAND_LENGTHS: dict[int, tuple[int, ...]] = {
    MigCmd.OPEN_RETURN_PATH: (0,),
    MigCmd.PING: (4,),
    MigCmd.POSTCOPY_ADVISE: (0, 16),
    MigCmd.POSTCOPY_LISTEN: (0,),
    MigCmd.POSTCOPY_RUN: (0,),
    MigCmd.POSTCOPY_RAM_DISCARD: (),
    MigCmd.PACKAGED: (4,),
    MigCmd.ENABLE_COLO: (0,),
    MigCmd.POSTCOPY_RESUME: (),
    MigCmd.RECV_BITMAP: (),
    MigCmd.SWITCHOVER_START: (0,),
}


class RAMSaveFlag(IntFlag):
    """Flag bits of a RAM head. QEMU v10.1.0 migration/ram.h RAM_SAVE_FLAG_*."""

    FULL = 0x001  # never written since 0.10
    ZERO = 0x002  # named COMPRESS until 8.0; fill byte may be non-zero until 1.4
    MEM_SIZE = 0x004
    PAGE = 0x008
    EOS = 0x010
    CONTINUE = 0x020  # modifier: the block of the record before
    XBZRLE = 0x040  # since 1.2
    HOOK = 0x080  # since 1.6, RDMA only
    COMPRESS_PAGE = 0x100  # 2.4 to 9.0
    MULTIFD_FLUSH = 0x200  # since 8.1


# The flags, and those that fit below the smallest target page, which is 256 bytes (avr; the next
# is 1 KiB, of arm before 2.8). QEMU v10.1.0 migration/ram.h, target/avr/cpu-param.h.
RAM_FLAG_MASK = 0x3FF
RAM_LOW_FLAG_MASK = 0xFF
PAGE_KINDS = RAMSaveFlag.ZERO | RAMSaveFlag.PAGE | RAMSaveFlag.XBZRLE | RAMSaveFlag.COMPRESS_PAGE

ENCODING_FLAG_XBZRLE = 0x01

# target/*/cpu-param.h: every page size a system target has, the usual one first.
TARGET_PAGE_SIZES = (4096, 1024, 8192, 16384, 65536, 256, 2048, 32768)
DEFAULT_PAGE_SIZE = 4096
TARGET_PAGE_BITS = range(8, 25)  # what configuration/target-page-bits may state

# QEMU v10.1.0 migration/multifd.h, migration/multifd.c MULTIFD_MAGIC, MULTIFD_VERSION.
MULTIFD_MAGIC = b"\x11\x22\x33\x44"
MULTIFD_VERSION = 1
# Bytes of pages in a packet at the most. A compressed one is received in a buffer of twice that:
# QEMU v10.1.0 migration/multifd-zlib.c multifd_zlib_recv_setup(), multifd-zstd.c.
MULTIFD_PACKET_SIZE = 512 << 10


class MultiFDFlag(IntFlag):
    """Flags of a multifd packet. QEMU v10.1.0 migration/multifd.h MULTIFD_FLAG_*."""

    SYNC = 1 << 0
    ZLIB = 1 << 1  # since 5.0
    ZSTD = 2 << 1  # since 5.0
    QPL = 4 << 1  # since 9.1
    UADK = 8 << 1  # since 9.1
    QATZIP = 16 << 1  # since 9.2
    DEVICE_STATE = 1 << 6  # since 10.0


MULTIFD_COMPRESSION_MASK = 0x1F << 1

CAP_IGNORE_SHARED = b"x-ignore-shared"
CAP_MAPPED_RAM = b"mapped-ram"


class BlkMigFlag(IntFlag):
    """Flags of a word of block migration. QEMU v9.0.4 migration/block.c BLK_MIG_FLAG_*."""

    DEVICE_BLOCK = 0x01
    EOS = 0x02
    PROGRESS = 0x04
    ZERO_BLOCK = 0x08  # since 1.6: no data


# QEMU v9.0.4 migration/block.c BLK_MIG_BLOCK_SIZE, include/block/block-common.h BDRV_SECTOR_BITS.
# QEMU v9.0.4 include/block/block_int-io.h BDRV_MAX_LENGTH: no disk is longer.
BLK_MIG_BLOCK_SIZE = 1 << 20
BDRV_SECTOR_BITS = 9
BDRV_SECTOR_SIZE = 1 << BDRV_SECTOR_BITS
BDRV_MAX_LENGTH = (1 << 63) - (1 << 30)


class DirtyBitmapMigFlag(IntFlag):
    """Flags of a chunk. QEMU v10.1.0 migration/block-dirty-bitmap.c DIRTY_BITMAP_MIG_FLAG_*."""

    EOS = 0x01
    ZEROES = 0x02
    BITMAP_NAME = 0x04
    DEVICE_NAME = 0x08
    START = 0x10
    COMPLETE = 0x20
    BITS = 0x40
    EXTRA = 0x80  # more bytes of flags follow; no release has written one


class DirtyBitmapStartFlag(IntFlag):
    """Flags of START. QEMU v10.1.0 migration/block-dirty-bitmap.c DIRTY_BITMAP_MIG_START_FLAG_*."""

    ENABLED = 0x01
    PERSISTENT = 0x02
    AUTOLOAD = 0x04  # of 2.12 and before; ignored


# QEMU v10.1.0 migration/block-dirty-bitmap.c dirty_bitmap_load_bits(): 10 * CHUNK_SIZE.
MAX_BITMAP_BUFFER = 10 << 10

# QEMU v10.1.0 target/ppc/mmu-hash64.h HASH_PTE_SIZE_64; hw/ppc/spapr.c spapr_reallocate_hpt() takes
# shifts of 18 to 46.
HASH_PTE_SIZE = 16
HTAB_SHIFTS = range(18, 47)


class StattrFlag(IntFlag):
    """Flags of a word of s390 storage attributes. QEMU v10.1.0 hw/s390x/s390-stattrib.c.

    Those of storage keys are the same but for DONE, which they do not have; MORE is SKEYS there.
    QEMU v10.1.0 hw/s390x/s390-skeys.c S390_SKEYS_SAVE_FLAG_*.
    """

    EOS = 0x01
    MORE = 0x02
    ERROR = 0x04
    DONE = 0x08


S390_PAGE_SIZE = 4096  # QEMU v10.1.0 target/s390x/cpu-param.h TARGET_PAGE_BITS


class VFIOMigFlag(IntEnum):
    """Tags of VFIO devices. QEMU v10.1.0 hw/vfio/vfio-migration-internal.h VFIO_MIG_FLAG_*."""

    END_OF_STATE = 0xFFFFFFFFEF100001
    DEV_CONFIG_STATE = 0xFFFFFFFFEF100002
    DEV_SETUP_STATE = 0xFFFFFFFFEF100003
    DEV_DATA_STATE = 0xFFFFFFFFEF100004
    DEV_INIT_DATA_SENT = 0xFFFFFFFFEF100005  # since 8.1, instead of END_OF_STATE
    DEV_CONFIG_LOAD_READY = 0xFFFFFFFFEF100006  # since 10.1, likewise


class Qcow2Incompatible(IntFlag):
    """Incompatible feature bits of a qcow2 image. QEMU v10.1.0 block/qcow2.h QCOW2_INCOMPAT_*."""

    DIRTY = 0x01
    CORRUPT = 0x02
    DATA_FILE = 0x04  # since 4.0
    COMPRESSION = 0x08  # since 5.1: the type is not deflate
    EXTL2 = 0x10  # since 5.2: L2 entries of 16 bytes


class Qcow2Compression(IntEnum):
    """How clusters are compressed. QEMU v10.1.0 qapi/block-core.json Qcow2CompressionType."""

    ZLIB = 0
    ZSTD = 1  # since 5.1


# QEMU v10.1.0 block/qcow2.h: QCOW_MAGIC, MIN_CLUSTER_BITS, MAX_CLUSTER_BITS.
QCOW2_MAGIC = b"QFI\xfb"
QCOW2_CLUSTER_BITS = range(9, 22)
QCOW2_EXTL2_CLUSTER_BITS = range(14, 22)  # 32 subclusters of at least a sector
QCOW2_SUBCLUSTERS = 32
QCOW2_SECTOR = 512  # what the size of a compressed cluster is counted in

# Bits of L1 and L2 entries. QEMU v10.1.0 block/qcow2.h L1E_OFFSET_MASK, L2E_OFFSET_MASK,
# QCOW_OFLAG_COMPRESSED, QCOW_OFLAG_ZERO (since 1.1, version 3).
QCOW2_OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00
QCOW2_COMPRESSED = 1 << 62
QCOW2_ZERO = 1

# QEMU v10.1.0 block/qcow2.h QCOW_MAX_SNAPSHOTS, QCOW_MAX_SNAPSHOTS_SIZE,
# QCOW_MAX_SNAPSHOT_EXTRA_DATA, QCOW_MAX_L1_SIZE; the last three in bytes.
QCOW2_MAX_SNAPSHOTS = 65536
QCOW2_MAX_SNAPSHOT_TABLE = 1024 * QCOW2_MAX_SNAPSHOTS
QCOW2_MAX_SNAPSHOT_EXTRA = 1024
QCOW2_MAX_L1 = 32 << 20

# Page areas of mapped-ram start at a multiple of it in the file, bytes. QEMU v10.1.0
# migration/ram.c.
MAPPED_RAM_FILE_OFFSET_ALIGNMENT = 1 << 20

# Bounds of our own: what a stream may make us hold. QEMU sets none of them.
MAX_RAM_BLOCKS = 4096
MAX_RAM = 1 << 42  # bytes a block list may state, in pages of 4 KiB: each takes 3 bits at most
MAX_UNPACKED = 8 << 30  # bytes that any input may unpack to, or an image may map
MAX_EXPANSION = 1000  # how many times its own size it may unpack to beyond that
MAX_CONFIGURATION = 64 << 10
MAX_DEVICE_TAIL = 256 << 20
MAX_VMDESCRIPTION = 64 << 20
MAX_BITMAPS = 4096
MAX_BLOCK_DEVICES = 512  # each is a file when they are all extracted

# Images of 'virsh save'. libvirt src/qemu/qemu_saveimage.h QEMU_SAVE_MAGIC, QEMU_SAVE_PARTIAL,
# virQEMUSaveFormat: the place of a format here is its number.
QEMU_SAVE_MAGIC = b"LibvirtQemudSave"
QEMU_SAVE_PARTIAL = b"LibvirtQemudPart"  # the save did not finish
QEMU_SAVE_VERSIONS = range(1, 4)  # 1 is never compressed
QEMU_SAVE_FORMATS = ("raw", "gzip", "bzip2", "xz", "lzop", "zstd", "sparse")
MAX_SAVE_XML = 16 << 20  # a bound of our own; domains have some KiB and 64 KiB of padding

# Files of lzop. lzop src/conf.h: M_LZO1X_*, F_*.
LZOP_MAGIC = b"\x89LZO\x00\r\n\x1a\n"
LZOP_METHODS = range(1, 4)  # all are LZO1X to a reader
MAX_LZOP_BLOCK = 1 << 20  # lzop writes 256 KiB; a bound of our own, LZO expands 255-fold


class LzopFlag(IntFlag):
    """Flags in the header of an lzop file."""

    ADLER32_D = 0x0001  # of a block unpacked
    ADLER32_C = 0x0002  # of a block packed
    STDIN = 0x0004  # it was made of standard input,
    STDOUT = 0x0008  # and on standard output: no name and mode to restore
    EXTRA_FIELD = 0x0040
    CRC32_D = 0x0100
    CRC32_C = 0x0200
    MULTIPART = 0x0400
    FILTER = 0x0800
    HEADER_CRC32 = 0x1000  # else the header has an Adler-32
    OS_UNIX = 0x03000000
