"""Where a handler runs: in the loop (async), in a thread (sync), or inside a transaction of either kind.

An executor is awaited with a job and its decoded args, and raises what the handler raises. Child processes
come as a third one.
"""
