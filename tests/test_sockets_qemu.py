"""Migrations over one socket: what was recorded there makes the destination's memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.channels import MainChannel, postcopy_memory
from tests.commandline import vmstream
from tests.migrations import Capture, postcopy, precopy
from tests.truth import block_sums

pytestmark = pytest.mark.qemu

MIB = 1 << 20


def check_extraction(capture: Capture, directory: Path) -> None:
    """Every known block and the image, from the file and from a pipe."""
    data = capture.main.read_bytes()
    main = next(name for name in capture.truth if name != "pc.bios")
    for way, source, stdin in (("file", str(capture.main), None), ("pipe", "-", data)):
        out = directory / way
        out.mkdir()
        run = vmstream("extract-ram", source, "--all-blocks", out / "all", stdin=stdin)
        assert run.status == 0, run.err
        account = json.loads((out / "all" / "manifest.json").read_text())
        files = {b["idstr"]: out / "all" / b["file"] for b in account["blocks"]}
        for idstr, content in capture.truth.items():
            assert files[idstr].read_bytes() == content, idstr
        run = vmstream("extract-ram", source, "-o", out / "image", stdin=stdin)
        assert run.status == 0, run.err
        assert block_sums(out / "image") == block_sums(files[main])


def inspected(capture: Capture) -> dict[str, Any]:
    run = vmstream("inspect", "--json", capture.main)
    assert run.status == 0, run.err
    found: dict[str, Any] = run.json()
    assert found["complete"]
    assert found["size"] == capture.main.stat().st_size
    assert all(b["pages_missing"] == 0 for b in found["ram_blocks"])
    return found


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
def test_precopy(tcp: bool, tmp_path: Path) -> None:
    capture = precopy(tmp_path, tcp=tcp)
    found = inspected(capture)
    assert "return-path" in found["features"]
    assert found["anomalies"] == []
    # SHUT, the destination's last word: everything has been loaded.
    assert capture.returned.read_bytes()[-8:] == bytes.fromhex("0001000400000000")
    check_extraction(capture, tmp_path)


@pytest.mark.parametrize("live", [False, True], ids=["stopped", "running"])
def test_postcopy(live: bool, tmp_path: Path) -> None:
    """What is withdrawn at the switch comes again; asked for pages come first."""
    capture = postcopy(tmp_path, preempt=False, live=live)
    main = MainChannel(capture.main.read_bytes())
    memory = postcopy_memory(main)
    assert {name: memory[name] for name in capture.truth} == capture.truth
    found = inspected(capture)
    assert {"postcopy-ram", "postcopy, switched over"} <= set(found["features"])
    assert [a["code"] for a in found["anomalies"]] == ["no-vmdescription"]
    assert sum(s["idstr"] == "cpu" and s["packaged"] for s in found["sections"]) == 1
    records = [b["pages"]["normal"] + b["pages"]["zero"] for b in found["ram_blocks"]]
    assert sum(records) == len(main.records)
    resent = sum(b["pages_resent"] for b in found["ram_blocks"])
    assert (resent > 0) == live
    check_extraction(capture, tmp_path)
