"""Write a study of your own model, from its config.json alone, and show what it takes."""

import argparse
import itertools
import os
import re
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from string import Template

import yaml

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.storage.files import write_text
from llm_sparsity.study import config, plan
from llm_sparsity.study.document import parsed
from llm_sparsity.study.fields import NAME
from llm_sparsity.study.project import LIBRARY

TEMPLATES = Path(__file__).parent
SCHEMA = LIBRARY / "study" / "config.schema.json"
LENGTHS = {"window": 512, "batch": 128, "sentence": 64}  # tokens, or as many as the model has positions for


def main(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Write the study, and print its plan."""
    parser.add_argument("model", help="a folder of a transformers model, or a repository id of the hub")
    parser.add_argument("--name", help="of the model in the study (default: the last part of MODEL)")
    parser.add_argument("--output", type=Path, help="file to write (default: NAME.yaml)")
    args = parser.parse_args(words)
    path = init(args.model, name=args.name, output=args.output)
    print(f"Wrote {path}: a study to edit, with comments.\n")
    print(plan.table(config.read(path)))
    here = Path(os.path.relpath(sys.executable)).with_name("llm-sparsity")  # of an environment that is not activated
    command = "llm-sparsity" if shutil.which("llm-sparsity") else here
    print(f"\nNext:  {command} run {path} -n    what would run\n       {command} run {path}       run it")


def init(model: str, *, name: str | None = None, output: Path | None = None) -> Path:
    """Write the config of a study of a model: its source, a grid that suits its architecture, small public texts.

    Args:
        model: a folder of a transformers model, or a repository id of the hub, whose newest commit is pinned.
        name: of the model in the study; default: the last part of `model`.
        output: file to write; default: {name}.yaml.

    Returns:
        The file.

    Raises:
        UserError: there is no such model, transformers does not know its type, it has no safetensors, or the file
            exists.
    """
    name = name or re.sub(r"[^\w.-]", "-", Path(model).absolute().name)[:80]
    output = output or Path(f"{name}.yaml")
    if not re.fullmatch(NAME, name):
        raise UserError(
            f"--name: found {name!r}; use letters, digits, '.', '_' and '-' only, 80 at most, a letter or digit first"
        )
    if output.exists():
        raise UserError(f"{output}: exists; remove it, or name another file by --output")
    folder, source, parameters = _local(Path(model)) if Path(model).is_dir() else _of_hub(model)
    architecture = folder.structure.architecture
    roles = folder.structure.roles
    layers = 1 + max(role.layer for role in roles.values())
    reasons = (f"{name}: {why}" for name in roles if roles[name].is_matrix and (why := folder.why_unobserved(name)))
    unobserved = next(reasons, "")
    is_classifier = folder.class_name.endswith("ForSequenceClassification")
    if is_classifier:  # with its head and epochs: 0 nothing trains: more seeds and `gradual` would be refused
        source += "\n    # head: reviews # if it was trained on the task below; with epochs: 0 (docs/howto.md)"
    template = "encoder" if is_classifier and architecture == "decoder" else architecture  # by tasks: it writes no text
    text = Template((TEMPLATES / f"{template}.yaml").read_text(encoding="utf-8")).substitute(
        name=_quoted(name),
        file=output,
        schema=SCHEMA,
        source=source,
        parameters=f"{float(f'{parameters / 1e6:.4g}'):.10g}e6 # for the plan, until the model is downloaded"
        if parameters
        else "null",
        architecture=architecture,
        layers=layers,
        thirds=_thirds(layers),
        seeds="[0] # [0, 1, 2] if it is trained" if is_classifier else "[0, 1, 2]",
        trains="# " if is_classifier else "",
        methods="[magnitude, uniform, random] # calibrated ones, such as wanda, cannot run its layers:"
        f"\n    # {unobserved}"
        if unobserved
        else "[magnitude, uniform, wanda, sparsegpt] # also: admm (best, slowest), random (a control)",
        observes="# " if unobserved else "",
        untrained=" # with `head`: 0, so that the classifier is scored as it came, and pruned" if is_classifier else "",
        **{name: min(length, folder.max_length or length) for name, length in LENGTHS.items()},
    )
    config.load(parsed(text, str(output)))
    write_text(output, text)
    return output


def _local(path: Path) -> tuple[ModelFolder, str, int]:
    """A model folder, the source that names it, and its number of parameters."""
    from llm_sparsity.data.download import count_parameters
    from llm_sparsity.data.model_files import check_files

    check_files(path, str(path))
    folder = ModelFolder(path)
    with folder.open() as reader:
        parameters = count_parameters(reader, folder.structure)
    return folder, f"{{folder: {_quoted(str(path.resolve()))}}}", parameters


def _of_hub(model: str) -> tuple[ModelFolder, str, int | None]:
    """The configuration of the newest commit of a repository, the source that pins it, and its parameters.

    Raises:
        UserError: it is neither a folder here nor the id of a repository, or the hub has no such model.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        raise UserError(f"{model}: found no such folder, and it is no repository id such as owner/name; correct it")
    from llm_sparsity.data.hub import newest

    commit, folder, parameters = newest(model)
    return ModelFolder(folder), f"{{hub: {model}, revision: {commit}}}", parameters


def _quoted(text: str) -> str:
    """A YAML string, without quotation marks if YAML reads it as it is: not "0001000", "1.10" or "null"."""
    with suppress(UserError, ValueError, yaml.YAMLError):
        if re.fullmatch(r"[\w./-]+", text) and parsed(text, text) == text:
            return text
    return "'" + text.replace("'", "''") + "'"


def _thirds(layers: int) -> str:
    """The layers in three parts, as YAML: those of 6 are "[0, 1], [2, 3], [4, 5]"."""
    edges = [round(layers * third / 3) for third in range(4)]
    parts = [list(range(start, end)) for start, end in itertools.pairwise(edges)]
    return ", ".join(str(part) for part in parts if part)
