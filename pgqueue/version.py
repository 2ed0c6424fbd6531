"""The version of the distribution, and of the protocol that it speaks with the schema."""

__version__ = "0.1.0"

PROTOCOL = 1
"""The revision of the SQL surface (function signatures) that this package calls.

The schema answers with the range of protocols that it serves (`pgqueue.protocol()`), so that
neighbouring releases of workers and producers share one database."""
