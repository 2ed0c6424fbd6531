"""Reads `orders.csv`, one order a line: what comes out is an order, or the reason why it is none.

A line is read by itself, so that a stray quote or a broken character costs one order and not the rest of
the file.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orders.service import OrderRequest

COLUMNS = ("reference", "name", "email", "sku", "quantity", "card")
MAX_QUANTITY = 100
_EMAIL = re.compile(r"[A-Za-z0-9.!#$%&*+/=?^_`{|}~-]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+")


class Malformed(ValueError):
    """A line that is no order."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the file, counted from 1 with the header, and what is in it."""

    number: int
    content: OrderRequest | Malformed


def read_orders(path: Path) -> Iterator[Line]:
    """The lines below the header, in order. Raises `Malformed` for a file with another header."""
    header, *lines = path.read_bytes().splitlines()
    if header != ",".join(COLUMNS).encode():
        raise Malformed(f"{path.name}: the first line has to be {','.join(COLUMNS)}")
    for number, line in enumerate(lines, start=2):
        try:
            yield Line(number, parse(line))
        except Malformed as reason:
            yield Line(number, reason)


def parse(line: bytes) -> OrderRequest:
    """The order in a line. Raises `Malformed` with what is wrong, and what was found."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise Malformed(f"not UTF-8: byte 0x{line[error.start]:02x} at {error.start}") from None
    try:
        (fields,) = csv.reader([text], strict=True)
    except csv.Error as error:
        raise Malformed(f"quoting: {error}") from None
    if not text.strip():
        raise Malformed("an empty line")
    if len(fields) != len(COLUMNS):
        raise Malformed(f"{len(fields)} fields instead of {len(COLUMNS)}")
    values = {column: field.strip() for column, field in zip(COLUMNS, fields, strict=True)}
    for column, value in values.items():
        if not value:
            raise Malformed(f"{column} is missing")
        if len(value) > 100:
            raise Malformed(f"{column} is {len(value)} characters long, the limit is 100")
        if not value.isprintable():
            raise Malformed(f"{column} has a control character: {value!r}")
    if not _EMAIL.fullmatch(values["email"]):
        raise Malformed(f"email is no address: {values['email']!r}")
    quantity = values.pop("quantity")
    if not (quantity.isascii() and quantity.isdigit() and 1 <= int(quantity) <= MAX_QUANTITY):
        raise Malformed(f"quantity is no number from 1 to {MAX_QUANTITY}: {quantity!r}")
    return OrderRequest(quantity=int(quantity), **values)
