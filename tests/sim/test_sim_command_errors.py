"""Bad input to the simulator's commands: what, why, how to fix; never a traceback."""

import gzip
import os

import pytest

PLAN = 'nodes = 4\nduration_s = 10.0\n[[fault]]\nat_s = 1.0\nkind = "crash"\nnode = 1\n'


@pytest.mark.parametrize(
    ("words", "what", "fix"),
    [
        (["run", "splt"], "no scenario 'splt'", "did you mean 'split'"),
        (["run", "xyz"], "no scenario 'xyz'", "meshd sim list"),
        (["replay", "no/such/thing"], "no scenario 'no/such/thing'", "meshd sim list"),
        (["run"], "Missing argument 'SCENARIO'", "meshd sim run --help"),
        (["rnu", "split"], "No such command 'rnu'. Did you mean 'run'?", "meshd sim --help"),
        (["run", "split", "--duration", "soon"], "'soon' is not a duration; write 60s", "--help"),
        (["run", "split", "--duration", "1s"], "a run takes 5s to 24h", "--help"),
        (["run", "split", "--duration", "-60s"], "is not a duration", "--help"),
        (["run", "split", "--duration", "90h"], "a run takes 5s to 24h", "--help"),
        (["run", "split", "--loss", "1.5"], "'1.5' is not a share", "--help"),
        (["run", "split", "--loss", "nan"], "'nan' is not a share", "--help"),
        (["run", "split", "--loss", "3%"], "'3%' is not a share", "--help"),
        (["run", "split", "--nodes", "1"], "2<=x<=20000", "--help"),
        (["run", "split", "--nodes", "10000000"], "2<=x<=20000", "--help"),
        (["run", "split", "--seed", "-1"], "--seed", "--help"),
        (["run", "split", "--faults", "x"], "no list of numbers", "--help"),
        (["run", "split", "--faults", "1,9"], "the plan has no fault 9", "numbered 1 to 2"),
        (["run", "steady", "--faults", "1"], "the plan has no fault 1", "it has none"),
        (["sweep", "--seeds", "0"], "--seeds", "--help"),
        (["sweep", "--jobs", "0"], "--jobs", "--help"),
        (["sweep", "--seed", str(2**63 - 1)], "the last seed would be above", "--help"),
        (["experiment", "--quick"], "name the experiment to run", "--help"),
        (["plot", "nothing-here"], "cannot read nothing-here", "--out DIR"),
        (["bench", "no_such_row"], "no row 'no_such_row'; there are", "--help"),
        (["run", "gone.toml"], "cannot read gone.toml: No such file", "meshd sim list"),
    ],
)
def test_wrong_usage_is_told_with_a_way_out(sim, words, what, fix):
    done = sim(*words)
    assert done.exit == 2
    assert what in done.err
    assert fix in done.err
    assert "[MESHD-E002]" in done.err
    assert "Traceback" not in done.err
    assert done.out == ""
    told = sim(*words, "--json")
    assert (told.error["code"], told.error["exit"], told.out) == ("MESHD-E002", 2, "")


@pytest.mark.parametrize(
    ("text", "what", "fix"),
    [
        ("nodes = ", "is not TOML", "--out DIR"),
        ("\x00", "is not TOML", "--out DIR"),
        ("seed = 3", "how many nodes", "nodes = 20"),
        ("nodes = 1", "1 nodes", "2 to 20,000"),
        ("nodes = 99999999", "99999999 nodes", "2 to 20,000"),
        ('nodes = "ten"', "nodes is 'ten', not a whole number", "write nodes as"),
        ("nodes = true", "nodes is True, not a whole number", "write nodes as"),
        ("nodes = 4\nnoodles = 3", "unknown field 'noodles'", "did you mean 'nodes'"),
        ("nodes = 4\nseed = -1", "seed is -1", "0 to 9223372036854775807"),
        ("nodes = 4\nseed = 9223372036854775808", "seed is 92233720", "0 to 92233720"),
        ("nodes = 4\ncalls_per_s = 2.0", "only whole daemons have calls", "whole = true"),
        ("nodes = 4\nloss = 1.5", "loss is 1.5", "0 to 1"),
        ("nodes = 4\nduration_s = nan", "duration of nan", "above 0"),
        ("nodes = 4\nconverged = 5", "5 nodes start", "0 to nodes, which is 4"),
        ("nodes = 4\nmeshes = 0", "0 meshes", "1 to nodes"),
        ('nodes = 4\nprofile = "moon"', "no profile 'moon'", "lan"),
        ('nodes = 4\nschema = "other/1"', "unknown schema 'other/1'", "meshd.sim.plan/1"),
        ("nodes = 4\nfault = 3", "fault is not a list", "[[fault]]"),
        ("nodes = 4\nfault = [3]", "fault 1: is not a table", "[[fault]]"),
        ("nodes = 4\nshape = 3", "shape is not a table", "[shape]"),
        ("nodes = 4\n[shape]\nlatency = 3", "latency is not a table", "kind"),
        ('nodes = 4\n[shape]\nlatency = {kind = "normal"}', "unknown latency 'normal'", "uniform"),
        ("nodes = 4\n[shape]\nbytes_per_s = 0.0", "bytes_per_s is 0.0", "no limit"),
        (PLAN.replace('"crash"', '"crahs"'), "unknown fault 'crahs'", "did you mean 'crash'"),
        ("whole = true\n" + PLAN.replace("crash", "clone"), "no fault of whole", "leave out"),
        (PLAN.replace("crash", "withdraw"), "a fault of whole daemons", "whole = true"),
        (PLAN.replace('kind = "crash"', "kind = [1]"), "unknown fault [1]", "there are"),
        (PLAN.replace('kind = "crash"', ""), "fault has no kind", "clock_jump"),
        (
            PLAN.replace("crash", "forger") + '\nforgery = "gold"\nfor_s = 1\nper_s = 1',
            "unknown forgery 'gold'",
            "newcomers",
        ),
        (PLAN.replace("at_s = 1.0", ""), "does not say when", "at_s = 10.0"),
        (PLAN.replace("at_s = 1.0", "at_s = -1.0"), "at_s is -1.0", "0 to 86400"),
        (PLAN.replace("node = 1", "node = 4"), "node names node 4", "the last is 3"),
        (PLAN.replace("node = 1", "node = -1"), "node names node -1", "counted from 0"),
        (PLAN.replace("node = 1", ""), "fault 1 (crash): node is missing", "node = ..."),
        (PLAN.replace("node = 1", "node = 1\nfor_s = 3"), "unknown field 'for_s'", "takes node"),
        (
            'nodes = 4\n[[fault]]\nat_s = 1\nkind = "partition"\nname = "a"\ngroups = [[0], [0]]',
            "in two groups",
            "one group",
        ),
        (
            'nodes = 4\n[[fault]]\nat_s = 1\nkind = "partition"\nname = "a"\ngroups = [["0-9"]]',
            "names node 4",
            "the last is 3",
        ),
        (
            'nodes = 4\n[[fault]]\nat_s = 1\nkind = "partition"\nname = "a"\ngroups = ["x"]',
            "groups is 'x', not a list",
            "groups = [...]",
        ),
        (
            'nodes = 4\n[[fault]]\nat_s = 90\nkind = "partition"\nname = "a"\ngroups = [[0], [1]]',
            "comes after the 60 s and never ends",
            "heal 'a' later",
        ),
        (
            PLAN.replace("crash", "set_state") + 'key = "k"\nvalue.hex = "x"',
            "value is not hexadecimal",
            "00ff",
        ),
        (
            'nodes = 4\n[[fault]]\nat_s = 1\nkind = "loads"\nevery_s = 0\nfor_s = 5',
            "every_s is 0.0",
            "0.001 to",
        ),
        (
            'nodes = 4\n[shape]\nlatency = {kind = "uniform", low_s = 2, high_s = 1}',
            "low_s is above high_s",
            "smaller time first",
        ),
        (
            'nodes = 4\n[[fault]]\nat_s = 1\nkind = "pause"\nnode = 1\nfor_s = inf',
            "for_s is inf",
            "0 to 3.16224e+07",
        ),
    ],
)
def test_a_wrong_scenario_file_is_told_with_a_way_out(sim, tmp_path, text, what, fix):
    (tmp_path / "mine.toml").write_text(text)
    done = sim("run", "mine.toml")
    assert done.exit == 2
    assert "meshd: mine.toml" in done.err
    assert what in done.err
    assert fix in done.err


def test_a_scenario_file_must_be_text(sim, tmp_path):
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe\x00")
    assert "not a text file in UTF-8" in sim("run", "mine.toml").err
    (tmp_path / "folder.toml").mkdir()
    assert "cannot read folder.toml: Is a directory" in sim("run", "folder.toml").err


def test_options_must_fit_the_scenario_file(sim, tmp_path):
    (tmp_path / "mine.toml").write_text(PLAN.replace("node = 1", "node = 3"))
    done = sim("run", "mine.toml", "--nodes", "3")
    assert (done.exit, "node names node 3" in done.err) == (2, True)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda data: b"", "no recorded trace"),
        (lambda data: b"plain text", "ot a gzipped file"),
        (lambda data: data[: len(data) // 2], "cut off or damaged"),
        (lambda data: data[:40] + bytes(8) + data[48:], "cut off or damaged"),
        (lambda data: gzip.compress(gzip.decompress(data)[:-90]), "cut off or damaged"),
        (lambda data: _lines(data, slice(0, -1)), "it has no end"),
        (lambda data: _lines(data, slice(1, None)), "no recorded trace of this version"),
        (lambda data: gzip.compress(b"[1]\n"), "a line is not an object"),
        (lambda data: _with_checkpoint(data, b'{"events":1e999}'), "checkpoints is damaged"),
        (lambda data: _with_checkpoint(data, b'{"events":"x"}'), "checkpoints is damaged"),
        (lambda data: _replaced(data, b"nodes = 6", b"nodes = 1"), "1 nodes"),
    ],
)
def test_a_damaged_recorded_trace_is_told(sim, tmp_path, no_matplotlib, damage, why):
    assert sim("run", "crash", "--nodes", "6", "--duration", "10s", "--out", "one").exit == 0
    file = tmp_path / "one" / "trace.jsonl.gz"
    file.write_bytes(damage(file.read_bytes()))
    for path in ("one", "one/trace.jsonl.gz"):
        done = sim("replay", path)
        assert done.exit == 2
        assert why in done.err
        assert "Traceback" not in done.err


def _lines(data, kept):
    return gzip.compress(b"".join(gzip.decompress(data).splitlines(keepends=True)[kept]))


def _with_checkpoint(data, line):
    head, *rest = gzip.decompress(data).splitlines()
    return gzip.compress(b"\n".join([head, line, *rest]))


def _replaced(data, old, new):
    return gzip.compress(gzip.decompress(data).replace(old, new))


def test_a_directory_without_a_recorded_run_is_told(sim, tmp_path):
    (tmp_path / "empty").mkdir()
    done = sim("replay", "empty")
    assert (done.exit, "No such file" in done.err) == (2, True)
    assert "meshd sim run SCENARIO --out DIR" in done.err


def test_a_recorded_run_is_replayed_and_not_run(sim, tmp_path):
    (tmp_path / "one").mkdir()
    assert "meshd sim replay one" in sim("run", "one").err


def test_options_do_not_go_with_a_recorded_run(sim, no_matplotlib):
    sim("run", "crash", "--nodes", "6", "--duration", "10s", "--out", "one")
    done = sim("replay", "one", "--seed", "4")
    assert (done.exit, "--seed does not go with a recorded run" in done.err) == (2, True)
    assert "meshd sim run one/plan.toml --seed" in done.err


def test_a_run_is_recorded_in_an_empty_place_only(sim, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    done = sim("run", "crash", "--out", "full")
    assert (done.exit, "full is not empty" in done.err) == (2, True)
    done = sim("run", "crash", "--out", "full/mine")
    assert (done.exit, "cannot write to full/mine" in done.err) == (2, True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_that_cannot_be_written_is_told_before_the_run(sim, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    done = sim("run", "crash", "--out", "closed/one")
    assert (done.exit, "Permission denied" in done.err) == (2, True)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema":"meshd.sim.series/1"}', "\xff"])
def test_a_damaged_run_is_not_drawn(sim, tmp_path, text):
    pytest.importorskip("matplotlib")
    sim("run", "crash", "--nodes", "6", "--duration", "10s", "--out", "one")
    (tmp_path / "one" / "series.json").write_text(text, "latin-1")
    done = sim("plot", "one")
    assert done.exit == 2
    assert "one/series.json" in done.err
    assert "meshd sim run SCENARIO --out DIR" in done.err


@pytest.mark.slow
@pytest.mark.parametrize("text", ['{"loss":"much"}', '{"violations":3}'])
def test_a_damaged_result_is_not_drawn(sim, tmp_path, text):
    pytest.importorskip("matplotlib")
    sim("run", "crash", "--nodes", "6", "--duration", "10s", "--out", "one")
    (tmp_path / "one" / "result.json").write_text(text)
    done = sim("plot", "one")
    assert (done.exit, "one/result.json is damaged" in done.err) == (2, True)
