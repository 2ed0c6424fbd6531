"""A mail server that delivers nowhere: it keeps every message, to be looked at.

Enough of RFC 5321 for any client that does not ask for encryption or a login. By hand:
`python -m orders.demo.sink 1025` prints what arrives.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from email import message_from_bytes, policy
from email.message import EmailMessage
from types import TracebackType
from typing import Self

MAX_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class Mail:
    """A message that was taken over, in its envelope."""

    sender: str
    recipients: tuple[str, ...]
    message: EmailMessage


class Sink:
    """A server on 127.0.0.1; `port` is known once it is entered, `mails` grows in the order of arrival."""

    def __init__(self, port: int = 0, on_mail: Callable[[Mail], None] | None = None):
        self.port = port
        self.mails: list[Mail] = []
        self._on_mail = on_mail
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._converse, "127.0.0.1", self.port, limit=MAX_BYTES)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A client that was killed just stops talking: its connection ends, and nothing was taken over.
        # ValueError, LimitOverrunError: a line without an end.
        gone = (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError)
        with contextlib.suppress(*gone):
            await self._session(reader, writer)
        writer.close()

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def say(line: str) -> None:
            writer.write(f"{line}\r\n".encode())
            await writer.drain()

        sender: str | None = None
        recipients: list[str] = []
        await say("220 orders.example sink")
        while line := await reader.readline():
            verb, _, rest = line.decode("utf-8", "replace").strip().partition(" ")
            match verb.upper():
                case "EHLO":
                    await say(f"250-orders.example\r\n250-SIZE {MAX_BYTES}\r\n250-SMTPUTF8\r\n250 8BITMIME")
                case "HELO" | "NOOP":
                    await say("250 ok")
                case "RSET":
                    sender, recipients = None, []
                    await say("250 ok")
                case "MAIL" if rest.upper().startswith("FROM:"):
                    sender, recipients = _address(rest), []
                    await say("250 ok")
                case "RCPT" if rest.upper().startswith("TO:") and sender is not None:
                    recipients.append(_address(rest))
                    await say("250 ok")
                case "DATA" if sender is not None and recipients:
                    await say("354 end with a line that holds a dot and nothing else")
                    body = await _read_message(reader)
                    if body is None:
                        await say(f"552 larger than {MAX_BYTES} bytes")
                    else:
                        self._keep(sender, recipients, body)
                        await say("250 taken over")
                    sender, recipients = None, []
                case "MAIL" | "RCPT" | "DATA":
                    await say("503 bad sequence of commands, or no address")
                case "QUIT":
                    await say("221 bye")
                    return
                case _:
                    await say("502 not implemented")

    def _keep(self, sender: str, recipients: list[str], body: bytes) -> None:
        # Kept before it is acknowledged, as a mail server must: the client may die before it hears of it.
        mail = Mail(sender, tuple(recipients), message_from_bytes(body, policy=policy.default))
        self.mails.append(mail)
        if self._on_mail is not None:
            self._on_mail(mail)


def _address(parameter: str) -> str:
    """`<ada@shop.example>` out of `FROM:<ada@shop.example> SIZE=120`."""
    return parameter.partition(":")[2].strip().split(" ")[0].strip("<>")


async def _read_message(reader: asyncio.StreamReader) -> bytes | None:
    """The lines up to the dot, doubled dots undone; None when they are too many to keep."""
    lines: list[bytes] = []
    size = 0
    while (line := await reader.readuntil(b"\n")).rstrip(b"\r\n") != b".":
        size += len(line)
        if size <= MAX_BYTES:
            lines.append(line.removeprefix(b"."))
    return b"".join(lines) if size <= MAX_BYTES else None


async def _main(port: int) -> None:
    def show(mail: Mail) -> None:
        print(
            f"{', '.join(mail.recipients)}: {mail.message['Subject']} {mail.message['Message-ID']}",
            flush=True,
        )

    async with Sink(port, show):
        await asyncio.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main(int(sys.argv[1]) if len(sys.argv) > 1 else 1025))
