"""Checks of PBS: whether it answers, and whether its queue takes the pilots of a profile."""

import re
from typing import Any

from llm_sparsity.site.check import Line, ask, minutes
from llm_sparsity.site.place import Place

Queue = dict[str, str]  # attributes, as `qstat -Q -f` shows them


def scheduler(place: Place) -> Line | None:
    """Whether the server answers, and its version."""
    if place.batch != "PBS":
        return None
    listed = ask("qstat", "-Q", "-f")
    if listed.code == 127:
        return Line("scheduler", listed.error, "log in to a login node, or add PBS to PATH (often /opt/pbs/bin)")
    if listed.code != 0:
        return Line("scheduler", f"PBS does not answer: {listed.reason}", "repeat later; a driver would wait, too")
    found = ask("qstat", "--version").output.rpartition("=")[2].strip()
    return Line("scheduler", f"PBS {found} answers; queues: {len(_queues(listed.output))}")


def account(place: Place) -> Line | None:
    """Which account is charged. PBS tells only on submission whether it accepts it."""
    if place.batch != "PBS" or place.provider is None:
        return None
    return Line("account", f"{place.provider.account}; whether PBS accepts it: --submit", known=False)


def queue(place: Place) -> Line | None:
    """Whether the queue exists, is open, and takes pilots of this size."""
    if place.batch != "PBS" or place.provider is None:
        return None
    name, queues = str(place.provider.queue), _queues(ask("qstat", "-Q", "-f").output)
    if not queues:
        return Line("queue", f"{name}: unknown while PBS does not answer", known=False)
    if name not in queues:
        return Line("queue", f"{name}: no such queue", f"set parsl-queue to one of {', '.join(queues)}")
    if closed := [word for word in ("enabled", "started") if queues[name].get(word, "True") != "True"]:
        return Line("queue", f"{name} is not {' and not '.join(closed)}", "wait for the site, or choose another queue")
    found = f"{name} takes pilots of {place.provider.nodes_per_block} nodes for {place.provider.walltime}"
    return _outside(place.provider, name, queues[name]) or Line("queue", found)


def _outside(provider: Any, name: str, limits: Queue) -> Line | None:
    """The limit of a queue that its pilots are outside of; None if there is none."""
    wanted = (
        ("nodect", "nodes", float(provider.nodes_per_block)),
        ("walltime", "minutes", minutes(provider.walltime)),
    )
    for resource, unit, value in wanted:
        low, high = (limits.get(f"resources_{bound}.{resource}") for bound in ("min", "max"))
        if (low and value < _amount(low)) or (high and value > _amount(high)):
            text = f"{name} takes {low or '0'} to {high or 'any'} {unit}, pilots have {value:.0f}"
            return Line("queue", text, f"change parsl-{unit} (llm-sparsity plan --queues recommends values)")
    allowed = re.search(r"u:\w+=(\d+)", limits.get("max_queued", "") + limits.get("max_run", ""))
    if allowed and provider.max_blocks > int(allowed[1]):
        return Line("queue", f"{name} allows {allowed[1]} at once", f"set parsl-pilots to {allowed[1]}")
    return None


def _amount(limit: str) -> float:
    """A limit as a number; minutes, if it is a walltime."""
    return minutes(limit) if ":" in limit else float(limit)


def _queues(text: str) -> dict[str, Queue]:
    """Queues and their attributes, from `qstat -Q -f`."""
    found: dict[str, Queue] = {}
    for name, block in re.findall(r"^Queue: (\S+)\n((?:[ \t]+.*\n?|\n)*)", text, re.MULTILINE):
        found[name] = dict(re.findall(r"^[ \t]+([\w.]+) = (.*)$", block, re.MULTILINE))
    return found
