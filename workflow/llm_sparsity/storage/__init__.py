"""Storage: the sparse container of weights, its codec, atomic files and manifests.

This package alone knows the layout of bytes on disk. A file that it writes is complete or absent.
"""
