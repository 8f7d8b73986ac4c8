"""Snakemake logger plugin: progress that a person reads, instead of some lines for every job.

On a terminal one live line, elsewhere a line a minute; besides, warnings, failures, and what executor plugins report.
Snakemake's own log file, in .snakemake/log, holds everything. A dry run prints a table; with -p, --verbose or
--quiet it prints what it prints without this plugin.

An executor plugin that knows more may send a record with `extra={"status": line}`, which is shown as the progress.
`extra={"planned": {rule: minutes}, "queued": bool}` gives the mean planned minutes of the jobs of a rule, and whether
jobs may wait, for a node or a GPU, after they are started.
"""

import logging
import sys
import time
from pathlib import Path
from typing import Any

from snakemake.logging import ColorizingTextHandler, DefaultFilter, DefaultFormatter
from snakemake.settings.enums import Quietness
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from snakemake_logger_plugin_progress.display import Display
from snakemake_logger_plugin_progress.dry_run import DryRun
from snakemake_logger_plugin_progress.progress import Job, Progress

# What Snakemake says in every run, of no use to a reader. Everything that is not known here is shown.
CHATTER = (
    "Assuming unrestricted shared filesystem", "Building DAG of jobs", "Using shell:", "Select jobs to execute",
    "Execute ", "Complete log(s):", "Elapsed time:", "Shutting down, this", "Exiting because a job execution failed",
    "Reasons:", "Some jobs were triggered by provenance", "Rules with ", "This was a dry-run",
)  # fmt: skip
# What it says of a failed job besides JOB_ERROR: the whole command, and that a job has failed.
REPEATED = ("CalledProcessError in file", "At least one job did not complete successfully")
QUIET = {Quietness.PROGRESS, Quietness.RULES, Quietness.REASON, Quietness.HOST}
POINTER = "For further error details"  # how an executor's words about a failed job end
TAIL = 20  # lines of a failed job's log that are shown


class LogHandler(LogHandlerBase):
    """Receives Snakemake's records, in a thread of their own."""

    def __post_init__(self) -> None:
        """Choose between the display, the table of a dry run, and Snakemake's own output."""
        given = self.common_settings
        quiet = set(given.quiet or ())
        self._progress: Progress | None = None
        self._planned: dict[str, float] = {}
        self._queued = False
        self._status = ""
        stream = sys.stdout if given.stdout else sys.stderr
        self._display = Display(stream, self._line, color=not given.nocolor)
        self._dry_run = DryRun() if given.dryrun else None
        self._plain = None
        if given.verbose or given.debug_dag or (given.dryrun and (given.printshellcmds or quiet)):
            self._plain = ColorizingTextHandler(
                nocolor=given.nocolor,
                stream=stream,
                formatter=DefaultFormatter(quiet, given.show_failed_logs),
                filter=DefaultFilter(quiet, given.debug_dag, given.verbose, given.dryrun, given.printshellcmds),
            )
        self._formatter = DefaultFormatter(quiet | QUIET, given.show_failed_logs)
        self._shown = DefaultFilter(quiet | QUIET, False, False, False, given.printshellcmds)

    def emit(self, record: logging.LogRecord) -> None:
        """Count a job, show a message, or neither."""
        if self._plain is not None:
            self._plain.handle(record)
            return
        with self._display.lock:
            self._receive(record)

    def close(self) -> None:
        """Remove the line of progress, and say how many jobs were done."""
        super().close()
        last = self._dry_run.text() if self._dry_run else ""
        if self._progress:
            done, failed = self._progress.done.total(), self._progress.failed.total()
            minutes, seconds = divmod(round(time.monotonic() - self._progress.begun), 60)
            said = f"{done} job{'s' * (done != 1)} done{f', {failed} failed' if failed else ''}"
            last = f"{said}, {minutes} min {seconds} s"
        self._display.close(last)

    def _receive(self, record: logging.LogRecord) -> None:
        """`emit` with the lock held, for progress is read by a thread of the display."""
        event, fields = getattr(record, "event", None), vars(record)
        progress = self._progress
        if "planned" in fields:
            self._planned, self._queued = fields["planned"], fields.get("queued", False)
            if progress:
                progress.planned, progress.queued = self._planned, self._queued
        elif "status" in fields:
            self._status = fields["status"]
            if not self._display.live:  # its sender has a clock of its own
                self._display.write(self._status)
        elif self._dry_run and event == LogEvent.JOB_INFO:
            if fields["rule_name"] != "all":
                self._dry_run.add(fields["rule_name"], _cell(fields), str(fields["reason"]))
        elif self._dry_run and event == LogEvent.RUN_INFO:
            pass
        elif event == LogEvent.RUN_INFO and "stats" in fields:
            total = {rule: count for rule, count in fields["stats"].items() if rule not in ("all", "total")}
            self._progress = Progress(total, self._planned, queued=self._queued)
            counts = ", ".join(f"{count} {rule}" for rule, count in total.items())
            self._display.write(f"{self._progress.total.total()} jobs: {counts}")
            self._display.start()
        elif event == LogEvent.JOB_INFO and progress and fields["rule_name"] != "all":
            rule, log = fields["rule_name"], next(map(Path, fields.get("log") or ()), None)
            minutes = self._planned.get(rule, 0.0)
            progress.start(fields["jobid"], Job(rule, _cell(fields), fields["threads"], minutes, log=log))
        elif event == LogEvent.JOB_FINISHED and progress and (job := progress.running.get(fields["job_id"])):
            progress.end(fields["job_id"], time.monotonic() - (job.begun or 0.0))
        elif event == LogEvent.JOB_ERROR:
            self._failure(fields)
        elif self._is_news(record, event):
            self._display.write(self._formatter.format(record), error=record.levelno >= logging.ERROR)

    def _line(self) -> str:
        if self._progress is None or not self._progress.running:
            return ""
        if self._status:
            return self._status if self._display.live else ""
        return self._progress.line(self._progress.left())

    def _failure(self, fields: dict[str, Any]) -> None:
        """Show what the executor says of a failed job, and the end of its log. The workflow gives its reason, later."""
        job = self._progress.running.get(fields["jobid"]) if self._progress else None
        if self._progress and job:
            self._progress.end(fields["jobid"], None)
        lines = [f"failed: {fields['rule_name']} {job.cell if job else ''}".rstrip()]
        if verdict := (fields.get("rule_msg") or "").partition(POINTER)[0].strip():
            lines.append(f"  {verdict}")
        if self.common_settings.show_failed_logs:
            for log in map(Path, fields["log"]):
                text = log.read_text(errors="replace") if log.is_file() else ""
                lines += [f"  {line}" for line in text.splitlines()[-TAIL:]]
        self._display.write("\n".join(lines), error=True)

    def _is_news(self, record: logging.LogRecord, event: LogEvent | None) -> bool:
        """Whether a reader wants to see a message."""
        text = str(record.msg or "")
        failed = bool(self._progress and self._progress.failed)
        return (
            bool(text.strip())
            and event not in (LogEvent.JOB_STARTED, LogEvent.WORKFLOW_STARTED)
            and self._shown.filter(record)
            and not text.startswith(CHATTER)
            and not any(part in text for part in REPEATED[: 1 + failed])
        )

    @property
    def writes_to_stream(self) -> bool:
        """It replaces Snakemake's output on the terminal."""
        return True

    @property
    def writes_to_file(self) -> bool:
        """It writes no file."""
        return False

    @property
    def has_filter(self) -> bool:
        """It counts records that it does not show."""
        return True

    @property
    def has_formatter(self) -> bool:
        """It formats records itself."""
        return True

    @property
    def needs_rulegraph(self) -> bool:
        """It draws no graph."""
        return False


def _cell(fields: dict[str, Any]) -> str:
    """What a job works on, such as "minilm/magnitude-linear-0.5"."""
    return "/".join(map(str, (fields["wildcards"] or {}).values()))
