"""What a node is like: `python -m llm_sparsity.site.node FILE` writes it there. The doctor's job runs this."""

import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from llm_sparsity.jobs.lease import devices


def describe() -> dict[str, Any]:
    """Host, GPUs, cores, temporary folder, clock, and versions of Python and torch."""
    import torch

    return {
        "host": platform.node(),
        "gpus": len(devices()),
        "usable_gpus": torch.cuda.device_count(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "temporary": tempfile.gettempdir(),
        "clock": time.time(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(describe()))
