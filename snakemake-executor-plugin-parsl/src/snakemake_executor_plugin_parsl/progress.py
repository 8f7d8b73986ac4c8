"""The status line: jobs, pilots and the estimated time of the end."""

from collections.abc import Mapping
from datetime import datetime, timedelta

from snakemake_logger_plugin_progress.progress import Progress


def line(progress: Progress, pool: Mapping[str, int]) -> str:
    """One line about jobs, slots, pilots and the estimated end.

    Args:
        progress: of the jobs that are submitted to pools.
        pool: see `pools.summary`.
    """
    running = pool["busy"]
    parts = [
        f"{max(0, len(progress.running) - running)} queued, {running} running, {progress.done.total()} of "
        f"{progress.total.total()} done, {progress.failed.total()} failed, {pool['lost']} preempted or lost",
        f"{pool['pilots']} pilots up, {pool['waiting']} in the queue, {running} of {pool['slots']} slots busy",
    ]
    if (left := progress.left(pool["slots"])) is not None:
        end = datetime.now() + timedelta(seconds=left)
        parts.append(f"ends about {end:%H:%M} (in {max(1, round(left / 60))} min)")
    return "parsl: " + " | ".join(parts)
