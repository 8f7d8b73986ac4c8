"""How much of a pretrained transformer can be removed, and what does that really save?

ARCHITECTURE.md draws the flow through its packages. Seven names are the public surface of the library, which
docs/library.md explains; they are imported when they are used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_sparsity.inference.load import load
    from llm_sparsity.models.folder import ModelFolder
    from llm_sparsity.models.loading import load_model
    from llm_sparsity.pruning.prune import prune
    from llm_sparsity.reporting.tables import read as read_tables
    from llm_sparsity.study.config import load as load_config
    from llm_sparsity.study.sparsity import Sparsity

__version__ = "0.1.0"
__all__ = ["ModelFolder", "Sparsity", "load", "load_config", "load_model", "prune", "read_tables"]


def __getattr__(name: str) -> Any:
    """The public names: the library is imported without torch or pandas until one needs them."""
    places = {
        "ModelFolder": ("models.folder", "ModelFolder"),
        "Sparsity": ("study.sparsity", "Sparsity"),
        "load": ("inference.load", "load"),
        "load_config": ("study.config", "load"),
        "load_model": ("models.loading", "load_model"),
        "prune": ("pruning.prune", "prune"),
        "read_tables": ("reporting.tables", "read"),
    }
    if name not in places:
        raise AttributeError(f"module 'llm_sparsity' has no attribute {name!r}")
    module, attribute = places[name]
    return getattr(importlib.import_module(f"llm_sparsity.{module}"), attribute)
