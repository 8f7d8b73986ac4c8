"""What a terminal and a file show of the same records."""

import io
import logging
import os
import pty
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from snakemake_interface_logger_plugins.common import LogEvent
from snakemake_interface_logger_plugins.tests import MockOutputSettings, TestLogHandlerBase

from snakemake_logger_plugin_progress import LogHandler, display

Say = Callable[..., None]


class TestInterface(TestLogHandlerBase):
    """Snakemake's own test of a logger plugin."""

    __test__ = True

    def get_log_handler_cls(self):
        return LogHandler

    def get_log_handler_settings(self):
        return None


class Terminal(io.StringIO):
    """A stream that says it is a terminal of 60 columns."""

    def __init__(self) -> None:
        super().__init__()
        self._pair = pty.openpty()
        os.system(f"stty cols 60 < {os.ttyname(self._pair[1])}")

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._pair[1]


def handler(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, **settings: object) -> LogHandler:
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr("sys.stdout", stream)
    monkeypatch.setenv("TERM", "xterm")
    common = MockOutputSettings()
    for name, value in {"printshellcmds": False, **settings}.items():
        setattr(common, name, value)
    return LogHandler(common, None)


def until_shown(stream: io.StringIO, text: str) -> None:
    deadline = time.monotonic() + 300
    while text not in stream.getvalue():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def say(to: LogHandler, message: str | None, level: int = logging.INFO, **extra: object) -> None:
    record = logging.LogRecord("snakemake.logging", level, "snakemake/x.py", 1, message, (), None)
    vars(record).update(extra)
    to.handle(record)


def job(to: LogHandler, number: int, rule: str = "prune", **wildcards: str) -> None:
    say(
        to, f"Rule: {rule}", event=LogEvent.JOB_INFO, jobid=number, rule_name=rule, wildcards=wildcards, threads=1,
    )  # fmt: skip


def run(to: LogHandler) -> None:
    """A run of two jobs, of which the second has just started."""
    say(to, "Building DAG of jobs...")
    say(to, "Job stats", event=LogEvent.RUN_INFO, stats={"prune": 2, "all": 1, "total": 3})
    say(to, "", planned={"prune": 0.5})
    say(to, "Select jobs to execute...")
    say(to, "Execute 1 jobs...", event=LogEvent.JOB_STARTED, jobs=[1])
    job(to, 1, model="minilm", pruned="magnitude-linear-0.5")
    say(to, "Finished", event=LogEvent.JOB_FINISHED, job_id=1)
    say(to, None, event=LogEvent.PROGRESS, done=1, total=3)
    job(to, 2, model="minilm", pruned="magnitude-linear-0.9")


def fail(to: LogHandler, log: Path, verdict: str | None = None) -> None:
    say(to, "RuleException:\nCalledProcessError in file x\n python ...", logging.ERROR, event=LogEvent.ERROR)
    job = {"jobid": 2, "rule_name": "prune", "log": [str(log)], "rule_msg": verdict}
    say(to, "Error in rule", logging.ERROR, event=LogEvent.JOB_ERROR, **job)
    say(to, "WorkflowError:\nAt least one job did not complete successfully.", logging.ERROR, event=LogEvent.ERROR)


def test_a_file_gets_no_line_for_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    to = handler(stream, monkeypatch)
    run(to)
    to._progress.begun -= 90
    to.close()
    to.close()  # logging closes every handler once more
    first, last = stream.getvalue().splitlines()
    assert first == "2 jobs: 2 prune"
    assert last.startswith("1 job done, 1 min 3")


@pytest.mark.parametrize("queued", [False, True])
def test_whether_jobs_may_wait_is_told_before_or_after_the_jobs(queued: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    to = handler(io.StringIO(), monkeypatch)
    for _ in range(2):
        say(to, "", planned={"prune": 0.5}, queued=queued)
        say(to, "Job stats", event=LogEvent.RUN_INFO, stats={"prune": 2})
        assert to._progress.queued == queued
        queued = not queued
        say(to, "", planned={"prune": 0.5}, queued=queued)
        assert to._progress.queued == queued
    to.close()


def test_a_file_gets_a_line_of_progress_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "PLAIN", 0.01)
    stream = io.StringIO()
    to = handler(stream, monkeypatch)
    run(to)
    until_shown(stream, "minilm/magnitude-linear-0.9")
    to.close()
    assert "1 of 2 jobs" in stream.getvalue()
    assert "\033" not in stream.getvalue()


def test_a_terminal_has_one_line_of_progress_within_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "LIVE", 0.01)
    stream = Terminal()
    to = handler(stream, monkeypatch)
    run(to)
    until_shown(stream, "minilm")
    say(to, "a warning", logging.WARNING)
    to.close()
    text = stream.getvalue()
    lines = [line for line in text.replace("\n", "\r").split("\r") if "of 2 jobs" in line]
    assert lines and all(len(line.removeprefix("\033[K")) < 60 for line in lines)
    assert text.count("\n") == 3, "the jobs, the warning, the end"
    assert f"{display.ERASE}a warning\n" in text
    assert text.rpartition(display.ERASE)[2].startswith("1 job done")


@pytest.mark.parametrize("color", [True, False])
def test_a_failure_shows_the_end_of_its_log(color: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not color:
        monkeypatch.setenv("NO_COLOR", "1")
    else:
        monkeypatch.delenv("NO_COLOR", raising=False)
    log = tmp_path / "log"
    log.write_text("".join(f"line {number}\n" for number in range(100)) + "error: loss: is nan\n")
    stream = Terminal()
    to = handler(stream, monkeypatch)
    run(to)
    fail(to, log)
    to.close()
    text = stream.getvalue()
    assert "failed: prune minilm/magnitude-linear-0.9\n" in text
    assert "  error: loss: is nan" in text
    assert "line 99" in text and "line 50" not in text
    assert "python" not in text and "At least one" not in text
    assert (display.RED in text) == color
    assert "1 job done, 1 failed" in text


def test_a_missing_log_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    to = handler(stream, monkeypatch)
    run(to)
    fail(to, tmp_path / "none")
    assert "failed: prune" in stream.getvalue()


@pytest.mark.parametrize(
    ("verdict", "shown"),
    [
        ("SLURM status is: 'TIMEOUT'.For further error details see the", ["  SLURM status is: 'TIMEOUT'."]),
        ("For further error details see the", []),
    ],
)
def test_what_an_executor_says_of_a_failed_job_is_shown(
    verdict: str, shown: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    to = handler(stream, monkeypatch)
    run(to)
    fail(to, tmp_path / "none", verdict)
    assert stream.getvalue().splitlines()[-1 - len(shown) :] == ["failed: prune minilm/magnitude-linear-0.9", *shown]


def test_what_is_not_known_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    to = handler(stream, monkeypatch)
    for text in ("Nothing to be done (all requested files are present and up to date).", "parsl: pilot 3 ended"):
        say(to, text)
        assert text in stream.getvalue()
    say(to, "WorkflowError:\nAt least one job did not complete successfully.", logging.ERROR, event=LogEvent.ERROR)
    assert "At least one" in stream.getvalue(), "no job has failed that was seen"


def test_an_executor_that_knows_more_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "PLAIN", 0.01)
    monkeypatch.setattr(display, "LIVE", 0.01)
    stream = io.StringIO()
    to = handler(stream, monkeypatch)
    run(to)
    say(to, "parsl: 3 queued", status="parsl: 3 queued")
    assert stream.getvalue().splitlines().count("parsl: 3 queued") == 1
    terminal = Terminal()
    live = handler(terminal, monkeypatch)
    run(live)
    say(live, "parsl: 3 queued", status="parsl: 3 queued")
    until_shown(terminal, "parsl: 3 queued\r")
    live.close()
    to.close()


def test_verbose_prints_what_it_prints_without_the_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    to = handler(stream, monkeypatch, verbose=True)
    say(to, "Building DAG of jobs...")
    say(to, "Job stats:\n prune 2", event=LogEvent.RUN_INFO, stats={"prune": 2})
    assert "Building DAG of jobs..." in stream.getvalue()
    assert "prune 2" in stream.getvalue()


@pytest.mark.parametrize("options", [{}, {"printshellcmds": True}, {"quiet": {"host"}}])
def test_a_dry_run_is_a_table_unless_more_or_less_is_asked_for(
    options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    to = handler(stream, monkeypatch, dryrun=True, **options)
    say(to, "Job stats:\n prune 1", event=LogEvent.RUN_INFO, stats={"prune": 1, "all": 1, "total": 2})
    job = {
        "event": LogEvent.JOB_INFO,
        "threads": 1,
        "reason": "Missing output files: x",
        "rule_msg": None,
        "local": False,
    }
    rest = {"is_checkpoint": False, "input": [], "output": ["x"], "log": [], "benchmark": None, "resources": {}}
    say(to, "prune", rule_name="prune", jobid=1, wildcards={"model": "minilm"}, priority=0, **job, **rest)
    say(to, "all", rule_name="all", jobid=0, wildcards={}, priority=0, **job, **rest)
    say(to, "This was a dry-run (flag -n).")
    to.close()
    if options:
        assert "output: x" in stream.getvalue() and "would run" not in stream.getvalue()
    else:
        first, _, _, row, _, last = stream.getvalue().splitlines()
        assert (first, row.split()) == ("1 job would run:", ["1", "prune", "no", "result", "yet", "minilm"])
        assert last.startswith("-n -p ")


def test_nothing_to_do_is_said_without_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    to = handler(stream, monkeypatch, dryrun=True)
    say(to, "Nothing to be done (all requested files are present and up to date).")
    to.close()
    assert stream.getvalue().splitlines() == ["Nothing to be done (all requested files are present and up to date)."]
