"""The fault suite: real workers under load, a fault that is injected again and again, and what has to hold after it.

    tasks.py       what the workers run; handlers write into a side log, outside of the database
    load.py        a producer beside the test, which keeps its own record of what was promised to it
    checker.py     pure: the promises over that record, the side log and the tables
    scene.py       a database with its workers, a load, and the measuring of recoveries
    roles.py       what a role's owner may do to it
    report.py      the table in docs/explanation/guarantees.md
    test_*.py      a test for each row of that table

FAULTS=sample (the default, about 40 s), FAULTS=all (`make faults`), FAULTS=none; SOAK_SECONDS=600 (`make soak`) runs
faults at random, in an order that SOAK_SEED repeats. PGQUEUE_REWRITE_GUARANTEES=1 writes the table from the rows that ran.
"""
