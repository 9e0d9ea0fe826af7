"""The contract of engines, on all of them: who is advanced and when, by how many, and what happens when they stop."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import anyio
import pytest

from corral.errors import NotFound, Unavailable
from tests import temporal_server
from tests.contracts.engine_worlds import BACKENDS, WAIT_SECONDS_MAX, World, new_session_id, world

pytestmark = pytest.mark.anyio


@pytest.fixture(params=BACKENDS)
async def engines(request: pytest.FixtureRequest) -> AsyncGenerator[World]:
    if request.param == "temporal" and (why := temporal_server.unavailable()):
        pytest.skip(why)
    async with world(request.param) as made:
        yield made


async def test_a_woken_session_is_advanced_until_it_rests(engines: World) -> None:
    await engines.start()
    session_id = new_session_id()
    engines.engine.wake(session_id)
    turn = await engines.hands.next()
    assert (turn.session_id, turn.inherited, turn.interrupted.is_set()) == (session_id, False, False)
    await engines.hands.rest(turn)
    engines.engine.wake(session_id)
    again = await engines.hands.next()
    assert (again.session_id, again.inherited) == (session_id, False)


@pytest.mark.requirement("F076")
async def test_a_wake_during_a_turn_is_kept_for_its_end_and_nobody_else_takes_the_session(engines: World) -> None:
    await engines.start()
    session_id, other = new_session_id(), new_session_id()
    engines.engine.wake(session_id)
    first = await engines.hands.next()
    for _ in range(5):
        engines.engine.wake(session_id)
    engines.engine.wake(other)
    # Whoever is woken later is advanced while the first still is.
    aside = await engines.hands.next()
    assert aside.session_id == other
    await engines.hands.rest(aside)
    await engines.hands.rest(first)
    second = await engines.hands.next()
    assert (second.session_id, second.inherited) == (session_id, False)
    assert engines.hands.most == {session_id: 1, other: 1}


async def test_an_interrupt_reaches_a_running_turn_and_wakes_one_that_rests(engines: World) -> None:
    await engines.start()
    session_id = new_session_id()
    engines.engine.interrupt(session_id)
    first = await engines.hands.next()
    first.interrupted.clear()
    engines.engine.interrupt(session_id)
    with anyio.fail_after(WAIT_SECONDS_MAX):
        await first.interrupted.wait()
    await engines.hands.rest(first)
    assert (await engines.hands.next()).session_id == session_id


@pytest.mark.requirement("F069")
async def test_what_the_last_server_left_unfinished_is_resumed_as_inherited(engines: World) -> None:
    session_id = new_session_id()
    await engines.start([session_id])
    turn = await engines.hands.next()
    assert (turn.session_id, turn.inherited) == (session_id, True)


async def test_a_turn_without_its_store_is_tried_again_as_inherited(engines: World) -> None:
    await engines.start()
    session_id = new_session_id()
    engines.hands.failures.append(Unavailable("the disk is full"))
    engines.engine.wake(session_id)
    await engines.hands.rest(await engines.hands.next())
    again = await engines.hands.next()
    assert (again.session_id, again.inherited) == (session_id, True)


async def test_a_bug_ends_one_session_and_no_other(engines: World) -> None:
    await engines.start()
    broken, other = new_session_id(), new_session_id()
    engines.hands.failures.append(ZeroDivisionError("a bug"))
    engines.engine.wake(broken)
    await engines.hands.rest(await engines.hands.next())
    with anyio.fail_after(WAIT_SECONDS_MAX):
        assert await engines.hands.given_up.get() == broken
    engines.engine.wake(other)
    assert (await engines.hands.next()).session_id == other


@pytest.mark.requirement("F069")
async def test_a_session_that_broke_and_could_not_be_given_up_for_want_of_its_store_is_tried_again(
    engines: World,
) -> None:
    await engines.start()
    session_id = new_session_id()
    engines.hands.failures.append(ZeroDivisionError("a bug, or what the lost store looked like"))
    engines.hands.refusals.append(Unavailable("no database"))
    engines.engine.wake(session_id)
    await engines.hands.rest(await engines.hands.next())
    again = await engines.hands.next()
    assert (again.session_id, again.inherited) == (session_id, True)


async def test_a_session_that_is_gone_is_left_alone(engines: World) -> None:
    await engines.start()
    gone, other = new_session_id(), new_session_id()
    engines.hands.failures.append(NotFound("no such session"))
    engines.engine.wake(gone)
    await engines.hands.rest(await engines.hands.next())
    engines.engine.wake(other)
    assert (await engines.hands.next()).session_id == other
    assert engines.hands.given_up.empty()


async def test_stopping_lets_turns_end_for_a_while_and_then_cancels_them(engines: World) -> None:
    await engines.start()
    session_id = new_session_id()
    engines.engine.wake(session_id)
    turn = await engines.hands.next()
    with anyio.fail_after(WAIT_SECONDS_MAX):
        await engines.stop()
    assert engines.hands.cancelled == [turn.session_id]
    engines.engine.wake(session_id)
    assert engines.hands.begun.empty()
