"""`Companion`: it hears of the end of a process that is killed, and of no other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vmstream.errors import OutputError
from vmstream.transport.companion import Companion

SAYS = """
import sys
from vmstream.transport.companion import last_told
print("told", last_told(), file=sys.stderr)
"""
ENDING = """
import os, sys
sys.path.insert(0, sys.argv[1])
from vmstream.transport.companion import Companion
with Companion("says") as companion:
    companion.ready()
    for what in ("a", {"b": "\\udcff"}):
        companion.tell(what)
    print(flush=True)
    sys.stdin.read(1)
"""


@pytest.fixture
def says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "says.py").write_text(SAYS)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGKILL, b"told {'b': '\\udcff'}\n"), (signal.SIGCONT, b"")]
)
def test_it_is_told(number: signal.Signals, said: bytes, says: Path) -> None:
    """It is in no process group that is sent signals, and SIGCONT stands for none."""
    process = subprocess.Popen(
        [sys.executable, "-c", ENDING, says], start_new_session=True, cwd=says.parent,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.read(1)
    os.killpg(process.pid, number)
    # Standard error ends with the companion, which leaves with a process that leaves in order.
    assert process.communicate(b"x", timeout=30)[1] == said
    assert process.returncode == (-signal.SIGKILL if said else 0)


def test_signals_to_it_are_ignored(says: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As whoever ends a service sends them to all of its processes."""
    with Companion("says") as companion:
        companion.ready()
        companion.tell(1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            companion._process.send_signal(number)
        time.sleep(0.1)
        assert companion._process.poll() is None
        # What a process leaves that is killed while it tells.
        companion._telling.write(b'{"cut o')
        companion._telling.close()
        companion._process.wait(30)
    assert capfd.readouterr().err == "told 1\n"


def test_one_that_is_gone(says: Path) -> None:
    (says / "says.py").write_text("")
    with Companion("says") as companion:
        with pytest.raises(OutputError, match="did not start"):
            companion.ready()
        companion._process.wait(30)
        companion.tell("nobody")
