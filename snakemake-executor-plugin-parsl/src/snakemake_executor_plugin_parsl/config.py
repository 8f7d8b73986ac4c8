"""A Parsl configuration file: load it, choose the pool of a job, and repair what Parsl's executor does wrong."""

import os
import re
import shlex
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parsl.config import Config
from parsl.errors import ParslError
from parsl.executors import HighThroughputExecutor
from parsl.executors.high_throughput.executor import DEFAULT_INTERCHANGE_LAUNCH_CMD, DEFAULT_LAUNCH_CMD
from parsl.executors.status_handling import BlockProviderExecutor
from parsl.jobs.error_handlers import simple_error_handler
from parsl.jobs.errors import TooManyJobFailuresError
from parsl.jobs.states import JobState, JobStatus
from parsl.launchers import SimpleLauncher
from parsl.providers.errors import SubmitException

from snakemake_executor_plugin_parsl import guard
from snakemake_executor_plugin_parsl.site import Site

HERE = Path(__file__).parent
# Labels of pools, in the order in which `route` tries them: workers with no GPU, one, several, those of several nodes.
LABELS = ("cpu", "gpu", "node", "nodes")
PREEMPTED = "preempted"  # message of a pilot that the batch system has ended for others
IN_A_ROW = 3  # pilots that end before a worker connects, after which the run ends


class NotSubmitted(SubmitException):  # type: ignore[misc]
    """A provider submits no pilot.

    Args:
        job_name: name of the pilot's batch job.
        message: the reason, as the batch system gives it.
        waits: whether it may be submitted later: a queue is full, or the server is down. Otherwise the run ends.
    """

    def __init__(self, job_name: str, message: str, *, waits: bool) -> None:
        super().__init__(job_name, f"{WAITS if waits else REFUSED}: {message}")

    def __str__(self) -> str:
        return str(self.message)


WAITS = "the batch system accepts no more jobs now"
REFUSED = "the batch system refuses the pilot"


def load(file: Path, site: Site) -> Config:
    """Run a Parsl configuration file, which sets `config` to a `parsl.config.Config`, or to a function of the site.

    Raises:
        ValueError: one line with the file, the error and the fix.
    """
    if not file.is_file():
        raise ValueError(f"{file}: not found; parsl-config in the profile names a Parsl configuration file")
    names: dict[str, Any] = {"__file__": str(file), "__name__": file.stem}
    try:
        exec(compile(file.read_bytes(), file, "exec"), names)
        config = names.get("config")
        if callable(config):
            config = config(site)
    except (ParslError, OSError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from error
    except Exception as error:
        raise ValueError(f"{file}{_line(file, error)}: {type(error).__name__}: {error}") from error
    if not isinstance(config, Config):
        raise ValueError(f"{file}: sets no `config = parsl.config.Config(...)` and has no function `config(site)`")
    if others := [executor.label for executor in config.executors if not isinstance(executor, HighThroughputExecutor)]:
        raise ValueError(f"{file}: {others[0]} is not a HighThroughputExecutor")
    folder = str(Path(config.run_dir).absolute())
    if not re.fullmatch(r"[\w@%+=:,./~-]+", folder):
        raise ValueError(
            f"{file}: run_dir: found {folder!r}, which Parsl's batch scripts cannot name; run in a folder without "
            "blanks and special characters in its path"
        )
    return config


def _line(file: Path, error: Exception) -> str:
    """The line of a file at which an error arose, as ":7"; "" if it is not known."""
    if isinstance(error, SyntaxError):
        return f":{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f":{lines[-1]}" if lines else ""


def route(executors: Mapping[str, HighThroughputExecutor], gpus: int) -> str:
    """The label of the first pool whose workers have enough GPUs for a job.

    A pool that pins no GPUs takes any job, unless its label is `cpu`.

    Raises:
        ValueError: no pool has enough GPUs per worker.
    """
    has = {label: devices(executor) for label, executor in executors.items()}
    for label in sorted(has, key=lambda label: LABELS.index(label) if label in LABELS else len(LABELS)):
        enough = has[label] == gpus if span(executors[label]) > 1 else has[label] >= gpus
        if gpus == 0 or (enough if has[label] else label != "cpu"):
            return label
    raise ValueError(
        f"gpu: a job uses {gpus}, but no pool has workers with {gpus} GPUs "
        f"({', '.join(f'{label}: {count}' for label, count in has.items())}); change the job's resource `gpu`, or the "
        "nodes of a pilot: a job over several nodes uses all of them"
    )


def devices(executor: HighThroughputExecutor) -> int:
    """GPUs of each worker of a pool; 0 if it pins none."""
    return span(executor) * min((len(name.split(",")) for name in executor.available_accelerators), default=0)


def span(executor: HighThroughputExecutor) -> int:
    """Nodes of each worker of a pool: all of its block if the block starts a single manager, otherwise 1."""
    alone = isinstance(getattr(executor.provider, "launcher", None), SimpleLauncher)
    return executor.provider.nodes_per_block if alone else 1


def repair(executor: HighThroughputExecutor) -> None:
    """Work around faults of Parsl's executor, in place.

    - Its interchange outlives a killed driver, keeps starting jobs, and knows no walltime: ours is tied to the driver.
    - Its managers leave files in the temporary folder of a node: ours have one of their own.
    - When the slots outnumber the jobs by less than a pilot, Parsl asks to remove 0 pilots, and the executor then
      removes all that are queued: such calls are ignored.
    - Parsl counts one slot per node even where one worker has all nodes of a block: `parallelism` makes up for it.
    - Parsl counts slots that no waiting job fits: `unfit` makes up for them, so that it asks for another pilot.
    - One refused submission ends the run: `wait_for_pilots` knows better. A handler of the file's own stays.
    """
    # Parsl finds its scripts by PATH, which lacks them if the environment was not activated.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    executor.provider.parallelism *= span(executor)
    executor.unfit = 0
    scale_in, outstanding = executor.scale_in, executor.outstanding
    executor.scale_in = lambda blocks, *args, **kwargs: scale_in(blocks, *args, **kwargs) if blocks > 0 else []
    executor.outstanding = lambda: outstanding() + executor.unfit
    executor.validate_resource_spec = lambda specification: None  # ours has `seconds`
    if executor.block_error_handler is simple_error_handler:
        executor.block_error_handler = wait_for_pilots
    if executor.interchange_launch_cmd == DEFAULT_INTERCHANGE_LAUNCH_CMD:
        script = str(HERE / "interchange.py")
        python = [sys.executable, "-I"]
        executor.interchange_launch_cmd = [*python, guard.__file__, "interchange", *python, script]
    if executor.launch_cmd == DEFAULT_LAUNCH_CMD:
        script = shlex.quote(guard.__file__).replace("{", "{{{{").replace("}", "}}}}")  # Parsl formats it twice
        executor.launch_cmd = f"python3 -I {script} pilot {DEFAULT_LAUNCH_CMD}"


def wait_for_pilots(executor: BlockProviderExecutor, status: Mapping[str, JobStatus]) -> None:
    """Block error handler of Parsl: end the run with a reason when waiting for pilots cannot help.

    That is the case when no pilot runs or is queued, and either the batch system refuses the latest for another reason
    than a full queue or a server that is down, or the last pilots all ended before a worker connected.

    Args:
        executor: of a pool.
        status: of its pilots, by block.
    """
    if not status or executor.bad_state_is_set:
        return
    if any(pilot.state in (JobState.PENDING, JobState.RUNNING) for pilot in status.values()):
        return
    latest = [status[block] for block in sorted(status, key=int)]
    message = latest[-1].message or ""
    if REFUSED in message:
        executor.set_bad_state_and_fail_all(TooManyJobFailuresError(message[message.index(REFUSED) :]))
        return
    started = [pilot for pilot in latest if WAITS not in (pilot.message or "")][-IN_A_ROW:]
    if len(started) == IN_A_ROW and all(
        pilot.state in (JobState.FAILED, JobState.MISSING) and pilot.message != PREEMPTED for pilot in started
    ):
        last = started[-1]
        printed = " ".join((last.stderr_summary or "").split())[-500:]
        executor.set_bad_state_and_fail_all(
            TooManyJobFailuresError(
                f"{IN_A_ROW} pilots in a row ended before a worker connected: {last.message or 'no reason given'}"
                + (f"; the last one printed: {printed}" if printed else "")
            )
        )
