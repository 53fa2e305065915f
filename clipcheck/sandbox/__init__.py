"""Run a file's own code in a sandbox: a process without rights.

A *zygote* is a process that has imported torch and opened no file. For each checkpoint it forks a
*sandbox process*, which gives up all rights (`confine`), loads the file, and answers
requests (`serving`). Messages are JSON, tensors are in shared memory (`wire`). Nothing that a
sandbox sends is unpickled, run or trusted.
"""
