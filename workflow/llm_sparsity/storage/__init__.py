"""How weights and small files lie on disk: the sparse container, atomic writes, manifests.

This package alone knows bytes. A file it writes is whole or absent.
"""
