"""What the shop calls: `place_order`, in a transaction of the caller's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import psycopg
from sqlalchemy import Engine, create_engine, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from orders.models import Base, Order, OrderStatus, Product
from orders.tasks import validate_payment
from pgqueue import Job


class Article(NamedTuple):
    """A product on the first day."""

    sku: str
    name: str
    price_cents: int
    stock: int


ARTICLES = (
    Article("TEA-GREEN", "Green tea, 100 g", 890, 1000),
    Article("TEA-BLACK", "Black tea, 100 g", 790, 1000),
    Article("TEA-MINT", "Peppermint tea, 50 g", 450, 1000),
    Article("POT-SMALL", "Teapot, 0.5 l", 2450, 1000),
    Article("POT-LARGE", "Teapot, 1.2 l", 3990, 1000),
    Article("CUP-WHITE", "Cup, white", 690, 1000),
    Article("CUP-BLUE", "Cup, blue", 720, 1000),
    Article("HONEY", "Honey, 250 g", 560, 1000),
)
"""What the shop sells, and what is on its shelves on the first day."""


@dataclass(frozen=True, slots=True)
class OrderRequest:
    """An order as the shop sends it. `reference` is the shop's own, and the same when it sends it again."""

    reference: str
    name: str
    email: str
    sku: str
    quantity: int
    card: str


class UnknownProduct(ValueError):
    """There is no product of that number; nothing was written."""


def place_order(session: Session, request: OrderRequest) -> Job:
    """Writes the order and enqueues its payment, in the transaction of `session`: both exist or neither does.

    A shop that got no answer (a timeout, a connection lost during the commit) sends the order again. Then
    the row is there already, the `idempotency_key` leads to the job that is there already, and the answer
    is that job, with `created` false.

    Raises `UnknownProduct`.
    """
    price_cents = session.scalar(select(Product.price_cents).where(Product.sku == request.sku))
    if price_cents is None:
        raise UnknownProduct(f"unknown product {request.sku!r}")
    session.execute(
        insert(Order)
        .values(
            id=request.reference,
            name=request.name,
            email=request.email,
            sku=request.sku,
            quantity=request.quantity,
            amount_cents=request.quantity * price_cents,
            card=request.card,
            status=OrderStatus.PENDING,
        )
        .on_conflict_do_nothing()
    )
    payment = validate_payment.using(idempotency_key=request.reference)
    return payment.enqueue(session, order_id=request.reference)


def engine_for(dsn: str) -> Engine:
    """An engine for a DSN in any form that libpq reads, as pgqueue's own settings have it."""
    return create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn))


def set_up(engine: Engine) -> None:
    """Creates the tables and fills the shelves, where they are not there yet."""
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.execute(
            insert(Product).values([article._asdict() for article in ARTICLES]).on_conflict_do_nothing()
        )
