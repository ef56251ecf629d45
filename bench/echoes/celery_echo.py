"""Celery with Redis as broker and result store.

celery -A celery_echo worker ...; python celery_echo.py caller
"""

import os
import sys

from celery import Celery
from loop import TEXT, obey_in_threads

URL = os.environ["ECHO_REDIS"]
app = Celery("celery_echo", broker=URL, backend=URL)
app.conf.update(task_ignore_result=False, worker_prefetch_multiplier=16, result_expires=60)


@app.task(name="echo")
def echo(text: str) -> str:
    """Give it back."""
    return text


def call() -> None:
    assert echo.delay(TEXT).get(timeout=10, interval=0.001) == TEXT


if __name__ == "__main__" and sys.argv[1:] == ["caller"]:
    obey_in_threads(call)
