"""A run follows from its plan alone: twice, under any hash seed, and as it did when pinned."""

import json
import os
import subprocess
import sys

import pytest
import repository

from sim.runner import run
from sim.scenarios import SCENARIOS

PINNED = [
    ("crash", 30, 3, 0.01, "ca407c7cf0d9b0e1f2141622f5570ef2"),
    ("split", 10, 5, 0.0, "04d21f5726c67d9a86f08af2c9aaf01a"),
    ("swarm", 0, 7, 0.0, "4a8f36632966f1b7d70b0ee0cccf00f5"),
]
"""They change with the protocol, and only with it: then print them anew and say why."""
DURATION_S = 40.0


def digest(scenario: str, nodes: int, seed: int, loss: float) -> str:
    return run(SCENARIOS[scenario].make(nodes, seed, DURATION_S, loss)).digest


@pytest.mark.parametrize(("scenario", "nodes", "seed", "loss", "pinned"), PINNED)
def test_a_pinned_run_has_not_changed(scenario, nodes, seed, loss, pinned):
    assert digest(scenario, nodes, seed, loss) == pinned


@pytest.mark.parametrize("scenario", ["join_storm", "churn", "lossy", "two_meshes"])
def test_the_same_plan_gives_the_same_digest_and_another_seed_another(scenario):
    once, again, other = (digest(scenario, 10, seed, 0.02) for seed in (4, 4, 5))
    assert once == again
    assert once != other


@pytest.mark.slow
@pytest.mark.parametrize("hash_seed", ["0", "12345"])
def test_no_order_comes_from_hashes(hash_seed):
    seen = []
    for scenario, nodes, seed, loss, _ in PINNED:
        command = [
            *(sys.executable, "-m", "sim", "run", scenario, "--json", "--duration", "40s"),
            *("--seed", str(seed), "--loss", str(loss)),
            *(("--nodes", str(nodes)) if nodes else ()),
        ]
        done = subprocess.run(
            command,
            cwd=repository.ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        seen.append(json.loads(done.stdout)["digest"])
    assert seen == [row[-1] for row in PINNED]
