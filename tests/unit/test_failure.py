"""How long a failed request waits before it is made again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.config_sections import HarnessSettings
from corral.errors import ProviderOverloaded, ProviderRefused
from corral.harness.failure import backoff_seconds, error_object

SETTINGS = HarnessSettings(
    backoff_seconds=1.0, backoff_seconds_max=8.0, retry_after_seconds_max=100.0, model_attempts_max=3
)


@pytest.mark.requirement("F068")
@given(st.integers(0, 40))
def test_the_wait_doubles_up_to_its_limit_and_at_most_half_of_it_is_left_to_chance(attempt: int) -> None:
    full = min(2.0 ** max(0, attempt - 1), 8.0)
    assert full / 2 <= backoff_seconds(attempt, None, SETTINGS) <= full


def test_two_waits_differ() -> None:
    assert len({backoff_seconds(3, None, SETTINGS) for _ in range(20)}) > 1


@pytest.mark.requirement("F068")
@pytest.mark.parametrize(("asked", "waited"), [(20.0, 20.0), (99.0, 99.0), (100_000.0, 100.0)])
def test_a_server_that_says_how_long_to_wait_is_heard_even_beyond_our_own_limit(asked: float, waited: float) -> None:
    assert backoff_seconds(1, asked, SETTINGS) == waited


def test_a_server_that_asks_for_less_than_we_would_wait_does_not_hurry_us() -> None:
    assert backoff_seconds(4, 0.1, SETTINGS) >= 4.0


@pytest.mark.requirement("F068")
def test_the_last_attempt_and_what_no_retry_mends_are_exhausted() -> None:
    tried = [error_object(ProviderOverloaded(), attempt=n, settings=SETTINGS).retry_status for n in range(3)]
    assert [type(status).__name__ for status in tried] == ["Retrying", "Retrying", "Exhausted"]
    refused = error_object(ProviderRefused(), attempt=0, settings=SETTINGS).retry_status
    assert type(refused).__name__ == "Exhausted"
