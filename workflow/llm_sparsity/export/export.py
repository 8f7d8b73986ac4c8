"""Export: a cell becomes the folder of a plain transformers model, with a model card, checked by transformers alone."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

from llm_sparsity.export import outputs as alone
from llm_sparsity.export.card import Exported, checked_note, model_card, stored_note
from llm_sparsity.export.cell import Cell
from llm_sparsity.export.check import check_export
from llm_sparsity.export.density import densities, draw
from llm_sparsity.export.plain import check_plain, load_plain, save_plain
from llm_sparsity.export.scores import scores
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.storage.files import atomic_folder, write_text


def export(cell: Cell, output: Path, *, max_shard_size: str = "5GB", check: bool = True) -> Exported:
    """Write the folder of a plain transformers model. It appears when it is complete and checked, or not at all.

    The peak of memory is the model's weights in float32; without a check, in the dtype of the checkpoint.

    Args:
        cell: what is exported.
        output: folder to write; must not exist.
        max_shard_size: of a weight file, such as "5GB"; a larger model has several, and an index.
        check: compare the outputs of the folder, loaded by a process without this library, with those of the cell.

    Returns:
        What was exported, as its card describes it.

    Raises:
        UserError: the folder exists; the model is not complete, or structured pruning made it one that transformers
            cannot express; transformers alone computes other outputs.
    """
    if output.exists() or output.is_symlink():
        raise UserError(f"{output}: exists already; name a new folder, or remove this one")
    check_plain(cell.folder)
    model = load_plain(cell.folder, cell.facts)
    with atomic_folder(output) as fresh:
        save_plain(model, cell.folder, fresh, max_shard_size)
        exported = Exported(
            output.name, cell, type(model).__name__, str(model.dtype).removeprefix("torch."),
            sum(path.stat().st_size for path in fresh.glob("*.safetensors")),
            densities(cell, model), scores(cell), None, _commit(),
        )  # fmt: skip
        expected = alone.outputs(model, cell.folder.tokenizer) if check else None
        del model  # before another process loads it
        if expected:
            exported = replace(exported, checked=check_export(fresh, expected))
        if exported.pruned:
            draw(exported.densities, fresh / "density.png")
        write_text(fresh / "README.md", model_card(exported))
    return exported


def summary(exported: Exported, output: Path) -> str:
    """What was exported, for the terminal."""
    return (
        f"{output}: {exported.model_class}, {exported.bytes:,} bytes of weights\n"
        f"{stored_note(exported)}\n{checked_note(exported.checked)}"
    )


def _commit() -> str | None:
    """The commit of this program's checkout; None for an installed wheel, or without git."""
    checkout = Path(__file__).parents[3]
    if not (checkout / ".git").exists() or shutil.which("git") is None:
        return None
    done = subprocess.run(
        ["git", "-C", checkout, "describe", "--always", "--abbrev=12", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or None
