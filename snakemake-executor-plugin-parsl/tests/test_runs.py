"""The executor with real Snakemake and Parsl; pilots run on this machine or under the stand-in for PBS."""

import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest
from batch_site import ON_THIS_MACHINE, UNDER_PBS, Site

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="ends processes by a call of Linux")


def called(words: str, pids: Iterable[int]) -> list[int]:
    """The processes whose command has these words."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):  # it has just ended
            if words.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


@pytest.mark.slow
def test_jobs_fill_devices_longest_first_and_a_failure_leaves_others_alone(site: Site) -> None:
    site.pools(ON_THIS_MACHINE)
    said = site.run("late-1+ok-2+ok-3+ok-4+bad-5+oom-6", code=1)
    assert sorted(path.name for path in (site.folder / "out").iterdir()) == ["late-1", "ok-2", "ok-3", "ok-4"]
    begun = [name for name, *_ in site.events("begin")]
    assert set(begun[:2]) == {"bad-5", "oom-6"}
    assert set(begun[2:4]) == {"ok-4", "ok-3"}
    assert {slot for _, slot, *_ in site.events("begin")} == {"0/0", "0/1"}
    times = {name: float(when) for name, *_, when in site.events("end")}
    for slot in ("0/0", "0/1"):  # one job a device at a time
        spans = sorted((float(when), times[name]) for name, where, _, when in site.events("begin")
                       if where == slot and name in times)  # fmt: skip
        assert all(first[1] <= second[0] for first, second in pairwise(spans))
    assert re.search(r"run bad-5 failed: loss: is nan at step 3, on \S+ after \d+ s; see logs/bad-5.log, ", said)
    assert "run oom-6 failed: killed (SIGKILL), on " in said
    assert re.search(r"parsl: \d+ queued, \d+ running, \d of 6 done, \d failed, 0 preempted", said)
    assert not list((site.folder / "pilots").glob("driver-*"))
    site.wait(lambda: not site.processes())
    assert "pilots up" not in site.run("ok-2+ok-3", "--forcerun", "all"), "local jobs need no pilot"


@pytest.mark.slow
def test_pilots_that_pbs_takes_away_are_replaced_and_their_runs_go_on(site: Site) -> None:
    """At first the queue is full and JSON invalid; then one pilot is preempted, the next exceeds its walltime."""
    site.pools(UNDER_PBS)
    (site.state / "limit").write_text("0")
    (site.state / "broken-json").touch()
    driver = site.start("long-3+ok-1")
    site.wait(lambda: "accepts no more jobs now: qsub: would exceed" in site.said())
    site.wait_for_calls("qsub", 2)
    assert site.said().count("accepts no more jobs now") == 1, "printed once"
    (site.state / "limit").write_text("5")
    site.wait(lambda: len(site.events("begin")) == 2)
    (name,) = site.jobs()
    site.command("preempt", name)
    site.wait(lambda: [job for job, *_ in site.events("begin")].count("long-3") == 2)
    assert "preempted" in site.said()
    assert "restart 1 of at most 5" in site.said()
    (site.state / f"walltime-{max(site.jobs())}").write_text("1")
    site.wait(lambda: [job for job, *_ in site.events("begin")].count("long-3") == 3)
    (site.folder / "short").touch()
    assert site.end(driver) == 0, site.said()
    assert "its walltime is exceeded" in site.said()
    assert [job for job, *_ in site.events("end")].count("long-3") == 1
    assert oct((site.folder / "out/ok-1").stat().st_mode)[-3:] == "644"
    assert {job["job_state"] for job in site.jobs().values()} == {"F"}
    assert not site.leftovers()


def test_a_refused_qsub_ends_the_run_with_its_output(site: Site) -> None:
    site.pools(UNDER_PBS)
    pools = site.folder / "pools.py"
    pools.write_text(pools.read_text().replace("preemptable", "small"))
    said = site.run("ok-1", code=1)
    assert "the batch system refuses the pilot: qsub: Access to queue is denied" in said
    assert not site.events("begin")


@pytest.mark.exhaustive
def test_a_job_that_pbs_loses_is_reported_and_replaced_a_few_times(site: Site) -> None:
    """prod accepts 10 nodes for 24 hours and returns an id, but the job does not exist."""
    site.pools(UNDER_PBS)
    pools = site.folder / "pools.py"
    text = pools.read_text().replace("preemptable", "prod").replace("nodes_per_block=1", "nodes_per_block=10")
    text = text.replace("SimpleLauncher()", "SingleNodeLauncher()")
    pools.write_text(text.replace("01:00:00", "24:00:00"))
    said = site.run("ok-1", code=1)
    assert "PBS accepted it and no longer knows it" in said
    assert "3 pilots in a row ended" in said


@pytest.mark.slow
def test_a_pilot_that_waits_says_why_and_ctrl_c_deletes_all(site: Site) -> None:
    site.pools(UNDER_PBS, pilots=2, slots=1)
    (site.state / "number").write_text("640000")
    (site.state / "never-640002").touch()
    driver = site.start("long-3+long-2")
    site.wait(lambda: "1 pilots up, 1 in the queue, 1 of 1 slots busy" in site.said())
    site.wait(lambda: "waits: Not Running: Not enough free nodes available" in site.said())
    (site.state / "comment-640002").write_text("Can Never Run: Insufficient amount of resource: ngpus")
    site.wait(lambda: "waits: Can Never Run: Insufficient amount of resource: ngpus" in site.said())
    (site.state / "held-640002").touch()
    site.wait(lambda: "waits: held by its user (qrls releases it)" in site.said())
    site.wait_for_calls("qstat", 3)
    assert site.said().count("held by its user") == 1, "printed when it changes"
    assert driver.poll() is None
    assert len(site.jobs()) == 2, "no third one is submitted"
    os.killpg(driver.pid, signal.SIGINT)
    assert site.end(driver) != 0
    assert [job["job_state"] for job in site.jobs().values()] == ["F", "F"]
    assert not site.leftovers()
    site.wait(lambda: not site.processes())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "after"),
    [
        (signal.SIGINT, "2>&1 | tee log"),
        (signal.SIGTERM, ""),
        pytest.param(signal.SIGHUP, "", marks=pytest.mark.exhaustive),
    ],
    ids=["Ctrl-C, with its output in a pipe that ends first", "SIGTERM", "SIGHUP, of a lost connection"],
)
def test_a_driver_that_is_told_to_end_lets_jobs_save_and_leaves_nothing(
    site: Site, number: signal.Signals, after: str
) -> None:
    site.pools(UNDER_PBS, slots=1)
    driver = site.start("save-3+ok-1", after=after)
    site.wait(lambda: site.events("begin"))
    os.killpg(driver.pid, number)
    site.end(driver)
    site.wait(lambda: not site.leftovers())
    assert (site.folder / "saved").read_text() == site.events("begin")[0][2]
    assert [job["job_state"] for job in site.jobs().values()] == ["F"]
    assert [name for name, *_ in site.events("begin")] == ["save-3"], "what has not begun does not begin"
    site.wait(lambda: not site.processes())


# Python calls handlers in the main thread only, which sleeps until a signal wakes it.
TO_ANOTHER_THREAD = """
import signal, threading, time
from pathlib import Path

def interrupt():
    while not Path("interrupt").exists():
        time.sleep(0.1)
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)

threading.Thread(target=interrupt, daemon=True).start()
"""


@pytest.mark.exhaustive
def test_a_signal_that_the_kernel_hands_to_another_thread_ends_the_run(site: Site) -> None:
    site.pools(UNDER_PBS, slots=1)
    with (site.folder / "pools.py").open("a") as file:
        file.write(TO_ANOTHER_THREAD)
    driver = site.start("save-3")
    site.wait(lambda: site.events("begin"))
    (site.folder / "interrupt").touch()
    assert site.end(driver) == 1
    assert not site.leftovers()
    assert [job["job_state"] for job in site.jobs().values()] == ["F"]


@pytest.mark.slow
def test_a_second_signal_waits_for_no_pilot_and_the_next_driver_sees_to_them(site: Site) -> None:
    site.pools(UNDER_PBS, slots=1)
    (site.state / "stuck").touch()
    driver = site.start("save-3")
    site.wait(lambda: site.events("begin"))
    os.killpg(driver.pid, signal.SIGINT)
    site.wait((site.folder / "saved").exists)
    os.killpg(driver.pid, signal.SIGINT)
    site.end(driver)
    assert "pilots that have not ended yet: 64000" in site.said()
    assert any(name.startswith("driver-") for name in site.leftovers())
    next_one = site.start("ok-1")
    site.wait(lambda: "was killed; waiting until its pilots have ended" in site.said())
    site.wait_for_calls("qstat", 2)
    assert not [name for name, *_ in site.events("begin") if name == "ok-1"], "it does not begin beside the other"
    (site.state / "stuck").unlink()
    assert site.end(next_one) == 0, site.said()
    assert not site.leftovers()


@pytest.mark.slow
def test_a_second_driver_is_refused_and_once_the_first_is_killed_finds_no_second_writer(site: Site) -> None:
    site.pools(UNDER_PBS, slots=1)
    driver = site.start("long-3+ok-1")
    site.wait(lambda: site.events("begin"))
    site.unlock()
    said = site.run("ok-1", code=1)
    assert f"process {driver.pid} on " in said
    assert "runs jobs of this folder; wait until it has ended" in said
    assert [job["job_state"] for job in site.jobs().values()] == ["R"], "the first one's pilot runs on, and no other"
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    (first,) = site.jobs()
    next_one = site.start("long-3+ok-1")
    site.wait(lambda: site.jobs()[first]["job_state"] == "F")
    (site.folder / "short").touch()
    assert site.end(next_one) == 0, site.said()
    assert "was killed; waiting until its pilots have ended" in site.said()
    begun = [(name, int(pid), float(when)) for name, _, pid, when in site.events("begin")]
    assert [name for name, *_ in begun].count("long-3") == 2
    assert [name for name, *_ in begun].count("ok-1") == 1, "a job that the first driver had not started ran once"
    assert not Path(f"/proc/{begun[0][1]}").exists(), "the first writer has ended"
    assert len(site.events("end")) == 2
    assert site.jobs()[first]["job_state"] == "F"
    assert not site.leftovers()


@pytest.mark.exhaustive
def test_a_job_that_does_not_fit_what_is_left_of_a_pilot_waits_for_a_new_one(site: Site) -> None:
    """A pilot has 64 seconds for jobs. A minute is planned for each; whichever is first takes ten of them."""
    site.pools(UNDER_PBS, slots=1, seconds=64)
    driver = site.start("long-1+long-1-again")
    site.wait(lambda: site.events("begin"))
    (first,) = site.events("begin")
    site.wait(lambda: time.time() > float(first[3]) + 10)  # of the pilot's time: nine tenths are no longer left
    (site.folder / "short").touch()
    assert site.end(driver) == 0, site.said()
    assert [slot[0] for _, slot, *_ in site.events("begin")] == ["0", "1"]
    assert [job["Exit_status"] for _, job in sorted(site.jobs().items())][:1] == [0], "the first pilot ended by itself"


@pytest.mark.slow
def test_workers_that_cannot_start_end_the_run_with_their_last_words(site: Site) -> None:
    """More cores than the node has: their manager would restart them again and again."""
    site.pools(ON_THIS_MACHINE, affinity="list:4000-4003:4004-4007")
    said = site.run("ok-1", code=1)
    assert "error: workers of pool gpu die on " in said
    assert "OSError: [Errno 22] Invalid argument; check cpu_affinity (list:4000-4003:4004-4007)" in said


@pytest.mark.slow
def test_a_pilot_killed_outright_loses_no_job(site: Site) -> None:
    """Its manager cannot report anything, as when a node goes down."""
    site.pools(ON_THIS_MACHINE, slots=1, threshold=6)
    driver = site.start("long-2")
    site.wait(lambda: site.events("begin"))
    for pid in called("process_worker_pool", site.processes()):
        with contextlib.suppress(ProcessLookupError):  # workers end with their manager
            os.kill(pid, signal.SIGKILL)
    (site.folder / "short").touch()
    assert site.end(driver) == 0, site.said()
    assert "restart 1 of at most 5" in site.said()
    (writer,) = [pid for _, _, pid, _ in site.events("begin")][:1]
    assert not Path(f"/proc/{writer}").exists()


@pytest.mark.exhaustive
def test_pilots_that_end_at_once_are_given_up(site: Site) -> None:
    site.pools(ON_THIS_MACHINE, worker_init="echo no such module >&2; exit 1")
    said = site.run("ok-1", code=1)
    assert "3 pilots in a row ended before a worker connected" in said
    assert "no such module" in said


@pytest.mark.exhaustive
def test_an_interchange_that_dies_ends_the_run_and_its_pilots(site: Site) -> None:
    site.pools(UNDER_PBS, slots=1)
    driver = site.start("long-3")
    site.wait(lambda: site.events("begin"))
    children = Path(f"/proc/{driver.pid}/task/{driver.pid}/children").read_text().split()
    (interchange,) = called("HTEX interchange", map(int, children))
    os.kill(interchange, signal.SIGKILL)
    assert site.end(driver) == 1, site.said()
    assert "error: the interchange of pool gpu has died" in site.said()
    site.wait(lambda: [job["job_state"] for job in site.jobs().values()] == ["F"])


@pytest.mark.exhaustive
def test_jobs_of_a_bad_node_are_moved(site: Site) -> None:
    site.pools(ON_THIS_MACHINE, pilots=2, slots=2)
    (site.folder / "bad-node").write_text("0")
    said = site.run("+".join(f"node-{number}" for number in range(1, 7)))
    assert len(list((site.folder / "out").iterdir())) == 6
    assert "is held back" in said
