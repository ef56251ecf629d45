"""A bound on what is awaited: by time, by others, and beside a cancellation of the task itself."""

import asyncio
import contextlib

import pytest

from meshd.scope import Scope

LONG_S = 60.0


async def for_ever() -> None:
    await asyncio.get_running_loop().create_future()


async def begun(work) -> asyncio.Task:
    """The task, once it waits."""
    task = asyncio.create_task(work)
    await asyncio.sleep(0)
    return task


async def within(scope) -> str:
    """What becomes of who waits in it."""
    try:
        with scope:
            await for_ever()
    except TimeoutError:
        return "ended"
    return "not ended"


async def test_what_takes_too_long_is_ended_by_time():
    scope = Scope(0.01)
    with pytest.raises(TimeoutError), scope:
        await for_ever()
    assert scope.has_ended
    assert asyncio.current_task().cancelling() == 0


async def test_what_is_done_in_time_is_not_ended_and_leaves_no_timer():
    with Scope(LONG_S) as scope:
        await asyncio.sleep(0)
    scope.end()
    await asyncio.sleep(0)
    assert not scope.has_ended


async def test_its_own_error_passes():
    with pytest.raises(KeyError), Scope(LONG_S):
        raise KeyError("own")


async def test_others_can_end_it_before_its_time_and_once_is_enough():
    scope = Scope(None)

    task = await begun(within(scope))
    scope.end()
    scope.end()
    assert await task == "ended"


async def test_it_cannot_be_ended_before_it_begins():
    scope = Scope(LONG_S)
    scope.end()
    await asyncio.sleep(0)
    with scope:
        await asyncio.sleep(0)
    assert not scope.has_ended


@pytest.mark.parametrize("is_ended_too", [False, True])
async def test_who_is_cancelled_himself_is_cancelled_and_not_late(is_ended_too):
    scope = Scope(LONG_S)

    async def work() -> None:
        with scope:
            await for_ever()

    task = await begun(work())
    if is_ended_too:
        scope.end()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_error_that_comes_of_being_ended_is_that_error():
    scope = Scope(LONG_S)

    async def work() -> None:
        with scope:
            try:
                await for_ever()
            except asyncio.CancelledError:
                raise KeyError("on the way out") from None

    task = await begun(work())
    scope.end()
    with pytest.raises(KeyError):
        await task
    assert task.cancelling() == 0


async def test_of_two_scopes_the_one_that_was_ended_says_so():
    inner, outer = Scope(LONG_S), Scope(LONG_S)

    async def work() -> str:
        try:
            with outer:
                try:
                    with inner:
                        await for_ever()
                except TimeoutError:
                    return "inner"
        except TimeoutError:
            return "outer"
        return "neither"

    for scope, name in ((inner, "inner"), (outer, "outer")):
        inner.has_ended = outer.has_ended = False
        task = await begun(work())
        scope.end()
        assert await task == name


async def test_who_swallows_the_end_of_his_time_goes_on():
    with Scope(0.0) as scope, contextlib.suppress(asyncio.CancelledError):
        await for_ever()
    assert scope.has_ended
    assert asyncio.current_task().cancelling() == 0


async def test_what_is_there_already_is_not_lost_to_an_end_of_the_same_moment():
    scope, there = Scope(LONG_S), asyncio.get_running_loop().create_future()

    async def work() -> str:
        with scope:
            return await there

    task = await begun(work())
    there.set_result("here")
    scope.end()
    assert await task == "here"
    assert not scope.has_ended


async def test_who_ends_his_own_scope_and_leaves_it_hears_nothing_of_it():
    with Scope(LONG_S) as scope:
        scope.end()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not scope.has_ended


async def test_in_a_task_that_is_being_cancelled_already_an_end_is_still_told():
    scope = Scope(LONG_S)

    async def work() -> str:
        try:
            await for_ever()
        except asyncio.CancelledError:
            return await within(scope)

    task = await begun(work())
    task.cancel()
    await asyncio.sleep(0)
    scope.end()
    assert await task == "ended"
    assert task.cancelling() == 1
