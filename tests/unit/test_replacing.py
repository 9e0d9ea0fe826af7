"""Placeholders for secrets and back, in bytes that are cut anywhere."""

from __future__ import annotations

import base64
import json
import re
from itertools import pairwise
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.domain.egress import EgressPolicy, Endpoint
from corral.domain.placeholder import covers
from corral.sandboxes.egress.replacing import Replacer, disguises, replaced

pytestmark = pytest.mark.requirement("F129")
PLACEHOLDER = b"corral-secret-" + b"0123456789" * 4
LETTERS = st.lists(st.sampled_from(list(b"abc")), max_size=60).map(bytes)
TEXTS = st.dictionaries(LETTERS.filter(lambda text: 0 < len(text) < 8), LETTERS, min_size=1, max_size=4)


def in_pieces(data: bytes, texts: dict[bytes, bytes], cuts: list[int]) -> bytes:
    replacer = Replacer(texts)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    done = [replacer.feed(data[begin:end]) for begin, end in pairwise(edges)]
    return b"".join(done) + replacer.finish()


def plainly(data: bytes, texts: dict[bytes, bytes]) -> bytes:
    """The same, letter by letter."""
    done, place = b"", 0
    while place < len(data):
        here = max((text for text in texts if data.startswith(text, place)), key=len, default=b"")
        done += texts[here] if here else data[place : place + 1]
        place += len(here) or 1
    return done


def test_every_way_to_cut_a_body_in_two_gives_the_same() -> None:
    data = b"corral-secret-" + PLACEHOLDER + b" and " + PLACEHOLDER[:-1] + PLACEHOLDER
    texts = {PLACEHOLDER: b"sk-123"}
    wanted = data.replace(PLACEHOLDER, b"sk-123")
    assert all(in_pieces(data, texts, [cut]) == wanted for cut in range(len(data) + 1))
    assert in_pieces(data, texts, list(range(len(data)))) == wanted


@given(LETTERS, TEXTS, st.lists(st.integers(0, 60), max_size=8))
def test_however_it_is_cut_the_leftmost_and_longest_is_replaced(
    data: bytes, texts: dict[bytes, bytes], cuts: list[int]
) -> None:
    assert in_pieces(data, texts, cuts) == plainly(data, texts)


def test_what_cannot_go_on_as_a_secret_passes_at_once() -> None:
    replacer = Replacer({b"secret": b"*"})
    assert replacer.feed(b"data: hello\n\n") == b"data: hello\n\n"
    assert replacer.feed(b"data: sec") == b"data: "
    assert replacer.feed(b"ond\n\n") == b"second\n\n"


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=6, max_size=40), st.binary(max_size=7))
def test_a_secret_is_found_however_an_answer_spells_it(secret: str, before: bytes) -> None:
    texts = dict.fromkeys(disguises(secret), b"*")
    spelled = [secret, json.dumps(secret), json.dumps(secret, ensure_ascii=False), quote(secret), quote_plus(secret)]
    spelled += [re.sub("%..", lambda found: found[0].lower(), quote(secret, safe="")), secret.encode().hex()]
    for text in spelled:
        assert b"*" in replaced(b"<" + text.encode() + b">", texts), text
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        whole = encode(before + secret.encode() + b"after")
        if len(secret.encode()) > 8:
            assert b"*" in replaced(whole, texts)


def test_a_wildcard_means_what_is_below_and_not_the_name_itself() -> None:
    assert covers("*.x.test", "a.x.test") and covers("*.x.test", "a.b.x.test")
    assert not covers("*.x.test", "x.test") and not covers("*.x.test", "ax.test")
    assert covers("x.test", "x.test") and not covers("x.test", "a.x.test")


def test_a_listed_host_is_out_of_reach_when_the_environment_allows_nothing_that_it_means() -> None:
    policy = EgressPolicy(hosts=("a.x.test", "*.y.test"), endpoints=(Endpoint("mcp.z.test", 8443),))
    reached = ["a.x.test", "*.x.test", "b.y.test", "*.y.test", "*.deep.y.test", "mcp.z.test", "*.z.test"]
    assert [entry for entry in reached if not policy.reaches_some(entry)] == []
    assert [entry for entry in ("x.test", "y.test", "z.test", "*.w.test") if policy.reaches_some(entry)] == []
    assert EgressPolicy(unrestricted=True).reaches_some("anything.test")
