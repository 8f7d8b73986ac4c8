"""The result of a study that is exported: its model folder, and where the study keeps what belongs to it."""

import difflib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.storage.files import MANIFEST, read_manifest
from llm_sparsity.study.cells import DENSE, MODELS, RESULTS, TASKS, Variant

# The model folder of a variant or a run; without a recipe, of a variant that was pruned after it was fine-tuned.
PLACE = re.compile(
    rf"(?P<root>.*)/{RESULTS}/(?P<model>[^/]+)/(?P<variant>[^/]+)"
    r"(/(?P<task>[^/]+)(/(?P<recipe>[^/]+))?/seed-(?P<seed>\d+))?/model"
)


@dataclass(frozen=True)
class Cell:
    """A model folder, and its place in a study.

    folder: of the model.
    root: the folder of `results/` and `resources/`; None for a model folder outside of a study.
    model: the model's name in the study; else the folder's own.
    variant: "dense", or as it was pruned; None outside of a study.
    task, recipe, seed: of the fine-tuning; None without one.
    """

    folder: ModelFolder
    root: Path | None
    model: str
    variant: Variant | None = None
    task: str | None = None
    recipe: str | None = None
    seed: int | None = None

    @cached_property
    def facts(self) -> dict[str, Any]:
        """The manifest of the model folder; empty for a folder that this program has not made."""
        return self.folder.manifest if (self.folder.path / MANIFEST).exists() else {}

    @property
    def name(self) -> str:
        """A name for readers, such as `minilm-wanda-linear-0.5-sst2`."""
        parts = [self.model, *([] if self.variant in (None, DENSE) else [str(self.variant)])]
        return "-".join([*parts, *([self.task] if self.task else [])])

    @property
    def place(self) -> str:
        """The cell as a path in its study, without the folders of this machine."""
        path = self.folder.path.absolute()
        return str(path.relative_to(self.root)) if self.root else path.name

    @property
    def dense(self) -> dict[str, Any] | None:
        """The manifest of the dense model; None if it is not there."""
        return _manifest(self.root / MODELS / self.model) if self.root else None

    @property
    def of_variant(self) -> Path | None:
        """The folder of the results of its variant; None outside of a study."""
        return self.root / RESULTS / self.model / str(self.variant) if self.root else None

    def task_facts(self, task: str) -> dict[str, Any]:
        """The manifest of a task of the study; empty if it is not there."""
        return (_manifest(self.root / TASKS / task) if self.root else None) or {}


def find_cell(path: Path) -> Cell:
    """The cell that a path names.

    Args:
        path: the folder of a result, such as `results/minilm/wanda-linear-0.5`, or any model folder.

    Raises:
        UserError: there is no such folder, or no model in it; the message names the nearest result.
    """
    wanted = [path, path / "model"]
    if path.name == str(DENSE):  # the dense model is an input of the study
        wanted.append(path.parent.parent.parent / MODELS / path.parent.name)
    found = next((folder for folder in wanted if (folder / "config.json").is_file()), None)
    if found is None:
        raise UserError(f"{path}: {_problem(path)}{_nearest(path)}")
    folder, whole = ModelFolder(found), str(found.absolute())
    if dense := re.fullmatch(f"(.*)/{MODELS}/([^/]+)", whole):
        return Cell(folder, Path(dense[1] or "/"), dense[2], DENSE)
    if (place := PLACE.fullmatch(whole)) and (variant := _variant(place["variant"])):
        seed = int(place["seed"]) if place["seed"] else None
        return Cell(folder, Path(place["root"] or "/"), place["model"], variant, place["task"], place["recipe"], seed)
    own = found.absolute()
    return Cell(folder, None, own.parent.name if own.name == "model" else own.name)


def _variant(name: str) -> Variant | None:
    """The variant of a name; None if the name is no variant's, so that the folder belongs to no study."""
    try:
        return Variant.parse(name)
    except ValueError:
        return None


def _problem(path: Path) -> str:
    if not path.exists():
        return "no such result"
    return "no model folder, which has config.json" if path.is_dir() else "no folder"


def _nearest(path: Path) -> str:
    """The result whose name is closest, for a message; "" if there are none near by."""
    results = next((folder for folder in path.parents if folder.name == "results" and folder.is_dir()), RESULTS)
    models = [model for depth in ("*/*", "*/*/*/*", "*/*/*/*/*") for model in results.glob(f"{depth}/model")]
    cells = [str(model.parent) for model in models if (model / MANIFEST).is_file()]
    closest = difflib.get_close_matches(str(path), cells, n=1, cutoff=0)
    return f"; the nearest result is {closest[0]}" if closest else f"; {results} has no results"


def _manifest(folder: Path) -> dict[str, Any] | None:
    return read_manifest(folder) if (folder / MANIFEST).exists() else None
