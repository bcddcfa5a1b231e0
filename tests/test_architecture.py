"""Who may import whom, where files are opened, and that every module has its tests."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "vmstream"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Folder: what of the package its modules may import besides their own folder. `errors` may be
# imported by all.
MAY_IMPORT = {
    "cli": (
        "vmstream.container",
        "vmstream.integrations",
        "vmstream.ops",
        "vmstream.transport",
        "vmstream.report",
        "vmstream.wire.constants",
        "vmstream.version",
    ),
    "ops": (
        "vmstream.container",
        "vmstream.guest",
        "vmstream.stream",
        "vmstream.transport",
        "vmstream.report.models",
        "vmstream.report.jsonout",
        "vmstream.wire",
        "vmstream.version",
    ),
    "integrations": (
        "vmstream.ops",
        "vmstream.container",
        "vmstream.guest",
        "vmstream.stream",
        "vmstream.transport",
        "vmstream.report.models",
        "vmstream.version",
    ),
    "vol_plugins": ("vmstream.integrations",),
    "container": ("vmstream.transport", "vmstream.wire"),
    "guest": ("vmstream.stream.events", "vmstream.wire"),
    "stream": ("vmstream.wire",),
    "transport": ("vmstream.guest",),
    "report": (),
    "models": ("vmstream.report.models",),
    "wire": (),
    # The package itself: the public names, errors and version; nothing is below them.
    "": ("vmstream.version",),
}

# Library: where it may be imported.
LIBRARIES = {
    "construct": ("wire/",),
    "click": ("cli/",),
    "rich": (
        "report/render.py",
        "report/devices.py",
        "report/diff.py",
        "report/findings.py",
        "report/stats.py",
        "cli/",
    ),
    "zstandard": ("container/", "guest/multifd.py", "transport/compress.py"),
    "lz4": ("container/",),
    "lzallright": ("container/",),
    "volatility3": ("integrations/volatility3.py",),
    "drgn": ("integrations/drgn.py",),
    "qemu": ("integrations/qmp.py",),
    "libvirt": ("integrations/libvirt.py",),
    "socket": ("transport/",),
    "signal": ("transport/signals.py", "cli/main.py"),
    "numpy": ("guest/", "ops/", "report/", "stream/", "transport/", "wire/"),
}

# Modules without a test file of their own, and why.
NO_TESTS = {
    "__init__.py": "names only",
    "__main__.py": "two lines; the tests of the command line run it",
    "version.py": "one line",
    "integrations/vol_plugins/vmstream.py": "an import; the tests of volatility3.py run it",
}


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def folder_of(path: Path) -> str:
    return "" if path.parent == PACKAGE else path.parent.name


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, those inside functions too, but those for types alone."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: a relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                # `from vmstream import errors` names a module, `from x import f` does not.
                yield node.lineno, full if is_module(full) else str(node.module)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


def nodes(path: Path) -> Iterator[ast.AST]:
    def walk(node: ast.AST) -> Iterator[ast.AST]:
        yield node
        typing_only = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for child in () if typing_only else ast.iter_child_nodes(node):
            yield from walk(child)

    yield from walk(ast.parse(path.read_text(encoding="utf-8"), str(path)))


def within(module: str, allowed: tuple[str, ...]) -> bool:
    return any(module == a or module.startswith(a + ".") for a in allowed)


def test_there_are_modules() -> None:
    assert {folder_of(p) for p in MODULES} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_within_the_package(path: Path) -> None:
    folder = folder_of(path)
    own = f"vmstream.{folder}" if folder else "vmstream.version"
    allowed = (own, "vmstream.errors", *MAY_IMPORT[folder])
    if name_of(path) == "__main__.py":
        allowed += ("vmstream.cli.main",)
    wrong = [
        f"{name_of(path)}:{line}: {module}"
        for line, module in imports(path)
        if module.split(".")[0] == "vmstream" and not within(module, allowed)
    ]
    assert not wrong


def test_transport_imports_protocols_of_guest_alone() -> None:
    """A sink may be what `guest.memory` wants; nothing that computes may be used there."""
    for path in MODULES:
        if folder_of(path) != "transport":
            continue
        for node in nodes(path):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("vmstream.guest"):
                source = ROOT.joinpath(*str(node.module).split(".")).with_suffix(".py")
                protocols = {
                    n.name
                    for n in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
                    if isinstance(n, ast.ClassDef)
                    and any(ast.unparse(b).endswith("Protocol") for b in n.bases)
                }
                assert {a.name for a in node.names} <= protocols, name_of(path)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_libraries(path: Path) -> None:
    name = name_of(path)
    wrong = [
        f"{name}:{line}: {module}"
        for line, module in imports(path)
        if (places := LIBRARIES.get(module.split(".")[0])) is not None
        and not name.startswith(places)
    ]
    assert not wrong


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_files_are_opened_in_transport_alone(path: Path) -> None:
    if folder_of(path) == "transport":
        return
    openers = {
        "open", "io.open", "os.open", "os.fdopen", "os.openpty", "builtins.open", "os.dup",
        "os.memfd_create", "socket.socketpair", "socket.create_server",
        "tempfile.TemporaryFile", "tempfile.NamedTemporaryFile",
        "tempfile.mkstemp", "socket.socket", "subprocess.run", "subprocess.Popen", "mmap.mmap",
    }  # fmt: skip
    methods = {"read_bytes", "read_text", "write_bytes", "write_text"}
    # The front door of the library is called `open`, and opens nothing itself.
    defined = {n.name for n in nodes(path) if isinstance(n, ast.FunctionDef)}
    wrong = []
    for node in nodes(path):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        method = isinstance(node.func, ast.Attribute) and node.func.attr in methods
        of_path = called.startswith("Path(") and called.endswith(".open")
        if (called in openers and called not in defined) or method or of_path:
            wrong.append(f"{name_of(path)}:{node.lineno}: {called}")
    assert not wrong


def test_nothing_is_caught_blindly() -> None:
    wrong = []
    for path in MODULES:
        for node in nodes(path):
            if isinstance(node, ast.ExceptHandler):
                caught = "" if node.type is None else ast.unparse(node.type)
                reraises = any(isinstance(n, ast.Raise) and n.exc is None for n in ast.walk(node))
                if caught in ("", "Exception", "BaseException") and not reraises:
                    wrong.append(f"{name_of(path)}:{node.lineno}: except {caught}")
            if isinstance(node, ast.Raise) and node.exc is not None:
                raised = ast.unparse(node.exc).split("(")[0]
                if raised in ("Exception", "BaseException"):
                    wrong.append(f"{name_of(path)}:{node.lineno}: raise {raised}")
    assert not wrong


def test_tests_do_not_look_at_the_grammar_they_check() -> None:
    """What writes test streams, takes captures and reads them is independent of the package."""
    for name in (
        "streamwriter.py", "strategies.py", "truth.py", "qemu.py",
        "relay.py", "channels.py", "migrations.py", "mappedreader.py",
    ):  # fmt: skip
        path = ROOT / "tests" / name
        assert not [m for _, m in imports(path) if m.split(".")[0] == "vmstream"], name


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_each_module_has_tests(path: Path) -> None:
    name = path.relative_to(PACKAGE)
    if name.name == "__init__.py" or name.as_posix() in NO_TESTS:
        return
    tests = ROOT / "tests" / name.parent
    # A package in a room may have one file of tests for all its modules.
    files = (tests / f"test_{name.name}", tests.parent / f"test_{tests.name}.py")
    assert any(file.is_file() for file in files)


def test_exceptions_are_needed() -> None:
    for name in NO_TESTS:
        path = Path(name)
        assert (PACKAGE / path).is_file()
        assert not (ROOT / "tests" / path.parent / f"test_{path.name}").exists()


def test_test_files_belong_to_modules() -> None:
    """A test file in a folder of the package is that of a module."""
    folders = {folder_of(p) for p in MODULES} - {""}
    for folder in folders:
        for path in (ROOT / "tests" / folder).glob("test_*.py"):
            module = PACKAGE / folder / path.name.removeprefix("test_")
            assert module.is_file() or module.with_suffix("").is_dir(), path.relative_to(ROOT)
