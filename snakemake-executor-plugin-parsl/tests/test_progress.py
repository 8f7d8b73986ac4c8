"""The status line, the estimated end, and the reasons of failures."""

import time
from pathlib import Path

import pytest

from snakemake_executor_plugin_parsl import why
from snakemake_executor_plugin_parsl.progress import Job, Progress, line

POOLS = {"busy": 2, "slots": 4, "pilots": 1, "waiting": 1, "lost": 1}


def planned(*minutes: float) -> Progress:
    progress = Progress()
    progress.left = {number: Job(each * 60, each * 60) for number, each in enumerate(minutes)}
    return progress


def test_a_line_counts_every_job_once() -> None:
    progress = planned(10, 10, 10, 10, 10, 10)
    progress.end([0], 60.0)
    progress.end([1], None)
    now = time.monotonic()
    said = line(progress, {2: now, 3: now}, 3, POOLS)
    assert "1 queued, 2 running, 1 of 6 done, 1 failed, 1 preempted or lost" in said
    assert "2 of 4 slots busy | ends about " in said
    assert "\n" not in said


def test_jobs_that_a_checkpoint_adds_are_counted() -> None:
    progress = planned(1)
    progress.end([0], 60.0)
    progress.left = {"added": Job(60, 60), "another": Job(60, 60)}
    assert "1 of 3 done" in line(progress, {}, 2, POOLS)


def test_a_group_is_as_many_jobs_as_it_has() -> None:
    progress = planned(1, 1, 1)
    progress.end([0, 1], 120.0)
    assert (progress.done, len(progress.left), progress.pace) == (2, 1, 1.0)


def test_the_end_is_that_of_all_work_or_of_the_longest_chain() -> None:
    assert planned(*[10] * 8).seconds_left(4, {}) == pytest.approx(1200), "8 jobs of 10 minutes on 4 slots"
    progress = planned(10, 10)
    progress.left[0] = Job(600, 3000)  # jobs of 40 minutes follow
    assert progress.seconds_left(4, {}) == pytest.approx(3000)
    assert progress.seconds_left(0, {}) is None, "no pilot is up"


def test_what_has_run_and_how_fast_it_was_shortens_what_is_left() -> None:
    progress = planned(100, 10, 10)
    progress.end([0], 2700.0)
    assert progress.pace == 0.5, "(2700 + 600) / (6000 + 600)"
    assert progress.seconds_left(1, {}) == pytest.approx(600)
    assert progress.seconds_left(1, {1: time.monotonic() - 200}) == pytest.approx(400, abs=20)  # by a real clock
    late = progress.seconds_left(1, {1: time.monotonic() - 1000})
    assert late == pytest.approx(400, abs=20), "300 s of the other, a tenth of the time of the late one"


def test_a_few_short_jobs_say_little_about_long_ones() -> None:
    """They took four times as long as planned, as the start of a process did."""
    progress = planned(0.3, 0.3, 25)
    progress.end([0], 72.0)
    progress.end([1], 72.0)
    assert progress.pace < 1.2


def test_without_planned_minutes_jobs_are_expected_to_take_as_long_as_others() -> None:
    progress = planned(0, 0, 0)
    assert progress.seconds_left(1, {}) is None
    progress.end([0], 40.0)
    assert progress.seconds_left(1, {}) == pytest.approx(80)


def test_reasons(tmp_path: Path) -> None:
    spawned, log = tmp_path / "spawned", tmp_path / "log"
    spawned.write_text("Command 'false' returned non-zero exit status 7.")
    assert why(1, spawned, [log]) == "exit code 7"
    log.write_text("step 3\nerror: loss: is nan at step 3\n")
    assert why(1, spawned, [log]) == "loss: is nan at step 3"
    log.write_text("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB")
    assert why(1, spawned, [log]) == "out of memory"
    log.write_text("")
    spawned.write_text("MissingOutputException in rule x")
    assert "outputs" in why(1, spawned, [log])
    assert why(1, tmp_path / "none", []) == "exit code 1"


@pytest.mark.parametrize(
    "text", ["Command '...' died with <Signals.SIGKILL: 9>.", "Command 'x' returned non-zero exit status 137."]
)
def test_a_killed_job_ran_out_of_memory_only_where_the_kernel_says_so(tmp_path: Path, text: str) -> None:
    spawned = tmp_path / "spawned"
    spawned.write_text(text)
    assert why(1, spawned, []) == "killed (SIGKILL)"
    assert why(1, spawned, [], out_of_memory=True) == "out of memory"
