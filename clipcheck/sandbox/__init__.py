"""Run what a file's own code computes in a process that can do no harm.

A *zygote* is a process of this user's that has imported torch and seen no file. For each checkpoint
it forks a *cell*: that process takes all rights from itself (`confine`), then loads the file, and
serves what it is asked for (`serving`). Messages are JSON, tensors lie in shared memory (`wire`);
nothing that a cell sends is unpickled, run or trusted.
"""
