"""What the show claims at its end, each claim checked against what is there.

Three witnesses that cannot have copied from each other: the *journal* of what the scene itself did, kept in
its memory; the *business tables* and the queue's views; the *mailbox*. `look` reads the database, `audit`
compares, and is pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import psycopg
from psycopg.rows import class_row

from orders.demo.sink import Mail
from orders.intake import Malformed
from orders.service import ARTICLES, OrderRequest, UnknownProduct
from pgqueue import Job

Problems: TypeAlias = tuple[str, ...]
"""What is wrong, one line each; empty when nothing is."""

PIPELINE = ("validate_payment", "reserve_inventory", "send_confirmation")
"""The tasks of an order; the others run by the clock."""
INSUFFICIENT, STOLEN, FLAKY = "tok_9995", "tok_9979", "tok_0119"
"""The cards of `orders.gateway` that do not go through at once."""


class Killed(NamedTuple):
    """The worker process that was killed: its process id, and the jobs in its hands at that moment."""

    pid: int
    jobs: frozenset[int]


@dataclass
class Journal:
    """What the scene did, as it saw it itself."""

    lines: int = 0
    placed: dict[str, OrderRequest] = field(default_factory=dict)
    rolled_back: dict[str, Job] = field(default_factory=dict)
    repeated: dict[str, tuple[Job, Job]] = field(default_factory=dict)
    """The order's reference; the jobs that the first and the second call returned."""
    refused: dict[int, Malformed | UnknownProduct] = field(default_factory=dict)
    payments: dict[str, Job] = field(default_factory=dict)
    """The payment job of each order that was placed."""
    killed: Killed | None = None
    replayed: str | None = None
    """The order whose dead letter was replayed, with a card that is good."""
    worker_exit: int | None = None


class OrderRow(NamedTuple):
    """A row of the table of orders."""

    id: str
    status: str
    sku: str
    quantity: int
    amount_cents: int


class JobRow(NamedTuple):
    """A row of the view of jobs."""

    id: int
    task: str
    state: str
    attempt: int
    crashes: int


class LetterRow(NamedTuple):
    """A dead letter."""

    id: int
    task: str
    reason: str
    attempt: int
    order_id: str


@dataclass(frozen=True)
class Facts:
    """What is there: the database in one snapshot, and the mailbox."""

    orders: Sequence[OrderRow]
    payments: Mapping[str, int]
    """Cents, by order."""
    confirmations: Sequence[tuple[str, str]]
    """Order and Message-ID."""
    stock: Mapping[str, int]
    runs: Sequence[int | None]
    """The job of each due time of the schedules."""
    jobs: Sequence[JobRow]
    letters: Sequence[LetterRow]
    mails: Sequence[Mail]


class Claim(NamedTuple):
    """A line of the table: what, how many, what that was checked against, and what is wrong with it."""

    what: str
    found: str
    checked: str
    wrong: Problems


def look(connection: psycopg.Connection[Any], mails: Sequence[Mail]) -> Facts:
    """Reads the database, in one snapshot."""
    with connection.transaction():
        connection.execute("set transaction isolation level repeatable read, read only")

        def rows(kind: type[Any], query: str) -> list[Any]:
            return connection.cursor(row_factory=class_row(kind)).execute(query).fetchall()

        def pairs(query: str) -> list[tuple[Any, Any]]:
            return connection.execute(query).fetchall()

        return Facts(
            orders=rows(OrderRow, "select id, status, sku, quantity, amount_cents from orders"),
            payments=dict(pairs("select order_id, amount_cents from payments")),
            confirmations=pairs("select order_id, message_id from confirmations"),
            stock=dict(pairs("select sku, stock from products")),
            runs=[job for (job,) in connection.execute("select job_id from pgqueue_bi.schedule_runs")],
            jobs=rows(JobRow, "select id, task, state, attempt, crashes from pgqueue_bi.jobs"),
            letters=rows(
                LetterRow,
                "select id, task, reason, attempt, args ->> 'order_id' as order_id"
                " from pgqueue.find_dead(max_rows => 100000)",
            ),
            mails=mails,
        )


def audit(journal: Journal, facts: Facts) -> list[Claim]:
    """Every claim, whether it holds or not."""
    auditor = _Auditor(journal, facts)
    killed, replayed = journal.killed, journal.replayed
    return [
        Claim(
            "lines of orders.csv",
            f"{journal.lines}",
            "placed, rolled back, repeated or refused",
            auditor.lines(),
        ),
        Claim(
            "orders placed",
            f"{len(journal.placed)}",
            "those orders are in the table, and no others",
            _same("order", journal.placed, auditor.orders),
        ),
        Claim(
            "transactions rolled back",
            f"{len(journal.rolled_back)}",
            "neither the order nor its job exists",
            auditor.rolled_back(),
        ),
        Claim(
            "orders sent twice",
            f"{len(journal.repeated)}",
            "the second call found the job of the first",
            auditor.repeated(),
        ),
        Claim(
            "payments declined",
            f"{len(auditor.declined)}",
            "dead after 3 attempts (stolen card: 1), nothing charged",
            auditor.declined_payments(),
        ),
        Claim(
            "orders confirmed",
            f"{len(auditor.paid)}",
            "all the others: charged once, confirmed once",
            auditor.confirmed(),
        ),
        Claim(
            "goods off the shelf",
            f"{sum(auditor.sold().values())}",
            "exactly those of the confirmed orders",
            auditor.shelves(),
        ),
        Claim(
            "mails in the mailbox",
            auditor.number_of_mails(),
            "one Message-ID an order, sent again only after a crash",
            auditor.mails(),
        ),
        Claim(
            "worker processes killed",
            "1 (kill -9)" if killed else "0",
            f"the {len(killed.jobs) if killed else 0} jobs in its hands ended all the same",
            auditor.killed(),
        ),
        Claim(
            "dead letters replayed",
            "1" if replayed else "0",
            f"order {replayed}, with another card, is confirmed",
            auditor.replayed(),
        ),
        Claim(
            "due times of schedules",
            f"{len(facts.runs)}",
            "each made one job, which completed"
            if facts.runs
            else "none came in these seconds: nothing to compare",
            auditor.runs(),
        ),
        Claim(
            "jobs of orders",
            f"{len(auditor.pipeline)}",
            f"{3 * len(auditor.paid)} completed, {len(auditor.declined)} dead, none left, no run unexplained",
            auditor.states() + auditor.attempts(),
        ),
    ]


class _Auditor:
    """Compares; each method returns what is wrong, one line each."""

    def __init__(self, journal: Journal, facts: Facts):
        self.journal = journal
        self.facts = facts
        self.orders = {order.id: order for order in facts.orders}
        self.jobs = {job.id: job for job in facts.jobs}
        self.pipeline = [job for job in facts.jobs if job.task in PIPELINE]
        self.cards = {reference: request.card for reference, request in journal.placed.items()}
        if journal.replayed is not None:
            self.cards[journal.replayed] = "another one"
        self.declined = [name for name, card in self.cards.items() if card in (INSUFFICIENT, STOLEN)]
        self.paid = [name for name, card in self.cards.items() if card not in (INSUFFICIENT, STOLEN)]

    def lines(self) -> Problems:
        journal = self.journal
        seen = len(journal.placed) + len(journal.rolled_back) + len(journal.repeated) + len(journal.refused)
        return _differ("lines accounted for", journal.lines, seen)

    def rolled_back(self) -> Problems:
        return tuple(
            f"rolled back, but there: {name}, job {job.id}"
            for name, job in self.journal.rolled_back.items()
            if name in self.orders or job.id in self.jobs
        )

    def repeated(self) -> Problems:
        return tuple(
            f"{name} made a second job, {second.id}"
            for name, (first, second) in self.journal.repeated.items()
            if second.created or second.id != first.id
        )

    def declined_payments(self) -> Problems:
        wrong = [*_same("dead letter of order", self.declined, [x.order_id for x in self.facts.letters])]
        for letter in self.facts.letters:
            expected = ("permanent", 1) if self.cards.get(letter.order_id) == STOLEN else ("exhausted", 3)
            crashes = self.jobs[letter.id].crashes if letter.id in self.jobs else 0
            if (letter.reason, letter.attempt) != expected and not crashes:
                wrong.append(
                    f"{letter.task} of {letter.order_id} is dead after {letter.attempt} attempts: {letter.reason}"
                )
        for name in self.declined:
            if name in self.orders and (self.orders[name].status != "pending" or name in self.facts.payments):
                wrong.append(f"declined, yet {self.orders[name].status}: {name}")
        return tuple(wrong)

    def confirmed(self) -> Problems:
        confirmations = [name for name, _ in self.facts.confirmations]
        wrong = _same("payment", self.paid, self.facts.payments)
        wrong += _same("confirmation", self.paid, confirmations)
        for name in self.paid:
            if order := self.orders.get(name):
                wrong += _differ(f"status of {name}", "confirmed", order.status)
                wrong += _differ(f"amount of {name}", order.amount_cents, self.facts.payments.get(name))
        return wrong

    def sold(self) -> Counter[str]:
        """What the confirmed orders ask for, by product."""
        sold = Counter[str]()
        for name in self.paid:
            sold[self.journal.placed[name].sku] += self.journal.placed[name].quantity
        return sold

    def shelves(self) -> Problems:
        sold = self.sold()
        before = {article.sku: article.stock for article in ARTICLES}
        return tuple(
            problem
            for sku, stock in before.items()
            for problem in _differ(f"stock of {sku}", stock - sold[sku], self.facts.stock.get(sku))
        )

    def _sent(self) -> Counter[str]:
        """How often each Message-ID arrived."""
        return Counter(str(mail.message["Message-ID"]) for mail in self.facts.mails)

    def number_of_mails(self) -> str:
        sent = self._sent()
        again = sent.total() - len(sent)
        return f"{sent.total()}" + (f" ({again} sent again)" if again else "")

    def mails(self) -> Problems:
        sent = self._sent()
        order_of = {message_id: name for name, message_id in self.facts.confirmations}
        wrong = _same("mail", order_of, sent)
        for mail in self.facts.mails:
            name = order_of.get(str(mail.message["Message-ID"]), "")
            request = self.journal.placed.get(name)
            if request and (mail.recipients != (request.email,) or name not in str(mail.message["Subject"])):
                wrong += (f"the mail for {name} went to {mail.recipients}: {mail.message['Subject']}",)
        for message_id, times in sent.items():
            job = self.jobs.get(int("".join(filter(str.isdecimal, message_id)) or 0))
            if times > 1 + (job.crashes if job else 0):
                wrong += (f"the mail {message_id} was sent {times} times without a crash",)
        return wrong

    def killed(self) -> Problems:
        if self.journal.killed is None:
            return ("no worker process was killed with jobs in its hands",)
        return tuple(
            f"job {id} of the killed process is {self.jobs[id].state if id in self.jobs else 'gone'}"
            for id in sorted(self.journal.killed.jobs)
            if id not in self.jobs or self.jobs[id].state not in ("completed", "dead")
        )

    def replayed(self) -> Problems:
        if self.journal.replayed is None:
            return ("no dead letter was replayed",)
        order = self.orders.get(self.journal.replayed)
        return _differ(f"status of {self.journal.replayed}", "confirmed", order and order.status)

    def states(self) -> Problems:
        found = Counter((job.task, job.state) for job in self.pipeline)
        expected = {
            ("validate_payment", "completed"): len(self.paid),
            ("validate_payment", "dead"): len(self.declined),
            ("reserve_inventory", "completed"): len(self.paid),
            ("send_confirmation", "completed"): len(self.paid),
        }
        wrong = _differ("exit code of the workers", 0, self.journal.worker_exit)
        for kind in sorted(expected.keys() | found.keys()):
            wrong += _differ(" ".join(kind), expected.get(kind, 0), found[kind])
        return wrong

    def runs(self) -> Problems:
        jobs = [job for job in self.facts.jobs if job.task not in PIPELINE]
        wrong = _same("job of a due time", (str(job.id) for job in jobs), map(str, self.facts.runs))
        return wrong + tuple(
            f"job {job.id}, {job.task}, is {job.state}" for job in jobs if job.state != "completed"
        )

    def attempts(self) -> Problems:
        """Every run after a job's first is explained: by the card, or by a crash."""
        card_of = {job.id: self.cards[name] for name, job in self.journal.payments.items()}
        failures = {INSUFFICIENT: 2, FLAKY: 1}
        wrong: Problems = ()
        for job in self.facts.jobs:
            explained = 1 + failures.get(card_of.get(job.id, ""), 0)
            if not explained <= job.attempt <= explained + job.crashes:
                wrong += (f"job {job.id}, {job.task}: {job.attempt} attempts, {explained} are explained",)
        return wrong


def _differ(what: str, expected: object, found: object) -> Problems:
    return () if expected == found else (f"{what}: {found}, expected {expected}",)


def _same(what: str, expected: Iterable[str], found: Iterable[str]) -> Problems:
    """What is missing, what is too much, and what is there more than once."""
    # list: a mapping's keys are meant, and Counter would take its values for counts
    wanted, there = Counter(list(expected)), Counter(list(found))
    lost, surplus = sorted((wanted - there).elements()), sorted((there - wanted).elements())
    return tuple(f"{what} lost: {name}" for name in lost) + tuple(
        f"{what} too many: {name}" for name in surplus
    )
