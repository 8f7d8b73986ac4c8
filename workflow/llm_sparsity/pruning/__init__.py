"""One file a method; the file's name is the word that a config uses.

A method is three names:

    UNIT   what goes as one: (rows, columns) of weights that become zeros, or None: heads and neurons, which are cut out
    POOL   what competes for removal: "scope" (all of the scope together), "tensor" (each matrix by itself) or "layer"
           (the heads, or the neurons, of one layer)
    score  (weight, generator) -> a score for each unit, non-negative float32, in the shape of the matrix of units; the
           lowest are removed. With UNIT None: (weight,) -> see `structured`

`prune.Pool.scores` is the only caller of `score`: a method that needs more than the weight (activations of a
calibration set, say) gets it there, as a further argument.
"""
