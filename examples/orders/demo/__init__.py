"""The show behind `pgqueue demo`: the order service under load and faults, and an audit at the end.

scene.py     what happens: the workers, the orders, the kill, the replay
sink.py      a mail server that keeps what it receives
screen.py    what one sees meanwhile
audit.py     what is claimed at the end, each claim checked against the database and the mailbox
"""
