"""The worker: a supervisor process and its children, each a handful of small services.

A child claims (`claimer`), runs jobs in its slots (`slots`, `executors/`), decides what an ending means
(`decide`) and records it (`settler`); `listener` hears wake-ups. The supervisor beats for its children,
does the rounds of upkeep (`upkeep`) and takes a dead child's jobs back; it runs no user code.

The services of a child are wired together in `services`. They also run in an application's own loop (`inprocess`),
where a thread does what the supervisor does for children (`keeper`). `watchdog` names what blocks the loop.
"""
