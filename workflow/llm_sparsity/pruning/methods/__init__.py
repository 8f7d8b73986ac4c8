"""One file a method; the file's name is the word that a config uses.

A method that looks at weights alone is three names:

    UNIT   what goes as one: (rows, columns) of weights that become zeros, or None: heads and neurons, which are cut out
    POOL   what competes for removal: "scope" (all of the scope together), "tensor" (each matrix by itself) or "layer"
           (the heads, or the neurons, of one layer)
    score  (weight, generator) -> a score for each unit, non-negative float32, in the shape of the matrix of units; the
           lowest are removed. With UNIT None: (weight,) -> see `structured`

A calibrated method, which looks at the inputs of matrices too, has in place of POOL and score (all float32):

    observe  inputs (tokens, in) -> what the method keeps of them; over several batches it is added up
    prepare  what was observed -> what `prune` needs of it, once for all matrices that have the same inputs
    prune    (weight (out, in), what was prepared, sparsity) -> the pruned weight; exactly `removed_of` its size go

The functions are pure: no method changes what it is given. `pool.Pool.scores` is the only caller of `score`,
`calibrate.Calibrated` the only one of the others.
"""
