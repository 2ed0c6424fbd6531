"""The payment gateway, simulated: what happens is a function of the card, as with a real one's test cards.

| card       | what happens                                                                            |
| ---------- | --------------------------------------------------------------------------------------- |
| `tok_9995` | declined, insufficient funds: `CardDeclined` each time, worth another try later          |
| `tok_9979` | refused, reported stolen: `CardRefused` each time, trying again cannot help              |
| `tok_0119` | the gateway does not answer the first time: `GatewayUnavailable`; then it is authorised  |
| any other  | authorised                                                                              |

To put a real one in its place, keep the signature of `charge`: it makes one HTTP call with the key as its
`Idempotency-Key`, and raises these three errors.
"""

from __future__ import annotations

import asyncio
import hashlib

LATENCY_SECONDS = 0.1
"""What a call over the network takes; less than most real ones."""


class GatewayUnavailable(Exception):
    """The gateway did not answer in time. Nothing was charged, as far as anyone knows."""


class CardDeclined(Exception):
    """The bank said no for now: insufficient funds, a limit reached."""


class CardRefused(Exception):
    """The bank said no for ever: the card is stolen, closed or unknown."""


async def charge(card: str, amount_cents: int, *, key: str, attempt: int) -> str:
    """Charges a card; returns the code of the authorisation.

    The same `key` is the same charge, however often it is asked for: a caller that crashed after the answer
    asks again and gets the code that it lost. `attempt` counts the caller's tries from 1.

    Raises `CardDeclined`, `CardRefused` or `GatewayUnavailable`; then nothing was charged.
    """
    await asyncio.sleep(LATENCY_SECONDS)
    match card.removeprefix("tok_"):
        case "9995":
            raise CardDeclined("insufficient funds")
        case "9979":
            raise CardRefused("the card was reported stolen")
        case "0119" if attempt == 1:
            raise GatewayUnavailable("no answer within 10 seconds")
    return f"auth_{hashlib.sha256(f'{key} {amount_cents}'.encode()).hexdigest()[:12]}"
