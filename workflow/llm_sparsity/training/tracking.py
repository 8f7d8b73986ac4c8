"""Tracking: the loss, the scores and the sparsity of a run, by step, in an experiment tracker that accelerate knows.

A tracker is told what a run computes; it shapes no result, so it is no setting of one, and switching it on or off makes
nothing run again. Without a tracker, accelerate's `log` does nothing.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_sparsity.jobs.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

FOLDER = Path("logs/tracking")  # of trackers that write files
PROJECT = "llm-sparsity"


def require(tracker: str) -> None:
    """Raise UserError unless the package of a tracker is installed."""
    if find_spec(tracker) is None:
        raise UserError(
            f"tracker: found {tracker!r}, whose package is not installed; pip install {tracker}, or remove the key"
        )


def start(accelerator: "Accelerator", tracker: str, output: Path) -> None:
    """Start the tracker that an accelerator was made with.

    Args:
        accelerator: of the run.
        tracker: its name in accelerate.
        output: the run's results folder, whose last five parts name the run.
    """
    run = "/".join(output.parts[-5:])
    if tracker == "tensorboard":  # a folder a run
        accelerator.init_trackers(run)
        return
    accelerator.init_trackers(PROJECT, init_kwargs={tracker: {"run_name" if tracker == "mlflow" else "name": run}})


def numbers(row: dict[str, Any]) -> dict[str, float]:
    """The values of a row of the history that a tracker gets."""
    return {key: value for key, value in row.items() if value is not None and key not in ("epoch", "step")}
