"""What happens to an order after it was placed: three tasks, each of which enqueues the next one; and two schedules.

    place_order ─► validate_payment ─► reserve_inventory ─► send_confirmation

All of them are *transactional*: what a handler writes, the completion of its job and the next job commit
together or not at all. So an order cannot be paid without its reservation waiting, and a worker that is
killed half-way leaves nothing half-done: the job runs again.

A transaction covers the database alone. What goes out over the network may go out twice when a worker dies
between the answer and the commit, hence two habits:

- the network first, the writes last: until its first write the transaction holds no lock, and a slow
  gateway costs a connection and nothing else;
- `ctx.idempotency_key` goes along, the same over all attempts of a job: the gateway charges once, and a
  mail that was sent twice has one Message-ID.

Two more tasks run by the clock, each due time once, however many workers there are: every night at 02:00
cancelled orders that are older than 90 days are deleted; every minute a job looks for orders that have been
pending for 10 minutes, and raises an alert.
"""

from __future__ import annotations

import os
from datetime import timedelta

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import pgqueue
from orders import gateway, mail
from orders.models import Alert, Confirmation, Order, OrderStatus, Payment, Product

app = pgqueue.App(name="orders")

PAYMENT_BACKOFF = os.environ.get("ORDERS_PAYMENT_BACKOFF", "5s")
"""The wait before the second attempt; twice as long before the third."""


@app.provide(scope="worker")
def mailer() -> mail.Mailer:
    """The mail server of the shop; a test gives the task another one."""
    return mail.Mailer(os.environ.get("ORDERS_SMTP", "127.0.0.1:1025"))


class OutOfStock(Exception):
    """Not enough on the shelf. Somebody has to buy more, and replay the dead letter."""


@app.task(
    queue="payments",
    retry=pgqueue.Exponential(base=PAYMENT_BACKOFF, factor=2, attempts=3),
    permanent=(gateway.CardRefused,),
    transactional=True,
)
async def validate_payment(ctx: pgqueue.Context[AsyncSession], order_id: str) -> None:
    """Charges the card. Only a charge that went through leads on to `reserve_inventory`."""
    session = ctx.connection
    order = await session.get_one(Order, order_id)
    if order.status is not OrderStatus.PENDING:
        ctx.log.info("order.paid_before", order_id=order_id)  # the shop sent it again, days later
        return
    authorization = await gateway.charge(
        order.card,
        order.amount_cents,
        # With the card in it: a replay after the customer gave another card is another charge.
        key=f"{ctx.idempotency_key}:{order.card}",
        attempt=ctx.attempt,
    )
    session.add(Payment(order_id=order.id, authorization=authorization, amount_cents=order.amount_cents))
    order.status = OrderStatus.PAID
    await reserve_inventory.enqueue(session, order_id=order_id)


@app.task(permanent=(OutOfStock,), transactional=True)
def reserve_inventory(ctx: pgqueue.Context[Session], order_id: str) -> None:
    """Takes the goods off the shelf."""
    session = ctx.connection
    order = session.get_one(Order, order_id)
    taken = session.scalar(
        update(Product)
        .where(Product.sku == order.sku, Product.stock >= order.quantity)
        .values(stock=Product.stock - order.quantity)
        .returning(Product.sku)
    )
    if taken is None:
        raise OutOfStock(f"fewer than {order.quantity} of {order.sku}")
    order.status = OrderStatus.RESERVED
    send_confirmation.enqueue(session, order_id=order_id)


@app.task(queue="email", retry=pgqueue.Exponential(base="2s", cap="10m", attempts=8), transactional=True)
def send_confirmation(
    ctx: pgqueue.Context[Session], order_id: str, mailer: mail.Mailer = pgqueue.PROVIDED
) -> None:
    """Sends the mail and notes that it was sent.

    The mail goes out at least once, the note is made exactly once.
    """
    session = ctx.connection
    order = session.get_one(Order, order_id)
    # A colon may not stand in a Message-ID.
    message_id = f"<{ctx.idempotency_key.replace(':', '.')}@orders.example>"
    mailer.send(mail.compose(order, message_id=message_id))
    session.add(Confirmation(order_id=order.id, message_id=message_id))
    order.status = OrderStatus.CONFIRMED


# By the clock -----------------------------------------------------------------------------------------


@app.schedule(cron="0 2 * * *", tz="Europe/Berlin", overlap="skip")
@app.task(transactional=True)
def delete_old_orders(ctx: pgqueue.Context[Session], days: int = 90) -> None:
    """Deletes cancelled orders that are older than `days`, with all that belongs to them."""
    deleted = ctx.connection.scalars(
        delete(Order)
        .where(Order.status == OrderStatus.CANCELLED, Order.placed_at < func.now() - timedelta(days=days))
        .returning(Order.id)
    ).all()
    ctx.log.info("orders.deleted", orders=len(deleted))


# A minute that was missed is not made up for: the next one finds the same orders.
@app.schedule(cron="* * * * *", missed="skip", overlap="skip")
@app.task(transactional=True)
def alert_stuck_orders(ctx: pgqueue.Context[Session], minutes: int = 10) -> None:
    """Raises an alert for each order that has been pending for `minutes`, once."""
    stuck = select(Order.id).where(
        Order.status == OrderStatus.PENDING, Order.placed_at < func.now() - timedelta(minutes=minutes)
    )
    raised = insert(Alert).from_select(["order_id"], stuck).on_conflict_do_nothing().returning(Alert.order_id)
    for order_id in ctx.connection.scalars(raised):
        # Put your pager in this place. A line may be written twice when a worker dies; the row is there once.
        ctx.log.error("order.stuck", order_id=order_id, pending_for=f"more than {minutes} minutes")
