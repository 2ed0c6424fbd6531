"""What tests share: databases (`databases.py`) and waiting for an event instead of sleeping (`waiting.py`)."""

from tests.support.databases import Databases
from tests.support.waiting import release_when_waited_for, wait_for_lock_wait, wait_until

__all__ = ["Databases", "release_when_waited_for", "wait_for_lock_wait", "wait_until"]
