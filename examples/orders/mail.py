"""The confirmation mail: composed by the standard library, handed to the mail server at ORDERS_SMTP."""

from __future__ import annotations

import os
import smtplib
from email.headerregistry import Address
from email.message import EmailMessage

from orders.models import Order

SENDER = Address("The order service", "orders", "orders.example")
TIMEOUT_SECONDS = 10.0


def compose(order: Order, *, message_id: str) -> EmailMessage:
    """The mail that confirms an order."""
    message = EmailMessage()
    message["Message-ID"] = message_id
    message["From"] = SENDER
    message["To"] = Address(order.name, addr_spec=order.email)
    message["Subject"] = f"Your order {order.id}"
    message.set_content(
        f"Hello {order.name},\n\n"
        f"thank you for your order {order.id}: {order.quantity} x {order.sku}, "
        f"{order.amount_cents // 100}.{order.amount_cents % 100:02} EUR.\n"
    )
    return message


def send(message: EmailMessage) -> None:
    """Hands a message to the mail server; returns when that has taken it over.

    Raises `smtplib.SMTPException` or `OSError`.
    """
    host, _, port = os.environ.get("ORDERS_SMTP", "127.0.0.1:1025").rpartition(":")
    with smtplib.SMTP(host, int(port), timeout=TIMEOUT_SECONDS) as server:
        server.send_message(message)
