"""Tensor names: the parameter of a model that a tensor of a checkpoint, or of another model of its kind, belongs to.

What a checkpoint calls its tensors depends on the class that was saved (prefixes), on its age (renamed modules), and on
what transformers fuses on loading (the matrices of experts). transformers' own conversions tell all of it.
"""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key


class Place(NamedTuple):
    """Where a tensor goes.

    names: of the parameters or buffers of the model that it is, or is fused into; none if it has no place.
    fused: whether transformers makes them of this tensor and others.
    """

    names: tuple[str, ...]
    fused: bool


class ModuleNames:
    """Names of tensors -> names in a model.

    Args:
        model: a transformers model, on any device.
    """

    def __init__(self, model: Any) -> None:
        conversions = get_model_conversion_mapping(model)
        self._renamings = [change for change in conversions if isinstance(change, WeightRenaming)]
        self._converters = [change for change in conversions if isinstance(change, WeightConverter)]
        self._own = dict.fromkeys(model.state_dict(), True)
        self._prefix = model.base_model_prefix
        self._known: dict[str, Place] = {}

    def place(self, name: str) -> Place:
        """The place of a tensor, by its name in a checkpoint or in another model with the same body."""
        if name not in self._known:
            self._known[name] = self._find(name)
        return self._known[name]

    def _find(self, name: str) -> Place:
        if name in self._own:
            return Place((name,), fused=False)
        found, pattern = rename_source_key(name, self._renamings, self._converters, self._prefix, self._own)
        if pattern is None:
            return Place((found,) if found in self._own else (), fused=False)
        converter = next(each for each in self._converters if pattern in each.source_patterns)
        first, *others = converter.target_patterns
        names = (found, *(found.replace(first, other) for other in others))
        return Place(tuple(each for each in names if each in self._own), fused=True)

    def name(self, name: str) -> str | None:
        """The one parameter or buffer that a tensor is, or is fused into; None if it has no place."""
        names = self.place(name).names
        return names[0] if names else None

    def places(self, names: Iterable[str]) -> dict[str, Place]:
        """The place of each tensor of a checkpoint. Of two names of one parameter, the second has none."""
        found: dict[str, Place] = {}
        taken: set[str] = set()
        for name in names:
            place = self.place(name)
            if not place.fused:
                place = place if taken.isdisjoint(place.names) else Place((), fused=False)
                taken.update(place.names)
            found[name] = place
        return found


def modern(name: str) -> str:
    """A name of a tensor without the old words for the weight and bias of a norm, gamma and beta."""
    return re.sub(r"(?<=LayerNorm\.)(gamma|beta)$", lambda old: {"gamma": "weight", "beta": "bias"}[old.group()], name)
