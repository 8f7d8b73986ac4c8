"""Which weights are removed: methods, steps, exact selection, and the pruners that carry them out.

Only this package decides which weights are removed. It reads and writes model folders tensor by tensor.
"""
