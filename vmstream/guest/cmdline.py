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
from vmstream.guest.pci import EXPRESS, HEADER, SLOT_ID, capabilities, number
from vmstream.guest.physical import Evidence, machine_family, physical_map, ram_blocks
from vmstream.stream.events import RAMBlock

_MIB = 1 << 20
_GIB = 1 << 30

# Names that a machine gives its RAM when nobody names it.
_DEFAULT_RAM = re.compile(
    rb"pc\.ram|microvm\.ram|mach-virt\.ram|riscv_virt_board\.ram|ppc_spapr\.ram|s390\.ram|m68k_virt\.ram"
)

# Sections of what each machine of a family has whatever is asked for. Those of all machines first.
_ALWAYS = re.compile(
    r"ram|timer|cpu_common|cpu|cpu/\S+|kvm-tpr-opt|apic|globalstate|configuration|slirp|fw_cfg|PCIHost"
    r"|PCIBUS|i2c_bus|acpi_build|virt_acpi_build|gpio-key|kvmclock|xive-tctx|spapr_cpu|icp/server"
    r"|apic-common|dirty-bitmap|block|replay|serial|parallel_isa|pvtime|tpm-emulator"
)
_X86_BOARD = (
    r"dma|i8259|ioapic|hpet|mc146818rtc|i8254|pcspk|ps2kbd|ps2mouse|pckbd|vmmouse|port92|fdc|acpi-ged"
    r"|isa-ide|kvm_i8259|kvm-ioapic|kvm-pit|smbus-eeprom|vmport|pflash_cfi01"
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

# Devices by the last part of a section's name. Of virtio the part ahead of the transport's name.
_VIRTIO = {
    "virtio-net": "virtio-net", "virtio-blk": "virtio-blk", "virtio-rng": "virtio-rng",
    "virtio-scsi": "virtio-scsi", "virtio-balloon": "virtio-balloon",
    "virtio-console": "virtio-serial", "virtio-gpu": "virtio-gpu", "virtio-iommu": "virtio-iommu",
    "virtio-crypto": "virtio-crypto", "virtio-mem": "virtio-mem", "virtio-input": "virtio-keyboard",
    "virtio-sound-device": "virtio-sound", "virtio-vhost_vsock": "vhost-vsock",
}  # fmt: skip
_PCI = {
    "vga": "VGA", "cirrus_vga": "cirrus-vga", "qxl": "qxl-vga", "vmware_vga": "vmware-svga",
    "bochs-display": "bochs-display", "e1000": "e1000", "e1000e": "e1000e", "igb": "igb",
    "rtl8139": "rtl8139", "pcnet": "pcnet", "vmxnet3": "vmxnet3", "tulip": "tulip",
    "ne2000": "ne2k_pci", "nvme": "nvme", "intel-hda": "intel-hda", "es1370": "ES1370",
    "ac97": "AC97", "pcie-root-port": "pcie-root-port", "ioh-3240-express-root-port": "ioh3420",
    "pci_bridge": "pci-bridge", "pcie-pci-bridge": "pcie-pci-bridge",
    "i82801b11_bridge": "i82801b11-bridge",
    "xio3130-express-upstream-port": "x3130-upstream",
    "xio3130-express-downstream-port": "xio3130-downstream", "virtio-vga": "virtio-vga",
    "ich9_ahci": "ich9-ahci", "i6300esb_wdt": "i6300esb", "lsiscsi": "lsi53c895a",
    "megasas": "megasas", "megasas-gen2": "megasas-gen2", "mptsas": "mptsas1068",
    "pvscsi": "pvscsi", "edu": "edu", "pci-serial": "pci-serial", "sdhci": "sdhci-pci",
    "pvpanic-pci": "pvpanic-pci",
}  # fmt: skip
# By PCI identity, where several devices share the name of a section.
_BY_ID = {
    ("xhci", 0x1B36000D): "qemu-xhci", ("xhci", 0x10330194): "nec-usb-xhci",
    ("uhci", 0x80867020): "piix3-usb-uhci", ("uhci", 0x80867112): "piix4-usb-uhci",
    ("ehci", 0x808624CD): "usb-ehci", ("ohci", 0x106B003F): "pci-ohci",
    ("ehci", 0x8086293A): "ich9-usb-ehci1", ("ehci", 0x8086293C): "ich9-usb-ehci2",
    **{("uhci", 0x80862934 + n): f"ich9-usb-uhci{n + 1}" for n in range(6)},
    ("intel-hda", 0x8086293E): "ich9-intel-hda", ("e1000", 0x80861004): "e1000-82544gc",
    ("e1000", 0x8086100F): "e1000-82545em", ("lsiscsi", 0x10000001): "lsi53c810",
    ("pci-serial-multi", 0x1B360003): "pci-serial-2x",
    ("pci-serial-multi", 0x1B360004): "pci-serial-4x",
}  # fmt: skip
# Other devices name these, even if no section is below them.
_HAS_BUS = ("virtio-serial", "ich9-ahci", "ich9-usb-ehci")
_INPUT_CLASSES = {0x0900: "virtio-keyboard", 0x0902: "virtio-mouse", 0x0980: "virtio-tablet"}
_PORTS = frozenset({"pcie-root-port", "ioh3420", "xio3130-downstream"})
_BRIDGES = _PORTS | {"pci-bridge", "pcie-pci-bridge", "x3130-upstream", "i82801b11-bridge"}
_NICS = frozenset({"e1000", "e1000-82544gc", "e1000-82545em", "e1000e", "igb", "rtl8139", "pcnet",
                   "vmxnet3", "tulip", "ne2k_pci", "spapr-vlan"})  # fmt: skip
_DISKS = frozenset({"nvme", "scsi-hd", "usb-storage"})
_SOUND = frozenset({"hda-duplex", "ES1370", "AC97", "sb16", "adlib", "usb-audio"})
_USB = {"usb-ptr": "usb-tablet", "usb-kbd": "usb-kbd", "usb-hub": "usb-hub",
        "usb-storage": "usb-storage", "usb-wacom": "usb-wacom-tablet", "usb-audio": "usb-audio",
        "usb-serial": "usb-serial", "usb-ccid": "usb-ccid"}  # fmt: skip
_ISA = {"hda-audio": "hda-duplex", "vmgenid": "vmgenid", "vmcoreinfo": "vmcoreinfo",
        "ib700_wdt": "ib700", "sb16": "sb16", "adlib": "adlib", "tpm-tis": "tpm-tis",
        "tpm-crb": "tpm-crb", "ramfb-dev": "ramfb", "isa-cirrus-vga": "isa-cirrus-vga",
        "iommu-intel": "intel-iommu", "amd-iommu": "amd-iommu"}  # fmt: skip
_BOARD_DRIVES = {"pc": ("0000:00:01.1/ide",), "q35": ("0000:00:1f.2/ich9_ahci",),
                 "isapc": ("isa-ide",)}  # fmt: skip
# What else a section of these names can be, as the state is the same.
_ALIKE = {"usb-tablet": "usb-mouse", "scsi-hd": "scsi-cd or scsi-block",
          "hda-duplex": "hda-output or hda-micro"}  # fmt: skip
# Device types of VIRTIO that have an identity for drivers of before 1.0.
_TRANSITIONAL = frozenset({1, 2, 3, 4, 5, 8, 9})
_MODERN = 0x1040

# QEMU v10.1.0 hw/pci/pci.c pcibus_get_dev_path(): the root bus, and slot and function of each
# bridge on the way; hw/s390x/css-bridge.c, hw/ppc/spapr_vio.c, hw/virtio/virtio-mmio.c.
_PCI_PATH = re.compile(r"((?:[0-9a-f]{4}:[0-9a-f]{2}|pci@[0-9a-f]+)(?::[0-9a-f]{2}\.[0-7])+)(/.+)?")
_ROOTS = ("0000:00", "pci@800000020000000")
_CCW_PATH = re.compile(r"/([0-9a-f]+)\.([0-3])\.([0-9a-f]{4})")
_MMIO_PATH = re.compile(r"virtio-mmio@([0-9a-f]+)")
_VIO = re.compile(r"(l-lan|v-scsi)@([0-9a-f]+)")
_PACKED, _IOMMU_PLATFORM = 34, 33
_DISK_SIZE = _GIB
_XHCI_PORTS = 8  # unless asked for
_NO_PATH = 9  # such a device may be on a bus of any other's


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
        self.ports: set[str] = set()  # those that are PCI Express ports
        self.storage: set[str] = set()  # USB disks
        self.sections: dict[str, list[Node]] = {}
        for device, name in zip(devices, names, strict=True):
            self.sections.setdefault(name.rpartition("/")[0], []).append(device)
        self.owners = {path.rpartition("/")[0] for path in self.sections} - {""}
        self.made: Counter[str] = Counter()
        self.slirps = self.counts["slirp"]
        self.plugged: list[int] = []  # blocks of memory devices, those of DIMMs first
        self.dimms: list[int] = []
        self.placed: dict[int, int] = {}  # address of each block that has one

    def build(self, uuid: str | None, capabilities: Sequence[str]) -> CommandLine:
        line = self.line
        self._machine()
        self._memory()
        cpus = self.counts["cpu_common"]
        if cpus:
            most = len(self._hotplug("is_removing"))
            value = f"{cpus},maxcpus={most}" if most > cpus else str(cpus)
            line.add("-smp", value, "wire", f"{cpus} cpu_common sections; topology unknown")
        if uuid is not None:
            line.add("-uuid", uuid, "wire", "configuration/uuid")
        line.add("-nodefaults", None, "inferred", "devices are listed one by one")
        self._serial()
        self._devices()
        self._dimms()
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
            "q35": (("hpet", "hpet"), ("vmport", "vmmouse"), ("sata", "0000:00:1f.2/ich9_ahci"),
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
        return found

    def _memory(self) -> None:
        blocks = self.evidence.blocks
        ram = ram_blocks(blocks)
        if not ram:
            self.line.not_stated.append("the size of RAM (-m): no block looks like it")
            return
        try:
            layout = physical_map(self.evidence)
            boot = list(layout.boot)
            for region in layout.regions:
                self.placed.setdefault(region.block, region.gpa)
        except OutputError as exc:
            boot = ram
            self.line.not_stated.append(f"which blocks are RAM and which plugged memory: {exc}")
        self.dimms = dimms = [i for i in ram if i not in boot]
        self.plugged = dimms + [
            i
            for i in ram_blocks(blocks, pluggable=True)
            if f"{blocks[i].idstr.decode('utf-8', 'replace').rpartition('/')[0]}/virtio-mem"
            in self.counts
        ]
        size = sum(blocks[i].used_length for i in boot)
        value = _size(size)
        slots = self._hotplug("is_enabled")
        if self.plugged or slots:
            most = size + max(sum(_gib_up(blocks[i].used_length) for i in self.plugged), _GIB)
            value += f",slots={len(slots) or max(len(dimms), 1)},maxmem={_size(_gib_up(most))}"
            self.line.not_stated.append("maxmem of -m; the least that fits is used")
        source = "inferred" if self.plugged or slots or len(boot) > 1 else "wire"
        self.line.add("-m", value, source, "sizes of " + self._listed(boot))
        named = [i for i in boot if not _DEFAULT_RAM.fullmatch(blocks[i].idstr)]
        for i in named:
            self._backend(i)
        if len(boot) > 1:
            for i in boot:
                memory = escaped(self._backend_id(i))
                self.line.add("-numa", f"node,memdev={memory}", "inferred", "several blocks of RAM")
            self.line.not_stated.append("which CPUs each NUMA node has (-numa cpu,node-id=...)")
        elif named:
            self.line.add("-machine", f"memory-backend={escaped(self._backend_id(boot[0]))}",
                          "inferred", "the block of RAM has a name of the user's")  # fmt: skip

    # In the order of their addresses DIMMs have slots, which ACPI counts as enabled unless there is
    # an NVDIMM in them. virtio-mem states its place, and comes ahead of what fills the rest.
    def _dimms(self) -> None:
        alone = len(self.plugged) == len(self.dimms)
        dimms = sorted(self.dimms, key=lambda i: self.placed.get(i, 1 << 64))
        slots = [entry["is_enabled"].value is True for entry in self._hotplug("is_enabled")]
        plain = slots[: len(dimms)]
        if not slots or sum(plain) != sum(slots):
            plain = [True] * len(dimms)
        if not all(plain):
            self.line.add("-machine", "nvdimm=on", "inferred", "slots of NVDIMMs")
        for n, i in enumerate(dimms):
            self._backend(i)
            kind = "pc-dimm" if plain[n] else "nvdimm"
            options = [f"memdev={escaped(self._backend_id(i))}"]
            if alone and i in self.placed:
                options.append(f"addr={self.placed[i]:#x}")
            self._add_device(kind, [*options, f"slot={n}"], "a block beside the machine's RAM")
            if not plain[n]:
                self.line.not_stated.append(
                    f"label-size and file of NVDIMM {self._backend_id(i)} (memory-backend-file)"
                )

    # QEMU v10.1.0 hw/acpi/memory_hotplug.c vmstate_memhp_sts, hw/acpi/cpu.c vmstate_cpuhp_sts: an
    # entry for each slot, or each CPU that there can be.
    def _hotplug(self, known_by: str) -> list[dict[str, Node]]:
        for device in self.devices:
            if device.name.partition("[")[0].endswith(("_pm", "/ICH9LPC", "acpi-ged")):
                for node in device.walk():
                    if node.name == "devs" and node.type == "array":
                        entries = [{c.name: c for c in entry.children} for entry in node.children]
                        if entries and known_by in entries[0]:
                            return entries
        return []

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
        ports = self.counts_of("spapr_vty") + sum(
            self.counts[name] for name in ("serial", "pl011", "sclpconsole", "sclplmconsole")
        )
        for _ in range(min(ports, 4)):
            self.line.add("-serial", "null", "inferred", "a serial port; where it goes is unknown")
        for _ in range(self.counts["parallel_isa"]):
            self.line.add("-parallel", "null", "inferred", "section 'parallel_isa'")
        if ports:
            self.line.not_stated.append("where serial ports go: 'null' stands for it")

    # The stream has what flash holds, but a machine of x86 has flash if it has an image for it.
    def _firmware(self) -> None:
        for name, block in self.blocks.items():
            flash = re.fullmatch(r"system\.flash(\d)", name)
            if flash is None:
                continue
            ident = f"pflash{flash[1]}"
            value = f"driver=null-co,node-name={ident},read-zeroes=on,size={block.used_length}"
            self.line.add("-blockdev", value, "inferred", f"stands for the image of {name}")
            self.line.add("-machine", f"{ident}={ident}", "inferred", f"block {name!r}")
            self.line.not_stated.append(
                f"the file of {name} (-blockdev {ident}), such as OVMF; its content is loaded"
            )

    # -- devices --------------------------------------------------------------------------------

    def _devices(self) -> None:
        board = _BOARD.get(self.family)
        found: list[tuple[tuple[int, int, bool], list[str], int]] = []
        for n, name in enumerate(self.names):
            if _ALWAYS.fullmatch(name) or (board is not None and board.fullmatch(name)):
                continue
            found.append((_depth(name), re.split(r"[:/]", name), n))
        # A bridge or a controller stands ahead of what is on it.
        for n, name in enumerate(self.names):
            if name in _BOARD_DRIVES.get(self.family, ()):
                self._drives(self.devices[n], "ide.")
        for _, _, n in sorted(found):
            if not self._device(self.devices[n], self.names[n]):
                self.line.unknown.append(self.names[n])

    def _device(self, node: Node, name: str) -> bool:
        path, _, last = name.rpartition("/")
        owner, _, place = path.rpartition("/")
        if owner:
            return self._on_controller(node, owner, place, last)
        if last == "virtio-mem-device-early":
            return True  # a part of it
        if _PCI_PATH.fullmatch(path):
            return self._pci(node, path, last)
        for pattern, transport in ((_CCW_PATH, "ccw"), (_MMIO_PATH, "device")):
            found = pattern.fullmatch(path)
            if found is not None and last in _VIRTIO:
                if transport == "ccw":
                    where = [f"devno={found[1]}.{found[2]}.{found[3]}"]
                else:
                    where = self._mmio_bus(int(found[1], 16))
                self._put(f"{_VIRTIO[last]}-{transport}", where, node, path)
                return True
        vio = _VIO.fullmatch(path)
        if vio is not None:
            kind = {"l-lan": "spapr-vlan", "v-scsi": "spapr-vscsi"}[vio[1]]
            self._put(kind, [f"reg={int(vio[2], 16):#x}"], node, path)
        elif not path and last in _ISA:
            self._put(_ISA[last], [], node, "")
        else:
            return False
        return True

    # virtio-mmio transports are numbered by address. QEMU v10.1.0 hw/i386/microvm.c, hw/arm/virt.c,
    # hw/riscv/virt.c.
    def _mmio_bus(self, address: int) -> list[str]:
        base, step = {"microvm": (0xFEB00000, 512), "arm virt": (0x0A000000, 0x200),
                      "riscv virt": (0x10001000, 0x1000)}.get(self.family, (0, 0))  # fmt: skip
        if not step or address < base:
            return []
        return [f"bus=virtio-mmio-bus.{(address - base) // step}"]

    def _pci(self, node: Node, path: str, name: str) -> bool:
        if name == "virtio-gpu" and f"{path}/virtio-vga" in self.counts:
            return True  # a part of it
        config = self._config(path)
        identity = number(config, 0) << 16 | number(config, 2)
        kind = _BY_ID.get((name, identity)) or _PCI.get(name)
        if name in _VIRTIO:
            kind = _VIRTIO[name] + "-pci"
        if name == "virtio-input":
            kind = _INPUT_CLASSES.get(number(config, 10), "virtio-tablet") + "-pci"
        head, _, slot = path.rpartition(":")
        root = "pci.0" if self.family in ("pc", "pseries") else "pcie.0"
        parent = root if head in _ROOTS else self.buses.get(head)
        if kind is None or parent is None:
            return False
        options = [f"bus={parent}", f"addr={slot}"]
        express = next(capabilities(config, EXPRESS), None)
        if kind in _PORTS:
            options.append(f"chassis={self._count('chassis')}")
            if express is not None:
                # Of link and slot capabilities; the destination compares them.
                options.append(f"port={config[express + 0x0F]}")
                options.append(f"slot={number(config, express + 0x16) >> 3}")
        if kind == "pci-bridge":
            at = next(capabilities(config, SLOT_ID), None)
            chassis = config[at + 3] if at is not None else self._count("chassis")
            options.append(f"chassis_nr={chassis}")
        if config[14:15] and config[14] & 0x80:
            options.append("multifunction=on")
        if kind.startswith("ich9-usb-uhci") and f"{path[:-1]}7" in self.buses:
            first = (int(kind[-1]) - 1) % 3 * 2
            options += [f"masterbus={self.buses[path[:-1] + '7']}.0", f"firstport={first}"]
        if name in _VIRTIO:
            options += _generation(config, on_port=head in self.ports)
        if kind in _PORTS:
            self.ports.add(path)
        if name == "virtio-vga":
            node = next((n for n in self.sections[path] if "/virtio-gpu" in n.name), node)
        self._put(kind, options, node, path)
        if name == "ich9_ahci":
            self._drives(node, f"{self.buses[path]}.")
        return True

    def _config(self, path: str) -> bytes:
        inner = (n for device in self.sections[path] for n in device.walk())
        return next((n.raw for n in inner if n.type == "pci config" and n.size >= HEADER), b"")

    # QEMU v10.1.0 hw/ide/core.c vmstate_ide_drive, ide_set_signature(): IDENTIFY was asked for by
    # firmware; ahead of that, a place without a drive has a signature of its own.
    def _drives(self, controller: Node, bus: str) -> None:
        found = [n for n in controller.walk() if re.search(r"(^|\.)ifs\[\d\]$", n.name)]
        states = [{c.name: c for c in n.children} for n in found]
        asked = any(_value(state, "identify_set") for state in states)
        for node, state in zip(found, states, strict=True):
            signature = _value(state, "lcyl") | _value(state, "hcyl") << 8
            if not (_value(state, "identify_set") if asked else state and signature != 0xFFFF):
                continue
            numbers = [int(n) for n in re.findall(r"(?:dev|bus|ifs)\[(\d)\]", node.path)]
            if len(numbers) != 2:
                continue
            where = [f"bus={bus}{numbers[0]}"] + ([] if "/dev[" in node.path else
                                                  [f"unit={numbers[1]}"])  # fmt: skip
            data = state["identify_data"].raw if "identify_data" in state else b""
            said = f"{controller.name} bus {numbers[0]} unit {numbers[1]}"
            # Words are little-endian, text in them is swapped. ATA8-ACS, 7.16.7.
            if (data[1] & 0x80) if asked and len(data) >= 256 else signature == 0xEB14:
                self.line.not_stated.append(f"the medium of the CD drive at {said} (its drive=...)")
                self._add_device("ide-cd", where, said)
                continue
            sectors = int.from_bytes(data[200:208], "little") or int.from_bytes(
                data[120:124], "little"
            )
            serial = _swapped(data[20:40])
            if re.fullmatch(r"[\w-]+", serial):
                where.append(f"serial={serial}")
            where.append(f"drive={self._disk(said, sectors * 512 or _DISK_SIZE)}")
            self._add_device("ide-hd", where, said)

    def _on_controller(self, node: Node, owner: str, place: str, name: str) -> bool:
        if owner in self.storage:
            return True  # the disk inside usb-storage
        bus = self.buses.get(owner)
        if bus is None:
            return False
        if name in _USB:
            if name == "usb-storage":
                self.storage.add(f"{owner}/{place}")
            self._put(_USB[name], [f"bus={bus}.0", f"port={place}"], node, "")
            return True
        scsi = re.fullmatch(r"(\d+):(\d+):(\d+)", place)
        if name == "scsi-disk" and scsi is not None:
            where = [f"bus={bus}.0", f"channel={scsi[1]}", f"scsi-id={scsi[2]}", f"lun={scsi[3]}"]
            values = {n.name: n for n in node.children}
            # What is in it can be taken out: a CD drive.
            removable = any(
                _value(values, n)
                for n in ("tray_open", "tray_locked", "media_event", "media_changed")
            )
            self._put("scsi-cd" if removable else "scsi-hd", where, node, "")
            return True
        return False

    # What the state of a device tells of its properties, and stand-ins for what it does not.
    def _put(self, kind: str, where: Sequence[str], node: Node, path: str) -> None:
        options = list(where)
        if kind in _BRIDGES or path in self.owners or kind.startswith(_HAS_BUS):
            self.buses[path] = self._id("bridge" if kind in _BRIDGES else "bus")
            options.insert(0, f"id={self.buses[path]}")
        virtio = kind.startswith(("virtio", "vhost"))
        if virtio:
            options += self._virtio(node, kind, path)
        video = self.blocks.get(f"{path}/vga.vram") if path else None
        if video is not None and kind in ("VGA", "cirrus-vga", "vmware-svga"):
            options.append(f"vgamem_mb={max(video.used_length // _MIB, 1)}")
        if kind == "qxl-vga" and video is None:
            kind = "qxl"
        for name, block in (("ram_size", "vga.vram"), ("ram_size", "qxl.vgavram"),
                            ("vram_size", "qxl.vram")):  # fmt: skip
            if kind.startswith("qxl") and f"{path}/{block}" in self.blocks:
                options.append(f"{name}={self.blocks[f'{path}/{block}'].used_length}")
        if kind.endswith("xhci"):
            total = sum(1 for n in node.walk() if re.fullmatch(r"ports\[\d+\]", n.name))
            if total and total != _XHCI_PORTS:
                # How many of them are for USB 3 does not show.
                options += [f"p2={total - total // 2}", f"p3={total // 2}"]
        if kind in _NICS:
            options += self._network(node, kind, path, 0)
        if kind in _DISKS:
            options.append(f"drive={self._disk(node.name, _DISK_SIZE)}")
        if kind == "scsi-cd":
            self.line.not_stated.append(f"the medium of the CD drive {node.name} (its drive=...)")
        if kind in _SOUND:
            ident = self._id("audio")
            self.line.add("-audiodev", f"none,id={ident}", "inferred", f"stands for {node.name}")
            self.line.not_stated.append(f"where sound of {node.name} goes (-audiodev {ident})")
            options.append(f"audiodev={ident}")
        if kind == "nvme":
            options.append("serial=0")
            self.line.not_stated.append(f"the serial number of {node.name} (its serial=...)")
        if kind.startswith("tpm-"):
            options.append("tpmdev=tpm0")
            self.line.not_stated.append(
                f"the TPM behind {node.name}, without which the command does not run (-chardev "
                "socket,id=tpm,path=... -tpmdev emulator,id=tpm0,chardev=tpm, with swtpm behind it)"
            )
        if kind in _ALIKE:
            self.line.not_stated.append(
                f"whether {node.name} is {kind} or {_ALIKE[kind]}: the state is the same"
            )
        self._add_device(kind, options, f"section {node.name!r}")
        if kind.startswith("virtio-serial"):
            self._ports(node, path)

    def _add_device(self, kind: str, options: Sequence[str], reason: str) -> None:
        self.line.add("-device", ",".join([kind, *options]), "inferred", reason)

    def _virtio(self, node: Node, kind: str, path: str) -> list[str]:
        found: list[str] = []
        values = {n.name: n for n in node.walk()}
        if "msix_table" in values:
            found.append(f"vectors={len(values['msix_table'].children)}")
        if kind.endswith("-pci") and "virtio/extra_state" not in values and "queues" in values:
            found.append("disable-modern=on")
        features = _value(values, "guest_features")
        for bit, option in ((_PACKED, "packed=on"), (_IOMMU_PLATFORM, "iommu_platform=on")):
            if features >> bit & 1:
                found.append(option)
        queues = _value(values, "queues")
        if kind.startswith("virtio-blk"):
            found += [f"num-queues={queues}"] if queues else []
            size = _value(values, "capacity") * 512 or _DISK_SIZE
            found.append(f"drive={self._disk(node.name, size)}")
        if kind.startswith("virtio-scsi") and queues > 2:
            found.append(f"num_queues={queues - 2}")
        if kind.startswith("virtio-serial") and queues >= 4:
            found.append(f"max_ports={queues // 2 - 1}")
        if kind.startswith(("virtio-gpu", "virtio-vga")) and _value(values, "num_scanouts"):
            found.append(f"max_outputs={_value(values, 'num_scanouts')}")
        if kind.startswith("vhost-vsock"):
            found.append(f"guest-cid={_value(values, 'guest_cid') or 3}")
        if kind.startswith("virtio-sound"):
            ident = self._id("audio")
            self.line.add("-audiodev", f"none,id={ident}", "inferred", f"stands for {node.name}")
            found.append(f"audiodev={ident}")
        if kind.startswith("virtio-mem"):
            for i in self.plugged:
                if self.evidence.blocks[i].idstr.decode("utf-8", "replace").startswith(f"{path}/"):
                    self._backend(i)
                    found.append(f"memdev={escaped(self._backend_id(i))}")
            # In a section of its own since QEMU 8.1.
            early = (s for s in self.sections[path] if "device-early" in s.name)
            if address := _value({n.name: n for s in early for n in s.walk()}, "addr"):
                found.append(f"memaddr={address:#x}")
        if kind.startswith("virtio-net"):
            found += self._network(node, kind, path, queues)
            if _value(values, "has_vnet_hdr"):
                self.line.not_stated.append(
                    f"{node.name} had a network with vnet_hdr (tap, vhost); one without is refused"
                )
        return found

    # QEMU v10.1.0 hw/char/virtio-serial-bus.c virtio_serial_load_device(): the destination has to
    # have the same ports. That of number 0 is kept for a console, whether there is one or not.
    def _ports(self, node: Node, path: str) -> None:
        values = {n.name: n for n in node.walk()}
        words = values["ports_map"].children if "ports_map" in values else ()
        taken = [32 * n + bit for n, word in enumerate(words) for bit in range(32)
                 if isinstance(word.value, int) and word.value >> bit & 1]  # fmt: skip
        if taken[:1] == [0] and _value(values, "nr_active_ports") < len(taken):
            del taken[0]
        for port in taken:
            kind = "virtserialport" if port else "virtconsole"
            options = [f"bus={self.buses[path]}.0", f"nr={port}"]
            self._add_device(kind, options, f"a port in section {node.name!r}")
        if taken:
            self.line.not_stated.append(
                f"what ports {', '.join(map(str, taken))} of {node.name} are and where they lead "
                "(chardev=... and name=... of virtserialport; virtconsole looks alike)"
            )
        elif "ports_map" not in values:
            self.line.not_stated.append(f"the ports of {node.name} (-device virtserialport,nr=...)")

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
        else:
            self.line.not_stated.append(f"the address of {node.name} (its mac=...)")
        if queues > 3:
            found.append("mq=on")
            self.line.not_stated.append(
                f"{node.name} has {(queues - 1) // 2} queue pairs: as many queues of its netdev"
            )
        roms = (b.endswith(".rom") and b.startswith(f"{path}/") for b in self.blocks)
        if _PCI_PATH.fullmatch(path) and not any(roms):
            found.append("romfile=")
        return found

    def _disk(self, where: str, size: int) -> str:
        ident = self._id("disk")
        value = f"driver=null-co,node-name={ident},read-zeroes=on,size={size}"
        self.line.add("-blockdev", value, "inferred", f"stands for the disk of {where}")
        self.line.not_stated.append(f"the disk behind {where} (-blockdev {ident})")
        return ident

    def _count(self, what: str) -> int:
        self.made[what] += 1
        return self.made[what]

    def _id(self, what: str) -> str:
        return f"{what}{self._count(what) - 1}"


# A bridge or a controller comes ahead of what is on it, and the EHCI ahead of its companions.
def _depth(name: str) -> tuple[int, int, bool]:
    found = _PCI_PATH.fullmatch(name)
    hops = found[1].count(":") if found is not None else 99
    return name.lstrip("/").count("/") or _NO_PATH, hops, not name.endswith("/ehci")


# A transitional identity has to be asked for behind a port, where it is not the default, and the
# other one elsewhere. QEMU v10.1.0 hw/virtio/virtio-pci.c virtio_pci_realize().
def _generation(config: bytes, *, on_port: bool) -> list[str]:
    device = number(config, 2)
    legacy = device < _MODERN
    if (number(config, 0x2E) if legacy else device - _MODERN) not in _TRANSITIONAL:
        return []
    return [] if legacy != on_port else [f"disable-legacy={'off' if legacy else 'on'}"]


def _swapped(data: bytes) -> str:
    text = b"".join(data[n : n + 2][::-1] for n in range(0, len(data), 2))
    return text.decode("ascii", "replace").strip()


_ARCHITECTURES = {"arm virt": "aarch64", "riscv virt": "riscv64", "pseries": "ppc64",
                  "s390-ccw-virtio": "s390x", "m68k virt": "m68k"}  # fmt: skip


def _value(values: dict[str, Node], name: str) -> int:
    node = values.get(name)
    return node.value if node is not None and isinstance(node.value, int) else 0


def _gib_up(size: int) -> int:
    return -(-size >> 30) << 30


def _size(size: int) -> str:
    return f"{size // _MIB}M" if size % _MIB == 0 else f"{size}B"
