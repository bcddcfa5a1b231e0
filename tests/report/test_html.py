"""The page: well formed, bounded, and dead to whatever a stream is called."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from vmstream.report.html import page
from vmstream.report.models.cpus import CPUReport
from vmstream.report.models.history import HistoryPassReport
from vmstream.report.models.inspect import INSPECT_SCHEMA, InspectReport, SectionReport
from vmstream.report.models.pages import PageCounts, RAMBlockReport
from vmstream.report.models.rammap import AddressRange, BlockMap, RAMMap
from vmstream.report.models.report import ExtentReport, FieldReport, StreamReport
from vmstream.report.models.verify import FindingReport

PAGE = 4096
VOID = {"meta", "img", "input"}
HOSTILE = (
    "</script></title></style><script>alert(1)</script>\"'><img src=x onerror=alert(1)>&\u202e"
)


class Document(HTMLParser):
    """Elements of a page, which have to nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, attrs)
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.found if name == tag]

    def text(self, *without: str) -> str:
        return "\n".join(t for tag, t in self.texts if tag not in ("style", "script", *without))


def document(data: bytes) -> Document:
    """A page that keeps the rules for all of them."""
    found = Document(data.decode())
    assert len(found.all("script")) == len(found.all("style")) == 1
    policy = found.all("meta")[1]
    assert policy["http-equiv"] == "Content-Security-Policy"
    rules = str(policy["content"])
    assert rules.startswith("default-src 'none'; img-src data:; script-src 'sha256-")
    assert "unsafe" not in rules and "http" not in rules
    for tag, attrs in found.found:
        assert not [name for name in attrs if name.startswith("on") or name == "style"], tag
        assert str(attrs.get("src", "data:")).startswith("data:image/png;base64,") or tag != "img"
        assert str(attrs.get("href", "#")).startswith("#")
        assert tag not in ("iframe", "object", "embed", "link", "base", "form", "a") or tag == "a"
    ids = [attrs["id"] for _, attrs in found.found if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {a["href"] for a in found.all("a")} <= {f"#{i}" for i in ids}
    return found


def block(name: str, cells: int, seed: int = 0) -> BlockMap:
    rng = np.random.default_rng(seed)
    return BlockMap(
        name, cells * PAGE, cells, [AddressRange(0, cells * PAGE, 0)],
        rng.integers(0, 5, cells, np.uint8), rng.integers(0, 99, cells, np.uint32),
        rng.integers(0, 9, cells, np.uint16), [cells, 0, 0, 0, 0],
    )  # fmt: skip


def account(name: str = "mem") -> StreamReport:
    """A report of one of everything."""
    pages = PageCounts(1, 2, 3, 4)
    return StreamReport(
        inspect=InspectReport(
            INSPECT_SCHEMA, f"/x/{name}", "raw", 9000, True, 8999, False, name, None, PAGE, "wire",
            [name], ["configuration"], True, None, 4, 3 * PAGE,
            [RAMBlockReport(name, 3 * PAGE, pages, 99, 1, 1)], [], 2,
            [SectionReport(1, "START", name, 0, 4, 20, 8000, 30, 7000, 3, "records", True),
             SectionReport(2, "FULL", name, 1, 2, 8100, 300, 8110, 200, 1, "vmdescription")],
            [], 0, [], 0,
        ),
        verdict="doubtful",
        findings=[FindingReport("warning", "no-end", 77, name, "It `means`.", "do that", name)],
        finding_count=3,
        passes=[HistoryPassReport(i, 9 * i, pages, 100 // i, "inferred", 3, 4) for i in (1, 2)],
        map=RAMMap(PAGE, 1, 64, 16, [block(name, 200), block(name, 3)], (2, 99), [9] * 5, 9, 98, 7,
                   False),
        doubts=[name],
        extents=[ExtentReport("ram", name, 0, 8000), ExtentReport("device", name, 8000, 9000)],
        devices=[
            FieldReport(name, "device", 8110, 200, version=2, fields=[
                FieldReport(name, "uint32", 8110, 4, 0x1234, meaning=name),
                FieldReport("list", "array", 8114, 8, [5, 5, 7], cut=True),
                FieldReport("inner", "struct", 8122, 9, left_out=2, fields=[
                    FieldReport("raw", "buffer", 8122, 3, "00ff10"),
                    FieldReport("a[0]", "zeros", 8125, 6, until="a[3]"),
                ]),
            ]),
        ],
        described="stream",
        cpus=[
            CPUReport(0, name, name, [name], True,
                      {"general": {name: 1 << 63}, "vector": {"x": 1 << 99}}),
        ],
        cpu_count=2,
        no_cpus=None,
        made_by="1.2.3",
    )  # fmt: skip


def test_a_page() -> None:
    found = document(page(account()))
    text = found.text()
    for words in (
        "doubtful", "sent again", "never sent", "0x1234 (4660)", "0x5 x2 0x7 …", "00 ff 10",
        "a[0] to a[3]", "and 2 more", "2 more are not shown", "0x8000000000000000", "halted",
        "Both scales are logarithmic", "2 smaller blocks", "To do: do that",
    ):  # fmt: skip
        assert words in text, words
    assert ("code", "means") in found.texts
    assert {i["id"] for i in found.all("input") if "id" in i} == {"by-kind", "by-times", "by-pass"}
    assert len(found.all("img")) == 6
    figure = found.all("figure")[0]
    assert figure["data-ranges"] == f"0:{200 * PAGE}:0"
    assert len(found.all("h1")) == 1
    assert [t for tag, t in found.texts if tag == "h2"] == [
        "Findings", "Memory", "Passes", "Sections", "CPUs", "Devices",
    ]  # fmt: skip


def test_hostile_names() -> None:
    found = document(page(account(HOSTILE)))
    assert len(found.all("img")) == 6
    assert "alert(1)" in found.text()
    assert "\u202e" not in found.text()


def test_what_there_is_not() -> None:
    whole = account()
    told = replace(
        whole.inspect, ram_blocks=[], sections=[], machine=None, page_size=None, end_offset=None
    )
    bare = replace(
        whole, inspect=told, findings=[], finding_count=0, passes=[], map=None, extents=[],
        devices=[], cpus=[], cpu_count=0, no_cpus="no cpu section is known", verdict="sound",
    )  # fmt: skip
    found = document(page(bare))
    assert "none: the stream holds against every rule" in found.text()
    assert "no cpu section is known" in found.text()
    assert found.all("img") == []


def test_one_version_of_each_page_has_one_view() -> None:
    whole = account()
    assert whole.map is not None
    for once in (replace(whole.map, resent=0), replace(whole.map, mapped=True)):
        found = document(page(replace(whole, map=once)))
        assert len(found.all("img")) == 2
        assert [i["id"] for i in found.all("input") if "id" in i] == ["by-kind"]


@pytest.mark.parametrize("count", [3, 49, 1000])
def test_bars(count: int) -> None:
    passes = [
        HistoryPassReport(i, i, PageCounts(i % 7, 0, 0, 0), (i % 5) << 30, "wire")
        for i in range(count)
    ]
    found = document(page(replace(account(), passes=passes)))
    charts = re.findall(
        r'<svg class="chart.*?</svg>', page(replace(account(), passes=passes)).decode()
    )
    assert len(charts) == 2
    assert all(c.count("<rect") <= 48 for c in charts)
    for rect in found.all("rect"):
        assert float(rect.get("y") or 0) >= 0
        assert float(rect["height"] or 0) >= 0


def test_the_size_is_bounded() -> None:
    """All at its limit, and every name as long as it can be, of what takes most to write."""
    name = "\x01" * 255
    pages = PageCounts(*[10**15] * 4)
    leaf = FieldReport(name, name, 1 << 60, 1 << 60, "ab" * 32, True, name)
    fields = [replace(leaf, type="struct", fields=[leaf] * 99)] * 10
    registers = {g: {f"{name}{r}": 1 << 2047 for r in range(64)} for g in ("general", "vector")}
    whole = account(name)
    made = replace(
        whole,
        inspect=replace(
            whole.inspect,
            ram_blocks=[RAMBlockReport(name, 1 << 60, pages, 1 << 60, 1 << 60, 1 << 60)] * 65536,
            sections=[
                SectionReport(1, "FULL", name, 1 << 31, 1 << 31, 1 << 60, 1 << 60, 0, 0, 9, "none")
            ] * 65536,
            capabilities=[name] * 65536,
            features=[name] * 1000,
        ),
        findings=[FindingReport("error", name, 1 << 60, name * 9, name * 9, name * 9, name)] * 200,
        passes=[HistoryPassReport(i, 1 << 60, pages, 1 << 60, "wire", 1, 1) for i in range(1000)],
        map=RAMMap(PAGE, 1, 512, 2, [block(name, 160_000), *[block(name, 512)] * 39], (1, 1),
                   [1 << 60] * 5, 9, 98, 7, False),
        doubts=[name * 9] * 1000,
        extents=[ExtentReport("device", name, i << 40, i + 1 << 40) for i in range(1000)],
        devices=[FieldReport(name, "device", 0, 1, version=1, fields=fields)] * 20,
        cpus=[CPUReport(i, name, name, [name] * 40, True, registers) for i in range(64)],
        cpu_count=64,
    )  # fmt: skip
    data = page(made)
    assert len(data) < 5_000_000, len(data)
    assert b"There is more than fits" in data
    assert b"65,236 more are not shown" in data
