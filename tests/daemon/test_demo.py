"""The demo does what it promises, in time, and leaves nothing behind."""

import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import repository

DEMO = repository.ROOT / "script" / "demo"
WITHIN_S = 60.0

pytestmark = [pytest.mark.no_cover, pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture(scope="module", autouse=True)
def set_up():
    """Skip where the demo would first have to install something."""
    ask = '. "$root/script/setup"; is_current demo'
    done = subprocess.run(
        ["sh", "-c", ask], env={**os.environ, "root": str(repository.ROOT)}, check=False
    )
    if done.returncode != 0:
        pytest.skip("needs an up-to-date environment: run script/setup demo")


@contextmanager
def _demo(*options: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """The running demo and the folder for its temporary files; at the end all of it is gone."""
    # Not pytest's own folder: a socket's path may have a hundred bytes.
    with tempfile.TemporaryDirectory(prefix="meshd-", ignore_cleanup_errors=True) as place:
        running = subprocess.Popen(
            [DEMO, *options],
            env={**os.environ, "TMPDIR": place, "PIP_NO_INDEX": "1"},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, start_new_session=True,
        )  # fmt: skip
        try:
            yield running, Path(place)
        finally:
            if _is_anybody_left(running.pid):
                os.killpg(running.pid, signal.SIGKILL)
            running.communicate()


def _is_anybody_left(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    assert found, f"{pattern} is not in:\n{text}"
    return float(found[1])


def test_the_demo_loses_no_request_and_leaves_nothing():
    began = time.monotonic()
    with _demo() as (running, place):
        text, _ = running.communicate(timeout=WITHIN_S)
        took_s = time.monotonic() - began
        assert running.returncode == 0, text
        assert took_s < WITHIN_S
        assert not _is_anybody_left(running.pid)
        assert not list(place.iterdir())
    asked = _number(r"(\d+) requests, \d+ right answers, 0 lost", text)
    assert asked == _number(r"\d+ requests, (\d+) right answers, 0 lost", text)
    assert asked > 0
    victim = re.search(r"kill -9 \d+: (\w+) is dead", text)
    assert victim
    assert victim[1] in {"bob", "cleo"}
    assert text.count(f"declares {victim[1]} dead") == 2
    assert re.search(rf"^ +{victim[1]} +dead ", text, re.MULTILINE)
    assert _number(r"all three see each other ([\d.]+) s", text) < WITHIN_S
    assert "by mDNS on lo" in text or "by seeds: " in text


def test_an_interrupted_demo_leaves_nothing():
    with _demo("--profile", "local", "--no-mdns") as (running, place):
        assert running.stdout is not None
        seen = []
        for line in running.stdout:
            seen.append(line)
            if "second   answered" in line:
                break
        os.killpg(running.pid, signal.SIGINT)
        rest, _ = running.communicate(timeout=30)
        text = "".join(seen) + rest
        assert "by seeds: " in text
        assert running.returncode == 130, text
        assert not _is_anybody_left(running.pid)
        assert not list(place.iterdir())
