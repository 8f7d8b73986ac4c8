"""Jobs: what the scripts share: command line, user errors, GPU leases, locks, the environment of a run.

This package alone knows that a computation is a process on a machine. Nothing in it affects a result.
"""
