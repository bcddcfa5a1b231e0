"""`check`: whether a destination will load a stream, in QEMU's own words.

The texts are those of QEMU 5.2 to 10.1, and where the destination's machine type is of 10.2 on, of
these: migration/savevm.c qemu_loadvm_section_start_full(), check_section_footer(),
configuration_post_load(); migration/vmstate.c vmstate_load_state(); migration/ram.c
ram_load_precopy(); softmmu/physmem.c (system/physmem.c) qemu_ram_resize().
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from vmstream.container.layers import Container
from vmstream.errors import EXIT_FINDINGS, EXIT_OK, TruncatedError
from vmstream.guest.devices import Node, Section
from vmstream.guest.schema import StaticSchema
from vmstream.ops.devices import Devices, is_static, load_static
from vmstream.ops.inspect import SectionSummary, Summary
from vmstream.ops.pipeline import Progress, run
from vmstream.ops.quick import quick_events
from vmstream.report.models.check import CHECK_SCHEMA, CheckFinding, CheckReport
from vmstream.report.models.names import readable
from vmstream.stream.decoder import Decoder
from vmstream.transport.source import Source
from vmstream.wire.constants import MigCmd

INVALID = "load of migration failed: Invalid argument"
NO_ENTRY = "load of migration failed: No such file or directory"

# Sections that no device class describes, so that -dump-vmstate does not have them.
_BY_HAND = frozenset(
    {
        "timer", "cpu_common", "cpu", "apic", "PCIBUS", "ide", "isa-ide", "i2c_bus", "acpi_build",
        "virt_acpi_build", "globalstate", "slirp", "ram", "block", "dirty-bitmap", "spapr",
        "pbs-state", "ps2kbd", "ps2mouse",
    }
)  # fmt: skip
_NOT_READ = "commands between the parts of RAM: of a file, head and tail alone are read"
_NOT_IN_A_DUMP = (
    "RAM blocks and which devices the machine has: a file of -dump-vmstate lists the device types "
    "that the QEMU knows; give a stream of the destination's machine for these"
)


@dataclass(frozen=True, slots=True)
class _Stream:
    summary: Summary
    devices: Devices
    quick: bool = False

    @property
    def sections(self) -> dict[tuple[bytes, int], SectionSummary]:
        return {(s.start.idstr, s.start.instance_id): s for s in self.summary.sections}


def _read(
    source: Source,
    container: Container | None,
    page_size: int | None,
    max_ram: int | None,
    progress: Progress | None,
) -> _Stream:
    if source.seekable and source.size is not None:
        made = _Stream(Summary(), Devices(), quick=True)
        for event in quick_events(source, Decoder(page_size, max_ram=max_ram)):
            made.summary.on(event)
            made.devices.on(event)
        if made.summary.ended and made.devices.text is not None:
            return made
    made = _Stream(Summary(), Devices())
    decoder = Decoder(page_size, max_ram=max_ram)
    run(source, decoder, [made.summary, made.devices], progress, container)
    if made.summary.findings.error is not None:
        raise made.summary.findings.error
    if not made.summary.ended:
        raise TruncatedError(made.summary.end, "the stream does not end")
    return made


def check(
    source: Source,
    against: Source,
    *,
    container: Container | None = None,
    against_container: Container | None = None,
    page_size: int | None = None,
    max_ram: int | None = None,
    progress: Progress | None = None,
) -> tuple[CheckReport, int]:
    """Say whether a destination loads a stream.

    Args:
        source: The stream.
        against: What the destination's QEMU wrote: -dump-vmstate, or a stream of its machine.
        container: What is around the stream.
        against_container: What is around the other one.
        page_size: Target page size in bytes, if the user states it.
        max_ram: RAM in bytes that a block list may state; MAX_RAM if `None`.
        progress: Called with (offset, size or None).

    Returns:
        The document, and the exit status: 0 if nothing speaks against it, else 1.

    Raises:
        StreamError: A stream is damaged: `verify` says more.
        OutputError: The destination's file is neither.
    """
    seen = _read(source, container, page_size, max_ram, progress)
    not_checked = [_NOT_READ] if seen.quick else []
    if is_static(against):
        kind, schema = "dump-vmstate", load_static(against)
        machine = schema.machine
        found = [
            *_machine(seen.summary, machine),
            *_commands(seen.summary, machine),
            *_against_static(seen, schema),
        ]
        by_hand = sorted(
            {_last(s.start.idstr) for s in seen.summary.sections if _by_hand(s, schema)}
        )
        not_checked += [_NOT_IN_A_DUMP, f"state that is in no such file: {', '.join(by_hand)}"]
    else:
        kind, other = "stream", _read(against, against_container, page_size, max_ram, progress)
        machine = other.summary.machine
        found = [
            *_machine(seen.summary, machine),
            *_configuration(seen.summary, other.summary),
            *_commands(seen.summary, machine, {c.cmd for c in other.summary.commands}),
            *_blocks(seen.summary, other.summary),
            *_sections(seen, other),
            *_values(seen, other),
            *_config_space(seen, other),
        ]
    if _is_chained(machine):
        found = [_chained(f) for f in found]
    effects = {f.effect for f in found}
    verdict = "refused" if "refused" in effects else "doubtful" if "doubt" in effects else "loads"
    report = CheckReport(
        schema=CHECK_SCHEMA,
        input=source.name,
        against=against.name,
        against_kind=kind,
        machine=seen.summary.machine,
        destination_machine=machine,
        verdict=verdict,
        findings=found,
        not_checked=not_checked,
    )
    return report, EXIT_OK if verdict == "loads" else EXIT_FINDINGS


# ---- the words ---------------------------------------------------------------------------------


# The version of a machine type; `None` if it has none.
def _release(machine: str | None) -> tuple[int, int] | None:
    m = re.search(r"-(\d+)\.(\d+)", machine or "")
    return None if m is None else (int(m[1]), int(m[2]))


def _is_chained(machine: str | None) -> bool:
    return (_release(machine) or (0, 0)) >= (10, 2)


# QEMU 10.2 made most messages one, behind that of the end ("migration: push Error **errp into
# qemu_loadvm_state()" and the like, September 2025).
def _chained(finding: CheckFinding) -> CheckFinding:
    lines = finding.qemu
    if not lines:
        return finding
    first = lines[0].removeprefix("savevm: ").replace("Unknown savevm ", "Unknown ")
    first = first.replace("version_id  ", "version_id ")
    state = next((line for line in lines if line.startswith("error while loading")), "")
    match finding.code:
        case "machine" | "page-size":
            hook = "post load hook failed for: configuration, version_id: 1, minimum_version: 0"
            lines = [f"{INVALID}: {hook}: {first}"]
        case "version" | "section":
            lines = [f"{INVALID}: {first}"]
        case "version-old":
            lines = [f"{INVALID}: {state}: {first}"]
        case "subsection":
            name = finding.message.rpartition(" ")[2]
            parent = name.rpartition("/")[0]
            lines = [f"{INVALID}: {state}: VM subsection '{name}' in '{parent}' does not exist"]
        case "ram-block" | "ram-length":
            lines = [first, f"{INVALID}: {state}: Failed to load vmstate version_id: 4, ret: -22"]
        case "size":
            lines = [first, f"{INVALID}: Section footer error, section_id: "]
    return replace(finding, qemu=lines)


# ---- the head ----------------------------------------------------------------------------------


def _machine(summary: Summary, local: str | None) -> Iterator[CheckFinding]:
    config = summary.configuration
    if config is None or local is None or summary.machine == local:
        return
    yield CheckFinding(
        "refused",
        "machine",
        config.offset,
        None,
        f"the stream is of machine type {summary.machine}, the destination is {local}",
        "wire",
        [f"Machine type received is '{summary.machine}' and local is '{local}'", INVALID],
        f"start the destination with -M {summary.machine}; if the devices are the same, `rewrite "
        f"--set configuration.name={local}`",
    )


def _configuration(summary: Summary, other: Summary) -> Iterator[CheckFinding]:
    mine, its = summary.configuration, other.configuration
    if mine is None or its is None:
        return
    if mine.target_page_bits and its.target_page_bits not in (None, mine.target_page_bits):
        bits, local = mine.target_page_bits, its.target_page_bits
        yield CheckFinding(
            "refused",
            "page-size",
            mine.offset,
            None,
            f"pages of {1 << bits} bytes, those of the destination have {1 << (local or 0)}",
            "wire",
            [f"Received TARGET_PAGE_BITS is {bits} but local is {local}", INVALID],
            "start the destination with the same kind of CPU",
        )
    for name in sorted({*mine.capabilities} ^ {*its.capabilities}):
        received, local_state = (
            "on" if name in config.capabilities else "off" for config in (mine, its)
        )
        text = readable(name)
        line = f"Capability {text} is {local_state}, but received capability is {received}"
        yield CheckFinding(
            "refused",
            "capability",
            mine.offset,
            None,
            f"capability {text} is {received} in the stream, {local_state} at the destination",
            "wire",
            [line, INVALID],
            f"set the capability {text} {received} at the destination",
        )


# A machine type of 10.0 has it sent, so one that is older may be of a QEMU that does not know it.
# QEMU v10.0.0 hw/core/machine.c hw_compat_9_2, migration/savevm.c loadvm_process_command().
def _commands(
    summary: Summary, machine: str | None, known: Collection[int] = ()
) -> Iterator[CheckFinding]:
    release = _release(machine)
    if release is None or release >= (10, 0):
        return
    for command in summary.commands:
        if command.cmd == MigCmd.SWITCHOVER_START and command.cmd not in known:
            yield CheckFinding(
                "doubt",
                "command",
                command.offset,
                None,
                "the stream has the command SWITCHOVER_START, which QEMU knows since 10.0; the "
                f"destination's machine type, {machine}, is older",
                "inferred",
                [f"MIG_CMD {int(command.cmd):#x} unknown (len {command.length:#x})", INVALID],
                "nothing, if the destination is QEMU 10.0 or later; else migrate again with "
                "-global migration.send-switchover-start=off at the source",
            )


def block_offsets(summary: Summary) -> dict[bytes, int]:
    """Where the length of each block stands in the block list, by name."""
    at = summary.blocks_offset
    found = {}
    for block in summary.blocks:
        at += 1 + len(block.idstr)
        found[block.idstr] = at
        at += 8 * (1 + (block.host_page_size is not None) + (block.gpa is not None))
    return found


def _blocks(summary: Summary, other: Summary) -> Iterator[CheckFinding]:
    its = {b.idstr: b for b in other.blocks}
    offsets = block_offsets(summary)
    ram = _state_failed("ram", 0)
    for block in summary.blocks:
        name, at = readable(block.idstr), offsets[block.idstr]
        there = its.pop(block.idstr, None)
        if there is None:
            yield CheckFinding(
                "refused",
                "ram-block",
                at,
                "ram",
                f"the destination has no RAM block {name}",
                "wire",
                [f'Unknown ramblock "{name}", cannot accept migration', *ram],
                "give the destination a memory backend or device of this name; or `rewrite "
                f"--rename-block {name}=NAME`",
            )
        elif there.used_length != block.used_length:
            # Tables of the firmware grow and shrink; QEMU resizes these blocks.
            resized = block.idstr.startswith(b"/rom@")
            lengths = f"{block.used_length:#x} != {there.used_length:#x}"
            line = f"Size mismatch: {name}: {lengths}: Invalid argument"
            yield CheckFinding(
                "info" if resized else "refused",
                "ram-length",
                at,
                "ram",
                f"RAM block {name} has {block.used_length:#x} bytes, at the destination "
                f"{there.used_length:#x}" + (": QEMU resizes it" if resized else ""),
                "inferred" if resized else "wire",
                [] if resized else [line, *ram],
                "nothing" if resized else "start the destination with the same size (-m, size=)",
            )
    for left in its.values():
        name = readable(left.idstr)
        yield CheckFinding(
            "doubt",
            "ram-block-kept",
            summary.blocks_offset,
            "ram",
            f"the stream has no RAM block {name}, which the destination keeps as it is",
            "wire",
            [],
            "leave the device that has it out at the destination",
        )


# ---- sections ----------------------------------------------------------------------------------


def _state_failed(idstr: str, instance: int, last: str = INVALID) -> list[str]:
    return [f"error while loading state for instance {instance:#x} of device '{idstr}'", last]


def _last(idstr: bytes) -> str:
    return readable(idstr).rpartition("/")[2]


def _by_hand(section: SectionSummary, schema: StaticSchema) -> bool:
    return not schema.named(readable(section.start.idstr))


def _version(section: SectionSummary, newest: int, source: str) -> CheckFinding:
    start, name = section.start, readable(section.start.idstr)
    line = f"savevm: unsupported version {start.version_id} for '{name}' v{newest}"
    return CheckFinding(
        "refused",
        "version",
        section.body_offset - 4,
        f"{name}[{start.instance_id}]",
        f"{name} has version {start.version_id}, the destination knows {newest}",
        source,
        [line, INVALID],
        "use a newer QEMU at the destination, or the source with an older machine type",
    )


def _unknown(section: SectionSummary, effect: str, why: str, source: str) -> CheckFinding:
    start, name = section.start, readable(section.start.idstr)
    line = (
        f"Unknown savevm section or instance '{name}' {start.instance_id}. Make sure that your "
        "current VM setup matches your saved VM setup, including any hotplugged devices"
    )
    return CheckFinding(
        effect,
        "section",
        start.offset,
        f"{name}[{start.instance_id}]",
        f"{name}: {why}",
        source,
        [line, INVALID],
        f"add the device at the destination, at the same address; or `rewrite --drop-section "
        f"'{name}[{start.instance_id}]'`, which loses its state",
    )


def _against_static(seen: _Stream, schema: StaticSchema) -> Iterator[CheckFinding]:
    bodies = {s.offset: (s, node) for s, node in _pairs(seen.devices)}
    for section in seen.summary.sections:
        start = section.start
        kinds = schema.named(readable(start.idstr))
        if not kinds:
            if _last(start.idstr) not in _BY_HAND:
                why = "no device type of that name is in the file"
                yield _unknown(section, "doubt", why, "inferred")
            continue
        newest = max(_number(k, "version_id") for k in kinds)
        oldest = min(_number(k, "minimum_version_id") for k in kinds)
        if start.version_id > newest:
            yield _version(section, newest, "wire")
        elif start.version_id < oldest:
            yield _too_old(section, str(kinds[0].get("name")), oldest)
        elif section.body_offset in bodies:
            yield from _layout(section, kinds, schema, *bodies[section.body_offset])


def _pairs(devices: Devices) -> list[tuple[Section, Node]]:
    tree = devices.tree
    return list(zip(tree.sections, tree, strict=True))


def _number(kind: Mapping[str, Any], key: str) -> int:
    value = kind.get(key)
    return value if isinstance(value, int) else 0


def _too_old(section: SectionSummary, vmsd: str, oldest: int) -> CheckFinding:
    start, name = section.start, readable(section.start.idstr)
    line = (
        f"{vmsd}: incoming version_id {start.version_id} is too old for local minimum "
        f"version_id  {oldest}"
    )
    return CheckFinding(
        "refused",
        "version-old",
        section.body_offset - 4,
        f"{name}[{start.instance_id}]",
        f"{name} has version {start.version_id}, the destination reads {oldest} and later",
        "wire",
        [line, *_state_failed(name, start.instance_id)],
        "go through a QEMU between the two",
    )


# Whether the body can be what the destination reads: subsections first, then the size.
def _layout(
    section: SectionSummary,
    kinds: Any,
    schema: StaticSchema,
    body: Section,
    node: Node,
) -> Iterator[CheckFinding]:
    start, name = section.start, readable(section.start.idstr)
    path = f"{name}[{start.instance_id}]"
    lost = list(_unknown_subsections(node, kinds, []))
    for child, failed in lost:
        yield CheckFinding(
            "refused",
            "subsection",
            child.offset,
            path,
            f"{name}: the destination does not know the subsection {child.name}",
            "wire",
            [*failed, *_state_failed(name, start.instance_id, NO_ENTRY)],
            f"use a newer QEMU at the destination; or `rewrite --drop-subsection '{child.path}'`",
        )
    if lost or schema.describe(body.idstr, body.version_id, body.body) is not None:
        return
    mine = {str(f.get("name")) for f in node.description.get("fields", ())}
    its = {str(f.get("field")) for k in kinds for f in k.get("Fields", ())}
    needed = {
        str(f.get("field"))
        for f in kinds[0].get("Fields", ())
        if f.get("field_exists") is False and _number(f, "version_id") <= start.version_id
    }
    told = [
        f"{what} {', '.join(sorted(names)[:8])}"
        for what, names in (("only in the stream:", mine - its), ("missing:", needed - mine))
        if mine and names
    ]
    yield CheckFinding(
        "refused",
        "size",
        body.offset,
        path,
        f"{name} has {len(body.body)} bytes of state, which the destination's fields do not add "
        f"up to{'; ' if told else ''}{'; '.join(told)}",
        "inferred",
        [f"Missing section footer for {name}", INVALID],
        "use the QEMU that wrote it, or a machine type that both have",
    )


# Subsections that no description of the kinds has, those of structs too, with the messages on the
# way out: a struct tells its field, a subsection nothing.
def _unknown_subsections(
    node: Node, kinds: Iterable[Mapping[str, Any]], failed: list[str]
) -> Iterator[tuple[Node, list[str]]]:
    subsections: dict[str, list[Mapping[str, Any]]] = {}
    structs: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for kind in kinds:
        for sub in kind.get("Subsections", ()):
            subsections.setdefault(str(sub.get("name")), []).append(sub)
        for field in kind.get("Fields", ()):
            inner = field.get("Description")
            if isinstance(inner, Mapping) and _has_subsections(inner):
                named = str(kind.get("name")), inner
                structs.setdefault(str(field.get("field")), []).append(named)
    for child in node.children:
        if child.type == "subsection":
            if child.name not in subsections:
                yield child, failed
            else:
                yield from _unknown_subsections(child, subsections[child.name], failed)
        elif child.type == "struct" and (there := structs.get(child.name.partition("[")[0])):
            line = f"Failed to load {there[0][0]}:{child.name.partition('[')[0]}"
            yield from _unknown_subsections(child, [d for _, d in there], [line, *failed])


def _has_subsections(vmsd: Mapping[str, Any]) -> bool:
    inner = (f.get("Description") for f in vmsd.get("Fields", ()))
    return bool(vmsd.get("Subsections")) or any(
        _has_subsections(d) for d in inner if isinstance(d, Mapping)
    )


def _sections(seen: _Stream, other: _Stream) -> Iterator[CheckFinding]:
    its = other.sections
    for key, section in seen.sections.items():
        there = its.pop(key, None)
        if there is None:
            why = "the other stream has no such section: no such device, or nothing to send"
            yield _unknown(section, "refused", why, "inferred")
        elif section.start.version_id > there.start.version_id:
            yield _version(section, there.start.version_id, "wire")
        elif section.start.version_id < there.start.version_id:
            yield CheckFinding(
                "doubt",
                "version-older",
                section.body_offset - 4,
                f"{readable(key[0])}[{key[1]}]",
                f"version {section.start.version_id}, the destination writes "
                f"{there.start.version_id}: whether it reads the older one is not in a stream",
                "inferred",
                [],
                "check against -dump-vmstate of the destination, which says",
            )
    for idstr, instance in its:
        name = f"{readable(idstr)}[{instance}]"
        yield CheckFinding(
            "doubt",
            "section-kept",
            seen.summary.end_offset or 0,
            name,
            f"the stream has no section {name}: the destination leaves it as after a reset",
            "wire",
            [],
            "leave the device out at the destination, unless the guest can do with a reset one",
        )


# Fields whose value has to be that of the destination.
# QEMU v10.1.0 migration/vmstate-types.c get_int32_equal() and the like.
def _values(seen: _Stream, other: _Stream) -> Iterator[CheckFinding]:
    its = {n.path: value for n, value in _equal(other)}
    for node, value in _equal(seen):
        there = its.get(node.path, value)
        if there == value:
            continue
        device, inner = node.path.rpartition("]/")[0] + "]", node.path.rpartition("/")[2]
        idstr, _, instance = device[:-1].rpartition("[")
        number = int(instance) if instance.isdigit() else 0
        # The local one first.
        values = f"{there:x} != {value:x}"
        failed = _element_failed(
            other.summary.machine, idstr, number, idstr.rpartition("/")[2], inner, node.type
        )
        yield CheckFinding(
            "refused",
            "value",
            node.offset,
            device,
            f"{node.path} is {value:#x}, and has to be the {there:#x} of the destination",
            "inferred",
            [values, *failed],
            "start the destination with the same properties of this device",
        )


# The messages when an element of a device is refused.
def _element_failed(
    machine: str | None, idstr: str, instance: int, struct: str, name: str, kind: str
) -> list[str]:
    state, _ = whole = _state_failed(idstr, instance)
    if _is_chained(machine):
        return [f"{INVALID}: {state}: Failed to load element of type {kind} for {name}"]
    return [f"Failed to load {struct}:{name}", *whole]


# Bytes of PCI config space that have to be those of the destination, unless its device allows
# others: vendor, device, revision, class, header type, the first capability.
# QEMU v10.1.0 hw/pci/pci.c pci_init_cmask(), get_pci_config_device().
_CONFIG_SIZE = 64
_FIXED_CONFIG = (0, 1, 2, 3, 8, 9, 10, 11, 14, 0x34)


def _config_space(seen: _Stream, other: _Stream) -> Iterator[CheckFinding]:
    its = dict(_configs(other))
    for path, (device, node) in _configs(seen):
        if path not in its:
            continue
        there = its[path][1]
        at = next((i for i in _FIXED_CONFIG if node.raw[i] != there.raw[i]), None)
        if at is None:
            continue
        idstr, _, instance = device.path[:-1].rpartition("[")
        ours, theirs = node.raw[at], there.raw[at]
        said = f"get_pci_config_device: Bad config data: i={at:#x} read: {ours:x} "
        said += f"device: {theirs:x} cmask: "
        failed = _element_failed(
            other.summary.machine, idstr, int(instance), "PCIDevice", "config", "pci config"
        )
        yield CheckFinding(
            "refused",
            "pci-config",
            node.offset + at,
            device.path,
            f"byte {at:#x} of the PCI config space of {device.path} is {ours:#x}, at the "
            f"destination {theirs:#x}",
            "inferred",
            [said, *failed],
            "start the destination with the same device, and the same properties of it",
        )


# Of each device: it is in the first field, or in that one's, as with virtio.
def _configs(stream: _Stream) -> Iterator[tuple[str, tuple[Node, Node]]]:
    for device in stream.devices.tree:
        node: Node | None = device
        for _ in range(3):
            node = next(iter(node.children), None) if node is not None else None
            found = () if node is None else node.children
            config = next((c for c in found if c.type == "pci config"), None)
            if config is not None and config.size >= _CONFIG_SIZE:
                yield config.path, (device, config)
                break


def _equal(stream: _Stream) -> Iterator[tuple[Node, int]]:
    for device in stream.devices.tree:
        for node in device.children:
            if node.type.endswith(" equal") and isinstance(node.value, int):
                yield node, node.value
