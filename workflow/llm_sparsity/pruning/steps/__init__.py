"""Steps that follow a pruning method: one module each; its name is the word in a config, as in `wanda+swaps`.

The first paragraph of a module's docstring is shown in the report: it says what is changed, and cites the paper. Steps
keep the number of removed weights. `GRANULARITY` is (1, 1) in all of them. `EXCHANGES = True` says that a step removes
other weights than the method did, so that the method must remove single ones. There are three kinds:

A step that repairs matrices; all tensors are float32:

    observe   (inputs (tokens, in),) -> a tensor, which is summed over all batches
    prepare   (the sum,) -> anything that `repair` needs; called once for all matrices with the same inputs
    repair    (dense weight (out, in), pruned weight (out, in), prepared, sparsity) -> the repaired weight

A step that trains sub-blocks, attention or feed-forward, of any method that sets weights to zero:

    train     (weights, output, wanted, seed) -> the errors before and after; changes the weights in place, which are
              parameters in float32, and keeps their zeros. `output` runs the sub-block on a batch, `wanted` has the
              dense model's outputs, see `reconstruct`

A step that quantises matrices, which comes last, or stands alone; they have any floating-point dtype:

    quantize  (weight,) -> `Quantized`, codes and scales whose products stand for the weight; zeros stay zeros

All but `train` are pure, as the functions of methods are. `RepairPruner`, `ReconstructionPruner` and `QuantisingPruner`
call them.
"""
