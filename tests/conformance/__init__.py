"""One suite over every kind of connection that an enqueue accepts.

`kinds.py` has an adapter a kind: the kind's own ways to begin, commit, roll back and make savepoints, as an
application would write them. `test_enqueue.py` states what holds for all of them; `test_unusable.py` what
is refused. The tests of a file share one database: each has a task name of its own.
"""
