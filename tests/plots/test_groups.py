from __future__ import annotations

import statistics

import pytest

from spikecl.errors import RunError, UsageError
from spikecl.plots import group_records
from spikecl.storage import read_json, write_json


def test_seeds_are_one_group_and_methods_are_two(fake_run):
    records = [
        fake_run("b0", method="hlop", seed=0, acc=0.9),
        fake_run("a0", seed=0, acc=0.5),
        fake_run("b1", method="hlop", seed=1, acc=0.8),
    ]
    groups = group_records(records)
    assert [g.label for g in groups] == ["hlop", "finetune"]
    assert [[r.id for r in g.records] for g in groups] == [["b0", "b1"], ["a0"]]
    stats = groups[0].statistics("acc")
    assert stats.n == 2
    assert stats.mean == pytest.approx(0.85)
    assert stats.sd == pytest.approx(statistics.stdev([0.9, 0.8]))


def test_what_differs_is_in_the_label(fake_run):
    network = group_records([fake_run("n1"), fake_run("n2", network="ann")])
    assert [g.label for g in network] == ["finetune, mlp", "finetune, ann"]
    faster = [fake_run(f"l{seed}", lr=0.2, seed=seed) for seed in (2, 3)]
    rate = group_records([fake_run("l1", lr=0.1), *faster])
    assert [(g.label, len(g.records)) for g in rate] == [
        ("finetune, sgd.lr=0.1", 1),
        ("finetune, sgd.lr=0.2", 2),
    ]


def test_streams_of_another_length_are_another_group(fake_run):
    other = fake_run("other")
    run = read_json(other.path / "run.json")
    run["config"]["stream"]["permuted"]["experiences"] = 9
    write_json(other.path / "run.json", run)
    labels = [g.label for g in group_records([fake_run("one"), other])]
    assert labels == ["finetune, permuted.experiences=3", "finetune, permuted.experiences=9"]


def test_runs_from_python_are_grouped_and_labels_stay_different(fake_run):
    made = [fake_run(f"p{i}", from_file=False, seed=i) for i in range(2)]
    groups = group_records([*made, fake_run("file")])
    assert [len(g.records) for g in groups] == [2, 1]
    assert len({g.label for g in groups}) == 2


def test_a_run_given_twice_counts_once(fake_run):
    record = fake_run()
    (group,) = group_records([record, record])
    assert len(group.records) == 1
    assert group.statistics("acc").sd is None


def test_a_scalar_that_no_run_has(fake_run):
    (group,) = group_records([fake_run(bwt=None)])
    assert group.statistics("bwt") is None


def test_refused(fake_run):
    with pytest.raises(UsageError, match="no runs"):
        group_records([])
    with pytest.raises(RunError, match="format 99"):
        group_records([fake_run("old", format_version=99)])
    running = fake_run("running")
    (running.path / "summary.json").unlink()
    with pytest.raises(RunError, match="spikecl resume running"):
        group_records([fake_run("fine"), running])
