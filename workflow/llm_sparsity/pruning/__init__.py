"""Which weights are removed: methods, exact selection, three pruners (unstructured, structured, calibrated).

Only this package decides which weights are removed. It reads and writes model folders tensor by tensor.
"""
