"""How text and models come in: download, tasks, token ids, lm-evaluation-harness.

This package alone knows hubs, registry packages and table formats. A task leaves it as a `TaskFolder` of JSON lines.
"""
