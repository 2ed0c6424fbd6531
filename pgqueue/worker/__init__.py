"""The worker: a supervisor process and its children, each a handful of small services.

A child claims (`claimer`), runs jobs in its slots (`slots`, `executors/`), decides what an ending means
(`decide`) and records it (`settler`); `listener` hears wake-ups. The supervisor beats for its children,
does the rounds of upkeep and takes a dead child's jobs back; it runs no user code.
"""
