"""An operation is a value: the only place that knows the names of SQL. A file for each folder of `sql/2_functions/`.

A `Verb` is one SQL function: its parameters with their types, its result columns. A `Call` is a verb
with values, built purely here and run at the edge by `pgqueue.drivers`. Every value travels as text or
null and is cast by the server, so that each driver needs three lines and no type adapters.

>>> from pgqueue import calls
>>> call = calls.enqueue(task="send", args='{"id": 7}')
>>> call.verb.function
'enqueue'
"""

from pgqueue.calls.call import *
from pgqueue.calls.operator import *
from pgqueue.calls.producer import *
from pgqueue.calls.protocol import *
from pgqueue.calls.schedules import *
from pgqueue.calls.sealing import *
from pgqueue.calls.testing import *
from pgqueue.calls.upkeep import *
from pgqueue.calls.worker import *
