"""The drgn helper without drgn; with it, see `tests/ops/test_kernel.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import vmstream
from tests.truth import fixture_file
from vmstream.errors import OutputError
from vmstream.integrations.drgn import program


def test_without_drgn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "drgn", None)
    with (
        vmstream.open(fixture_file("plain-7.2-pc", tmp_path)) as stream,
        pytest.raises(OutputError, match=r"pip install 'vmstream\[drgn\]'"),
    ):
        program(stream)
