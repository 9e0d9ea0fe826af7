"""The shape of the house, held by tests: who may import whom, how long things may grow, what may be read where.

ARCHITECTURE.md says why. Imports inside functions and under TYPE_CHECKING count like all others: cycles hide there.
Limits are ratchets: an exception names its place, its own limit and its reason, and goes when it is not needed.
"""

from __future__ import annotations

import ast
import re
import statistics
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeAlias

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "corral"

# ------------------------------------------------------------------------------------------------- the rules

BELOW = frozenset({"errors", "domain", "interfaces"})
MIDDLE = frozenset({"harness", "engines", "tools", "mcp", "providers", "sandboxes", "storage", "vaults", "api"})

ARROWS: dict[str, frozenset[str]] = {
    "__init__": frozenset(),
    "errors": frozenset(),
    "domain": frozenset({"errors"}),
    "interfaces": frozenset({"errors", "domain"}),
    "config_sections": frozenset(),
    "config": frozenset({"errors", "config_sections"}),
    "outbound": frozenset({"domain", "config_sections"}),
    "conformance": BELOW,
    **dict.fromkeys(MIDDLE, BELOW | {"config", "config_sections"}),
    "mcp": BELOW | {"config_sections", "outbound"},
    "sandboxes": BELOW | {"config", "config_sections", "outbound"},
    "tools": BELOW | {"config", "config_sections", "outbound"},
    "vaults": BELOW | {"config_sections", "outbound"},
    "app": BELOW | MIDDLE | {"config", "config_sections", "catalogue", "keys", "tracing"},
    "catalogue": frozenset({"domain", "config_sections"}),
    "keys": BELOW,
    "heads": frozenset(),
    "logs": frozenset({"domain", "config_sections"}),
    "tracing": BELOW | {"config_sections"},
    "serving": frozenset({"errors", "config", "app", "heads"}),
    "moving": BELOW | {"api"},
    "commands": BELOW | {"config", "conformance", "app", "keys", "moving", "serving", "vaults"},
    "cli": BELOW | {"config", "config_sections", "conformance", "app", "commands", "logs", "serving"},
    "__main__": frozenset({"cli"}),
}
"""What each part may import of Corral, itself aside. A part that is not listed here does not exist yet: decide."""

SHARED: dict[str, frozenset[str]] = {
    "tools": frozenset({"arguments"}),
    "sandboxes": frozenset(
        "attendant bases cgroups checkpoints child connection directory disk egress hosts launched lifecycle limited "
        "local packages packing programs seccomp series warm warming".split()
    ),
    "providers": frozenset({"messages_*"}),
    "engines": frozenset({"attempts", "signals"}),
    "storage": frozenset({"blob_drafts", "columns", "frames", "jobs", "named_sql", "series", "transaction"}),
}
"""What the interchangeable siblings of a part may import. `local_server.py` belongs to `local.py` and is no sibling."""

BANNED_NAMES = frozenset(
    "utils util helpers helper common misc base core manager service handler impl types models shared lib stuff".split()
)

IO_MODULES = frozenset(
    "anthropic openai anyio asyncio fcntl glob http httpx httpx2 io logging multiprocessing os pathlib select "
    "selectors shutil signal socket sqlite3 ssl starlette structlog subprocess sys tempfile threading time trio urllib "
    "uvicorn".split()
)
PURE_SUBMODULES = frozenset({"urllib.parse"})
IO_CALLS = frozenset({"open", "print", "input"})
CLOCK_CALLS = frozenset({"now", "utcnow", "today"})

IMPURITIES_ALLOWED: dict[str, str] = {
    "domain/ids.py imports time": "an id sorts by its birth; nothing decides anything by that moment",
}

ENVIRONMENT_READERS: dict[str, str] = {
    "config.py": "the one place where settings come in",
}

BROAD_EXCEPTS: dict[str, tuple[str, ...]] = {
    "top of a session's worker": ("harness/", "engines/"),
    "top of the ASGI app": ("api/",),
}
"""`except Exception` may swallow in one place of each kind; elsewhere it must end in a bare `raise`."""

FILE_LINES_MEDIAN_MAX = 150
FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 60
POSITIONAL_PARAMETERS_MAX = 5
NESTING_MAX = 3
STRICT_FILE_LINES_MAX = {"harness/loop.py": 200, "domain/lifecycle.py": 300}

EXCEPTIONS: dict[str, tuple[int, str]] = {}
"""`path` or `path::function` or `path::function nesting` -> its own limit, and why."""

# --------------------------------------------------------------------------------------------------- reading


class Module(NamedTuple):
    """One source file."""

    path: str
    """Below src/corral, with slashes."""
    part: str
    """`errors`, `domain`, `api`, ...: the first name below `corral`."""
    name: str
    """`corral.domain.session`; a package is named like its directory."""
    text: str
    tree: ast.Module


class Import(NamedTuple):
    """One name that a file imports, wherever in the file."""

    line: int
    name: str
    """Absolute and dotted; for `from a import b`, `a.b`."""


Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def modules() -> tuple[Module, ...]:
    return tuple(_read(path) for path in sorted(SOURCE.rglob("*.py")))


def _read(path: Path) -> Module:
    relative = path.relative_to(SOURCE)
    parts = list(relative.with_suffix("").parts)
    dotted = ["corral", *(parts[:-1] if parts[-1] == "__init__" else parts)]
    text = path.read_text(encoding="utf-8")
    return Module(relative.as_posix(), parts[0], ".".join(dotted), text, ast.parse(text, str(path)))


def imports_of(module: Module) -> Iterator[Import]:
    for node in ast.walk(module.tree):
        match node:
            case ast.Import(names=names):
                yield from (Import(node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(names=names, level=level):
                origin = ".".join(filter(None, [_anchor(module, level), node.module]))
                yield from (Import(node.lineno, f"{origin}.{alias.name}") for alias in names)
            case ast.Call(func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module")):
                yield from (Import(node.lineno, name) for name in _string_arguments(node))
            case _:
                pass


def _string_arguments(call: ast.Call) -> Iterator[str]:
    for argument in call.args:
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
            yield argument.value


def _anchor(module: Module, level: int) -> str:
    """The package that a relative import of this many dots starts from; empty for an absolute one."""
    if level == 0:
        return ""
    package = module.name.split(".")
    if not module.path.endswith("__init__.py"):
        level += 1
    return ".".join(package[: len(package) - level + 1])


def corral_imports_of(module: Module) -> Iterator[Import]:
    """As `imports_of`, only Corral's own, cut down to the module that is meant."""
    known = {other.name for other in modules()}
    for found in imports_of(module):
        name = found.name
        if name != "corral" and not name.startswith("corral."):
            continue
        while name not in known and "." in name:
            name = name.rpartition(".")[0]
        yield Import(found.line, name)


def functions_of(module: Module) -> Iterator[tuple[str, Function, bool]]:
    """Every function with its qualified name, and whether it is a method."""

    def walk(node: ast.AST, prefix: str, in_class: bool) -> Iterator[tuple[str, Function, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, Function):
                yield f"{module.path}::{prefix}{child.name}", child, in_class
                yield from walk(child, f"{prefix}{child.name}.", False)
            elif isinstance(child, ast.ClassDef):
                yield from walk(child, f"{prefix}{child.name}.", True)
            else:
                yield from walk(child, prefix, in_class)

    return walk(module.tree, "", False)


def limit_for(key: str, usual: int) -> int:
    return EXCEPTIONS.get(key, (usual, ""))[0]


def report(problems: list[str]) -> None:
    if problems:
        pytest.fail("\n" + "\n".join(problems), pytrace=False)


# ------------------------------------------------------------------------------------------------ the arrows


def test_the_parts_are_those_of_the_plan() -> None:
    unknown = {module.part for module in modules()} - ARROWS.keys()
    report([f"src/corral/{part} is in no row of ARROWS: decide what it may import." for part in sorted(unknown)])


def test_parts_import_only_along_the_arrows() -> None:
    problems: list[str] = []
    for module in modules():
        allowed = ARROWS.get(module.part, frozenset()) | {module.part}
        for found in corral_imports_of(module):
            target = found.name.removeprefix("corral").lstrip(".").split(".")[0]
            if target and target not in allowed:
                problems.append(
                    f"{module.path}:{found.line} imports {found.name}; {module.part} may not import {target}"
                )
    report(problems)


def test_siblings_do_not_import_one_another() -> None:
    problems: list[str] = []
    for part, shared in SHARED.items():
        for module in modules():
            owner = sibling(part, module.name)
            for found in corral_imports_of(module) if owner else ():
                target = sibling(part, found.name)
                if target and target != owner and not any(fnmatch(target, name) for name in shared):
                    problems.append(f"{module.path}:{found.line} imports its sibling {found.name}")
    report(problems)


def sibling(part: str, name: str) -> str | None:
    """Which of a part's interchangeable siblings a module belongs to, by the first name below the part."""
    if not name.startswith(f"corral.{part}."):
        return None
    own = name.split(".")[2]
    names = {other.name.split(".")[2] for other in modules() if other.name.startswith(f"corral.{part}.")}
    return min((each for each in names if own == each or own.startswith(f"{each}_")), key=len, default=own)


def test_no_cycles_between_modules() -> None:
    graph = {module.name: {found.name for found in corral_imports_of(module)} - {module.name} for module in modules()}
    report([" -> ".join(cycle) for cycle in cycles_in(graph)])


def cycles_in(graph: dict[str, set[str]]) -> Iterator[list[str]]:
    """One cycle for each back edge of a depth-first walk."""
    done: set[str] = set()

    def walk(name: str, trail: list[str]) -> Iterator[list[str]]:
        if name in trail:
            yield [*trail[trail.index(name) :], name]
        elif name not in done:
            for target in sorted(graph.get(name, ())):
                yield from walk(target, [*trail, name])
            done.add(name)

    for name in sorted(graph):
        yield from walk(name, [])


# ---------------------------------------------------------------------------------------------------- purity


def test_domain_does_no_io_and_never_waits() -> None:
    problems: list[str] = []
    for module in modules():
        if module.part == "domain":
            found = [each for each in impurities_of(module) if f"{module.path} {each[1]}" not in IMPURITIES_ALLOWED]
            problems += [f"{module.path}:{line} {what}" for line, what in found]
    report(problems)


def impurities_of(module: Module) -> Iterator[tuple[int, str]]:
    for found in imports_of(module):
        pure = any(found.name == each or found.name.startswith(f"{each}.") for each in PURE_SUBMODULES)
        if found.name.split(".")[0] in IO_MODULES and not pure:
            yield found.line, f"imports {found.name}"
    for node in ast.walk(module.tree):
        match node:
            case ast.AsyncFunctionDef() | ast.Await() | ast.AsyncFor() | ast.AsyncWith():
                yield node.lineno, "waits"
            case ast.Call(func=ast.Name(id=name)) if name in IO_CALLS:
                yield node.lineno, f"calls {name}()"
            case ast.Call(func=ast.Attribute(value=ast.Name(id="datetime" | "date"), attr=name)) if name in CLOCK_CALLS:
                yield node.lineno, f"reads the clock with {name}(); take the moment as an argument"
            case _:
                pass


def test_only_config_reads_the_environment() -> None:
    problems: list[str] = []
    for module in modules():
        if module.path in ENVIRONMENT_READERS:
            continue
        names = {"environ", "environb", "getenv", "getenvb"}
        lines = [found.line for found in imports_of(module) if found.name in {f"os.{name}" for name in names}]
        attributes = (node for node in ast.walk(module.tree) if isinstance(node, ast.Attribute))
        lines += [node.lineno for node in attributes if node.attr in names and ast.unparse(node.value) == "os"]
        problems += [f"{module.path}:{line} reads the environment; that is for config.py" for line in lines]
    report(problems)


def test_broad_excepts_stay_where_they_belong() -> None:
    places = [f"{module.path}:{line}" for module in modules() for line in swallowing_excepts_of(module)]
    problems: list[str] = []
    for kind, prefixes in BROAD_EXCEPTS.items():
        here = [place for place in places if place.startswith(prefixes)]
        places = [place for place in places if place not in here]
        problems += [f"{place} is one more broad except; the {kind} has the only one" for place in here[1:]]
    problems += [f"{place} swallows every exception; name the ones you mean" for place in places]
    report(problems)


def swallowing_excepts_of(module: Module) -> Iterator[int]:
    broad = {"Exception", "BaseException"}
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.ExceptHandler):
            continue
        caught = {"BaseException"} if node.type is None else {ast.unparse(each) for each in _members(node.type)}
        last = node.body[-1]
        if caught & broad and not (isinstance(last, ast.Raise) and last.exc is None):
            yield node.lineno


def _members(node: ast.expr) -> list[ast.expr]:
    return node.elts if isinstance(node, ast.Tuple) else [node]


# ----------------------------------------------------------------------------------------------------- sizes


def test_files_stay_small() -> None:
    lengths = {module.path: len(module.text.splitlines()) for module in modules() if module.text.strip()}
    problems: list[str] = []
    for path, length in lengths.items():
        limit = limit_for(path, STRICT_FILE_LINES_MAX.get(path, FILE_LINES_MAX))
        if length > limit:
            problems.append(f"{path} has {length} lines; its limit is {limit}")
    median = statistics.median(lengths.values())
    if median > FILE_LINES_MEDIAN_MAX:
        problems.append(f"the median file has {median:.0f} lines; the limit is {FILE_LINES_MEDIAN_MAX}")
    report(problems)


def test_functions_stay_small() -> None:
    problems: list[str] = []
    for module in modules():
        for key, function, is_method in functions_of(module):
            lines, limit = lines_of(function), limit_for(key, FUNCTION_LINES_MAX)
            if lines > limit:
                problems.append(f"{key} has {lines} lines; its limit is {limit}")
            if positional_parameters_of(function, is_method) > POSITIONAL_PARAMETERS_MAX:
                problems.append(f"{key} takes more than {POSITIONAL_PARAMETERS_MAX} positional parameters: add a `*`")
    report(problems)


def test_functions_stay_shallow() -> None:
    problems: list[str] = []
    for module in modules():
        for key, function, _ in functions_of(module):
            depth, limit = nesting_of(function.body), limit_for(f"{key} nesting", NESTING_MAX)
            if depth > limit:
                problems.append(f"{key} nests {depth} deep; its limit is {limit}")
    report(problems)


def lines_of(function: Function) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def positional_parameters_of(function: Function, is_method: bool) -> int:
    static = any(ast.unparse(decorator) == "staticmethod" for decorator in function.decorator_list)
    count = len(function.args.posonlyargs) + len(function.args.args)
    return count - 1 if is_method and not static else count


def nesting_of(body: list[ast.stmt]) -> int:
    """How deep branches and loops nest. `with` and `try` are not decisions and do not count; `elif` is one level."""
    return max((_depth_of(statement) for statement in body), default=0)


def _depth_of(statement: ast.stmt) -> int:
    match statement:
        case ast.If(body=body, orelse=[ast.If() as other]) if other.col_offset == statement.col_offset:
            return max(1 + nesting_of(body), _depth_of(other))
        case ast.If() | ast.For() | ast.AsyncFor() | ast.While():
            return 1 + max(nesting_of(statement.body), nesting_of(statement.orelse))
        case ast.Match(cases=cases):
            return 1 + max(nesting_of(case.body) for case in cases)
        case ast.With() | ast.AsyncWith():
            return nesting_of(statement.body)
        case ast.Try() | ast.TryStar():
            handled = [inner for handler in statement.handlers for inner in handler.body]
            return nesting_of([*statement.body, *handled, *statement.orelse, *statement.finalbody])
        case _:
            return 0


def test_exceptions_are_still_needed_and_say_why() -> None:
    measured: dict[str, tuple[int, int]] = {}
    for module in modules():
        usual = STRICT_FILE_LINES_MAX.get(module.path, FILE_LINES_MAX)
        measured[module.path] = (len(module.text.splitlines()), usual)
        for key, function, _ in functions_of(module):
            measured[key] = (lines_of(function), FUNCTION_LINES_MAX)
            measured[f"{key} nesting"] = (nesting_of(function.body), NESTING_MAX)
    problems: list[str] = []
    for key, (_, reason) in EXCEPTIONS.items():
        actual, usual = measured.get(key, (0, 0))
        if actual <= usual:
            problems.append(f"{key} no longer needs its exception; remove it")
        if not reason:
            problems.append(f"{key} has an exception without a reason")
    report(problems)


# ----------------------------------------------------------------------------------------------- the surface


def test_file_names_are_nouns_of_the_domain() -> None:
    problems: list[str] = []
    for path in sorted(SOURCE.rglob("*")):
        relative = path.relative_to(SOURCE)
        name = path.stem.strip("_")
        # `api/models.py` serves the URL noun /v1/models.
        if (path.is_dir() or path.suffix == ".py") and name in BANNED_NAMES and relative.as_posix() != "api/models.py":
            problems.append(f"{relative} says nothing; what is the name of the concept?")
    report(problems)


def test_every_module_says_what_it_is() -> None:
    empty = [module.path for module in modules() if module.text.strip() and not ast.get_docstring(module.tree)]
    report([f"{path} has no docstring" for path in empty])


def test_silenced_checks_say_why() -> None:
    silenced = re.compile(r"#\s*(?:noqa|type:\s*ignore|pyright:\s*ignore)\b(?P<rest>.*)")
    problems: list[str] = []
    for path in sorted([*SOURCE.rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            found = silenced.search(line)
            if found and path.name != Path(__file__).name and not re.search(r"\s#\s*\S", found["rest"]):
                problems.append(f"{path.relative_to(ROOT)}:{number} silences a check; add `  # why` behind it")
    report(problems)


# ----------------------------------------------------------------------------------------- the rules' own teeth


def _module(text: str, *, path: str = "domain/thing.py") -> Module:
    parts = path.removesuffix(".py").split("/")
    return Module(path, parts[0], ".".join(["corral", *parts]), text, ast.parse(text))


def test_imports_hidden_in_functions_are_seen() -> None:
    hidden = "def f():\n    if x:\n        from corral.api import routes\n    import_module('corral.storage.sqlite')\n"
    assert [found.name for found in imports_of(_module(hidden))] == ["corral.api.routes", "corral.storage.sqlite"]


def test_relative_imports_are_resolved() -> None:
    assert [found.name for found in imports_of(_module("from . import event\nfrom ..errors import Invalid\n"))] == [
        "corral.domain.event",
        "corral.errors.Invalid",
    ]


def test_cycles_are_found() -> None:
    assert list(cycles_in({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == [["a", "b", "c", "a"]]
    assert list(cycles_in({"a": {"b", "c"}, "b": {"c"}, "c": set()})) == []


@pytest.mark.parametrize(
    ("text", "depth"),
    [
        ("x = 1", 0),
        ("if a:\n  pass\nelif b:\n  pass\nelif c:\n  pass", 1),
        ("if a:\n  pass\nelse:\n  if b:\n    pass", 2),
        ("for a in b:\n  with c:\n    try:\n      if d:\n        pass\n    except E:\n      pass", 2),
        ("match a:\n  case 1:\n    while b:\n      pass\n  case _:\n    pass", 2),
        ("if a:\n  def f():\n    if b:\n      pass", 1),
    ],
)
def test_nesting_counts_decisions_and_not_contexts(text: str, depth: int) -> None:
    assert nesting_of(ast.parse(text).body) == depth


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import os", True),
        ("from urllib import request", True),
        ("from urllib.parse import urlsplit", False),
        ("async def f(): ...", True),
        ("moment = datetime.now(UTC)", True),
        ("moment = clock.now()", False),
        ("import re\nfrom datetime import datetime", False),
    ],
)
def test_impure_code_is_recognised(text: str, found: bool) -> None:
    assert bool(list(impurities_of(_module(text)))) is found


@pytest.mark.parametrize(
    ("handler", "found"),
    [
        ("except Exception:\n  pass", True),
        ("except (ValueError, Exception) as e:\n  log(e)", True),
        ("except:\n  pass", True),
        ("except BaseException:\n  undo()\n  raise", False),
        ("except ValueError:\n  pass", False),
    ],
)
def test_swallowing_is_recognised(handler: str, found: bool) -> None:
    assert bool(list(swallowing_excepts_of(_module(f"try:\n  x()\n{handler}")))) is found
