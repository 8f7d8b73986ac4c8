"""Pruning methods: one module each; its name is the word in a config.

The first paragraph of a module's docstring is shown in the report: it says what is removed, and cites the paper.

A method that scores weights has three names:

    GRANULARITY  (rows, columns) of weights that are set to zero together, (1, 1) for single weights; None if attention
                 heads and feed-forward neurons are removed
    COMPARISON   the group within which scores are compared: "scope" (all tensors of the scope), "tensor", or "layer"
                 (the heads, or the neurons, of one layer)
    score        (weight, generator) -> non-negative scores, one for each group of `GRANULARITY`; the lowest are
                 removed. With GRANULARITY None: (weight,) -> float64, see `structured`

`STRIPS = True` says that `score` may get some rows of a tensor at a time, which takes less memory, as the scores of a
row, or of a row of blocks, do not depend on the others. Without it, `score` gets whole tensors, as they are stored:
matrices (packed experts one by one) and, with scope `all`, the weights of norms, which are vectors.

A calibrated method, which needs the inputs of the matrices, has four; all tensors are float32:

    GRANULARITY  (1, 1)
    observe      (inputs (tokens, in),) -> a tensor, which is summed over all batches
    prepare      (the sum,) -> anything that `prune` needs; called once for all matrices with the same inputs
    prune        (weight (out, in), prepared, sparsity) -> the pruned weight, with `sparsity.count(weight.numel())`
                 weights removed

`UPDATES = True` says that a calibrated method changes the weights that it keeps, too.

These functions are pure: no method changes its arguments. `ScoredTensors.scores` and `StructuredPruner` call `score`,
`CalibratedPruner` the others.
"""
