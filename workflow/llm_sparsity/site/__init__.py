"""Is this place fit for a study? The doctor: its checks of a batch system, of pools, of nodes and of this machine.

It alone knows what the commands of batch systems print. A check is a function of a place, which is a study and a
profile; it returns one line.
"""
