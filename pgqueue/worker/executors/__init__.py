"""Where a handler runs: in the loop (async), in a thread or in a process of its own (sync), or inside a transaction.

An executor is awaited and gives what the handler returns, or raises what it raises; a process, which has the handler's
exception and not we, says how the attempt has ended.
"""
