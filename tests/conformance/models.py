"""Mapped classes of an application."""

from __future__ import annotations

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    task: Mapped[str] = mapped_column(primary_key=True)


class Broken(Base):
    """Its table does not exist, and has a name to be mistaken for one of pgqueue's."""

    __tablename__ = "no_such_table_of_pgqueue"
    id: Mapped[int] = mapped_column(primary_key=True)
