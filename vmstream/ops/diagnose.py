"""`diagnose`: the messages of a QEMU that did not load a stream, and where in it their cause is.

The texts are those of QEMU 2.4 to 11.x: migration/savevm.c, migration/vmstate.c, migration/ram.c,
hw/pci/pci.c get_pci_config_device().
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from vmstream.container.layers import Container
from vmstream.errors import EXIT_FINDINGS, EXIT_OK
from vmstream.guest.devices import Node
from vmstream.ops.channels import Channels
from vmstream.ops.check import block_offsets
from vmstream.ops.inspect import SectionSummary
from vmstream.ops.pipeline import Progress
from vmstream.ops.verify import Verified, examine
from vmstream.report.models.diagnose import DIAGNOSE_SCHEMA, CauseReport, DiagnoseReport
from vmstream.report.models.names import readable
from vmstream.transport.source import Source
from vmstream.wire.constants import MigCmd

# Bytes of a log, and messages of it that are explained.
MAX_LOG = 16 << 20
_MOST_CAUSES = 1000

# Fields of a device that are looked through for one by its name.
_MOST_NODES = 1 << 14

_ERRNO = {
    "Invalid argument": "what the stream states does not fit: the line above says what",
    "Input/output error": "the stream ended early, or could not be read: `verify` says where",
    "No such file or directory": "a subsection that the destination does not know",
    "Operation not permitted": "the code of a device refused its state",
    "Operation not supported": "a version of the stream that the destination does not read",
    "Numerical result out of range": "a command with a length that it may not have",
    "Cannot allocate memory": "the destination has no memory for what the stream states",
}
_SAME_MACHINE = "start the destination with the devices, addresses and properties of the source"
_DAMAGE = "look with `verify`; take another copy, or capture the stream again"
_DEVICE_DIFFERS = (
    "use the same machine type, and the same properties of this device; `check` against "
    "-dump-vmstate of the destination names what differs"
)


@dataclass
class _Log:
    """A stream, and what the lines read so far told of the next ones."""

    seen: Verified
    # 'Failed to load' comes from the inside out, and the section last.
    fields: list[tuple[str, str]] = field(default_factory=list)
    config: tuple[int, str] | None = None
    refused: Node | None = None

    def section(self, idstr: str, instance: int | None = None) -> SectionSummary | None:
        """The section of a name, as QEMU prints it."""
        for section in self.seen.summary.sections:
            start = section.start
            if readable(start.idstr) == idstr and instance in (None, start.instance_id):
                return section
        return None

    def fault(self) -> tuple[int | None, str]:
        """Where the stream itself is wrong, and how; (`None`, '') if it is not."""
        for finding in self.seen.summary.findings.kept:
            if finding.severity == "error":
                return finding.offset, f"; {finding.message}"
        return None, "; the stream itself is sound there, so the destination read it otherwise"

    # In the structs of a device, if there is but one of that name.
    def _deeper(self, node: Node, name: str) -> Node | None:
        found = [n for n in islice(_inside(node), _MOST_NODES) if n.name.partition("[")[0] == name]
        return found[0] if len(found) == 1 else None

    def node(self, section: SectionSummary) -> Node | None:
        """The field that 'Failed to load' named, outermost last."""
        tree = self.seen.devices.tree
        nodes = [
            d for s, d in zip(tree.sections, tree, strict=True) if s.offset == section.body_offset
        ]
        if not nodes:
            return None
        at: Node = nodes[0]
        for _, name in reversed(self.fields):
            names = (c for c in at.children if c.name.partition("[")[0] == name)
            inner = next(names, None) or self._deeper(at, name)
            if inner is None:
                break
            at = inner
        if self.config is not None and self.fields and self.fields[0][1] == "config":
            return at
        self.refused = at
        return at if at is not nodes[0] else None


_Found = tuple[
    int | None, str | None, str | None, str, str
]  # offset, section, field, cause, advice


def _path(section: SectionSummary | None, idstr: str) -> str:
    if section is None:
        return idstr
    return f"{idstr}[{section.start.instance_id}]"


def _lost(idstr: str) -> str:
    return f"; the stream has no section {idstr}: is this the log of another one?"


def _not_a_stream(log: _Log, m: re.Match[str]) -> _Found:
    if not log.seen.summary.read:
        return 0, None, None, "these bytes are no migration stream", "give QEMU the right file"
    cause = "the file given here is one, so QEMU read other bytes: another file, another offset, "
    return 0, None, None, cause + "or what is around it", "unpack it: `convert` writes it plain"


def _unknown_section(log: _Log, m: re.Match[str]) -> _Found:
    section = log.section(m[1], int(m[2]))
    cause = f"the destination has no device {m[1]} of instance {m[2]}"
    cause += "" if section else _lost(m[1])
    advice = f"add the device at the same address, or `rewrite --drop-section '{m[1]}[{m[2]}]'`"
    return section.start.offset if section else None, f"{m[1]}[{m[2]}]", None, cause, advice


def _version(log: _Log, m: re.Match[str]) -> _Found:
    section = log.section(m[2])
    cause = f"the section is of version {m[1]}, the destination reads {m[3]} and older"
    cause += "" if section else _lost(m[2])
    at = section.body_offset - 4 if section else None
    advice = "use a newer QEMU at the destination, or an older machine type at the source"
    return at, _path(section, m[2]), None, cause, advice


def _footer(log: _Log, m: re.Match[str]) -> _Found:
    section = log.section(m[1])
    fault, why = log.fault()
    if section is None:
        return (
            fault,
            m[1],
            None,
            "the section does not end where its loader stopped" + _lost(m[1]),
            _DAMAGE,
        )
    end = section.body_offset + section.body_size
    cause = f"the destination did not stop at the {section.body_size} bytes of state that are here"
    return fault or end, _path(section, m[1]), None, cause + why, _DEVICE_DIFFERS


def _state(log: _Log, idstr: str, instance: int | None) -> _Found:
    section = log.section(idstr, instance)
    if section is None:
        return None, idstr, None, "the device refused its state" + _lost(idstr), _DEVICE_DIFFERS
    at, name, cause = section.body_offset, None, "the device refused its state"
    node = log.node(section)
    if node is not None:
        at, name = node.offset, node.path.partition("]/")[2] or node.path
        cause = f"the field {name} of {node.size} bytes was refused"
        if isinstance(node.value, int):
            cause += f"; it is {int(node.value):#x} in the stream"
        if log.config is not None:
            at, cause = (
                at + log.config[0],
                f"byte {log.config[0]:#x} of PCI config space {log.config[1]}",
            )
    elif idstr == "ram":
        fault, why = log.fault()
        at, cause = fault or at, "RAM was refused: the line above says why" + (why if fault else "")
    log.fields, log.config = [], None
    return at, _path(section, idstr), name, cause, _DAMAGE if idstr == "ram" else _DEVICE_DIFFERS


# Since 10.2 what failed inside stands behind it, outermost first, and structs have no part in it.
def _state_instance(log: _Log, m: re.Match[str]) -> _Found:
    inside = re.findall(r"Failed to load element of type .+? for ([^:\s]+)", m[3] or "")
    log.fields += [("", name) for name in reversed(inside)]
    return _state(log, m[2], int(m[1], 16))


def _subsection(log: _Log, m: re.Match[str]) -> _Found:
    section = log.section(m[2], int(m[1], 16))
    found = None
    for device in log.seen.devices.tree:
        if section is not None and device.offset == section.body_offset:
            found = next(
                (n for n in _inside(device) if n.type == "subsection" and n.name == m[3]), None
            )
    cause = f"the destination does not know the subsection {m[3]}"
    advice = "use a newer QEMU at the destination"
    if found is not None:
        advice += f"; or `rewrite --drop-subsection '{found.path}'`"
    at = found.offset if found else section.body_offset if section else None
    return at, _path(section, m[2]), m[3], cause + ("" if section else _lost(m[2])), advice


def _state_version(log: _Log, m: re.Match[str]) -> _Found:
    section = log.section(m[1]) if m[1] else None
    at = section.body_offset - 4 if section else None
    cause = f"the state of {m[2]} is of version {m[3]}, which the destination does not read"
    name = _path(section, m[1]) if m[1] else None
    return at, name, m[2], cause, "use a QEMU between the two"


def _command(log: _Log, m: re.Match[str]) -> _Found:
    number = int(m[1], 16)
    command = next((c for c in log.seen.summary.commands if c.cmd == number), None)
    if command is None:
        return _damaged("a command that the destination does not know")(log, m)
    cause = f"the destination does not know the command {command.name}"
    advice = "use a newer QEMU at the destination"
    if number == MigCmd.SWITCHOVER_START:
        cause += ", which QEMU has since 10.0"
        advice += ", or -global migration.send-switchover-start=off at the source"
    return command.offset, None, None, cause, advice


# All nodes in one, itself left out.
def _inside(node: Node) -> Iterator[Node]:
    for child in node.children:
        yield child
        yield from _inside(child)


def _state_id(log: _Log, m: re.Match[str]) -> _Found:
    return _state(log, m[1], None)


def _failed(log: _Log, m: re.Match[str]) -> _Found:
    log.fields.append((m[1], m[2]))
    return (
        None,
        None,
        m[2],
        f"field {m[2]} of {m[1]}: the line on its section has the place",
        _DEVICE_DIFFERS,
    )


def _pci(log: _Log, m: re.Match[str]) -> _Found:
    log.config = (
        int(m[1], 16),
        f"is {m[2]} in the stream, {m[3]} at the destination, and is read-only",
    )
    return None, None, "config", f"byte {log.config[0]:#x} {log.config[1]}", _SAME_MACHINE


def _length(log: _Log, m: re.Match[str]) -> _Found:
    at = block_offsets(log.seen.summary).get(m[1].encode())
    cause = f"RAM block {m[1]} has {m[2]} bytes in the stream, {m[3]} at the destination"
    return at, "ram", m[1], cause, "start the destination with the same size of memory (-m, size=)"


def _block(log: _Log, m: re.Match[str]) -> _Found:
    at = block_offsets(log.seen.summary).get(m[1].encode())
    cause = f"the destination has no RAM block {m[1]}"
    return (
        at,
        "ram",
        m[1],
        cause,
        f"give it one of that name, or `rewrite --rename-block {m[1]}=NAME`",
    )


def _machine(log: _Log, m: re.Match[str]) -> _Found:
    config = log.seen.summary.configuration
    # The type, the length of the name, and the name. savevm.c vmstate_configuration.
    at = config.offset + 5 if config else None
    cause = f"the stream is of machine type {m[1]}, the destination is {m[2]}"
    advice = (
        f"start it with -M {m[1]}; with equal devices, `rewrite --set configuration.name={m[2]}`"
    )
    return at, "configuration", "name", cause, advice


def _configuration(what: str) -> Callable[[_Log, re.Match[str]], _Found]:
    def found(log: _Log, m: re.Match[str]) -> _Found:
        config = log.seen.summary.configuration
        cause = f"{what} is not that of the destination"
        return config.offset if config else None, "configuration", what, cause, _SAME_MACHINE

    return found


def _damaged(what: str, advice: str = _DAMAGE) -> Callable[[_Log, re.Match[str]], _Found]:
    def found(log: _Log, m: re.Match[str]) -> _Found:
        at, why = log.fault()
        return at, None, None, what + why, advice

    return found


def _end(log: _Log, m: re.Match[str]) -> _Found:
    cause = _ERRNO.get(m[1], "the lines above say why")
    at = log.fault()[0] if m[1] == "Input/output error" else None
    if m[1] == "No such file or directory" and log.refused is not None:
        subs = [c for c in log.refused.children if c.type == "subsection"]
        at = subs[0].offset if subs else None
        cause += f"; {log.refused.path} has {', '.join(c.name for c in subs[:8]) or 'none'}"
    return at, None, None, cause, "see the other lines"


# ruff: noqa: ISC004
_RULES: tuple[tuple[str, str, Callable[[_Log, re.Match[str]], _Found]], ...] = (
    (r"Not a migration stream", "not-a-stream", _not_a_stream),
    (r"(?:SaveVM v2 format|Unsupported migration stream version)", "stream-version",
     _damaged("the version word is not 3")),
    (r"Configuration section missing", "configuration-missing",
     _damaged("the destination expects a configuration section behind the header",
              "use a machine type of the same age (2.4 and later write one)")),
    (r"Machine type received is '(.*)' and local is '(.*)'", "machine", _machine),
    (r"Received TARGET_PAGE_BITS is \d+ but local is \d+", "page-size",
     _configuration("target-page-bits")),
    (r"Capability (\S+) is \w+, but received capability is \w+|Received unknown capability",
     "capability", _configuration("capabilities")),
    (r"UUID received is \S+ and local is \S+", "uuid", _configuration("uuid")),
    (r"Unknown (?:savevm )?section or instance '(.+)' (\d+)", "section", _unknown_section),
    (r"Unknown (?:savevm )?section type \d+", "desync",
     _damaged("what follows a section is no section: its loader stopped too early or too late")),
    (r"Unknown (?:savevm )?section \d+", "part",
     _damaged("a part of a section that was not begun")),
    (r"(?:savevm|Invalid argument): unsupported version (\d+) for '(.+)' v(\d+)", "version",
     _version),
    (r"(?:of device '([^']+)': )?(\S+): incoming version_id (\d+) is too (?:new|old)",
     "version-state", _state_version),
    (r"Missing section footer for (.+)", "footer", _footer),
    (r"Mismatched section id in footer for (.+) - read", "footer", _footer),
    (r"get_pci_config_device: Bad config data: i=(0x[0-9a-f]+) read: (\w+) device: (\w+)",
     "pci-config", _pci),
    (r"Failed to load ([^:\s]+):(.+)", "field", _failed),
    (r"Input validation failed: ([^/]+)/(.+)", "field", _failed),
    (r"error while loading state for instance (0x[0-9a-f]+) of device '([^']+)': VM subsection "
     r"'(.+)' in '.+' does not exist", "subsection", _subsection),
    (r"error while loading state for instance (0x[0-9a-f]+) of device '([^']+)'(?:: (.*))?",
     "state", _state_instance),
    (r"error while loading state section id \d+\((.+)\)", "state", _state_id),
    (r"(?:Size mismatch|Size too large|Length mismatch): (.+): (0x[0-9a-f]+)(?: in)? (?:!=|>) "
     r"(0x[0-9a-f]+)", "ram-length", _length),
    (r'Unknown ramblock "(.+)", cannot accept migration', "ram-block", _block),
    (r"Unknown combination of migration flags: \S+", "ram-flags",
     _damaged("the word at the head of a page record has flags that do not go together: damage, "
              "a page size that is not the destination's, or a feature that it lacks")),
    (r"Illegal RAM offset|Can't find block|Ack, bad migration stream|Getting RAM address failed",
     "ram-record", _damaged("a page record that is of no page of the destination")),
    (r"Failed to (?:decompress XBZRLE page|load XBZRLE page)|Invalid compressed data length|"
     r"Found a zero page with value|decompress data failed", "ram-page",
     _damaged("a page that cannot be decoded")),
    (r"MIG_CMD (0x[0-9a-f]+) unknown", "command", _command),
    (r"received with bad length", "command", _damaged("a command with another length")),
    (r"Unable to read ID string for section", "truncated",
     _damaged("the stream ended in the head of a section")),
    (r"Expected vmdescription section, but got", "vmdescription",
     _damaged("no vmdescription behind the end: harmless, QEMU loads the stream", "nothing")),
    (r"load of migration failed(?:: (.+))?", "load-failed", _end),
)  # fmt: skip
_COMPILED = tuple((re.compile(pattern), code, rule) for pattern, code, rule in _RULES)


def diagnose(
    source: Source,
    log: bytes,
    *,
    page_size: int | None = None,
    progress: Progress | None = None,
    container: Container | None = None,
    channels: Channels | None = None,
    max_ram: int | None = None,
) -> tuple[DiagnoseReport, int]:
    """Explain the messages of a QEMU that did not load a stream.

    Args:
        source: The stream; it is read whole, as by `verify`.
        log: What QEMU wrote, with any other lines between.
        page_size: As of `examine`, and so are the others.
        progress: Called with (offset, size or None).
        container: What is around the stream.
        channels: Recorded beside the main one.
        max_ram: RAM in bytes.

    Returns:
        The document, and the exit status: 0 if a message was explained, else 1.

    Raises:
        StreamError: The input is no stream at all, and the log says nothing of that.
    """
    seen = examine(
        source,
        page_size=page_size,
        progress=progress,
        container=container,
        channels=channels,
        max_ram=max_ram,
    )
    causes = list(_causes(_Log(seen), log.decode("utf-8", "backslashreplace")))
    error = seen.summary.findings.error
    if not causes and error is not None and not seen.summary.read:
        raise error
    report = DiagnoseReport(DIAGNOSE_SCHEMA, source.name, causes)
    return report, EXIT_OK if causes else EXIT_FINDINGS


def _causes(log: _Log, text: str) -> Iterator[CauseReport]:
    told = 0
    for number, line in enumerate(text.splitlines(), 1):
        for pattern, code, rule in _COMPILED:
            m = pattern.search(line[:4096])
            if m is None:
                continue
            offset, section, name, cause, advice = rule(log, m)
            yield CauseReport(
                number, line.strip()[:4096], code, offset, section, name, cause, advice
            )
            told += 1
            break
        if told == _MOST_CAUSES:
            return
