"""Checks of pools, the Parsl configuration of a profile: whether the study's jobs fit them."""

import re
import shlex
from pathlib import Path

from llm_sparsity.site.check import Line, minutes
from llm_sparsity.site.place import Place


def settings(place: Place) -> Line | None:
    """Whether the pools can be made of the profile's settings."""
    if not (place.pools or place.trouble):
        return None
    if place.trouble:
        return Line("pools", place.trouble, "correct it")
    provider = place.provider
    each = f"nodes of each: {provider.nodes_per_block}, walltime: {provider.walltime}"
    return Line("pools", f"pilots: {provider.max_blocks}, {each}")


def slots(place: Place) -> Line | None:
    """Whether some pool has workers with the GPUs of each job."""
    if not place.pools:
        return None
    from snakemake_executor_plugin_parsl.config import route

    try:
        used = {route({pool.label: pool for pool in place.pools}, job.gpus) for job in place.submitted}
    except ValueError as error:
        return Line("slots", str(error), "change the study's `gpus`, or parsl-nodes")
    return Line("slots", f"jobs use the pools {', '.join(sorted(used))}" if used else "no job is left")


def walltime(place: Place) -> Line | None:
    """Whether the longest job fits a pilot."""
    if not place.pools:
        return None
    longest, allowed = max((job.minutes for job in place.submitted), default=0.0), minutes(place.provider.walltime)
    text = f"the longest job takes {longest:.0f} minutes, a pilot has {allowed:.0f}"
    return Line("walltime", text, "" if longest < allowed else "raise parsl-minutes, so that it is not interrupted")


def affinity(place: Place) -> Line | None:
    """Whether the cores that workers are pinned to exist, and no two workers share one."""
    pinned = [pool for pool in place.pools if pool.cpu_affinity.startswith("list:")]
    if not pinned:
        return None
    cores = getattr(place.provider, "cpus_per_node", None) or getattr(place.provider, "cores_per_node", None)
    for pool in pinned:
        groups = [_cores(group) for group in pool.cpu_affinity.removeprefix("list:").split(":")]
        every = [core for group in groups for core in group]
        fix = f"correct the cores of pool {pool.label}"
        if len(groups) != pool.max_workers_per_node:
            return Line("affinity", f"{len(groups)} groups of cores, {pool.max_workers_per_node} workers", fix)
        if len(set(every)) < len(every):
            return Line("affinity", "workers share cores", fix)
        if cores and max(every) >= cores:
            return Line("affinity", f"core {max(every)}, but a node has {cores}", fix)
    return Line("affinity", f"every worker has cores of its own, of {cores or 'all'} of a node")


def _cores(group: str) -> list[int]:
    """Core numbers of `24-31,56-63`."""
    spans = [part.partition("-") for part in group.split(",")]
    return [core for first, _, last in spans for core in range(int(first), int(last or first) + 1)]


def activation(place: Place) -> Line | None:
    """Whether the file that activates the environment on a node exists."""
    lines = re.findall(r"^source .+$", place.provider.worker_init, re.MULTILINE) if place.pools else []
    found = [shlex.split(line)[1] for line in lines]
    if not found:
        return None
    absent = [file for file in found if not Path(file).is_file()]
    fix = "set up .venv (./run -n), or correct ENVIRONMENT"
    return Line("activation", f"{absent[0]}: not found", fix) if absent else Line("activation", found[0])
