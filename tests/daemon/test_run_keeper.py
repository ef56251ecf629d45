"""What a run has become is on disk before it is told, or soon after, and the last word stays."""

from meshd.daemon.run_keeper import RunKeeper
from meshd.gossip.effects import IdentityRaised
from meshd.model import Epoch, Incarnation
from meshd.security.statedir import Run, StateDir


def test_a_new_epoch_is_written_at_once_and_of_incarnations_the_last(tmp_path):
    state = StateDir(tmp_path)
    keeper = RunKeeper(state)
    keeper.keep()
    keeper.begin(state.begin_run(1_000))
    for number in (1, 2):
        keeper.raised(IdentityRaised(Epoch(1_000), Incarnation(number)))
    assert keeper.is_due
    assert state.read_run() == Run(1_000, 0)
    keeper.keep()
    assert not keeper.is_due
    assert state.read_run() == Run(1_000, 2)
    keeper.raised(IdentityRaised(Epoch(1_001), Incarnation(0)))
    assert not keeper.is_due
    assert state.read_run() == Run(1_001, 0)


def test_what_the_disk_did_not_take_stays_due(tmp_path):
    state = StateDir(tmp_path / "absent")
    keeper = RunKeeper(state)
    keeper.begin(Epoch(5))
    keeper.raised(IdentityRaised(Epoch(6), Incarnation(0)))
    assert keeper.is_due
    state.open()
    keeper.keep()
    assert not keeper.is_due
    assert state.read_run() == Run(6, 0)
    state.close()
