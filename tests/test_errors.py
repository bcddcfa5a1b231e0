"""The error tree: classes, exit statuses, and the form of a message."""

from __future__ import annotations

import re

import pytest

from vmstream import errors
from vmstream.errors import (
    AddressError,
    EncodeError,
    FormatError,
    IntegrityError,
    LimitError,
    OutputError,
    StreamError,
    TruncatedError,
    UnsupportedError,
    VmstreamError,
)

TREE = {
    TruncatedError: (StreamError, 3, "truncated"),
    FormatError: (StreamError, 3, "format"),
    IntegrityError: (StreamError, 3, "integrity"),
    UnsupportedError: (StreamError, 4, "unsupported"),
    LimitError: (StreamError, 5, "limit"),
    EncodeError: (VmstreamError, 2, None),
    OutputError: (VmstreamError, 2, None),
    AddressError: (VmstreamError, 2, None),
}


@pytest.mark.parametrize("kind", TREE)
def test_tree(kind: type[VmstreamError]) -> None:
    parent, exit_code, code = TREE[kind]
    assert issubclass(kind, parent)
    assert kind.exit_code == exit_code
    if issubclass(kind, StreamError):
        assert kind(1, "what").code == code


def test_every_class_is_listed() -> None:
    kinds = {k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, Exception)}
    assert kinds == {VmstreamError, StreamError, *TREE}


def test_the_docstring_draws_the_tree() -> None:
    drawn = dict(re.findall(r"^ +(\w+Error) .*exit (\d)$", errors.__doc__ or "", re.MULTILINE))
    assert drawn == {kind.__name__: str(exit_code) for kind, (_, exit_code, _) in TREE.items()}


def test_exit_statuses() -> None:
    assert (errors.EXIT_OK, errors.EXIT_FINDINGS, errors.EXIT_USAGE, errors.EXIT_OS) == (0, 1, 2, 6)


def test_message() -> None:
    """Where, what, what was expected, what was found, what to do."""
    error = FormatError(
        0x1F40A8,
        "unknown flags 0x088",
        context="section 2 'ram' PART",
        expected="one of ZERO, PAGE",
        found="HOOK",
        advice="try --page-size",
    )
    assert str(error) == (
        "offset 0x1f40a8, section 2 'ram' PART: unknown flags 0x088 "
        "(expected one of ZERO, PAGE, found HOOK); try --page-size"
    )
    assert error.args == (str(error),)
    assert (error.offset, error.what, error.found) == (0x1F40A8, "unknown flags 0x088", "HOOK")


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({}, "offset 0x0: what"),
        ({"context": "here"}, "offset 0x0, here: what"),
        ({"expected": "a"}, "offset 0x0: what (expected a)"),
        ({"found": "b"}, "offset 0x0: what (found b)"),
        ({"advice": "c"}, "offset 0x0: what; c"),
    ],
)
def test_message_without_some_parts(parts: dict[str, str], text: str) -> None:
    assert str(StreamError(0, "what", **parts)) == text


def test_quoted_names() -> None:
    assert errors.quoted(b"pc.ram") == "'pc.ram'"
    assert errors.quoted("ü".encode()) == "'ü'"
    for name in (b"a\nb", b"\x1b[31m", b"\xff\x00", b"\xe2\x80\xae", bytes(range(256))):
        quoted = errors.quoted(name)
        assert quoted.isprintable()
        assert quoted[0] == quoted[-1] == "'" or quoted[0] == quoted[-1] == '"'
