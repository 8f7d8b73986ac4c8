"""Packing, queues and the recommendation."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from llm_sparsity.study import advice
from llm_sparsity.study.advice import Queue

SMALL = [25.0] * 18 + [3.0] * 18
LARGE = [25.0] * 150 + [3.0] * 150 + [12.0] * 200
NODE = Queue("any", 1, 100, 5, 6000, 1, "")


@dataclass(frozen=True)
class Job:
    minutes: float
    gpus: int = 1
    done: bool = False
    local: bool = False


def work(minutes: list[float], gpus: int = 1) -> list[Job]:
    return [Job(each, gpus) for each in minutes]


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
    assert advice.pack(work([10.0], gpus=4), 1) == pytest.approx(10 + overhead)
    assert advice.pack(work([10.0, 10.0], gpus=4), 1) == pytest.approx(20 + overhead + advice.JOB_MINUTES)
    assert advice.slot_hours(work([60.0], gpus=4)) == 4
    both = [*work([10.0], gpus=4), *work([5.0])]
    assert advice.pack(both, 1) > advice.pack(both, 2)


def test_a_job_of_several_nodes_sets_the_size_of_batch_jobs(site: list[Queue]) -> None:
    wide = work([60.0], gpus=8)
    overhead = advice.PILOT_MINUTES + advice.JOB_MINUTES
    assert advice.nodes(wide[0]) == 2
    assert advice.slot_hours(wide) == 8
    assert advice.pack(wide, 2) == pytest.approx(60 + overhead)
    assert advice.pack(wide * 2, 3) == advice.pack(wide * 2, 2), "the third node is of no use"
    assert advice.pack(wide * 2, 4) == advice.pack(wide, 2)
    ways = {way.queue.queue: way for way in advice.options(site, [*work([30.0] * 6, gpus=8), *work([3.0] * 20)])}
    assert {way.nodes for way in ways.values()} == {2}
    assert "prod" not in ways, "it starts at 10 nodes"
    assert ways["preemptable"].jobs > 1
    best = advice.recommend(advice.options(site, work([10.0], gpus=8)))
    assert best is not None
    assert (best.queue.queue, best.jobs, best.nodes) == ("debug", 1, 2)
    assert best.node_hours == pytest.approx(2 * (10 + overhead) / 60)
    assert advice.recommend(advice.options(site, work([10.0], gpus=4 * 600))) is None
    assert "lower `gpus`" in advice.recommendation(None, 600)


def test_runs_of_two_widths_need_two_studies(site: list[Queue]) -> None:
    text = advice.advise([*work([10.0], gpus=8), *work([10.0], gpus=16)], site)
    assert "gpus: some runs take 2 nodes and others 4 nodes, but all batch jobs have the same size" in text
    assert "Recommended" not in text


def test_finished_and_local_jobs_are_ignored(site: list[Queue]) -> None:
    idle = [Job(3.0, done=True), Job(500.0, gpus=0, local=True)]
    assert advice.advise(idle, site) == "Nothing is left to do in pools."
    text = advice.advise([*idle, *work([3.0] * 5)], site)
    assert "5 jobs in pools; one batch job for each of them would take 0.4 node-hours" in text
    assert "parsl-queue: debug\nparsl-pilots: 1\nparsl-nodes: 2\nparsl-minutes: 15\n" in text


def test_jobs_that_no_queue_can_finish(site: list[Queue]) -> None:
    text = advice.advise(work([1e6]), site)
    assert text.endswith("choose preemptable or prod, and repeat the command for the rest.")
