"""The doctor: every check of a place, and its screen."""

import os
import shutil
import socket
import sys
import textwrap
from collections.abc import Callable, Iterable

from llm_sparsity.site import machine, pbs, pools, slurm, submit
from llm_sparsity.site.check import Line
from llm_sparsity.site.place import Place
from llm_sparsity.site.sources import sources

Check = Callable[[Place], Line | None]  # None: it does not apply here
CHECKS: tuple[Check, ...] = (
    pools.settings,
    pbs.scheduler, pbs.account, pbs.queue,
    slurm.scheduler, slurm.account, slurm.partition, slurm.accounting,
    pools.walltime, pools.slots, pools.affinity, pools.activation,
    machine.environment, machine.gpus, sources, machine.folder, machine.disk, machine.temporary, machine.threads,
    machine.clock, machine.other_driver,
)  # fmt: skip
COLOURS = {"OK": "32", "TO DO": "31", "--": "2"}
SUBJECT = 15  # characters of the column of subjects, and of that of states
STATE = 7
NARROWEST = 20  # characters of what was found, however narrow a terminal is
WIDTH = 120  # characters of a screen that is no terminal


def examine(place: Place, *, submits: bool = False) -> list[Line]:
    """Check a place.

    Args:
        place: the study and where it is to run.
        submits: run a job of five minutes on a node as well. Otherwise nothing is submitted and nothing written.
    """
    lines = [line for check in CHECKS if (line := check(place)) is not None]
    submitted = submit.submit(place) if submits else []
    if submitted and submitted[0].state == "OK":  # the job answers what could not be checked without it
        lines = [line for line in lines if line.known]
    return [*lines, *submitted]


def screen(place: Place, lines: Iterable[Line]) -> str:
    """The lines as a table, with colours on a terminal."""
    lines, terminal = list(lines), sys.stdout.isatty()
    coloured = terminal and "NO_COLOR" not in os.environ
    width = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns) if terminal else WIDTH
    where = f"profile {place.profile}" if place.profile else "no profile: this machine"
    todo = sum(bool(line.fix) for line in lines)
    end = f"{todo} to do." if todo else "Nothing to do."
    rows = [_row(line, width, coloured) for line in lines]
    return "\n".join([f"Doctor: study {place.study.name}, {where}, on {socket.gethostname()}", "", *rows, "", end])


def _row(line: Line, width: int, coloured: bool) -> str:
    """State, subject, what was found, and on a line of its own what to do."""
    state = f"{line.state:{STATE}}"
    if coloured:
        state = f"\033[{COLOURS[line.state]}m{state}\033[0m"
    room, indent = max(width - STATE - SUBJECT, NARROWEST), " " * (STATE + SUBJECT)
    text = textwrap.wrap(line.found, room) + textwrap.wrap(f"→ {line.fix}" if line.fix else "", room)
    return f"{state}{line.subject:{SUBJECT}}" + f"\n{indent}".join(text)
