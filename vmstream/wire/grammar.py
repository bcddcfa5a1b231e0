"""Every Construct declaration. Each one parses and builds.

Streams have few of most of these, and Construct walks those. Of page records there are
millions: they are declared here too, but walked with the layouts that `wire.layout` derives
from the declarations.
"""

from __future__ import annotations

from functools import cache

from construct import (
    Bytes,
    Const,
    Construct,
    Default,
    GreedyBytes,
    GreedyRange,
    If,
    Int8ub,
    Int16ub,
    Int32sb,
    Int32ub,
    Int32ul,
    Int64ub,
    Prefixed,
    PrefixedArray,
    Rebuild,
    Struct,
    this,
)

from vmstream.wire.constants import (
    LZOP_MAGIC,
    MULTIFD_MAGIC,
    QCOW2_MAGIC,
    QEMU_VM_FILE_MAGIC,
    LzopFlag,
    SectionType,
)

# QEMU v10.1.0 migration/qemu-file.c qemu_put_counted_string(): u8 length, no NUL.
COUNTED_STRING: Construct = Prefixed(Int8ub, GreedyBytes)

# QEMU v10.1.0 migration/savevm.c qemu_savevm_state_header().
FILE_HEADER = Struct("magic" / Const(QEMU_VM_FILE_MAGIC), "version" / Int32ub)

# QEMU v10.1.0 migration/savevm.c vmstate_configuration. No length and no footer.
CONFIGURATION = Struct(
    "section_type" / Const(SectionType.QEMU_VM_CONFIGURATION, Int8ub),
    "name" / Prefixed(Int32ub, GreedyBytes),
)

# QEMU v10.1.0 migration/vmstate.c vmstate_subsection_save().
SUBSECTION_HEAD = Struct(
    "section_type" / Const(SectionType.QEMU_VM_SUBSECTION, Int8ub),
    "name" / COUNTED_STRING,
    "version_id" / Int32ub,
)

# QEMU v10.1.0 migration/savevm.c vmstate_target_page_bits, vmstate_capabilites, vmstate_uuid.
CONFIGURATION_SUBSECTIONS: dict[bytes, Construct] = {
    b"configuration/target-page-bits": Struct("target_page_bits" / Int32ub),
    b"configuration/capabilities": Struct("capabilities" / PrefixedArray(Int32ub, COUNTED_STRING)),
    b"configuration/uuid": Struct("uuid" / Bytes(16)),
}

# QEMU v10.1.0 migration/savevm.c save_section_header().
SECTION_HEAD = Struct(
    "section_type" / Int8ub,
    "section_id" / Int32ub,
    "idstr" / COUNTED_STRING,
    "instance_id" / Int32ub,
    "version_id" / Int32ub,
)
SECTION_PART_HEAD = Struct("section_type" / Int8ub, "section_id" / Int32ub)

# QEMU v10.1.0 migration/savevm.c save_section_footer(), since 2.4.
SECTION_FOOTER = Struct("section_type" / Int8ub, "section_id" / Int32ub)

# QEMU v10.1.0 migration/savevm.c qemu_savevm_command_send().
COMMAND = Struct(
    "section_type" / Const(SectionType.QEMU_VM_COMMAND, Int8ub),
    "cmd" / Int16ub,
    "data" / Prefixed(Int16ub, GreedyBytes),
)
COMMAND_PING = Struct("value" / Int32ub)
COMMAND_POSTCOPY_ADVISE = Struct("page_sizes" / Int64ub, "target_page_size" / Int64ub)
COMMAND_PACKAGED = Struct("length" / Int32ub)
COMMAND_RAM_DISCARD = Struct(
    "version" / Int8ub,
    "idstr" / COUNTED_STRING,
    "nil" / Const(0, Int8ub),
    "ranges" / GreedyRange(Struct("start" / Int64ub, "length" / Int64ub)),
)

# QEMU v10.1.0 migration/savevm.c qemu_savevm_state_complete_precopy_non_iterable(), since 2.3.
VMDESCRIPTION = Struct(
    "section_type" / Const(SectionType.QEMU_VM_VMDESCRIPTION, Int8ub),
    "json" / Prefixed(Int32ub, GreedyBytes),
)
VMDESCRIPTION_HEAD = Struct("section_type" / Int8ub, "length" / Int32ub)

# QEMU v10.1.0 migration/multifd.c MultiFDInit_t: the first bytes of a channel, since 4.0.
MULTIFD_INIT = Struct(
    "magic" / Const(MULTIFD_MAGIC),
    "version" / Int32ub,
    "uuid" / Bytes(16),
    "id" / Int8ub,
    "unused" / Default(Bytes(7 + 32), bytes(7 + 32)),
)
# QEMU v10.1.0 migration/multifd.h MultiFDPacket_t. Behind it one offset for each page that fits a
# packet, however many there are: first those of pages with data, then those of zero pages.
MULTIFD_PACKET = Struct(
    "magic" / Const(MULTIFD_MAGIC),
    "version" / Int32ub,
    "flags" / Int32ub,
    "pages_alloc" / Int32ub,
    "normal_pages" / Int32ub,
    "next_packet_size" / Int32ub,
    "packet_num" / Int64ub,
    "zero_pages" / Int32ub,  # since 9.0, zero before
    "reserved" / Default(Bytes(4 + 24), bytes(4 + 24)),
    "ramblock" / Bytes(256),
)
# QEMU v10.1.0 migration/multifd.h MultiFDPacketDeviceState_t, since 10.0.
MULTIFD_DEVICE_STATE = Struct(
    "magic" / Const(MULTIFD_MAGIC),
    "version" / Int32ub,
    "flags" / Int32ub,
    "idstr" / Bytes(256),
    "instance_id" / Int32ub,
    "next_packet_size" / Int32ub,
)

# QEMU v10.1.0 block/qcow2.h QCowHeader, docs/interop/qcow2.rst. Version 3 (since 1.1) goes on, and
# says how long it is; the compression type (since 5.1) is there if that is over 104.
QCOW2_HEADER = Struct(
    "magic" / Const(QCOW2_MAGIC),
    "version" / Int32ub,
    "backing_file_offset" / Int64ub,
    "backing_file_size" / Int32ub,
    "cluster_bits" / Int32ub,
    "size" / Int64ub,
    "crypt_method" / Int32ub,
    "l1_size" / Int32ub,
    "l1_table_offset" / Int64ub,
    "refcount_table_offset" / Int64ub,
    "refcount_table_clusters" / Int32ub,
    "nb_snapshots" / Int32ub,
    "snapshots_offset" / Int64ub,
)
QCOW2_HEADER_V3 = Struct(
    "incompatible_features" / Int64ub,
    "compatible_features" / Int64ub,
    "autoclear_features" / Int64ub,
    "refcount_order" / Int32ub,
    "header_length" / Int32ub,
    "compression_type" / If(this.header_length > 104, Int8ub),
)

# QEMU v10.1.0 block/qcow2-snapshot.c QCowSnapshotHeader, qcow2_write_snapshots(). The first 24
# bytes of the extra data are known. An entry starts at a multiple of 8 bytes.
QCOW2_SNAPSHOT = Struct(
    "l1_table_offset" / Int64ub,
    "l1_size" / Int32ub,
    "id_str_size" / Rebuild(Int16ub, lambda c: len(c.id_str)),
    "name_size" / Rebuild(Int16ub, lambda c: len(c.name)),
    "date_sec" / Int32ub,
    "date_nsec" / Int32ub,
    "vm_clock_nsec" / Int64ub,
    "vm_state_size" / Int32ub,
    "extra_data_size" / Rebuild(Int32ub, lambda c: len(c.extra_data)),
    "extra_data" / Bytes(this.extra_data_size),
    "id_str" / Bytes(this.id_str_size),
    "name" / Bytes(this.name_size),
)
# What of the extra data is there: vm_state_size_large (since 0.11), disk_size (since 1.1),
# icount (since 5.2; all ones where there is none).
QCOW2_SNAPSHOT_EXTRA = GreedyRange(Int64ub)

# QEMU v10.1.0 migration/ram.c: every RAM record starts with this word,
# a block offset (or a total) with the flags in the bits below the page size.
RAM_WORD = Struct("head" / Int64ub)

# QEMU v10.1.0 migration/ram.c ram_save_setup(). The parameters say which optional words an
# entry has: `page_sizes[index]` (2.9+, postcopy with huge pages), `gpa` (4.0+, x-ignore-shared),
# `ignored` (4.0.x only, removed by fbd162e629).
RAM_BLOCK = Struct(
    "idstr" / COUNTED_STRING,
    "used_length" / Int64ub,
    "host_page_size" / If(this._params.host_page_size, Int64ub),
    "gpa" / If(this._params.gpa, Int64ub),
    "ignored" / If(this._params.ignored, Int8ub),
)

# QEMU v10.1.0 migration/ram.c MappedRamHeader, mapped_ram_setup_ramblock(): packed, behind the
# entry of each block. The offsets are those in the file.
MAPPED_RAM_HEADER = Struct(
    "version" / Int32ub,
    "page_size" / Int64ub,
    "bitmap_offset" / Int64ub,
    "pages_offset" / Int64ub,
)

# QEMU v10.1.0 migration/ram.c save_zero_page(), save_normal_page(). CONTINUE form: the named
# form has COUNTED_STRING between head and payload.
ZERO_RECORD = Struct("head" / Int64ub, "fill" / Int8ub)


@cache
def page_record(page_size: int) -> Struct:
    """PAGE record with CONTINUE, for one target page size in bytes."""
    return Struct("head" / Int64ub, "page" / Bytes(page_size))


# QEMU v10.1.0 migration/ram.c save_xbzrle_page().
XBZRLE_HEAD = Struct("encoding" / Int8ub, "length" / Int16ub)
XBZRLE_RECORD_HEAD = Struct("head" / Int64ub, *XBZRLE_HEAD.subcons)
XBZRLE_PAYLOAD = Struct(
    "encoding" / Int8ub,
    "length" / Rebuild(Int16ub, lambda c: len(c.data)),
    "data" / Bytes(this.length),
)

# QEMU v8.2.7 migration/qemu-file.c qemu_put_compression_data().
COMPRESS_PAGE_HEAD = Struct("length" / Int32ub)
COMPRESS_PAGE_RECORD_HEAD = Struct("head" / Int64ub, *COMPRESS_PAGE_HEAD.subcons)
COMPRESS_PAGE_PAYLOAD = Prefixed(Int32ub, GreedyBytes)


# ---- iterable sections other than RAM ----------------------------------------------------------

# A word of its own: a byte offset with flags in the bits below 512 (block migration) or 4096
# (s390 storage attributes and keys), a tag (VFIO), or a size in bytes. QEMU v9.0.4
# migration/block.c blk_send(), v10.1.0 hw/s390x/s390-stattrib.c cmma_save(), hw/vfio/migration.c
# vfio_save_block(). The size of the state of Proxmox Backup is one too (their pbs-state.c).
LIVE_WORD = Struct("word" / Int64ub)

# QEMU v10.1.0 migration/block-dirty-bitmap.c send_bitmap_header(), send_bitmap_start(),
# send_bitmap_bits(). Names of node and bitmap, if the flags say so, stand behind the flags; a
# LIVE_WORD with the size of the bits behind BITS, unless they are ZEROES.
DIRTY_BITMAP_FLAGS = Struct("flags" / Int8ub)
DIRTY_BITMAP_START = Struct("granularity" / Int32ub, "flags" / Int8ub)
DIRTY_BITMAP_BITS = Struct("start_sector" / Int64ub, "nr_sectors" / Int32ub)

# QEMU v10.1.0 hw/ppc/spapr.c htab_save_setup(), htab_save_chunk(): entries of 16 bytes follow a
# chunk, one for each valid one.
HTAB_HEAD = Struct("htab_shift" / Int32sb)
HTAB_CHUNK = Struct("index" / Int32ub, "n_valid" / Int16ub, "n_invalid" / Int16ub)


# ---- what is around a stream -------------------------------------------------------------------


@cache
def save_header(byte_order: str) -> Struct:
    """Header of a libvirt save image, 'little' or 'big': the byte order of the host that wrote it.

    libvirt src/qemu/qemu_saveimage.h virQEMUSaveHeader. `data_length` bytes of XML and padding
    follow, then the stream; `cookie_offset` counts from behind the header, 0 for none.
    """
    word = Int32ul if byte_order == "little" else Int32ub
    return Struct(
        "magic" / Bytes(16),
        "version" / word,
        "data_length" / word,
        "was_running" / word,
        "format" / word,
        "cookie_offset" / word,
        "unused" / Default(Bytes(56), bytes(56)),
    )


# lzop src/lzop.c write_header(); the checksum is over all from `version` up to `name`.
LZOP_HEADER = Struct(
    "magic" / Const(LZOP_MAGIC),
    "version" / Int16ub,
    "library_version" / Int16ub,
    "version_needed" / If(this.version >= 0x0940, Int16ub),
    "method" / Int8ub,
    "level" / If(this.version >= 0x0940, Int8ub),
    "flags" / Int32ub,
    "filter" / If(this.flags & LzopFlag.FILTER, Int32ub),
    "mode" / Int32ub,
    "mtime_low" / Int32ub,
    "mtime_high" / If(this.version >= 0x0940, Int32ub),
    "name" / COUNTED_STRING,
    "checksum" / Int32ub,
)

# lzop src/p_lzo.c lzo_compress(): a block that did not shrink is stored. A size of 0 ends the file.
LZOP_BLOCK = Struct(
    "size" / Int32ub,
    "packed_size" / Int32ub,
    "adler32" / If(this._params.flags & LzopFlag.ADLER32_D, Int32ub),
    "crc32" / If(this._params.flags & LzopFlag.CRC32_D, Int32ub),
    "packed_adler32"
    / If((this.packed_size < this.size) & (this._params.flags & LzopFlag.ADLER32_C > 0), Int32ub),
    "packed_crc32"
    / If((this.packed_size < this.size) & (this._params.flags & LzopFlag.CRC32_C > 0), Int32ub),
)
