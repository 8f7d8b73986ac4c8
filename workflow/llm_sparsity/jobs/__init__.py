"""What every command line shares: user errors, arguments, GPU leases, locks, the environment of a run.

Nothing here affects a result, so the code hash of a stage leaves this package out.
"""
