"""Documents that lie are worse than none: what they name must exist, and what exists must be named."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from corral import config
from scripts import settings_doc

ROOT = Path(__file__).resolve().parent.parent
CHANGELOG_WORDS_MAX = 25

PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part in {"build", "dist"} for part in path.relative_to(ROOT).parts)
)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def setting_names() -> Iterator[str]:
    for field in msgspec.structs.fields(config.Settings):
        if isinstance(field.default, config.Section):
            yield from (inner.name for inner in msgspec.structs.fields(type(field.default)))
        else:
            yield field.name


def links_of(page: Path) -> Iterator[str]:
    """Targets of relative links outside code blocks, without their anchors."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if not re.match(r"[a-z]+:|#", target):
            yield target.split("#")[0]


def test_settings_page_is_fresh() -> None:
    assert read("docs/settings.md") == settings_doc.render(), "run `make format`"


def test_every_setting_and_variable_is_on_the_settings_page() -> None:
    page = read("docs/settings.md")
    missing = [name for name in [*setting_names(), *config.ENVIRONMENT] if f"`{name}`" not in page]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    broken = [target for target in links_of(page) if not (page.parent / target).exists()]
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_make_commands_in_pages_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", read("Makefile"), flags=re.MULTILINE))
    named = set(re.findall(r"(?:`|^\$? *)make ([a-z][a-z-]*)", page.read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert named <= targets


def test_the_two_commands_of_the_readme_are_there() -> None:
    assert {"make demo", "make test"} <= set(re.findall(r"make [a-z]+", read("README.md")))


def test_changelog_lines_are_short_and_unreleased_is_on_top() -> None:
    text = read("CHANGELOG.md")
    assert re.findall(r"^## (.+)$", text, flags=re.MULTILINE)[0].startswith("Unreleased")
    entries = re.findall(r"^- (.+(?:\n  .+)*)", text, flags=re.MULTILINE)
    assert entries
    assert not [entry for entry in entries if len(entry.split()) > CHANGELOG_WORDS_MAX]


@pytest.mark.parametrize("name", ["runtime", "server", "local", "dev", "uv"])
def test_requirements_are_pinned_by_hash_and_name_no_address(name: str) -> None:
    text = read(f"requirements/{name}.txt")
    pinned = re.findall(r"^\S+==\S+(?: ;[^\\\n]*)? \\\n +--hash=sha256:", text, flags=re.MULTILINE)
    assert len(pinned) == len(re.findall(r"^[a-z0-9]", text, flags=re.MULTILINE))
    assert "://" not in text
    assert "--only-binary :all:" in text


def test_package_and_pyproject_name_the_same_licence() -> None:
    assert 'license = "Apache-2.0"' in read("pyproject.toml")
    assert "Version 2.0, January 2004" in read("LICENSE")
