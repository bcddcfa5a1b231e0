"""`cmdline`: the QEMU command line that a destination of a stream needs."""

from __future__ import annotations

import re
import shlex
import uuid
from collections.abc import Iterator

from vmstream.container.layers import Container
from vmstream.errors import OutputError
from vmstream.guest.cmdline import CommandLine, command_line
from vmstream.ops.devices import Devices
from vmstream.ops.extract import MapEvidence
from vmstream.ops.pipeline import Progress, run
from vmstream.ops.quick import quick_events
from vmstream.report.models.cmdline import CMDLINE_SCHEMA, ArgumentReport, CmdlineReport
from vmstream.stream.decoder import Decoder
from vmstream.stream.events import Configuration, Event
from vmstream.transport.source import Source


class Stated(Devices):
    """Fold: what a stream states of the command line, beside its devices.

    Attributes:
        configuration: The configuration section, `None` if there is none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.configuration: Configuration | None = None
        self._map = MapEvidence()

    def on(self, event: Event) -> None:
        """Take one event."""
        super().on(event)
        self._map.on(event)
        if isinstance(event, Configuration):
            self.configuration = event

    def line(self) -> CommandLine:
        """Put the command line together."""
        stated = self.configuration
        evidence = self._map.evidence(None if stated is None else stated.name)
        capabilities = () if stated is None else stated.capabilities
        names = [c.decode("utf-8", "backslashreplace") for c in capabilities]
        guest = None if stated is None or stated.uuid is None else str(uuid.UUID(bytes=stated.uuid))
        return command_line(
            evidence.machine,
            evidence.blocks,
            self.tree,
            uuid=guest,
            capabilities=names,
            cmos=evidence.cmos,
        )


def read_stated(
    source: Source,
    *,
    page_size: int | None = None,
    max_ram: int | None = None,
    progress: Progress | None = None,
    container: Container | None = None,
) -> Stated:
    """Read what a stream states; head and tail alone where the input can be sought in.

    Raises:
        StreamError: The input is no migration stream, or damaged ahead of all that tells anything.
    """
    if source.seekable and source.size is not None:
        found = Stated()
        for event in quick_events(source, Decoder(page_size, max_ram=max_ram)):
            found.on(event)
        if found.ended and not found.findings.error:
            return found
    found = Stated()
    run(source, Decoder(page_size, max_ram=max_ram), [found], progress, container)
    if found.findings.error is not None and found.configuration is None and not found.tree:
        raise found.findings.error
    return found


def cmdline_report(source: Source, found: Stated, container: Container) -> CmdlineReport:
    """Make the document.

    Raises:
        OutputError: The stream states nothing that a command line could be made of.
    """
    line = found.line()
    if not any(a.words[0] == "-machine" for a in line.arguments) and not found.tree:
        raise OutputError(f"{source.name}: no machine type and no devices: nothing to go by")
    notes = []
    if any(layer.image is not None for layer in container.layers):
        notes.append("the domain XML has the whole configuration: vmstream xml")
    incoming = "defer" if found.configuration and found.configuration.capabilities else None
    if incoming is None:
        plain = not container.layers
        incoming = f"exec:cat {shlex.quote(source.name)}" if plain and source.seekable else "defer"
    words = [ArgumentReport(list(a.words), a.source, a.reason) for a in line.arguments]
    words.append(ArgumentReport(["-incoming", incoming], "inferred", "to load the stream"))
    return CmdlineReport(
        CMDLINE_SCHEMA,
        source.name,
        found.machine,
        line.emulator,
        words,
        line.not_stated,
        line.unknown,
        notes,
        found.findings.report(),
    )


# What a shell or a terminal would not take as it is; QEMU has no such names.
_UNPRINTABLE = re.compile(r"[^ -~]")


def shell_lines(report: CmdlineReport) -> Iterator[str]:
    """Yield the command as lines for a shell, each but the last ending in a backslash."""
    rows = [report.emulator]
    rows += [" ".join(map(_quoted, argument.words)) for argument in report.arguments]
    for row in rows[:-1]:
        yield f"{row} \\"
    yield rows[-1]


def _quoted(word: str) -> str:
    return shlex.quote(_UNPRINTABLE.sub("?", word))


def told(report: CmdlineReport) -> Iterator[str]:
    """Yield what is to be known beside the command, a line each."""
    yield from report.notes
    for name in report.unknown:
        yield f"unknown section: {name}"
    for what in report.not_stated:
        yield f"not stated: {what}"
