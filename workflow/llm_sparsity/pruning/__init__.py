"""What is removed: methods, exact selection, unstructured and structured removal, calibration.

This package alone decides which weights go. It reads and writes model folders tensor by tensor.
"""
