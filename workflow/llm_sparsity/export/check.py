"""The check of an exported folder: transformers alone, in a process of its own, computes the same outputs."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llm_sparsity.export import outputs as alone
from llm_sparsity.jobs.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 1e-4  # of the largest output: rounding in float32


@dataclass(frozen=True)
class Checked:
    """The result of a check.

    sentences: number of sentences.
    difference: the largest absolute difference of an output.
    largest: the largest absolute output.
    transformers: version.
    """

    sentences: int
    difference: float
    largest: float
    transformers: str


def check_export(exported: Path, expected: "Mapping[str, Tensor]") -> Checked:
    """Compare the outputs of an exported folder with those of the model that it was made from.

    Args:
        exported: the folder.
        expected: what `outputs` gives of the model.

    Raises:
        UserError: transformers does not load the folder, or other token ids or outputs come out.
    """
    import torch
    import transformers
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "outputs.safetensors"
        done = subprocess.run(
            [sys.executable, alone.__file__, exported, file],
            env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise UserError(f"transformers alone does not load what was exported: {reason[:300]}; nothing is written")
        found = load_file(file)
    if found.keys() != expected.keys() or any(found[key].shape != expected[key].shape for key in expected):
        raise UserError("transformers alone computes outputs of other shapes; nothing is written")
    ids, values = ([key for key in expected if key.startswith(kind)] for kind in ("ids.", "outputs."))
    if not all(torch.equal(found[key], expected[key]) for key in ids):
        raise UserError("the exported tokenizer gives other token ids; nothing is written")
    for who, all_outputs in (("the model", expected), ("transformers alone", found)):
        if not all(bool(torch.isfinite(all_outputs[key]).all()) for key in values):
            raise UserError(f"{who} computes outputs that are not finite; nothing is written")
    difference = max(float((found[key] - expected[key]).abs().max()) for key in values)
    largest = max(float(expected[key].abs().max()) for key in values)
    if not difference <= TOLERANCE * largest:
        raise UserError(
            f"transformers alone computes other outputs, by up to {difference:.3g} of {largest:.3g}; nothing is written"
        )
    return Checked(len(values), difference, largest, transformers.__version__)
