"""How a shard ends. The launcher reads these."""

OK = 0  # asked to stop
FAILED = 1  # a bug or the machine: the traceback is in the log
BAD_CONFIG = 2  # the JSON on standard input
BAD_MODEL = 3  # the model folder cannot be served, now or later
ABANDONED = 4  # the parent is gone, or no router came
