"""The page of `vmstream report` in a real browser."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import Browser, Page
from tests.report.test_html import HOSTILE, account
from tests.truth import fixture_file
from vmstream.cli.main import main
from vmstream.report.html import page

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as found:
        yield found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("browser")
    out = directory / "report.html"
    assert main(["report", str(fixture_file("own-live-q35", directory)), "-o", str(out)]) == 0
    return out


def until(tab: Page, script: str) -> None:
    """Wait until an expression holds."""
    end = time.monotonic() + 20
    while not tab.run(script):
        assert time.monotonic() < end, script
        time.sleep(0.02)


def contrast(tab: Page) -> float:
    """Of text and ground of the page, as WCAG 2 has it."""
    colours = [
        tab.run(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor")
    ]
    light = []
    for colour in colours:
        parts = [int(c) / 255 for c in colour[4:-1].split(",")]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        light.append(sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True)))
    low, high = sorted(light)
    return (high + 0.05) / (low + 0.05)


SHOWN = "[...document.querySelectorAll('.tree > li')].filter(li => li.offsetHeight > 0)"
BLACK = "getComputedStyle(document.body).backgroundColor === 'rgb(15, 19, 23)'"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_fits_and_is_quiet(browser: Browser, report: Path, dark: bool) -> None:
    tab = browser.open(report, width=1280, height=800, dark=dark)
    assert tab.run(BLACK) is dark
    assert contrast(tab) > 7
    for width in (1280, 1440, 700):
        tab.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=800, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        assert tab.run("document.documentElement.scrollWidth") == width
    # All that can be opened, too.
    tab.run("for (const d of document.querySelectorAll('details')) d.open = true")
    assert tab.run("document.documentElement.scrollWidth") == 700
    assert tab.run("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert tab.errors == []
    assert tab.requests == [report.as_uri()]


def test_search(browser: Browser, report: Path) -> None:
    tab = browser.open(report, width=1280, height=800)
    count = tab.run(f"{SHOWN}.length")
    assert count == 30
    tab.type("/")
    assert tab.run("document.activeElement.type") == "search"
    tab.type("cmos_DATA")
    until(tab, f"{SHOWN}.length === 1")
    (name,) = tab.run(f"{SHOWN}.map(li => li.querySelector('b').textContent)")
    assert name == "mc146818rtc[0]"
    hits = "[...document.querySelectorAll('.tree .hit')].filter(e => e.offsetHeight > 0)"
    assert tab.run(f"{hits}.map(e => e.querySelector('i').textContent)") == ["cmos_data"]
    assert tab.run("document.querySelector('.search output').textContent") == (
        "1 found in 1 of 30 devices"
    )
    tab.press("Escape")
    until(tab, f"{SHOWN}.length === {count}")
    tab.type("i8259")
    until(tab, f"{SHOWN}.length === 2")
    tab.press("Escape")
    tab.type("no such thing")
    until(tab, "document.querySelector('.search output').textContent === 'nothing found'")
    assert tab.run(f"{SHOWN}.length") == 0
    assert tab.errors == []


def test_theme(browser: Browser, report: Path) -> None:
    tab = browser.open(report, width=1280, height=800)
    button = "document.querySelector('.theme')"
    assert (tab.run(BLACK), tab.run(f"{button}.textContent")) == (False, "Dark")
    x, y = tab.run(f"(({{x, y}}) => [x + 5, y + 5])({button}.getBoundingClientRect())")
    tab.mouse(x, y, click=True)
    until(tab, BLACK)
    assert tab.run(f"{button}.textContent") == "Light"
    assert contrast(tab) > 7
    tab.mouse(x, y, click=True)
    until(tab, f"!({BLACK})")
    assert tab.errors == []


def test_the_map(browser: Browser, report: Path) -> None:
    tab = browser.open(report, width=1280, height=800)
    shown = "[...document.images].filter(i => i.offsetHeight > 0)"
    assert set(tab.run(f"{shown}.map(i => i.dataset.view)")) == {"kind"}
    tab.run("document.querySelector('#memory').scrollIntoView()")
    label = "document.querySelector('[for=by-times]').getBoundingClientRect()"
    x, y = tab.run(f"(({{x, y}}) => [x + 9, y + 9])({label})")
    tab.mouse(x, y, click=True)
    until(tab, f"{shown}.every(i => i.dataset.view === 'times')")
    # Page 0x106 is what the guest counts in: sent in each of six passes.
    box = tab.run(
        f"(({{x, y, width, height}}) => [x, y, width, height])({shown}[0].getBoundingClientRect())"
    )
    columns, rows = tab.run(f"[{shown}[0].naturalWidth, {shown}[0].naturalHeight]")
    row, column = divmod(0x106, columns)
    tab.mouse(box[0] + (column + 0.5) * box[2] / columns, box[1] + (row + 0.5) * box[3] / rows)
    until(tab, "!document.querySelector('.tip').hidden")
    assert tab.run("document.querySelector('.tip').textContent").splitlines() == [
        "mem+0x106000, 5-8 times", "address 0x106000..0x107000",
    ]  # fmt: skip
    assert tab.errors == []


def test_hostile_names_do_nothing(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "hostile.html"
    path.write_bytes(page(account(HOSTILE)))
    tab = browser.open(path, width=1280, height=800)
    tab.type("/alert")
    until(tab, "document.querySelector('.search output').textContent.includes('found in 1')")
    tab.run("for (const d of document.querySelectorAll('details')) d.open = true")
    assert tab.run("document.querySelectorAll('script, img:not(.view), iframe').length") == 1
    assert tab.errors == []
    assert tab.requests == [path.as_uri()]
    # The policy holds by itself, should a name come in as markup.
    tab.run("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=document.title=1>')")
    script = "Object.assign(document.createElement('script'), {text: 'document.title = 1'})"
    tab.run(f"document.body.append({script})")
    until(tab, "true")
    assert tab.run("document.title") != "1"
    assert len([e for e in tab.errors if "Content Security Policy" in e]) >= 2


def test_long_names_break(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "long.html"
    path.write_bytes(page(account("W" * 255)))
    tab = browser.open(path, width=1280, height=800)
    tab.run("for (const d of document.querySelectorAll('details')) d.open = true")
    assert tab.run("document.documentElement.scrollWidth") == 1280


def test_without_scripts(browser: Browser, report: Path, tmp_path: Path) -> None:
    """All is there to read; what takes a script is not."""
    bare = tmp_path / "bare.html"
    text = report.read_text()
    start, end = text.index("<script>"), text.index("</script>")
    bare.write_text(text[:start] + text[end + len("</script>") :])
    tab = browser.open(bare, width=1280, height=800)
    assert tab.run(f"{SHOWN}.length") == 30
    assert tab.run("document.querySelector('.theme').offsetHeight") == 0
    assert tab.run("document.querySelector('.search').offsetHeight") == 0
    assert tab.run("[...document.images].filter(i => i.offsetHeight > 0).length") > 0
    tab.run("document.querySelector('#by-pass').click()")
    assert tab.run(
        "[...document.images].filter(i => i.offsetHeight > 0).every(i => i.dataset.view === 'pass')"
    )
    tab.run("document.querySelector('.tree summary').click()")
    assert tab.run("document.querySelector('.tree details').open")
