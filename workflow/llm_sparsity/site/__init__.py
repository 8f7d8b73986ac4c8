"""Is this place fit for a study? What its batch system, its nodes and this machine say, and what to do about it."""
