"""Every promised feature has a test, and every test that names a feature names one that is promised."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tests.requirements import REQUIREMENTS

TESTS = Path(__file__).resolve().parent


class Named(NamedTuple):
    """One feature that one test names."""

    requirement: str
    where: str


@cache
def named() -> tuple[Named, ...]:
    return tuple(each for path in sorted(TESTS.rglob("test_*.py")) for each in _named_in(path))


def _named_in(path: Path) -> Iterator[Named]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Call(func=ast.Attribute(attr="requirement", value=ast.Attribute(attr="mark")), args=arguments):
                where = f"{path.relative_to(TESTS)}:{node.lineno}"
                assert arguments, f"{where} names no requirement"
                for argument in arguments:
                    assert isinstance(argument, ast.Constant), f"{where} must name requirements in plain text"
                    yield Named(str(argument.value), where)
            case _:
                pass


def test_every_feature_that_is_built_has_a_test() -> None:
    covered = {each.requirement for each in named()}
    missing = [name for name, requirement in REQUIREMENTS.items() if not requirement.deferred and name not in covered]
    assert not missing


def test_every_test_names_features_that_are_promised() -> None:
    assert [each for each in named() if each.requirement not in REQUIREMENTS] == []


def test_a_deferred_feature_says_what_it_waits_for_and_has_no_test() -> None:
    deferred = {name: requirement for name, requirement in REQUIREMENTS.items() if requirement.deferred}
    assert all(requirement.later for requirement in deferred.values())
    assert [each for each in named() if each.requirement in deferred] == []


def test_features_are_in_order_and_have_the_contracts_names() -> None:
    assert list(REQUIREMENTS) == sorted(REQUIREMENTS)
    assert all(re.fullmatch(r"F[0-9]{3}", name) for name in REQUIREMENTS)
