"""The rules of the house that no type checker knows: layers, purity, and what an import may cost."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tokenkeeper

PACKAGE = Path(tokenkeeper.__file__).resolve().parent
TESTS = Path(__file__).resolve().parent

NOUNS = {"model", "errors", "events"}
PURE = NOUNS | {"core"}
OUTSIDE = {"providers", "crypto", "clock", "store", "answers", "transport", "authorization_server", "spill"}
ENGINE = {"cache", "news", "workers", "engine_room"}
DRIVERS = ENGINE | {"drivers", "guard"}
FRONT = {"keeper", "config"}
DEPENDENCIES = {"authlib", "joserfc", "sqlalchemy", "alembic", "cryptography", "httpx2", "httpcore2", "anyio", "tomli"}

# room -> the rooms of ours and the libraries that it may import; the order is DESIGN section 3's, lowest first.
# A room is a module or a folder directly under tokenkeeper/; "tokenkeeper" stands for the lazy front page.
MAY_IMPORT: dict[str, tuple[set[str], set[str]]] = {
    "model": (set(), set()),
    "errors": ({"model"}, set()),
    "events": ({"model"}, set()),
    "core": (PURE, set()),
    "providers": (PURE, set()),
    "crypto": (PURE, {"cryptography"}),
    "clock": (set(), {"sqlalchemy"}),
    "store": (PURE | {"crypto", "clock"}, {"sqlalchemy", "alembic"}),
    "answers": (PURE, set()),
    "transport": (PURE, {"httpx2", "httpcore2"}),
    "authorization_server": (PURE | {"clock", "transport"}, set()),
    "spill": (PURE | {"store"}, set()),
    "cache": (PURE, set()),
    "news": (NOUNS, set()),
    "workers": (set(), set()),
    "engine_room": (PURE | OUTSIDE | ENGINE, {"sqlalchemy", "httpx2"}),
    "drivers": (PURE | OUTSIDE | ENGINE, set()),
    "guard": (PURE | OUTSIDE | ENGINE | {"drivers"}, set()),
    "keeper": (PURE | OUTSIDE | DRIVERS, {"sqlalchemy"}),
    "config": (PURE | OUTSIDE | DRIVERS | {"keeper", "tokenkeeper"}, set()),
    "clients": (PURE | OUTSIDE | DRIVERS | FRONT | {"tokenkeeper"}, {"httpx2", "httpx", "requests", "aiohttp"}),
    "frameworks": (PURE | OUTSIDE | DRIVERS | FRONT | {"tokenkeeper"}, {"fastapi", "starlette", "flask", "django"}),
    "testing": (
        PURE | OUTSIDE | DRIVERS | FRONT | {"clients", "tokenkeeper"},
        DEPENDENCIES | {"pytest"},
    ),
    "cli": (PURE | OUTSIDE | DRIVERS | FRONT | {"clients", "testing", "tokenkeeper"}, DEPENDENCIES | {"click", "rich"}),
    "__main__": ({"cli"}, set()),
    "__init__": (PURE | OUTSIDE | DRIVERS | FRONT, set()),
}
LIBRARIES_OF_ONE_MODULE = {"core/token_endpoint.py": {"authlib", "joserfc"}, "providers/loader.py": {"tomli"}}
"""Authlib's pure parts, which take and return plain values; what they load is held by the test of imports below."""

LAZY = {("clock.py", "tokenkeeper.store.tables")}
"""The one arrow upwards, at run time: the real clock names the SQL for the database's, a test's another."""

ASYNC_ROOMS = {"clock", "drivers", "guard", "keeper", "answers", "clients", "frameworks", "testing"}
ASYNC_HOSTS = {"cli/demo_host.py"}
"""The demo's host is a user of the async twin like any other."""

IMPURE_MODULES = {
    "asyncio",
    "http",
    "io",
    "logging",
    "os",
    "random",
    "secrets",
    "select",
    "socket",
    "ssl",
    "subprocess",
}
IMPURE_MODULES |= {"tempfile", "threading", "time", "urllib.request"}
IMPURE_CALLS = {"open", "now", "utcnow", "today", "uuid1", "uuid4", "read_text", "read_bytes", "print", "input"}

HTTP_AND_SQL = ["sqlalchemy", "alembic", "httpx", "httpx2", "requests", "aiohttp", "urllib3"]
EXTRAS = ["click", "rich", "psycopg", "pymysql", "requests", "httpx", "aiohttp", "urllib3", "pytest", "hypothesis"]

PUBLIC_NAMES = [
    "TokenKeeper",
    "AsyncTokenKeeper",
    "Keyring",
    "Registration",
    "Provider",
    "AccessToken",
    "Grant",
    "GrantStatus",
    "Prompt",
    "AuthorizationRequest",
    "Connection",
    "diagnose",
    "Diagnosis",
    "Verdict",
    "Remedy",
    "Turn",
    "TokenKeeperError",
    "MemberActionRequired",
    "ReauthenticationRequired",
    "NotConnected",
    "ScopeRequired",
    "AuthorizationFailed",
    "AccountBlocked",
    "ConfigurationError",
    "KeyUnavailable",
    "SecretTampered",
    "SchemaOutdated",
    "TemporarilyUnavailable",
    "RenewalInProgress",
    "TokensRenewed",
    "GrantConnected",
    "ReauthenticationNeeded",
    "ConfigurationProblem",
    "ProviderTrouble",
    "GrantExpiring",
    "TamperingDetected",
    "GrantRevoked",
    "GrantForgotten",
]


def modules() -> Iterator[tuple[str, Path, ast.Module]]:
    """Every module of the package: its path inside it, the file, and its syntax tree. (Migrations are the store's.)"""
    for path in sorted(PACKAGE.rglob("*.py")):
        inside = path.relative_to(PACKAGE).as_posix()
        if not inside.startswith("migrations/"):
            yield inside, path, ast.parse(path.read_text(encoding="utf-8"))


def room_of(inside: str) -> str:
    """The room in which a module lies: ``store/tables.py`` is in ``store``."""
    return inside.partition("/")[0].removesuffix(".py")


def imported(tree: ast.Module, inside: str) -> Iterator[str]:
    """The dotted names of all that a module imports, wherever it does so, also for type checkers alone."""
    package = ["tokenkeeper", *inside.split("/")[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = (
                ".".join([*package[: len(package) + 1 - node.level], node.module or ""]).rstrip(".")
                if node.level
                else node.module
            )
            yield from (f"{base}.{alias.name}" if base == "tokenkeeper" else str(base) for alias in node.names)


def our_room(name: str) -> str:
    """The room that ``tokenkeeper.x.y`` names; a name that the front page serves lazily is the front page's."""
    room = name.split(".")[1] if "." in name else "tokenkeeper"
    return room if (PACKAGE / room).is_dir() or (PACKAGE / f"{room}.py").is_file() else "tokenkeeper"


def run(code: str) -> str:
    """Run code in a fresh interpreter and return what it printed; its failure is ours."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_room_is_on_the_plan() -> None:
    """A new module or folder has its place in the table of layers."""
    assert {room_of(inside) for inside, _, _ in modules()} <= MAY_IMPORT.keys()


def test_imports_point_one_way() -> None:
    """No module imports from a room above its own, nor a library that its room has no business with."""
    wrong = []
    for inside, _, tree in modules():
        room = room_of(inside)
        ours, libraries = MAY_IMPORT[room]
        for name in imported(tree, inside):
            top = name.partition(".")[0]
            if top == "tokenkeeper":
                target = our_room(name)
                allowed = target == room or target in ours or (inside, name) in LAZY
            else:
                allowed = (
                    top in sys.stdlib_module_names or top in libraries or top in LIBRARIES_OF_ONE_MODULE.get(inside, ())
                )
            if not allowed:
                wrong.append(f"{inside} imports {name}")
    assert not wrong


def test_the_table_of_layers_is_one_way() -> None:
    """The table is in the order of the storeys: no room may import one that comes after it."""
    rank = {room: place for place, room in enumerate(MAY_IMPORT)}
    upwards = [
        f"{room} may import {target}"
        for room, (ours, _) in MAY_IMPORT.items()
        for target in ours - {"tokenkeeper"}
        if rank[target] > rank[room]
    ]
    assert not upwards


def test_the_core_is_pure() -> None:
    """The core and the nouns do no I/O, read no clock, throw no dice and log nothing."""
    wrong = []
    for inside, _, tree in modules():
        if room_of(inside) not in PURE:
            continue
        wrong += [f"{inside} imports {name}" for name in imported(tree, inside) if _impure(name)]
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = getattr(node.func, "attr", getattr(node.func, "id", ""))
                if called in IMPURE_CALLS:
                    wrong.append(f"{inside}:{node.lineno} calls {called}()")
    assert not wrong


def _impure(name: str) -> bool:
    return name in IMPURE_MODULES or name.partition(".")[0] in IMPURE_MODULES


def test_async_stays_at_the_edge() -> None:
    """Nothing but drivers, front door, reading of answers, clients, frameworks and test support is asynchronous."""
    wrong = [
        f"{inside}:{node.lineno}"
        for inside, _, tree in modules()
        if room_of(inside) not in ASYNC_ROOMS and inside not in ASYNC_HOSTS
        for node in ast.walk(tree)
        if isinstance(node, ast.AsyncFunctionDef | ast.AsyncWith | ast.AsyncFor | ast.Await)
    ]
    assert not wrong


def test_importing_the_package_and_its_core_is_light() -> None:
    """``import tokenkeeper`` and all of ``tokenkeeper.core`` load no SQLAlchemy and no HTTP client."""
    core = [f"tokenkeeper.core.{path.stem}" for path in (PACKAGE / "core").glob("*.py") if path.stem != "__init__"]
    loaded = run(
        "import importlib, sys, tokenkeeper\n"
        f"for name in {core!r}: importlib.import_module(name)\n"
        f"print(*sorted(set({HTTP_AND_SQL!r}) & set(sys.modules)))"
    )
    assert len(core) > 5
    assert loaded.split() == []


def test_the_pytest_plugin_is_light() -> None:
    """The plugin, which pytest loads in every project that has tokenkeeper, loads no SQLAlchemy and no HTTP client."""
    loaded = run(f"import sys, tokenkeeper.testing.fixtures\nprint(*sorted(set({HTTP_AND_SQL!r}) & set(sys.modules)))")
    assert loaded.split() == []


BLOCK = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {EXTRAS!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
"""


def test_the_library_needs_no_extra() -> None:
    """Every module but the commands, the adapters and the pytest plugin imports with no extra installed."""
    optional = re.compile(r"(cli|clients|frameworks)/(?!__init__)|testing/fixtures|__main__")
    names = [
        ".".join(["tokenkeeper", *inside.removesuffix(".py").removesuffix("__init__").split("/")]).rstrip(".")
        for inside, _, _ in modules()
        if not optional.match(inside)
    ]
    run(BLOCK + f"import importlib\nfor name in {names!r}: importlib.import_module(name)")
    assert len(names) > 20


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_the_command_names_its_extra(missing: str) -> None:
    """Without Click or Rich the command says which extra to install, and exits with 2."""
    code = (
        BLOCK.replace(repr(EXTRAS), repr([missing]))
        + "sys.argv = ['tokenkeeper', '--help']\nimport tokenkeeper.cli\ntokenkeeper.cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "tokenkeeper[cli]" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_public_name(name: str) -> None:
    """Every name of the public contract is importable from ``tokenkeeper``, listed, and documented."""
    value = getattr(tokenkeeper, name)
    assert name in tokenkeeper.__all__
    assert name in dir(tokenkeeper)
    assert inspect.getdoc(value)


def test_every_exported_name_exists() -> None:
    """``tokenkeeper.__all__`` lists each name once, and each resolves; an unknown one is an AttributeError."""
    assert len(set(tokenkeeper.__all__)) == len(tokenkeeper.__all__)
    for name in tokenkeeper.__all__:
        getattr(tokenkeeper, name)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = tokenkeeper.no_such_name


def test_every_error_and_event_is_public() -> None:
    """No error is raised and no event is sent that a host cannot import from ``tokenkeeper`` (bases of these apart)."""
    for module in ("errors", "events"):
        classes = inspect.getmembers(importlib.import_module(f"tokenkeeper.{module}"), inspect.isclass)
        home = f"tokenkeeper.{module}"
        own = {name for name, value in classes if value.__module__ == home and not value.__subclasses__()}
        assert len(own) > 5
        assert own <= set(tokenkeeper.__all__)


def test_every_module_says_what_it_is_for() -> None:
    """Every module has a docstring."""
    assert [inside for inside, _, tree in modules() if not ast.get_docstring(tree)] == []


def test_the_package_is_finished_and_names_no_machine() -> None:
    """No unfinished place, no print, no package registry and no path of somebody's machine in the package."""
    registries = [
        ".".join(host) for host in (("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org"), ("debian", "org"))
    ]
    machine = re.compile(r"(?<![\w.:/])/(root|home|work|opt|Users)/\w")
    unfinished = re.compile("|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "NotImplemented" + "Error")))
    wrong = []
    for path in sorted(PACKAGE.rglob("*")):
        if path.suffix not in {".py", ".toml", ".ini", ".mako", ".html"}:
            continue
        text = path.read_text(encoding="utf-8")
        wrong += [f"{path.name}: {host}" for host in registries if host in text]
        wrong += [f"{path.name}: {found[0]}" for pattern in (machine, unfinished) for found in pattern.finditer(text)]
    wrong += [
        f"{inside}:{node.lineno} prints"
        for inside, _, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
    ]
    assert not wrong


def test_every_module_is_reachable() -> None:
    """Every folder with modules is a package, so that the wheel and the tests see the same modules."""
    found = {module.name for module in pkgutil.walk_packages([str(PACKAGE)], "tokenkeeper.")}
    expected = {
        ".".join(["tokenkeeper", *inside.removesuffix(".py").removesuffix("/__init__").split("/")])
        for inside, _, _ in modules()
        if inside != "__init__.py"
    }
    assert expected <= found


def test_tests_say_what_they_hold() -> None:
    """Every test has a docstring, and none is skipped or expected to fail."""
    wrong = []
    avoiding = {"skip", "skipif", "xfail", "importorskip", "skipTest"}
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                and node.name.startswith("test_")
                and not ast.get_docstring(node)
            ):
                wrong.append(f"{path.name}: {node.name} has no docstring")
            if isinstance(node, ast.Attribute) and node.attr in avoiding:
                wrong.append(f"{path.name}:{node.lineno} {node.attr}")
    assert not wrong
