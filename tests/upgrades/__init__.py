"""Upgrades between releases: this one, and one to come that `release.py` makes of it.

    release.py                the release to come: a tree with its package, its sql/ and its revision 0002
    test_served.py            who is served by which schema, and what becomes of who is not
    test_killed.py            an upgrade that ends in each of its statements: all or nothing
    test_calls_under_way.py   a function that is replaced while somebody is in it

Under load: tests/faults/test_upgrades.py. The revisions themselves: tests/test_migrations.py.
"""
