"""The tables of the order service: plain SQLAlchemy models, nothing of pgqueue in them."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from sqlalchemy import CheckConstraint, DateTime, Enum, ForeignKey, Index, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class OrderStatus(StrEnum):
    """How far an order has come. An order whose payment is declined stays pending, its job a dead letter."""

    PENDING = "pending"
    PAID = "paid"
    RESERVED = "reserved"
    CONFIRMED = "confirmed"
    CANCELLED = "cancelled"


class Base(DeclarativeBase):
    """The metadata that all tables share."""

    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's name, and it reads the annotation
        datetime: DateTime(timezone=True),
        OrderStatus: Enum(
            OrderStatus,
            native_enum=False,  # text with a check: BI tools can filter it, and a new status is no migration
            create_constraint=True,
            name="status_is_known",
            length=20,
            values_callable=lambda statuses: [status.value for status in statuses],
        ),
    }


class Product(Base):
    """What can be bought, and how many of it are on the shelf."""

    __tablename__ = "products"
    __table_args__ = (CheckConstraint("stock >= 0", name="stock_is_there"),)

    sku: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    price_cents: Mapped[int]
    stock: Mapped[int]


class Order(Base):
    """An order. Its id is the reference that the shop gave it, so that sending it twice makes one row."""

    __tablename__ = "orders"
    __table_args__ = (
        CheckConstraint("quantity > 0", name="quantity_is_positive"),
        Index("orders_by_status", "status", "placed_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    email: Mapped[str]
    sku: Mapped[str] = mapped_column(ForeignKey("products.sku"))
    quantity: Mapped[int]
    amount_cents: Mapped[int]
    card: Mapped[str]
    """The gateway's token; the number of a card never reaches this service."""
    status: Mapped[OrderStatus] = mapped_column(default=OrderStatus.PENDING)
    placed_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Payment(Base):
    """A charge that the gateway has authorised, at most one an order."""

    __tablename__ = "payments"

    order_id: Mapped[str] = mapped_column(ForeignKey("orders.id", ondelete="CASCADE"), primary_key=True)
    authorization: Mapped[str]
    amount_cents: Mapped[int]
    paid_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Confirmation(Base):
    """A confirmation that the mail server has accepted, at most one an order."""

    __tablename__ = "confirmations"

    order_id: Mapped[str] = mapped_column(ForeignKey("orders.id", ondelete="CASCADE"), primary_key=True)
    message_id: Mapped[str]
    sent_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Alert(Base):
    """An order that has been pending for too long, and that somebody was told of; at most one an order."""

    __tablename__ = "alerts"

    order_id: Mapped[str] = mapped_column(ForeignKey("orders.id", ondelete="CASCADE"), primary_key=True)
    raised_at: Mapped[datetime] = mapped_column(server_default=func.now())
