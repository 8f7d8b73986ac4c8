"""One file a method; the file's name is the word that a config uses.

A method is two names:

    POOL   what competes for removal: "scope" (all weights of the scope together) or "tensor" (each matrix by itself)
    score  (weight, generator) -> a score for each weight, non-negative float32 of its shape; the lowest are removed

`prune.Pool.scores` is the only caller of `score`: a method that needs more than the weight (activations of a
calibration set, say) gets it there, as a further argument.
"""
