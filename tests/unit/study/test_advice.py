"""Packing, queues and the recommendation."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.study import advice
from llm_sparsity.study.advice import Queue
from llm_sparsity.study.plan import Job

SMALL = [25.0] * 18 + [3.0] * 18
LARGE = [25.0] * 150 + [3.0] * 150 + [12.0] * 200
NODE = Queue("any", 4, 1, 100, 5, 6000, 1, "")


def work(minutes: list[float], gpus: int = 1) -> list[Job]:
    return [Job("finetune", gpus, each, measured=False, bytes=0, done=False, memory=0) for each in minutes]


@pytest.fixture
def site(root: Path) -> list[Queue]:
    return advice.queues(root / "profiles/polaris/queues.csv")


@pytest.mark.parametrize(
    ("minutes", "nodes", "took", "node_hours", "utilisation"), [(SMALL, 5, 30, 2.5, 0.84), (LARGE, 20, 89, 29.7, 0.93)]
)
def test_minutes_node_hours_and_utilisation(
    minutes: list[float], nodes: int, took: float, node_hours: float, utilisation: float
) -> None:
    way = advice.option(NODE, 1, nodes, work(minutes))
    assert way.minutes == pytest.approx(took, abs=0.5)
    assert way.node_hours == pytest.approx(node_hours, abs=0.1)
    assert way.utilisation == pytest.approx(utilisation, abs=0.01)


def test_the_reports_runs_fit_five_nodes_of_debug_scaling(site: list[Queue]) -> None:
    way = advice.recommend(advice.options(site, work(SMALL)))
    assert way is not None
    assert (way.queue.queue, way.jobs, way.nodes) == ("debug-scaling", 1, 5)


def test_hundreds_of_runs_go_to_preemptable_in_one_node_jobs(site: list[Queue]) -> None:
    way = advice.recommend(advice.options(site, work(LARGE)))
    assert way is not None
    assert (way.queue.queue, way.jobs, way.nodes) == ("preemptable", 20, 1)


def test_a_few_short_runs_need_no_more_than_debug(site: list[Queue]) -> None:
    way = advice.recommend(advice.options(site, work([3.0] * 6)))
    assert way is not None
    assert way.queue.queue == "debug"
    assert way.queue.min_minutes <= way.walltime <= way.queue.max_minutes


def test_a_walltime_lies_within_the_limits_of_the_queue(site: list[Queue]) -> None:
    for minutes in ([0.1], SMALL, LARGE):
        for way in advice.options(site, work(minutes)):
            assert way.queue.min_minutes <= way.walltime <= way.queue.max_minutes
            assert way.minutes < way.walltime
            assert way.queue.min_nodes <= way.nodes <= way.queue.max_nodes


def test_a_job_of_a_whole_node_occupies_all_its_slots() -> None:
    overhead = advice.PILOT_MINUTES + advice.JOB_MINUTES
    assert advice.pack(work([10.0], gpus=4), 1, NODE) == pytest.approx(10 + overhead)
    assert advice.pack(work([10.0, 10.0], gpus=4), 1, NODE) == pytest.approx(20 + overhead + advice.JOB_MINUTES)
    assert advice.slot_hours(work([60.0], gpus=4), NODE) == 4
    both = [*work([10.0], gpus=4), *work([5.0])]
    assert advice.pack(both, 1, NODE) > advice.pack(both, 2, NODE)


def test_a_job_of_several_nodes_sets_the_size_of_batch_jobs(site: list[Queue]) -> None:
    wide = work([60.0], gpus=8)
    overhead = advice.PILOT_MINUTES + advice.JOB_MINUTES
    assert NODE.nodes(wide[0]) == 2
    assert advice.slot_hours(wide, NODE) == 8
    assert advice.pack(wide, 2, NODE) == pytest.approx(60 + overhead)
    assert advice.pack(wide * 2, 3, NODE) == advice.pack(wide * 2, 2, NODE), "the third node is of no use"
    assert advice.pack(wide * 2, 4, NODE) == advice.pack(wide, 2, NODE)
    ways = {way.queue.queue: way for way in advice.options(site, [*work([30.0] * 6, gpus=8), *work([3.0] * 20)])}
    assert {way.nodes for way in ways.values()} == {2}
    assert "prod" not in ways, "it starts at 10 nodes"
    assert ways["preemptable"].jobs > 1
    best = advice.recommend(advice.options(site, work([10.0], gpus=8)))
    assert best is not None
    assert (best.queue.queue, best.jobs, best.nodes) == ("debug", 1, 2)
    assert best.node_hours == pytest.approx(2 * (10 + overhead) / 60)
    assert "No queue has the 600 nodes of the widest job: lower `gpus`" in advice.advise(work([10.0], gpus=2400), site)


def test_runs_of_two_widths_need_two_studies(site: list[Queue]) -> None:
    text = advice.advise([*work([10.0], gpus=8), *work([10.0], gpus=16)], site)
    assert "gpus: some runs take 2 nodes and others 4 nodes, but all batch jobs have the same size" in text
    assert "Recommended" not in text


def test_finished_and_local_jobs_are_ignored(site: list[Queue]) -> None:
    (short,) = work([3.0])
    idle = [replace(short, done=True), replace(short, stage="download", minutes=500.0, gpus=0)]
    assert advice.advise(idle, site) == "Nothing is left to do in pools."
    text = advice.advise([*idle, *work([3.0] * 5)], site)
    assert "5 jobs in pools; one batch job for each of them would take 0.4 node-hours" in text
    assert "parsl-queue: debug\nparsl-pilots: 1\nparsl-nodes: 2\nparsl-minutes: 15\n" in text


@pytest.mark.slow
def test_jobs_that_no_queue_can_finish(site: list[Queue]) -> None:
    every = advice.advise(work([1000.0] * 5000), site)
    assert every.endswith("choose preemptable or capacity or prod, and repeat the command for the rest.")
    assert "No queue has the 1000000 minutes of the longest job, but at most 10080" in advice.advise(work([1e6]), site)
    mine = [replace(NODE, queue="mine", max_minutes=60, max_nodes=2)]
    assert "choose mine, and repeat" in advice.advise(work([40.0] * 50), mine), "its names are those of the table"


def test_nodes_have_as_many_gpus_as_the_table_says() -> None:
    eight = replace(NODE, queue="eight", gpus=8)
    assert [queue.nodes(work([1.0], gpus=8)[0]) for queue in (NODE, eight)] == [2, 1]
    assert advice.pack(work([10.0] * 8), 1, eight) < advice.pack(work([10.0] * 8), 1, NODE)
    mixed = [*work([10.0], gpus=8), *work([10.0], gpus=16)]
    assert [way.queue.queue for way in advice.options([NODE, eight], mixed)] == ["eight"], "of one width there"


HEAD = "queue,gpus,min_nodes,max_nodes,min_minutes,max_minutes,jobs,note\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no row"), (HEAD, "has no row"),
        (HEAD.replace("gpus,", "") + "a,1,2,5,60,1,\n", "row 1: no column gpus; it has queue, min_nodes"),
        (HEAD + "a,4,1,2,5,60,1,\nb,4,one,2,5,60,1,\n", "row 2: min_nodes: found 'one'; write a whole number from 1"),
        (HEAD + "a,0,1,2,5,60,1,\n", "row 1: gpus: found '0'"), (HEAD + "a,4,1\n", "row 1: no column max_nodes"),
        ("\udcff", "no table of queues"),
    ],
)  # fmt: skip
def test_a_table_with_a_mistake_is_one_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "queues.csv").write_text(text, errors="surrogateescape")
    with pytest.raises(UserError, match=re.escape(said)) as error:
        advice.queues(tmp_path / "queues.csv")
    assert "\n" not in str(error.value)


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        advice.queues(tmp_path / "queues.csv")


def test_a_queue_of_more_nodes_than_jobs_is_offered() -> None:
    short = Queue("debug", 4, 1, 2, 5, 60, 1, "")
    large = Queue("prod", 4, 10, 496, 5, 1440, 10, "")
    work = [Job("finetune", 1, 600, False, 0, False, 1000)] * 5
    (choice,) = advice.options([short, large], work)
    assert (choice.queue.queue, choice.nodes) == ("prod", 10)
    assert "parsl-queue: prod" in advice.advise(work, [short, large])


@pytest.mark.parametrize(("allowed", "minutes"), [(1, 45), (2, 23)])
def test_runs_of_one_gpu_and_of_several_have_pools_of_their_own(allowed: int, minutes: int) -> None:
    """Each with its own batch job; where one at a time is allowed, they run one after the other."""
    queue = Queue("debug-scaling", 4, 1, 10, 5, 60, allowed, "")
    work = [Job("finetune", gpus, 20, False, 0, False, 1000) for gpus in [4] * 4 + [1] * 16]
    found = advice.option(queue, 1, 4, work)
    assert found.minutes == pytest.approx(minutes, abs=2)
    assert found.node_hours == pytest.approx(2 * 4 * 22 / 60, abs=0.2)
