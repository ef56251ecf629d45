"""What the workers of the routing bench do: sleep for as long as a task takes, or fail at once.

Each daemon's environment says which worker it is.
"""

import asyncio
import os
import time

from meshd import capability

TASK_S = float(os.environ.get("ROUTING_TASK_S", "0.1"))
IS_FAILING = os.environ.get("ROUTING_FAILS", "") == "yes"
IS_IDEMPOTENT = os.environ.get("ROUTING_IDEMPOTENT", "") == "yes"
PRICE_USD = float(os.environ.get("ROUTING_PRICE_USD", "0"))
PROFICIENCY = float(os.environ.get("ROUTING_PROFICIENCY", "0.5"))


@capability(idempotent=IS_IDEMPOTENT, cost_usd_per_call=PRICE_USD, proficiency=PROFICIENCY)
async def work() -> tuple[float, float]:
    """Take that long, and no processor; the result says from when to when, by the host's clock."""
    began = time.monotonic()
    if IS_FAILING:
        raise RuntimeError("this worker fails every task")
    await asyncio.sleep(TASK_S)
    return began, time.monotonic()
