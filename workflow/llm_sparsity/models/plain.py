"""Whether transformers alone, and with it any other program, can hold a model."""

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.checkpoint import stored_names
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.loading import load_skeleton


def check_plain(folder: ModelFolder) -> None:
    """Check that the model which transformers makes of a configuration has the shapes of a folder's tensors.

    Most configurations cannot express fewer attention heads than they were made for, nor layers of several widths.

    Raises:
        UserError: structured pruning made a layer narrower than the configuration can express.
    """
    model = load_skeleton(folder)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with folder.open() as reader:
        for name, stored in stored_names(model, reader.names).items():
            if name in parameters and (shape := reader.shape(stored)) != (own := tuple(parameters[name].shape)):
                raise UserError(
                    f"{folder}: structured pruning has made {stored} {_size(shape)}, but by config.json transformers' "
                    f"{type(model).__name__} has {_size(own)}, so only this program can load the model: "
                    "llm_sparsity.models.loading; for other programs, prune with `mlp` or a method that keeps shapes"
                )


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
