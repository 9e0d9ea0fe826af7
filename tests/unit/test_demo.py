"""What `corral demo` takes for the first 20 Fibonacci numbers."""

from __future__ import annotations

import pytest

from corral.commands.demo import is_fibonacci

FROM_ZERO = [0, 1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610, 987, 1597, 2584, 4181]


@pytest.mark.parametrize("separator", ["\n", ", ", " "])
def test_the_first_twenty_numbers_are_right_however_they_are_separated(separator: str) -> None:
    assert is_fibonacci(separator.join(map(str, FROM_ZERO)))
    assert is_fibonacci(separator.join(map(str, [*FROM_ZERO[1:], 6765])))


@pytest.mark.parametrize("text", ["", "0 1", "no numbers", " ".join(map(str, FROM_ZERO[:-1])), "1 " * 20])
def test_anything_else_is_wrong(text: str) -> None:
    assert not is_fibonacci(text)
