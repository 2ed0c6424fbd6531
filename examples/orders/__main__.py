"""By hand: `python -m orders` sets the tables up and places the orders of orders.csv, or of a file that is named."""

from __future__ import annotations

import argparse
from pathlib import Path

from sqlalchemy.orm import Session

from orders.intake import Malformed, read_orders
from orders.service import UnknownProduct, engine_for, place_order, set_up
from orders.tasks import app

parser = argparse.ArgumentParser(prog="python -m orders", description="Places the orders of a file.")
parser.add_argument("file", nargs="?", type=Path, default=Path(__file__).with_name("orders.csv"))
parser.add_argument("-n", type=int, default=None, help="only so many lines")
arguments = parser.parse_args()
if app.settings.dsn is None:
    parser.error("set PGQUEUE_DSN to the database; `pgqueue dev` runs one and says how")

engine = engine_for(app.settings.dsn)
set_up(engine)
for line in list(read_orders(arguments.file))[: arguments.n]:
    try:
        if isinstance(line.content, Malformed):
            raise line.content
        with Session(engine) as session, session.begin():
            job = place_order(session, line.content)
    except (Malformed, UnknownProduct) as reason:
        print(f"line {line.number} refused: {reason}")
    else:
        print(f"{line.content.reference}: job {job.id}" + ("" if job.created else ", as before"))
engine.dispose()
