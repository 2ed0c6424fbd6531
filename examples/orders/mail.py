"""The confirmation mail: composed and handed to a mail server by the standard library."""

from __future__ import annotations

import smtplib
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Mailer:
    """The way to a mail server; `address` is host:port."""

    address: str

    def send(self, message: EmailMessage) -> None:
        """Hands a message to the mail server; returns when that has taken it over.

        Raises `smtplib.SMTPException` or `OSError`.
        """
        host, _, port = self.address.rpartition(":")
        with smtplib.SMTP(host, int(port), timeout=TIMEOUT_SECONDS) as server:
            server.send_message(message)
