"""Migrations over several connections: all of them together make the destination's memory.

The captures are checked by tests/channels.py when they are taken, which shares no code with what is
tested here.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.channels import MainChannel, postcopy_memory, urgent_records
from tests.commandline import Run, no_leftovers, vmstream
from tests.migrations import Capture, multifd, postcopy

pytestmark = pytest.mark.qemu


@pytest.fixture(
    scope="module",
    params=[
        ("none", 2, True),
        ("none", 3, False),
        ("zlib", 3, True),
        ("zlib", 2, False),
        ("zstd", 2, True),
        ("zstd", 3, False),
    ],
    ids=lambda p: f"{p[0]}-{p[1]}-{'running' if p[2] else 'stopped'}",
)
def parallel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Capture:
    method, count, live = request.param
    return multifd(tmp_path_factory.mktemp("multifd"), method, count, live=live)


@pytest.fixture(scope="module", params=[False, True], ids=["stopped", "running"])
def preempted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Capture:
    return postcopy(tmp_path_factory.mktemp("preempt"), preempt=True, live=request.param)


def run_with(capture: Capture, channels: Sequence[Path], *args: str | Path) -> Run:
    """extract-ram of the main channel with these others."""
    options = [word for channel in channels for word in ("--channel", str(channel))]
    return vmstream("extract-ram", capture.main, *options, *args)


def check_all(capture: Capture, directory: Path) -> None:
    """Exact with the channels in any order."""
    main = next(name for name in capture.truth if name != "pc.bios")
    shuffled = random.Random(1).sample(capture.others, len(capture.others))
    for i, channels in enumerate((capture.others, capture.others[::-1], shuffled)):
        out = directory / str(i)
        run = run_with(capture, channels, "-o", out)
        assert run.status == 0, run.err
        assert out.read_bytes() == capture.truth[main]
    run = run_with(capture, capture.others, "--all-blocks", directory / "all")
    assert run.status == 0, run.err
    account = json.loads((directory / "all" / "manifest.json").read_text())
    files = {b["idstr"]: directory / "all" / b["file"] for b in account["blocks"]}
    for idstr, content in capture.truth.items():
        assert files[idstr].read_bytes() == content, idstr
    assert all(b["pages_missing"] == 0 for b in account["blocks"])


def check_main_alone(capture: Capture, directory: Path) -> None:
    run = run_with(capture, [], "-o", directory / "out")
    assert run.status == 4
    assert not list(directory.iterdir())


# -- multifd --------------------------------------------------------------------------------------


def test_multifd(parallel: Capture, tmp_path: Path) -> None:
    check_all(parallel, tmp_path)


def test_multifd_without_a_channel(parallel: Capture, tmp_path: Path) -> None:
    """Whichever it is, it is named by the number that it has on the wire."""
    for channel in parallel.others:
        number = channel.read_bytes()[24]
        run = run_with(
            parallel, [c for c in parallel.others if c != channel], "-o", tmp_path / "out"
        )
        assert run.status == 3, (number, run.err)
        assert f"channel {number}" in run.err
        assert not list(tmp_path.iterdir())


def test_main_channel_of_multifd(parallel: Capture, tmp_path: Path) -> None:
    check_main_alone(parallel, tmp_path)


# -- postcopy-preempt -----------------------------------------------------------------------------


def test_the_capture_of_preempt(preempted: Capture) -> None:
    """Pages that were asked for came on the second channel alone, and both make the memory."""
    main = MainChannel(preempted.main.read_bytes())
    urgent = urgent_records(preempted.others[0].read_bytes())
    assert urgent
    memory = postcopy_memory(main, urgent)
    assert {name: memory[name] for name in preempted.truth} == preempted.truth


def test_preempt(preempted: Capture, tmp_path: Path) -> None:
    check_all(preempted, tmp_path)


def test_main_channel_of_preempt(preempted: Capture, tmp_path: Path) -> None:
    check_main_alone(preempted, tmp_path)
    assert no_leftovers(tmp_path)
