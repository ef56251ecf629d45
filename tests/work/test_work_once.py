"""Work under a key happens once, however often it is asked for."""

import asyncio

import pytest
from work_fakes import StillClock

from meshd.errors import BusyError, Code, DeadlineError, PeerError, UsageError
from meshd.work.idempotency import KEPT_S
from meshd.work.once import Once

KEY = ("pay", "k1")


class Payments:
    """Work that says how often it ran, ends when let through, and fails as told."""

    def __init__(self):
        self.clock = StillClock()
        self.once = Once(self.clock)
        self.runs = 0
        self.cancelled = 0
        self.open = asyncio.Event()
        self.errors = []
        self.is_idempotent = False

    async def work(self):
        self.runs += 1
        run = self.runs
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.errors:
            raise self.errors.pop(0)
        return {"run": run}

    def ask(self, value=1, timeout_s=5.0):
        return asyncio.create_task(
            self.once.run(
                KEY, value, self.work, timeout_s=timeout_s, may_repeat=lambda: self.is_idempotent
            )
        )


@pytest.fixture
async def payments():
    return Payments()


async def turn():
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_repeat_joins_the_work_or_gets_its_answer(payments):
    calls = [payments.ask(), payments.ask()]
    await turn()
    payments.open.set()
    assert await asyncio.gather(*calls) == [{"run": 1}, {"run": 1}]
    assert await payments.ask() == {"run": 1}
    payments.clock.at += KEPT_S + 1
    assert await payments.ask() == {"run": 2}


async def test_a_key_stands_for_one_input(payments):
    first = payments.ask(1)
    await turn()
    with pytest.raises(UsageError, match="used with another input"):
        await payments.ask(2)
    payments.open.set()
    await first
    with pytest.raises(UsageError, match="used with another input"):
        await payments.ask(2)
    assert payments.runs == 1


async def test_who_is_cancelled_leaves_and_the_last_one_ends_the_work(payments):
    first, second = payments.ask(), payments.ask()
    await turn()
    first.cancel()
    await turn()
    assert (first.cancelled(), payments.cancelled) == (True, 0)
    second.cancel()
    await turn()
    assert payments.cancelled == 1
    with pytest.raises(PeerError, match="went away") as caught:
        await payments.ask()
    assert (caught.value.code, caught.value.definite) == (Code.CANCELLED, False)


async def test_a_repeat_waits_no_longer_than_it_said(payments):
    first = payments.ask()
    await turn()
    with pytest.raises(DeadlineError) as caught:
        await payments.ask(timeout_s=0.001)
    assert not caught.value.definite
    payments.open.set()
    assert await first == {"run": 1}


async def test_only_an_error_that_may_have_had_an_effect_is_final(payments):
    payments.open.set()
    payments.errors = [BusyError("full"), PeerError("lost", definite=False, data={"a": 1})]
    with pytest.raises(BusyError):
        await payments.ask()
    errors = [await asyncio.gather(payments.ask(), return_exceptions=True) for _ in range(2)]
    assert [(str(e), e.definite, e.data) for (e,) in errors] == [("lost", False, {"a": 1})] * 2
    assert errors[0][0] is not errors[1][0]
    assert payments.runs == 2


async def test_where_a_second_run_does_no_harm_an_error_is_forgotten(payments):
    payments.open.set()
    payments.is_idempotent = True
    payments.errors = [PeerError("lost", definite=False)]
    with pytest.raises(PeerError):
        await payments.ask()
    assert await payments.ask() == {"run": 2}


async def test_a_fault_of_ours_is_raised_and_remembered_by_nobody(payments):
    payments.open.set()
    payments.errors = [KeyError("bug")]
    with pytest.raises(KeyError):
        await payments.ask()
    assert await payments.ask() == {"run": 2}
