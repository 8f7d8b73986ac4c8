import math
import time
from pathlib import Path

import pytest
from tqdm import tqdm

from snakemake_logger_plugin_progress.progress import Job, Progress, ending


def queued(rule: str, minutes: float = 0.0, threads: int = 1) -> Job:
    """A job whose waiting time in a queue is unknown."""
    return Job(rule, minutes=minutes, threads=threads, begun=None)


def test_the_end_is_estimated_from_jobs_of_the_same_kind() -> None:
    progress = Progress({"finetune": 5})
    for number, minutes in enumerate((10, 10, 10, 10, 40)):
        progress.start(number, queued("finetune", minutes))
    assert progress.left(2) is None, "nothing has ended yet"
    progress.end(0, 300.0)
    assert progress.left(1) == 3 * 300 + 1200  # the long job: longer by the ratio of their planned minutes
    assert progress.left(3) == 700
    assert progress.left(100) == 600, "the longest job is half done on average"
    assert progress.left(0) is None


def test_jobs_that_have_not_started_count_by_the_plan() -> None:
    progress = Progress({"prune": 2, "finetune": 3, "plot": 1}, {"prune": 1.0, "finetune": 10.0})
    progress.start(0, queued("prune", 1.0))
    progress.end(0, 6.0)
    assert progress.left(1) == pytest.approx(6 + 3 * 60)  # a tenth of the planned minutes; plot takes no time
    progress.start(1, queued("finetune", 10.0))
    progress.end(1, 20.0)
    assert progress.left(1) == pytest.approx(6 + 2 * 20)


def test_without_a_plan_jobs_count_by_the_mean() -> None:
    progress = Progress({"prune": 2, "finetune": 2})
    progress.start(0, queued("prune"))
    progress.end(0, 8.0)
    assert progress.left(1) == 8 * 3


def test_a_job_that_takes_two_cores_counts_twice() -> None:
    progress = Progress({"measure": 3})
    progress.start(0, queued("measure", threads=2))
    progress.end(0, 10.0)
    assert progress.left(2) == 20


def test_a_running_job_tells_how_long_it_and_its_kind_take(tmp_path: Path) -> None:
    """The first of two jobs of half an hour: the bar in its log knows, while no job has ended."""
    (log := tmp_path / "job.log").write_text("loading\n  0%|          | 0/345 [00:00<?, ?step/s]")
    progress = Progress({"prune": 1, "finetune": 2, "plot": 1}, {"prune": 1.0, "finetune": 2.0})
    progress.start(0, Job("finetune", minutes=2.0, begun=time.monotonic() - 240, log=log))
    assert progress.left(1) is None
    with tqdm(total=345, initial=0, unit="step", file=(bar := log.open("a"))) as steps:
        steps.start_t -= 240
        steps.last_print_t -= 240
        steps.update(115)
        steps.refresh()
        bar.flush()
        one, both, pruned = 480, 480 + 720, 720 / 2
        assert progress.left(1) == pytest.approx(both + pruned, rel=0.05)
        progress.start(1, queued("prune", 1.0))
        progress.end(1, 12.0)
        assert progress.left(1) == pytest.approx(both, rel=0.05), "half a minute a minute of the plan, said pruning"
        progress.start(2, Job("finetune", minutes=2.0))
        progress.end(2, 100.0)
        assert progress.left(1) == pytest.approx(one, rel=0.05), "this one takes longer than the one that has ended"
    bar.close()


def test_cores_are_those_that_worked_so_far() -> None:
    progress = Progress({"prune": 4})
    progress.begun -= 10  # ten seconds ago
    for number in range(2):
        progress.start(number, queued("prune"))
        progress.end(number, 10.0)
    assert progress.left() == pytest.approx(10, rel=0.2)  # two at a time; seconds may pass here


def test_jobs_that_may_wait_count_by_what_ended() -> None:
    """A hundred jobs are submitted at once, of which four run at a time."""
    progress = Progress({"finetune": 100, "prune": 2, "plot": 1}, {"finetune": 10.0, "prune": 5.0}, queued=True)
    for number in range(100):
        progress.start(number, Job("finetune", minutes=10.0))
    assert progress.left() is None
    progress.begun -= 5 * 600  # seconds ago
    for number in range(20):
        progress.end(number, 600.0 * (1 + number // 4))
    assert progress.left() == pytest.approx(81 * 600 / 4, rel=0.01)


def test_a_running_job_is_partly_done_and_a_late_one_goes_on() -> None:
    progress = Progress({"prune": 2})
    progress.start(0, queued("prune"))
    progress.end(0, 100.0)
    job = Job("prune")
    job.begun -= 60
    progress.start(1, job)
    assert progress.left(1) == pytest.approx(40, abs=20)
    job.begun -= 600
    assert progress.left(1) == pytest.approx(66, abs=20)


def test_a_line_names_rules_and_cells() -> None:
    progress = Progress({"prune": 7, "collect": 1})
    for number in range(4):
        progress.start(number, Job("prune", f"m/{number}"))
    progress.end(0, 1.0)
    assert progress.line(None) == "1 of 8 jobs | prune 1/7: m/1, m/2 and 1 more"
    progress.end(1, None)
    progress.start(7, Job("collect"))
    assert progress.line(30.0).startswith("1 of 8 jobs, 1 failed, about 30 s left (")
    assert progress.line(None).endswith(" | prune 1/7: m/2, m/3 | collect")


def test_a_job_that_starts_again_is_no_new_job() -> None:
    progress = Progress({"prune": 1})
    progress.start(0, Job("prune"))
    progress.end(0, None)
    progress.start(0, Job("prune"))
    assert progress.line(None).startswith("0 of 2 jobs, 1 failed")
    assert math.isclose(progress.total.total(), 2)


@pytest.mark.parametrize(
    ("seconds", "text"), [(20, "20 s left"), (89, "89 s left"), (300, "5 min left"), (7200, "2.0 h left")]
)
def test_an_end_in_units_that_are_read(seconds: float, text: str) -> None:
    assert text in ending(seconds)
    assert ending(None) == ""
