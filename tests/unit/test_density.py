"""Values of JSON are counted as they come, wherever the pieces are cut, and whatever strings look like."""

from __future__ import annotations

import json
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.mcp.density import Density

pytestmark = pytest.mark.requirement("F032")
LEAVES = st.none() | st.integers() | st.text(alphabet='a"\\\\{[]}\\n, é', max_size=8)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4)
)


def counted(value: object) -> int:
    """Strings, objects and lists, names among the strings."""
    if isinstance(value, dict):
        named = cast("dict[str, object]", value)
        return 1 + sum(counted(name) + counted(each) for name, each in named.items())
    if isinstance(value, list):
        return 1 + sum(map(counted, cast("list[object]", value)))
    return int(isinstance(value, str))


def admitted(data: bytes, limit: int, size: int, *, is_stream: bool = False) -> bool:
    density = Density(limit, is_stream=is_stream)
    return all(density.admits(data[at : at + size]) for at in range(0, len(data), size))


@given(VALUES, st.integers(1, 7), st.sampled_from([None, 1]))
def test_the_count_is_exact_wherever_pieces_are_cut(value: object, size: int, indent: int | None) -> None:
    data, count = json.dumps(value, indent=indent).encode(), counted(value)
    assert admitted(data, count, size)
    assert count == 0 or not admitted(data, count - 1, size)


@given(st.lists(VALUES, min_size=1, max_size=4), st.integers(1, 7), st.sampled_from(["\n", "\r", "\r\n"]))
def test_each_event_of_a_stream_is_counted_by_itself(values: list[object], size: int, end: str) -> None:
    events = [f'id: 7{end}: a "comment{end}data: {json.dumps(value)}{end}{end}' for value in values]
    most = max(map(counted, values)) + 1
    assert admitted("".join(events).encode(), most, size, is_stream=True)
    assert not admitted("".join(events).encode(), most - 2, size, is_stream=True) or most < 2
    # Elsewhere an empty line is only space.
    assert admitted(end.join(events).encode(), sum(map(counted, values)) + len(values), size)


@pytest.mark.parametrize("unit", [b"{},", b"[],", b'"",', b'{"type":"text","text":""},', b'"\\"",', b"[\n\n"])
def test_what_a_parser_would_drown_in_is_cut_off_early(unit: bytes) -> None:
    density, pieces = Density(1_000, is_stream=False), 0
    while density.admits(unit * 100):
        pieces += 1
        assert pieces < 20
