"""The QEMU command line that a destination of a stream needs, as far as the stream states it.

Nothing on the wire is a command line. A machine, a UUID, the names and sizes of RAM blocks and the
names of sections are; from a name like '0000:00:03.0/virtio-net' follow the device and where it is
plugged. QEMU v10.1.0 hw/core/qdev.c qdev_get_dev_path(), migration/savevm.c vmstate_register().
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from vmstream.errors import OutputError
from vmstream.guest.devices import Node
from vmstream.guest.physical import Evidence, machine_family, physical_map, ram_blocks
from vmstream.stream.events import RAMBlock

_MIB = 1 << 20

# Names that a machine gives its RAM when nobody names it.
_DEFAULT_RAM = re.compile(
    rb"pc\.ram|microvm\.ram|mach-virt\.ram|riscv_virt_board\.ram|ppc_spapr\.ram|s390\.ram|m68k_virt\.ram"
)

# Sections of what each machine of a family has whatever is asked for. Those of all machines first.
_ALWAYS = re.compile(
    r"ram|timer|cpu_common|cpu|cpu/\S+|kvm-tpr-opt|apic|globalstate|configuration|slirp|fw_cfg|PCIHost"
    r"|PCIBUS|i2c_bus|acpi_build|virt_acpi_build|gpio-key|kvmclock|xive-tctx|spapr_cpu|icp/server"
    r"|apic-common|dirty-bitmap|block|replay|serial|parallel_isa|pvtime"
)
_X86_BOARD = (
    r"dma|i8259|ioapic|hpet|mc146818rtc|i8254|pcspk|ps2kbd|ps2mouse|pckbd|vmmouse|port92|fdc|acpi-ged"
    r"|isa-ide|kvm_i8259|kvm-ioapic|kvm-pit|smbus-eeprom|vmport"
)
_BOARD = {
    "pc": re.compile(_X86_BOARD + r"|0000:00:00\.0/.*|0000:00:01\.[013]/.*"),
    "q35": re.compile(_X86_BOARD + r"|0000:00:00\.0/.*|0000:00:1f\.[023]/.*"),
    "isapc": re.compile(_X86_BOARD),
    "microvm": re.compile(_X86_BOARD + r"|0000:00:00\.0/.*"),
    "arm virt": re.compile(
        r"pflash_cfi01|arm_gic\S*|pl011|pl031|pl061|0000:00:00\.0/.*|smmuv3|acpi-ged"
    ),
    "riscv virt": re.compile(r"pflash_cfi01|riscv_\S+|goldfish_rtc|0000:00:00\.0/.*|sifive\S*"),
    "pseries": re.compile(
        r"ics|xive-source|spapr\S*|.*/spapr_nvram|.*/spapr_vty|vty@\S+|nvram@\S+"
    ),
    "s390-ccw-virtio": re.compile(
        r"ipl|sclp\S*|vmstate-event-facility|s390\S*|qemu-s390\S*|css|.*flic.*|todclock\S*"
    ),
}

# The device of a section on PCI, where it is not the name of the section.
_PCI = {
    "virtio-net": "virtio-net-pci", "virtio-blk": "virtio-blk-pci", "virtio-rng": "virtio-rng-pci",
    "virtio-scsi": "virtio-scsi-pci", "virtio-balloon": "virtio-balloon-pci",
    "virtio-console": "virtio-serial-pci", "virtio-gpu": "virtio-gpu-pci",
    "virtio-iommu": "virtio-iommu-pci", "virtio-crypto": "virtio-crypto-pci",
    "virtio-mem": "virtio-mem-pci", "virtio-vga": "virtio-vga",
    "vga": "VGA", "cirrus_vga": "cirrus-vga", "qxl": "qxl-vga", "vmware_vga": "vmware-svga",
    "bochs-display": "bochs-display", "e1000": "e1000", "e1000e": "e1000e", "igb": "igb",
    "rtl8139": "rtl8139", "pcnet": "pcnet", "vmxnet3": "vmxnet3", "nvme": "nvme",
    "intel-hda": "intel-hda", "es1370": "ES1370", "AC97": "AC97", "ac97": "AC97",
    "pcie-root-port": "pcie-root-port", "ioh-3240-express-root-port": "ioh3420",
    "pci_bridge": "pci-bridge", "pci-bridge": "pci-bridge", "pcie_pci_bridge": "pcie-pci-bridge",
    "xio3130-express-upstream-port": "x3130-upstream",
    "xio3130-express-downstream-port": "xio3130-downstream",
    "ich9_ahci": "ich9-ahci", "i6300esb_wdt": "i6300esb", "lsiscsi": "lsi53c895a",
    "megasas": "megasas", "mptsas": "mptsas1068", "pvscsi": "pvscsi", "edu": "edu",
    "pci-serial": "pci-serial", "sdhci-pci": "sdhci-pci",
}  # fmt: skip
# By PCI identity, where several devices share the name of a section.
_BY_ID = {
    ("xhci", 0x1B36000D): "qemu-xhci", ("xhci", 0x10330194): "nec-usb-xhci",
    ("uhci", 0x80867020): "piix3-usb-uhci", ("uhci", 0x80867112): "piix4-usb-uhci",
    ("ehci", 0x808624CD): "usb-ehci", ("ohci", 0x106B003F): "pci-ohci",
}  # fmt: skip
_INPUT_CLASSES = {0x0900: "virtio-keyboard-pci", 0x0902: "virtio-mouse-pci"}
_MMIO = {"virtio-console": "virtio-serial-device", "virtio-input": "virtio-keyboard-device"}
_BRIDGES = frozenset({"pcie-root-port", "ioh3420", "pci-bridge", "pcie-pci-bridge",
                      "x3130-upstream", "xio3130-downstream"})  # fmt: skip
_CHASSIS = frozenset({"pcie-root-port", "ioh3420", "pci-bridge", "xio3130-downstream"})
_NICS = frozenset({"virtio-net-pci", "virtio-net-device", "e1000", "e1000e", "igb", "rtl8139",
                   "pcnet", "vmxnet3"})  # fmt: skip
_DISKS = frozenset({"virtio-blk-pci", "virtio-blk-device", "nvme", "scsi-hd", "usb-storage"})
_SOUND = frozenset({"hda-duplex", "ES1370", "AC97", "sb16", "adlib"})
_USB = {"usb-ptr": "usb-tablet", "usb-kbd": "usb-kbd", "usb-hub": "usb-hub",
        "usb-storage": "usb-storage", "usb-wacom": "usb-wacom-tablet"}  # fmt: skip

_PCI_PATH = re.compile(r"([0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7](?::[0-9a-f]{2}\.[0-7])*)/(.+)")
_DISK_SIZE = 1 << 30


@dataclass(frozen=True, slots=True)
class Argument:
    """One option with its value.

    Attributes:
        words: As the command line has it: an option, and its value if it takes one.
        source: 'wire' if the stream states it, 'inferred' if it follows from names and state.
        reason: What tells it.
    """

    words: tuple[str, ...]
    source: str
    reason: str


@dataclass(slots=True)
class CommandLine:
    """What is known of a command line.

    Attributes:
        emulator: Name of the program.
        arguments: In order.
        not_stated: What the stream cannot tell, a sentence each.
        unknown: Sections that stand for no device that is known here.
    """

    emulator: str
    arguments: list[Argument] = field(default_factory=list)
    not_stated: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def add(self, option: str, value: str | None, source: str, reason: str) -> None:
        """Append an option."""
        words = (option,) if value is None else (option, value)
        self.arguments.append(Argument(words, source, reason))


def escaped(text: str) -> str:
    """A value for QEMU's option parser, in which a comma is doubled."""
    return text.replace(",", ",,")


def command_line(
    machine: bytes | None,
    blocks: tuple[RAMBlock, ...],
    devices: Sequence[Node],
    *,
    uuid: str | None = None,
    capabilities: Sequence[str] = (),
    cmos: bytes | None = None,
) -> CommandLine:
    """Put together what the destination needs.

    Args:
        machine: Machine type, as in the configuration section.
        blocks: The block list.
        devices: The device sections, with their state if it has names.
        uuid: Of the guest, if the stream states it.
        capabilities: Of the configuration section.
        cmos: The RTC's CMOS if it is known: it tells RAM from plugged memory.
    """
    names = tuple(_name(d) for d in devices)
    evidence = Evidence(machine, blocks, cmos, tuple(n.encode() for n in names))
    return _Builder(evidence, devices, names).build(uuid, capabilities)


def _name(device: Node) -> str:
    return re.sub(r"\[\d+\](#\d+)?$", "", device.name)


class _Builder:
    def __init__(self, evidence: Evidence, devices: Sequence[Node], names: Sequence[str]) -> None:
        self.evidence, self.devices, self.names = evidence, devices, names
        self.family = machine_family(evidence)
        self.counts = Counter(names)
        self.line = CommandLine(f"qemu-system-{_ARCHITECTURES.get(self.family, 'x86_64')}")
        self.blocks = {b.idstr.decode("utf-8", "backslashreplace"): b for b in evidence.blocks}
        self.buses: dict[str, str] = {}  # ids of bridges and controllers by their path
        self.made: Counter[str] = Counter()
        self.slirps = self.counts["slirp"]
        self.plugged: list[int] = []

    def build(self, uuid: str | None, capabilities: Sequence[str]) -> CommandLine:
        line = self.line
        self._machine()
        self._memory()
        cpus = self.counts["cpu_common"]
        if cpus:
            line.add("-smp", str(cpus), "wire", f"{cpus} cpu_common sections; topology unknown")
        if uuid is not None:
            line.add("-uuid", uuid, "wire", "configuration/uuid")
        line.add("-nodefaults", None, "inferred", "devices are listed one by one")
        self._serial()
        self._devices()
        self._firmware()
        line.not_stated[:0] = [
            "the CPU model and its features (-cpu); the default is used",
            "the accelerator (-accel), sockets, cores and threads (-smp)",
        ]
        if capabilities:
            line.not_stated.append(
                "capabilities to set on the destination (QMP migrate-set-capabilities) before "
                f"migrate-incoming: {', '.join(capabilities)}"
            )
        return line

    # -- the machine ----------------------------------------------------------------------------

    def _machine(self) -> None:
        name = self.evidence.machine
        if name is None:
            self.line.not_stated.append("the machine type (-machine): no configuration section")
            options = [self.family] if self.family in ("pc", "q35") else []
        else:
            options = [escaped(name.decode("utf-8", "backslashreplace"))]
        told = []
        for option, tells in self._machine_options():
            options.append(option)
            told.append(tells)
        if not options:
            return
        reason = "configuration section" if name is not None else "inferred from section names"
        if told:
            reason += "; " + ", ".join(told)
        source = "inferred" if told or name is None else "wire"
        self.line.add("-machine", ",".join(options), source, reason)

    def _machine_options(self) -> list[tuple[str, str]]:
        def present(name: str) -> bool:
            return any(n == name or n.endswith("/" + name) for n in self.counts)

        found = []
        wanted: dict[str, tuple[tuple[str, str], ...]] = {
            "pc": (("hpet", "hpet"), ("vmport", "vmmouse"), ("acpi", "piix4_pm")),
            "q35": (("hpet", "hpet"), ("vmport", "vmmouse"), ("sata", "ich9_ahci"),
                    ("smbus", "ich9_smb")),
            "arm virt": (("acpi", "virt_acpi_build"),),
        }  # fmt: skip
        for option, name in wanted.get(self.family, ()):
            if not present(name):
                found.append((f"{option}=off", f"no section {name!r}"))
        if self.family == "microvm":
            for option, name in (("pit", "i8254"), ("pic", "i8259"), ("rtc", "mc146818rtc"),
                                 ("pcie", "PCIHost"), ("acpi", "acpi-ged")):  # fmt: skip
                state = "on" if present(name) else "off"
                found.append((f"{option}={state}", f"section {name!r} {state}"))
            if self.counts["ioapic"] > 1:
                found.append(("ioapic2=on", "two ioapic sections"))
        if self.family == "arm virt":
            if self.counts["arm_gicv3"]:
                found.append(("gic-version=3", "section 'arm_gicv3'"))
                if not self.counts["arm_gicv3_its"]:
                    found.append(("its=off", "no section 'arm_gicv3_its'"))
            elif self.counts["arm_gic"]:
                found.append(("gic-version=2", "section 'arm_gic'"))
            if self.counts["smmuv3"]:
                found.append(("iommu=smmuv3", "section 'smmuv3'"))
            if "virt.secure-ram" in self.blocks:
                found.append(("secure=on", "block 'virt.secure-ram'"))
        if self.family == "q35" and any(n.startswith("0000:00:1d.") for n in self.names):
            found.append(("usb=on", "USB controllers at 1d"))
        return found

    def _memory(self) -> None:
        blocks = self.evidence.blocks
        ram = ram_blocks(blocks)
        if not ram:
            self.line.not_stated.append("the size of RAM (-m): no block looks like it")
            return
        try:
            boot = list(dict.fromkeys(r.block for r in physical_map(self.evidence).regions))
        except OutputError as exc:
            boot = ram
            self.line.not_stated.append(f"which blocks are RAM and which plugged memory: {exc}")
        self.plugged = [i for i in ram if i not in boot]
        size = sum(blocks[i].used_length for i in boot)
        value = _size(size)
        dimms = [i for i in self.plugged if not self.counts_of("virtio-mem")]
        if self.plugged:
            most = size + sum(_gib_up(blocks[i].used_length) for i in self.plugged)
            value += f",slots={self._slots() or max(len(dimms), 1)},maxmem={_size(_gib_up(most))}"
            self.line.not_stated.append("maxmem of -m; the least that fits is used")
        source = "inferred" if self.plugged or len(ram) > 1 else "wire"
        self.line.add("-m", value, source, "sizes of " + self._listed(boot))
        named = [i for i in boot if not _DEFAULT_RAM.fullmatch(blocks[i].idstr)]
        for i in named:
            self._backend(i)
        if len(boot) > 1:
            for i in boot:
                memory = escaped(self._backend_id(i))
                self.line.add("-numa", f"node,memdev={memory}", "inferred", "several blocks of RAM")
        elif named:
            self.line.add("-machine", f"memory-backend={escaped(self._backend_id(boot[0]))}",
                          "inferred", "the block of RAM has a name of the user's")  # fmt: skip
        for i in dimms:
            self._backend(i)
            self.line.add("-device", f"pc-dimm,memdev={escaped(self._backend_id(i))}", "inferred",
                          "a block beside the machine's RAM; an nvdimm looks alike")  # fmt: skip

    # QEMU v10.1.0 hw/acpi/memory_hotplug.c vmstate_memory_hotplug: an entry for each slot.
    def _slots(self) -> int:
        for device in self.devices:
            if device.name.partition("[")[0].endswith(("_pm", "/ICH9LPC", "acpi-ged")):
                for node in device.walk():
                    if node.name == "devs":
                        return len(node.children)
        return 0

    def counts_of(self, name: str) -> int:
        return sum(1 for n in self.names if n == name or n.endswith("/" + name))

    def _listed(self, chosen: Sequence[int]) -> str:
        names = [self.evidence.blocks[i].idstr.decode("utf-8", "backslashreplace") for i in chosen]
        return f"block{'s' if len(names) > 1 else ''} {', '.join(names)}"

    def _backend_id(self, index: int) -> str:
        name = self.evidence.blocks[index].idstr.decode("utf-8", "backslashreplace")
        return name.rpartition("/")[2]

    def _backend(self, index: int) -> None:
        block = self.evidence.blocks[index]
        value = f"memory-backend-ram,id={escaped(self._backend_id(index))},size={block.used_length}"
        if block.idstr.startswith(b"/objects/"):
            value += ",x-use-canonical-path-for-ramblock-id=on"
        self.line.add("-object", value, "inferred", "a block with this name and size")

    def _serial(self) -> None:
        ports = self.counts["serial"] + self.counts["pl011"] + self.counts_of("spapr_vty")
        for _ in range(min(ports, 4)):
            self.line.add("-serial", "null", "inferred", "a serial port; where it goes is unknown")
        for _ in range(self.counts["parallel_isa"]):
            self.line.add("-parallel", "null", "inferred", "section 'parallel_isa'")
        if ports:
            self.line.not_stated.append("where serial ports go: 'null' stands for it")

    def _firmware(self) -> None:
        flash = [n for n in self.blocks if re.fullmatch(r"system\.flash\d|virt\.flash\d", n)]
        if any(n.startswith("system.flash") for n in flash):
            self.line.not_stated.append(
                f"the firmware image behind {', '.join(flash)} "
                "(-drive if=pflash,unit=N,file=..., of the same size), such as OVMF"
            )

    # -- devices --------------------------------------------------------------------------------

    def _devices(self) -> None:
        board = _BOARD.get(self.family)
        found: list[tuple[int, list[str], int]] = []
        for n, name in enumerate(self.names):
            if _ALWAYS.fullmatch(name) or (board is not None and board.fullmatch(name)):
                continue
            if self.family == "q35" and name.startswith("0000:00:1d."):
                continue
            path = _PCI_PATH.fullmatch(name)
            below = path[1].count(":") + 8 * path[2].count("/") if path is not None else 99
            found.append((below, re.split(r"[:/]", name), n))
        # A bridge or a controller stands ahead of what is on it.
        for _, _, n in sorted(found):
            if not self._device(self.devices[n], self.names[n]):
                self.line.unknown.append(self.names[n])

    def _device(self, node: Node, name: str) -> bool:
        pci = _PCI_PATH.fullmatch(name)
        if pci is not None:
            *inside, last = pci[2].split("/")
            if not inside:
                return self._pci(node, pci[1], last)
            return self._on_controller(node, pci[1], inside, last)
        mmio = re.fullmatch(r"virtio-mmio@([0-9a-f]+)/(virtio-\S+)", name)
        if mmio is not None:
            kind = _MMIO.get(mmio[2], f"{mmio[2]}-device")
            bus = self._mmio_bus(int(mmio[1], 16))
            self._put(
                kind, ([f"bus={bus}"] if bus else []) + self._properties(node, kind, ""), name
            )
            return True
        isa = {"isa-debug-exit": "isa-debug-exit",
               "hda-audio": "hda-duplex", "vmgenid": "vmgenid", "vmcoreinfo": "vmcoreinfo",
               "ib700_wdt": "ib700", "sb16": "sb16", "adlib": "adlib", "tpm-tis": "tpm-tis",
               "pvpanic": "pvpanic", "isa-cirrus-vga": "isa-cirrus-vga"}.get(name)  # fmt: skip
        if isa is not None:
            self._put(isa, self._properties(node, isa, ""), name)
        return isa is not None

    # virtio-mmio transports are numbered by address. QEMU v10.1.0 hw/i386/microvm.c, hw/arm/virt.c,
    # hw/riscv/virt.c.
    def _mmio_bus(self, address: int) -> str | None:
        base, step = {"microvm": (0xFEB00000, 512), "arm virt": (0x0A000000, 0x200),
                      "riscv virt": (0x10001000, 0x1000)}.get(self.family, (0, 0))  # fmt: skip
        if not step or address < base:
            return None
        return f"virtio-mmio-bus.{(address - base) // step}"

    def _pci(self, node: Node, path: str, name: str) -> bool:
        config = next((n.raw for n in node.walk() if n.type == "pci config" and n.size >= 64), b"")
        identity = int.from_bytes(config[0:2], "little") << 16 | int.from_bytes(
            config[2:4], "little"
        )
        kind = _BY_ID.get((name, identity)) or _PCI.get(name)
        if name == "virtio-input":
            kind = _INPUT_CLASSES.get(int.from_bytes(config[10:12], "little"), "virtio-tablet-pci")
        if kind is None:
            return False
        if name == "virtio-gpu" and f"{path}/vga.vram" in self.blocks:
            kind = "virtio-vga"
        parent, slot = self._place(path)
        options = []
        if kind in _BRIDGES or kind.endswith(("xhci", "uhci", "ehci", "ohci", "-scsi-pci", "ahci")):
            self.buses[path] = self._id("bridge" if kind in _BRIDGES else "bus")
            options.append(f"id={self.buses[path]}")
        options += [f"bus={parent}", f"addr={slot}"]
        if kind in _CHASSIS:
            number = self._count("chassis")
            options.append(f"chassis_nr={number}" if kind == "pci-bridge" else f"chassis={number}")
        if config[14:15] and config[14] & 0x80:
            options.append("multifunction=on")
        self._put(kind, options + self._properties(node, kind, path), node.name)
        return True

    def _place(self, path: str) -> tuple[str, str]:
        head, _, slot = path.rpartition(":")
        if head in self.buses:
            return self.buses[head], slot
        root = {"pc": "pci.0", "pseries": "pci.0"}.get(self.family, "pcie.0")
        return root, slot

    def _on_controller(self, node: Node, path: str, inside: list[str], name: str) -> bool:
        bus = self.buses.get(path)
        if bus is None:
            return False
        if name in _USB:
            kind = _USB[name]
            self._put(kind, [f"bus={bus}.0", f"port={inside[0]}",
                             *self._properties(node, kind, "")], node.name)  # fmt: skip
            return True
        scsi = re.fullmatch(r"(\d+):(\d+):(\d+)", inside[0])
        if name == "scsi-disk" and scsi is not None:
            where = [f"bus={bus}.0", f"channel={scsi[1]}", f"scsi-id={scsi[2]}", f"lun={scsi[3]}"]
            self._put("scsi-hd", [*where, *self._properties(node, "scsi-hd", "")], node.name)
            return True
        return False

    # What the state of a device tells of its properties, and stand-ins for what it does not.
    def _properties(self, node: Node, kind: str, path: str) -> list[str]:
        found: list[str] = []
        values = {n.name: n for n in node.walk()} if kind.startswith("virtio") else {}
        if kind.startswith("virtio") and path:
            table = values.get("msix_table")
            if table is not None:
                found.append(f"vectors={len(table.children)}")
            if "virtio/extra_state" not in values and "queues" in values:
                found.append("disable-modern=on")
        queues = _value(values, "queues")
        if kind.startswith("virtio-blk") and queues:
            found.append(f"num-queues={queues}")
        if kind.startswith("virtio-scsi") and queues > 3:
            found.append(f"num_queues={queues - 3}")
        if kind.startswith("virtio-serial") and _value(values, "max_nr_ports"):
            found.append(f"max_ports={_value(values, 'max_nr_ports')}")
        if kind in ("virtio-gpu-pci", "virtio-vga") and _value(values, "num_scanouts"):
            found.append(f"max_outputs={_value(values, 'num_scanouts')}")
        if kind.startswith("virtio-mem") and self.plugged:
            index = self.plugged.pop(0)
            self._backend(index)
            found.append(f"memdev={escaped(self._backend_id(index))}")
        video = self.blocks.get(f"{path}/vga.vram") if path else None
        if video is not None and kind in ("VGA", "cirrus-vga", "vmware-svga", "virtio-vga"):
            found.append(f"vgamem_mb={max(video.used_length // _MIB, 1)}")
        if kind in _NICS:
            found += self._network(node, kind, path, queues)
        if kind in _DISKS:
            capacity = _value(values, "capacity") * 512
            found.append(f"drive={self._disk(node.name, capacity or _DISK_SIZE)}")
        if kind.startswith("virtio-serial"):
            self.line.not_stated.append(f"the ports of {node.name} (-device virtserialport,nr=...)")
        if kind in _SOUND:
            ident = self._id("audio")
            self.line.add("-audiodev", f"none,id={ident}", "inferred", f"stands for {node.name}")
            self.line.not_stated.append(f"where sound of {node.name} goes (-audiodev {ident})")
            found.append(f"audiodev={ident}")
        if kind == "nvme":
            found.append("serial=0")
            self.line.not_stated.append(f"the serial number of {node.name}")
        return found

    def _network(self, node: Node, kind: str, path: str, queues: int) -> list[str]:
        ident = self._id("net")
        if self.slirps > 0:
            self.slirps -= 1
            self.line.add("-netdev", f"user,id={ident}", "inferred", "a 'slirp' section")
        else:
            self.line.add("-netdev", f"hubport,id={ident},hubid={self.made['net']}", "inferred",
                          "stands for the network of a card")  # fmt: skip
        self.line.not_stated.append(f"the network behind {node.name} (-netdev {ident})")
        found = [f"netdev={ident}"]
        for inner in node.walk():
            if inner.name == "mac" and inner.size == 6 and any(inner.raw):
                found.append(f"mac={inner.raw.hex(':')}")
                break
        if kind == "virtio-net-pci" and queues > 3:
            found.append("mq=on")
            self.line.not_stated.append(
                f"{node.name} has {(queues - 1) // 2} queue pairs: as many queues of its netdev"
            )
        if path and not any(b.startswith(f"{path}/") and b.endswith(".rom") for b in self.blocks):
            found.append("romfile=")
        return found

    def _disk(self, where: str, size: int) -> str:
        ident = self._id("disk")
        value = f"driver=null-co,node-name={ident},read-zeroes=on,size={size}"
        self.line.add("-blockdev", value, "inferred", f"stands for the disk of {where}")
        self.line.not_stated.append(f"the disk behind {where} (-blockdev {ident})")
        return ident

    def _put(self, kind: str, options: Sequence[str], section: str) -> None:
        self.line.add("-device", ",".join([kind, *options]), "inferred", f"section {section!r}")

    def _count(self, what: str) -> int:
        self.made[what] += 1
        return self.made[what]

    def _id(self, what: str) -> str:
        return f"{what}{self._count(what) - 1}"


_ARCHITECTURES = {"arm virt": "aarch64", "riscv virt": "riscv64", "pseries": "ppc64",
                  "s390-ccw-virtio": "s390x", "m68k virt": "m68k"}  # fmt: skip


def _value(values: dict[str, Node], name: str) -> int:
    node = values.get(name)
    return node.value if node is not None and isinstance(node.value, int) else 0


def _gib_up(size: int) -> int:
    return -(-size >> 30) << 30


def _size(size: int) -> str:
    return f"{size // _MIB}M" if size % _MIB == 0 else f"{size}B"
