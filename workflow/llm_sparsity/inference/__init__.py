"""How a pruned model runs: sparse layers, their kernels, and the benchmark that times them.

This package alone knows kernels. It changes no weight.
"""
