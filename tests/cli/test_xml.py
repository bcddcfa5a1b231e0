"""`vmstream xml`: the bytes as they stand in the image, escaped on a terminal."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.commandline import COMMAND, environment, on_terminal, vmstream
from tests.containers import image_file, open_image, save_image
from tests.truth import fixture_file


def test_xml(tmp_path: Path) -> None:
    path = image_file("libvirt-12.8-zstd", tmp_path)
    run = vmstream("xml", path)
    assert (run.status, run.err) == (0, "")
    assert run.out.startswith("<domain type='qemu'>\n  <name>guest</name>")
    assert run.out.endswith("</domain>\n")
    assert vmstream("xml", "-", stdin=open_image("libvirt-12.8-zstd")) == run
    cookie = vmstream("xml", "--cookie", path)
    assert cookie.status == 0
    assert cookie.out.startswith("<cookie>")


def test_of_an_image_whose_stream_is_not_read(tmp_path: Path) -> None:
    run = vmstream("xml", image_file("libvirt-12.8-sparse-parallel", tmp_path))
    assert (run.status, run.out[:7]) == (0, "<domain")


def test_bytes_as_they_are(tmp_path: Path) -> None:
    xml = b"<domain>\xff\x1b[31m\r\n</domain>"
    (tmp_path / "x").write_bytes(save_image(b"", xml=xml))
    done = subprocess.run(
        [*COMMAND, "xml", str(tmp_path / "x")], capture_output=True, env=environment()
    )
    assert (done.returncode, done.stdout) == (0, xml)


def test_on_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(save_image(b"", xml=b"<domain>\n\t\x1b[31m\x9b\xff\n</domain>"))
    run = on_terminal("xml", tmp_path / "x")
    assert run.status == 0
    assert "\x1b" not in run.out
    assert "\\x1b[31m" in run.out
    assert run.out.splitlines()[2] == "</domain>"


def test_no_image(tmp_path: Path) -> None:
    run = vmstream("xml", fixture_file("plain-7.2-pc", tmp_path))
    assert (run.status, run.out) == (2, "")
    assert "is no libvirt save image" in run.err
    run = vmstream("xml", "-", stdin=save_image(b"", cookie=None)[:150])
    assert (run.status, run.out) == (3, "")
    run = vmstream("xml", "--cookie", "-", stdin=save_image(b"", cookie=None))
    assert (run.status, run.out) == (2, "")
