"""Writes docs/settings.md from config.py: names, defaults, variables and the sentences under the fields.

Run by `make format`; tests/test_docs.py fails when the page is stale. The values come from the imported classes and
the sentences from the source, since Python keeps no docstrings of fields.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import msgspec

from corral import config

PAGE = Path(__file__).resolve().parent.parent / "docs" / "settings.md"

HEAD = """\
# Settings

*Written by `scripts/settings_doc.py` from `src/corral/config.py`; change it there and run `make format`.*

A setting comes from the command line, else from the environment, else from `corral.toml`, else from its default.
`corral.toml` is read from the working directory, or from where `corral serve --config` or `CORRAL_CONFIG` says. A key
that Corral does not know is an error. Units are the last word of a name; `_max` is a limit.
"""

SECRETS = """\
The environment is their place. They never enter a sandbox.
"""

RESOLVED = {
    "data_dir": "`$XDG_DATA_HOME/corral`, else `~/.local/share/corral`",
    "cache_dir": "`$XDG_CACHE_HOME/corral`, else `~/.cache/corral`",
    "database": "`sqlite:///<data_dir>/corral.db`",
}
"""Defaults that `config.load` works out."""


def render() -> str:
    """The whole page."""
    lines = [HEAD, "## Top level", "", *_table(config.Settings, "")]
    for name, kind in _sections():
        title = "Secrets" if kind is config.Secrets else f"`[{name}]`"
        lines += ["", f"## {title}", "", inspect.getdoc(kind) or "", ""]
        lines += [SECRETS] if kind is config.Secrets else []
        lines += _table(kind, f"{name}.")
        for inner, part in _sections(kind):
            lines += [
                "",
                f"## `[{name}.{inner}]`",
                "",
                inspect.getdoc(part) or "",
                "",
                *_table(part, f"{name}.{inner}."),
            ]
    for title, kind in (("`[[models]]`", config.ModelRoute), ('`[prices."<model id>"]`', config.ModelPrice)):
        lines += ["", f"## {title}", "", inspect.getdoc(kind) or "", "", *_table(kind, "")]
    return "\n".join(lines) + "\n"


def _sections(kind: type[config.Section] = config.Settings) -> Iterator[tuple[str, type[config.Section]]]:
    for field in msgspec.structs.fields(kind):
        if isinstance(field.default, config.Section):
            yield field.name, type(field.default)


def _table(kind: type[config.Section], prefix: str) -> Iterator[str]:
    variables = {name: variable for variable, name in config.ENVIRONMENT.items()}
    notes, types = _source_of(kind)
    yield from ("| setting | default | variable | |", "|---|---|---|---|")
    for field in msgspec.structs.fields(kind):
        if isinstance(field.default, config.Section):
            continue
        variable = variables.get(prefix + field.name)
        note = " ".join(filter(None, [_choices(types[field.name]), notes.get(field.name)]))
        named = f"`{variable}`" if variable else ""
        yield f"| `{field.name}` | {_default(kind, field)} | {named} | {note} |"


def _source_of(kind: type[config.Section]) -> tuple[dict[str, str], dict[str, str]]:
    """The sentence under each field, and the type as it is written."""
    notes: dict[str, str] = {}
    types: dict[str, str] = {}
    last = ""
    (definition,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(definition, ast.ClassDef)
    for node in definition.body:
        match node:
            case ast.AnnAssign(target=ast.Name(id=last), annotation=annotation):
                types[last] = ast.unparse(annotation)
            case ast.Expr(value=ast.Constant(value=str(text))) if last:
                notes[last] = " ".join(text.split()).replace("|", "\\|")
            case _:
                pass
    return notes, types


def _choices(annotation: str) -> str:
    if not annotation.startswith("Literal["):
        return ""
    values = ast.literal_eval(annotation.removeprefix("Literal").replace("'", '"'))
    return "One of " + ", ".join(f"`{value}`" for value in values) + "."


def _default(kind: type[config.Section], field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return RESOLVED.get(field.name, "required") if kind is config.Settings else "required"
    match field.default:
        case bool(flag):
            return f"`{flag}`".lower()
        case int(number) if "bytes" in field.name:
            return _bytes(number)
        case int(number):
            return f"`{number:_}`" if number >= 10_000 else f"`{number}`"
        case float(number):
            return f"`{number:g}`"
        case str(text):
            return f"`{text}`"
        case _:
            return ""


def _bytes(value: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if value % size == 0:
            return f"{value // size} {unit}"
    return str(value)


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(render(), encoding="utf-8")
