"""The order service of `examples/`, against a real PostgreSQL and a real mail server."""

from __future__ import annotations

import asyncio
import smtplib
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from sqlalchemy import Engine, create_engine, func, select, update
from sqlalchemy.orm import Session
from structlog.testing import capture_logs

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

from orders import gateway, mail
from orders.demo.sink import MAX_BYTES, Sink
from orders.intake import Malformed, parse, read_orders
from orders.models import Alert, Confirmation, Order, OrderStatus, Payment, Product
from orders.service import OrderRequest, UnknownProduct, place_order, set_up
from orders.tasks import (
    OutOfStock,
    alert_stuck_orders,
    app,
    delete_old_orders,
    reserve_inventory,
    send_confirmation,
    validate_payment,
)

from pgqueue import Exponential
from pgqueue.testing import assert_enqueued, crash_after, drain, enqueued, refute_enqueued, tick, travel

CSV = Path(__file__).resolve().parent.parent / "examples" / "orders" / "orders.csv"


def request(reference: str = "A-1", **changes: Any) -> OrderRequest:
    values: dict[str, Any] = {
        "reference": reference,
        "name": "Søren Müller",
        "email": "soren@shop.example",
        "sku": "TEA-MINT",
        "quantity": 3,
        "card": "tok_4242",
    }
    return OrderRequest(**(values | changes))


@pytest.fixture
def engine(database: str) -> Iterator[Engine]:
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(database))
    set_up(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    """A session that is never committed: everything happens in its transaction."""
    with Session(engine) as session:
        yield session


@pytest.fixture(autouse=True)
def no_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "LATENCY_SECONDS", 0)


# Placing ----------------------------------------------------------------------------------------------


def test_an_order_and_its_payment_job_are_committed_together(
    engine: Engine, connection: psycopg.Connection
) -> None:
    with Session(engine) as session, session.begin():
        place_order(session, request())
    assert_enqueued(connection, validate_payment, args={"order_id": "A-1"}, queue="payments", count=1)
    assert connection.execute("select id, status, amount_cents from orders").fetchall() == [
        ("A-1", "pending", 3 * 450)
    ]


def test_a_rollback_leaves_neither_order_nor_job(session: Session, connection: psycopg.Connection) -> None:
    assert place_order(session, request()).created
    session.rollback()
    refute_enqueued(connection)
    assert connection.execute("select from orders").fetchall() == []


def test_a_savepoints_rollback_takes_its_own_order_only(session: Session) -> None:
    place_order(session, request("A-1"))
    with session.begin_nested() as savepoint:
        place_order(session, request("A-2"))
        savepoint.rollback()
    assert [job.args for job in enqueued(session)] == [{"order_id": "A-1"}]
    assert session.scalars(select(Order.id)).all() == ["A-1"]


def test_an_order_that_is_sent_twice_is_one_order_and_one_job(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        first = place_order(session, request())
    with Session(engine) as session, session.begin():
        second = place_order(session, request())
        assert (second.id, second.created) == (first.id, False)
        assert_enqueued(session, count=1)
        assert session.scalars(select(Order.id)).all() == ["A-1"]


def test_an_unknown_product_is_refused_and_the_transaction_goes_on(session: Session) -> None:
    with pytest.raises(UnknownProduct, match="TEA-MOON"):
        place_order(session, request("A-1", sku="TEA-MOON"))
    place_order(session, request("A-2"))
    assert session.scalars(select(Order.id)).all() == ["A-2"]


def test_setting_up_again_keeps_what_is_there(engine: Engine, connection: psycopg.Connection) -> None:
    connection.execute("update products set stock = 5 where sku = 'HONEY'")
    set_up(engine)
    assert connection.execute("select stock from products where sku = 'HONEY'").fetchone() == (5,)


# Paying -----------------------------------------------------------------------------------------------


def test_a_payment_leads_to_the_reservation(session: Session) -> None:
    place_order(session, request())
    assert drain(app, session, queue="payments").completed == 1
    assert session.get_one(Order, "A-1").status is OrderStatus.PAID
    assert session.get_one(Payment, "A-1").amount_cents == 1350
    assert_enqueued(session, reserve_inventory, args={"order_id": "A-1"}, count=1)


@pytest.mark.parametrize(
    ("card", "error", "attempts"),
    [
        ("tok_9995", gateway.CardDeclined, 3),
        ("tok_9979", gateway.CardRefused, 1),
    ],
)
def test_a_payment_that_fails_for_good_leads_nowhere(
    session: Session, card: str, error: type[Exception], attempts: int
) -> None:
    place_order(session, request(card=card))
    drained = drain(app, session, scheduled=True, raise_errors=False)
    assert (drained.failed, drained.dead, drained.completed) == (attempts - 1, 1, 0)
    assert {type(ran.error) for ran in drained.attempts} == {error}
    refute_enqueued(session)
    assert session.get_one(Order, "A-1").status is OrderStatus.PENDING
    assert session.get(Payment, "A-1") is None


def test_a_gateway_that_did_not_answer_is_asked_again_after_5_seconds(session: Session) -> None:
    place_order(session, request(card="tok_0119"))
    with pytest.raises(gateway.GatewayUnavailable):
        drain(app, session)
    assert_enqueued(session, validate_payment, run_at=(3, 6))  # 5 s, a fifth more or less
    travel(session, "6s")
    assert drain(app, session, queue="payments").completed == 1
    assert session.get_one(Order, "A-1").status is OrderStatus.PAID


def test_an_order_is_charged_once_however_often_its_payment_runs(session: Session) -> None:
    place_order(session, request())
    with crash_after("effects", task=validate_payment):
        assert drain(app, session, queue="payments").completed == 1
    validate_payment.enqueue(session, order_id="A-1")  # the shop sent it again, days later
    assert drain(app, session, queue="payments").completed == 1
    assert session.scalars(select(Payment.order_id)).all() == ["A-1"]
    assert_enqueued(session, reserve_inventory, count=1)


def test_the_gateway_answers_the_same_for_the_same_key() -> None:
    async def charge(key: str) -> str:
        return await gateway.charge("tok_4242", 100, key=key, attempt=1)

    assert asyncio.run(charge("a")) == asyncio.run(charge("a")) != asyncio.run(charge("b"))


def test_a_payment_has_three_attempts_after_5_and_10_seconds_but_for_a_card_that_is_refused() -> None:
    policy = validate_payment.retry
    assert isinstance(policy, Exponential)
    assert (policy.attempts, policy.base, policy.factor) == (3, 5.0, 2)
    assert validate_payment.permanent == (gateway.CardRefused,)
    assert list(app.tasks)[:3] == ["validate_payment", "reserve_inventory", "send_confirmation"]


# Reserving --------------------------------------------------------------------------------------------


def test_a_reservation_takes_the_goods_and_leads_to_the_confirmation(session: Session) -> None:
    place_order(session, request())
    assert drain(app, session, queue=["payments", "default"]).completed == 2
    assert session.get_one(Product, "TEA-MINT").stock == 997
    assert session.get_one(Order, "A-1").status is OrderStatus.RESERVED
    assert_enqueued(session, send_confirmation, queue="email", count=1)


def test_what_is_not_on_the_shelf_is_not_taken(session: Session) -> None:
    session.execute(update(Product).values(stock=2))
    place_order(session, request(quantity=3))
    with pytest.raises(OutOfStock, match="fewer than 3 of TEA-MINT"):
        drain(app, session)
    assert set(session.scalars(select(Product.stock))) == {2}
    assert reserve_inventory.permanent == (OutOfStock,)


# Confirming -------------------------------------------------------------------------------------------


def test_a_confirmation_is_a_real_mail_with_one_message_id_over_all_attempts(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    place_order(session, request())

    async def confirm_twice() -> list[EmailMessage]:
        async with Sink() as sink:
            monkeypatch.setenv("ORDERS_SMTP", f"127.0.0.1:{sink.port}")
            # The worker dies after the mail server's answer and before its commit; another one runs the job.
            with crash_after("effects", task=send_confirmation):
                drained = await asyncio.to_thread(drain, app, session)
            assert (drained.completed, drained.crashed) == (3, 1)
            assert [received.recipients for received in sink.mails] == [("soren@shop.example",)] * 2
            return [received.message for received in sink.mails]

    first, second = asyncio.run(confirm_twice())
    assert first["Message-ID"] == second["Message-ID"]
    assert first["Subject"] == "Your order A-1"
    assert "Hello Søren Müller" in first.get_content()
    assert "13.50 EUR" in first.get_content()
    assert session.get_one(Confirmation, "A-1").message_id == first["Message-ID"]
    assert session.get_one(Order, "A-1").status is OrderStatus.CONFIRMED


def test_a_mail_server_that_is_away_fails_the_attempt(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    place_order(session, request())
    monkeypatch.setenv("ORDERS_SMTP", "127.0.0.1:1")
    with pytest.raises(OSError, match="refused"):
        drain(app, session)
    assert session.get_one(Order, "A-1").status is OrderStatus.RESERVED


# By the clock -----------------------------------------------------------------------------------------


def aged(session: Session, reference: str, age: timedelta, status: OrderStatus) -> None:
    """An order that was placed so long ago."""
    place_order(session, request(reference))
    session.execute(
        update(Order).where(Order.id == reference).values(placed_at=func.now() - age, status=status)
    )


def due_locally(name: str, after: datetime, count: int) -> list[str]:
    zone = ZoneInfo(app.schedules[name].rule.tz)
    return [due.astimezone(zone).strftime("%d %H:%M") for due in app.schedules[name].due_after(after, count)]


def test_old_orders_are_deleted_every_night_at_two_and_stuck_ones_looked_for_every_minute() -> None:
    evening = datetime(2026, 11, 23, 20, 59, 30, tzinfo=UTC)
    assert list(app.schedules) == ["delete_old_orders", "alert_stuck_orders"]
    assert due_locally("delete_old_orders", evening, 2) == ["24 02:00", "25 02:00"]
    assert due_locally("alert_stuck_orders", evening, 3) == ["23 21:00", "23 21:01", "23 21:02"]


def test_the_nightly_clean_up_deletes_cancelled_orders_older_than_90_days_and_what_belongs_to_them(
    session: Session,
) -> None:
    old, young = timedelta(days=91), timedelta(days=89)
    aged(session, "old", old, OrderStatus.CANCELLED)
    aged(session, "young", young, OrderStatus.CANCELLED)
    aged(session, "kept", old, OrderStatus.CONFIRMED)
    for reference in ("old", "kept"):
        session.add(Payment(order_id=reference, authorization="auth_1", amount_cents=1350))
    session.flush()
    tick(app, session, "delete_old_orders")
    drained = drain(app, session, queue="default")
    assert [ran.task for ran in drained.attempts] == [delete_old_orders.name]
    assert set(session.scalars(select(Order.id))) == {"young", "kept"}
    assert session.scalars(select(Payment.order_id)).all() == ["kept"]


def test_an_order_that_is_stuck_raises_one_alert(session: Session) -> None:
    aged(session, "stuck", timedelta(minutes=11), OrderStatus.PENDING)
    aged(session, "fresh", timedelta(minutes=9), OrderStatus.PENDING)
    aged(session, "paid", timedelta(minutes=11), OrderStatus.PAID)
    lines = []
    for _ in range(2):
        tick(app, session, "alert_stuck_orders")
        with capture_logs() as logs:
            drained = drain(app, session, queue="default")
        assert [ran.task for ran in drained.attempts] == [alert_stuck_orders.name]
        lines += [line["order_id"] for line in logs if line["event"] == "order.stuck"]
    assert session.scalars(select(Alert.order_id)).all() == lines == ["stuck"]


def test_a_second_check_does_not_begin_while_the_first_one_waits(session: Session) -> None:
    assert [tick(app, session, "alert_stuck_orders").created for _ in range(2)] == [True, False]


# Reading orders ---------------------------------------------------------------------------------------


def test_the_file_has_500_lines_and_each_is_an_order_or_says_why_not() -> None:
    lines = list(read_orders(CSV))
    assert [line.number for line in lines] == list(range(2, 502))
    refused = {line.number: str(line.content) for line in lines if isinstance(line.content, Malformed)}
    assert refused == {
        14: "quantity is no number from 1 to 100: 'two'",
        18: "email is missing",
        22: "not UTF-8: byte 0xe9 at 10",
        26: "quoting: unexpected end of data",
        68: "quantity is no number from 1 to 100: '-3'",
        190: "4 fields instead of 6",
        235: "email is no address: 'not-an-address'",
        278: "quantity is no number from 1 to 100: '1000000'",
        333: "an empty line",
        386: "7 fields instead of 6",
        414: r"name has a control character: 'Tab\x00Null'",
        457: "quantity is no number from 1 to 100: '2.5'",
    }


def test_each_kind_of_trouble_is_among_the_first_30_lines() -> None:
    first = [line.content for line in read_orders(CSV)][:30]
    orders = [content for content in first if isinstance(content, OrderRequest)]
    references = [order.reference for order in orders]
    assert len(references) == len(set(references)) + 1
    assert {"tok_9995", "tok_9979", "tok_0119"} <= {order.card for order in orders}
    assert any(isinstance(content, Malformed) for content in first)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"A-1,Ada,a@b.example,HONEY,\xc2\xb2,tok_1", "quantity is no number"),
        (b"A-1,Ada,a@b.example,HONEY,0,tok_1", "quantity is no number"),
        (b"A-1,Ada,a@b.example,HONEY," + b"9" * 5000 + b",tok_1", "quantity is 5000 characters long"),
        (b"A-1,Ada\x1b[2J,a@b.example,HONEY,1,tok_1", "control character"),
        (b"A-1,Ada,a@b.example\n,HONEY,1,tok_1", "quoting"),
        (b'A-1,"Ada"x,a@b.example,HONEY,1,tok_1', "quoting"),
        (b"A-1,Ada,a@b,HONEY,1,tok_1", "no address"),
        (b"A-1,Ada,a@b.example,HONEY,1,", "card is missing"),
        (b"   ", "an empty line"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_a_line_that_is_no_order_is_refused_with_the_reason(line: bytes, reason: str) -> None:
    with pytest.raises(Malformed, match=reason):
        parse(line)


def test_quotes_that_are_right_are_read() -> None:
    order = parse(b'A-1,"Lovelace, ""Ada""",a@b.example,HONEY,1,tok_1')
    assert order.name == 'Lovelace, "Ada"'


def test_a_file_with_another_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("id,amount\n1,2\n")
    with pytest.raises(Malformed, match=r"other\.csv: the first line has to be reference,name"):
        list(read_orders(path))


# The sink ---------------------------------------------------------------------------------------------


def test_the_sink_keeps_what_a_client_sends_to_the_byte() -> None:
    text = ".one dot\r\n..two dots\r\n.\r\nthe end é\r\n"
    message = EmailMessage()
    message["Subject"] = "dots"
    message["From"], message["To"] = "a@b.example", "c@d.example, e@f.example"
    message.set_content(text, cte="8bit")

    async def send() -> Sink:
        async with Sink() as sink:

            def talk() -> None:
                with smtplib.SMTP("127.0.0.1", sink.port, timeout=5) as client:
                    client.send_message(message)
                    client.send_message(message)

            await asyncio.to_thread(talk)
            return sink

    first, second = asyncio.run(send()).mails
    assert first.message.get_content() == second.message.get_content() == text
    assert (first.sender, first.recipients) == ("a@b.example", ("c@d.example", "e@f.example"))


def test_the_sink_refuses_what_is_out_of_order_unknown_or_too_large_and_goes_on() -> None:
    async def send() -> tuple[list[int], Sink]:
        async with Sink() as sink:

            def talk() -> list[int]:
                with smtplib.SMTP("127.0.0.1", sink.port, timeout=5) as client:
                    codes = [client.docmd("DATA")[0], client.docmd("RCPT", "TO:<a@b.example>")[0]]
                    codes += [client.docmd("VRFY", "a")[0], client.docmd("NOOP")[0]]
                    client.ehlo()
                    client.mail("a@b.example")
                    client.rcpt("c@d.example")
                    codes.append(client.data(b"x" * 998 + b"\r\n" + b"y\r\n" * (MAX_BYTES // 2))[0])
                    client.mail("a@b.example")
                    client.rcpt("c@d.example")
                    codes.append(client.data("Subject: small\r\n\r\nfits")[0])
                    return codes

            return await asyncio.to_thread(talk), sink

    codes, sink = asyncio.run(send())
    assert codes == [503, 503, 502, 250, 552, 250]
    assert [received.message["Subject"] for received in sink.mails] == ["small"]


def test_a_name_cannot_smuggle_a_header_into_the_mail() -> None:
    order = Order(
        id="A-1",
        name="Ada\r\nBcc: all@shop.example",
        email="a@b.example",
        sku="x",
        quantity=1,
        amount_cents=1,
    )
    with pytest.raises(ValueError, match=r"invalid arguments; .* CR or LF"):
        mail.compose(order, message_id="<1@x>")


# What analysts see --------------------------------------------------------------------------------------


def test_the_views_say_of_a_run_what_its_tables_say(engine: Engine, connection: psycopg.Connection) -> None:
    connection.autocommit = True
    with Session(engine) as session, session.begin():
        for number in range(5):
            place_order(session, request(f"A-{number}"))
        for number, card in enumerate(["tok_9995", "tok_9995", "tok_9979"]):
            place_order(session, request(f"B-{number}", card=card))
        drain(app, session, queue=["payments", "default"], scheduled=True, raise_errors=False)
    connection.execute("select pgqueue.count_depths()")
    connection.execute(
        "update pgqueue.rollup_progress set rolled_up_to = date_trunc('minute', now()) - interval '2 minutes',"
        " proven_to = date_trunc('minute', now()) + interval '1 minute', next_to = null"
    )
    while connection.execute("select pgqueue.roll_up()").fetchone() != (0,):
        pass

    def seen(query: str) -> list[Any]:
        return connection.execute(query).fetchall()  # type: ignore[call-overload]

    run = [("default", "reserve_inventory", 5, 0, 0), ("payments", "validate_payment", 5, 7, 3)]
    for view in ("job_throughput_minutely", "job_throughput_hourly", "job_throughput_daily"):
        sums = "sum(completed)::integer, sum(failed)::integer, sum(dead)::integer"
        query = f"select queue, task, {sums} from pgqueue_bi.{view} group by 1, 2 having sum(completed) > 0 order by 1, 2"
        assert seen(query) == run, view
    assert seen("select queue, completed from pgqueue_bi.task_latency order by 1") == [
        ("default", 5),
        ("payments", 5),
    ]
    states = "select queue, state, count(*)::integer from pgqueue_bi.jobs group by 1, 2 order by 1, 2"
    assert seen(states) == [
        ("default", "completed", 5),
        ("email", "ready", 5),
        ("payments", "completed", 5),
        ("payments", "dead", 3),
    ]
    depths = "select queue, ready, running, dead from pgqueue_bi.queue_health order by 1"
    assert seen(depths) == [("default", 0, 0, 0), ("email", 5, 0, 0), ("payments", 0, 0, 3)]
    failures = "select error, sum(failures)::integer, sum(dead)::integer from pgqueue_bi.failures group by 1 order by 1"
    assert seen(failures) == [("orders.gateway.CardDeclined", 6, 2), ("orders.gateway.CardRefused", 1, 1)]
    letters = "select reason, count(*)::integer from pgqueue_bi.dead_letters group by 1 order by 1"
    assert seen(letters) == [("exhausted", 2), ("permanent", 1)]
