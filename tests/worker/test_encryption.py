"""What is encrypted: nobody reads it in the database, every way of running reads it, and a missing key loses nothing."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

import psycopg
import pytest
from click.testing import CliRunner, Result

import pgqueue
from pgqueue import errors
from pgqueue.cli import main
from pgqueue.encryption import read_keys
from pgqueue.job import JobState
from pgqueue.settings import Settings
from tests.support import Databases
from tests.worker import encryption_tasks as tasks
from tests.worker.conftest import Service, StartWorker, service
from tests.worker.encryption_tasks import NEW, OLD, SECRET
from tests.worker.harness import Rows

APP = "tests.worker.encryption_tasks:app"
TABLES = "select table_schema, table_name from information_schema.tables where table_schema in ('pgqueue', 'pgqueue_bi')"


@pytest.fixture(scope="module")
def running(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One worker for the tests that need no other settings, with both keys."""
    with service(
        databases,
        tmp_path_factory,
        "-c",
        "8",
        "-q",
        "default",
        "-q",
        "other",
        app=APP,
        encryption_keys=f"{NEW},{OLD}",
    ) as running:
        yield running


@pytest.fixture(autouse=True)
def keys() -> Iterator[None]:
    """This process enqueues with both keys too, until a test changes that."""
    with_keys(NEW, OLD)
    yield
    with_keys()


def with_keys(*keys: str) -> None:
    tasks.app._keyring = pgqueue.Keyring(read_keys(keys)) if keys else None
    tasks.app._settings, tasks.app._loaded = Settings(), None


@contextlib.contextmanager
def looking(dsn: str, *keys: str) -> Iterator[pgqueue.App]:
    """An application that looks from outside, with these keys."""
    app = pgqueue.App(settings=Settings(dsn=dsn, encryption_keys=keys))
    yield app
    app.close()


def everything(rows: Rows) -> str:
    """All that the database shows of pgqueue, as text."""
    found = []
    for schema, table in rows.connection.execute(TABLES).fetchall():
        found += [
            text
            for (text,) in rows.connection.execute(f"select t::text from {schema}.{table} as t").fetchall()
        ]
    return "\n".join(found)


def command(dsn: str, *arguments: str, keys: tuple[str, ...] = ()) -> Result:
    return CliRunner(env={"PGQUEUE_ENCRYPTION_KEYS": ",".join(keys)}).invoke(main, ["--dsn", dsn, *arguments])


@pytest.mark.parametrize("task", tasks.WAYS, ids=lambda task: task.name)
def test_a_handler_reads_what_the_database_cannot(
    running: Service, task: pgqueue.task.Task[..., str]
) -> None:
    rows = running.rows
    job = task.enqueue(rows.connection, card=SECRET)
    with looking(rows.dsn, NEW) as app:
        assert app.result(job, timeout="20s") == f"charged {SECRET}"
    stored = rows.all("select args::text, result::text from pgqueue.finished_jobs where id = %s", job.id)[0]
    assert all(text.startswith('{"pgqueue.encrypted": "1.2026.') for text in stored.values())
    assert SECRET not in everything(rows)
    assert SECRET not in running.worker.told()


def test_steps_are_sealed_and_read_by_the_next_attempt(running: Service) -> None:
    rows = running.rows
    job = tasks.charge_in_steps.enqueue(rows.connection, card=SECRET)
    rows.wait_for("completed", job.id)
    running.history.wait_for("end", job.id)
    assert SECRET not in everything(rows)


def test_a_bulk_of_a_batch_task_is_sealed(running: Service) -> None:
    rows = running.rows
    jobs = tasks.app.enqueue_many(rows.connection, [tasks.charge_many.item(f"card {n}") for n in range(5)])
    rows.wait_for("completed", *(job.id for job in jobs))
    told = (running.history.folder / "batch").read_text().split("\n")
    assert sorted(told) == ["", *(f"card {n}" for n in range(5))]
    assert "card 3" not in everything(rows)


def test_an_error_is_stored_without_what_the_args_hold(running: Service) -> None:
    rows = running.rows
    sealed = tasks.leak.enqueue(rows.connection, card=SECRET)
    named = tasks.log_in.enqueue(rows.connection, user="ada", password='hunter2 "x"')
    rows.wait_for("dead", sealed.id, named.id)
    assert rows.letter(sealed.id)["message"] == "cannot charge '***'"
    assert rows.letter(named.id)["message"] == "ada cannot log in with ***"
    found = everything(rows).replace(json.dumps({"user": "ada", "password": 'hunter2 "x"'}), "")
    assert SECRET not in found
    stored = rows.letter(named.id)
    assert "hunter2" not in json.dumps(stored["errors"])
    assert SECRET not in running.worker.told()
    assert "hunter2" not in running.worker.told()


def test_hooks_are_told_readable_args_also_of_a_crash(running: Service) -> None:
    rows = running.rows
    job = tasks.crash.enqueue(rows.connection, card=SECRET)
    rows.wait_for("dead", job.id)
    heard = running.history.folder / "heard"
    rows.wait_until(
        lambda: heard.read_text().count(SECRET) >= 2, message="the hooks of its start and of its death"
    )
    assert "pgqueue.encrypted" not in heard.read_text()


def test_a_schedules_args_are_sealed_and_the_same_at_every_start(
    database: str, rows: Rows, start_worker: StartWorker
) -> None:
    start_worker(app=APP, encryption_keys=NEW).stop()
    stored = "select args::text as args from pgqueue.schedules where name = 'monthly'"
    rows.wait_until(lambda: rows.all(stored))
    before = rows.value(stored)
    assert before.startswith('{"pgqueue.encrypted"')
    again = start_worker(app=APP, encryption_keys=NEW, log_level="debug")
    again.wait_for("schedules.brought")
    assert not again.events("schedule.changed")
    assert rows.value(stored) == before
    ran = CliRunner().invoke(main, ["--dsn", database, "schedules", "run", "monthly", "--json"])
    rows.wait_for("completed", json.loads(ran.stdout)["job_id"])


def test_a_worker_does_not_start_without_keys(start_worker: StartWorker) -> None:
    worker = start_worker(app=APP, wait=False)
    assert worker.wait(20) == 2
    assert "task charge encrypts its args, and there is no key: set PGQUEUE_ENCRYPTION_KEYS" in "\n".join(
        worker.noise
    )
    worker.noise.clear()


def test_a_job_whose_key_is_missing_waits_and_uses_no_attempt(rows: Rows, start_worker: StartWorker) -> None:
    with_keys(OLD)
    job = tasks.charge.enqueue(rows.connection, card=SECRET)
    worker = start_worker(app=APP, encryption_keys=NEW)
    (told,) = worker.wait_for("job.key_missing", job_id=job.id)
    assert told["error"] == (
        "the args of task charge need the encryption key 2025, here are 2026: add it behind the others in encryption_keys"
    )
    assert rows.wait_for("scheduled", job.id)[0]["attempt"] == 0
    worker.stop()
    worker.wait()
    start_worker(app=APP, encryption_keys=f"{NEW},{OLD}")
    rows.bring_forward(job.id)
    rows.wait_for("completed", job.id)


def test_args_that_were_moved_or_changed_are_not_run(running: Service) -> None:
    rows = running.rows
    changes = (
        "queue = 'other'",
        "task = 'charge_threaded'",
        """args = jsonb_set(args, '{pgqueue.encrypted}', '"1.2026.AAAA"')""",
    )
    with rows.connection.transaction():  # before anybody can claim them
        jobs = [tasks.charge.enqueue(rows.connection, card=SECRET) for _ in changes]
        for job, change in zip(jobs, changes, strict=True):
            rows.connection.execute(f"update pgqueue.ready_jobs set {change} where id = {job.id}".encode())
    rows.wait_for("dead", *(job.id for job in jobs))
    for job in jobs:
        letter = rows.letter(job.id)
        assert (letter["reason"], letter["error"]) == ("invalid_args", "pgqueue.errors.CannotDecrypt")
        assert "cannot be decrypted with key 2026" in letter["message"]
    assert not running.history.entries(None, *(job.id for job in jobs))


def test_a_task_that_takes_any_name_is_not_run_with_what_is_sealed(running: Service) -> None:
    rows = running.rows
    stranger = pgqueue.App(name="no encryption", settings=Settings())

    @stranger.task(encrypt=True)
    def anything(**args: str) -> None: ...

    stranger._keyring = pgqueue.Keyring({"unknown": b"k" * 32})
    job = anything.enqueue(rows.connection, card=SECRET)
    running.worker.wait_for("job.key_missing", job_id=job.id)
    assert rows.wait_for("scheduled", job.id)[0]["attempt"] == 0
    assert not running.history.entries(None, job.id)


def test_keys_are_rotated_while_all_runs(database: str, rows: Rows, start_worker: StartWorker) -> None:
    with_keys(OLD)
    start_worker(app=APP, encryption_keys=OLD).stop()  # which brings the schedule
    rows.wait_until(lambda: rows.value("select count(*) from pgqueue.schedules"))
    ready = [tasks.charge.enqueue(rows.connection, card=SECRET) for _ in range(3)]
    later = tasks.charge.using(delay="1h").enqueue(rows.connection, card=SECRET)
    dead = tasks.charge.enqueue(rows.connection, card=SECRET)
    rows.connection.execute(
        "select pgqueue.cancel(array[%s::bigint])", [tasks.charge.enqueue(rows.connection, card=SECRET).id]
    )
    move = """with gone as (delete from pgqueue.ready_jobs where id = %s returning *)
              insert into pgqueue.dead_letters (id, run_at, created_at, died_at, lane, attempt, max_attempts, crashes, queue, task, args, reason, errors)
              select id, run_at, created_at, now(), lane, 1, max_attempts, 0, queue, task, args, 'exhausted', '[]' from gone"""
    rows.connection.execute(move, [dead.id])
    record = "insert into pgqueue.job_steps values (%s, 'charge', 1, now(), %s::jsonb)"
    rows.connection.execute(record, [dead.id, tasks.charge.seal("7", "step", "default")])

    counted = json.loads(command(database, "keys", "list", "--json", keys=(OLD,)).stdout)
    assert {(row["key"], row["place"], row["sealed"]) for row in counted} == {
        ("2025", "ready", 3), ("2025", "scheduled", 1), ("2025", "dead", 1), ("2025", "schedules", 1),
        ("2025", "steps", 1), ("2025", "finished", 1),
    }  # fmt: skip
    rotated = command(database, "keys", "rotate", "--json", keys=(NEW, OLD))
    assert rotated.exit_code == 0, rotated.output
    assert json.loads(rotated.stdout) == {
        "key": "2026",
        "sealed": 7,
        "left": 0,
        "unreadable": 0,
        "in_history": 1,
    }
    assert "reseal" in command(database, "audit", "list").stdout
    again = start_worker(app=APP, encryption_keys=NEW, log_level="debug")
    again.wait_for("schedules.brought")
    assert not again.events("schedule.changed")
    assert command(database, "dead", "replay", str(dead.id), "--yes").exit_code == 0
    rows.wait_for("completed", dead.id, *(job.id for job in ready))
    rows.bring_forward(later.id)
    rows.wait_for("completed", later.id)


def test_a_rotation_without_the_old_key_says_what_is_left(database: str, rows: Rows) -> None:
    with_keys(OLD)
    job = tasks.charge.enqueue(rows.connection, card=SECRET)
    args = "select args::text from pgqueue.ready_jobs where id = %s"
    before = rows.value(args, job.id)
    rotated = command(database, "keys", "rotate", keys=(NEW,))
    assert rotated.exit_code == 1
    assert f"ready {job.id}: the args of task charge need the encryption key 2025" in rotated.stderr
    assert "0 sealed with key 2026, 1 left (1 cannot be opened), 0 in the history" in rotated.stderr
    assert rows.value(args, job.id) == before


def test_a_rotation_leaves_what_somebody_holds_or_has_changed(database: str, rows: Rows) -> None:
    with_keys(OLD)
    held = tasks.charge.enqueue(rows.connection, card=SECRET)
    with psycopg.connect(database) as other:
        other.execute("select from pgqueue.ready_jobs where id = %s for update", [held.id])
        rotated = command(database, "keys", "rotate", "--json", keys=(NEW, OLD))
        assert rotated.exit_code == 1
        assert json.loads(rotated.stdout)["left"] == 1
    assert json.loads(command(database, "keys", "rotate", "--json", keys=(NEW, OLD)).stdout)["sealed"] == 1


def test_commands_show_neither_sealed_nor_redacted_args_unless_asked(database: str, rows: Rows) -> None:
    sealed = tasks.charge.enqueue(rows.connection, card=SECRET)
    named = tasks.log_in.enqueue(rows.connection, user="ada", password="hunter2")
    assert (
        "encrypted with key 2026; --reveal shows it"
        in command(database, "jobs", "show", str(sealed.id)).stdout
    )
    shown = json.loads(
        command(database, "jobs", "show", str(sealed.id), "--json", "--reveal", keys=(NEW,)).stdout
    )
    assert shown["args"] == {"card": SECRET}
    refused = command(database, "jobs", "show", str(sealed.id), "--reveal")
    assert refused.exit_code == 2
    assert (
        refused.stderr == "error: encryption_keys: no key is set here, so nothing encrypted can be revealed\n"
    )
    shown = json.loads(command(database, "jobs", "show", str(named.id), "--json").stdout)
    assert shown["args"] == {"user": "ada", "password": "***"}
    shown = json.loads(command(database, "jobs", "show", str(named.id), "--json", "--reveal").stdout)
    assert shown["args"]["password"] == "hunter2"


def test_args_from_the_command_line_can_be_sealed(database: str, running: Service) -> None:
    given = json.dumps({"card": SECRET})
    enqueued = command(running.rows.dsn, "enqueue", "charge", given, "--encrypt", "--json", keys=(NEW,))
    running.rows.wait_for("completed", json.loads(enqueued.stdout)["id"])
    refused = command(database, "enqueue", "charge", given, "--encrypt")
    assert refused.exit_code == 2
    assert "no key is set here to encrypt with" in refused.stderr


def test_a_replay_with_other_args_seals_them_as_they_were(running: Service) -> None:
    rows = running.rows
    job = tasks.leak.enqueue(rows.connection, card=SECRET)
    rows.wait_for("dead", job.id)
    edited = command(rows.dsn, "dead", "replay", str(job.id), "--set", "card=other", "--yes")
    assert edited.exit_code == 2
    assert "have encrypted args, which cannot be changed one by one" in edited.stderr
    without = command(
        rows.dsn, "dead", "replay", str(job.id), "--args", '{"card": "5500 0000 0000 0004"}', "--yes"
    )
    assert without.exit_code == 2
    assert (
        f"the args of job {job.id} are encrypted, and no key is set here to encrypt others" in without.stderr
    )
    sealed = command(
        rows.dsn,
        "dead",
        "replay",
        str(job.id),
        "--args",
        '{"card": "5500 0000 0000 0004"}',
        "--yes",
        keys=(NEW,),
    )
    assert sealed.exit_code == 0, sealed.output
    rows.wait_until(lambda: len(running.history.entries("start", job.id)) == 2)
    rows.wait_for("dead", job.id)
    assert "5500" not in everything(rows)


def test_a_result_needs_its_key(running: Service) -> None:
    rows = running.rows
    job = tasks.charge.enqueue(rows.connection, card=SECRET)
    rows.wait_for("completed", job.id)
    with looking(rows.dsn) as app, pytest.raises(errors.UnknownKey, match="there is no key here"):
        app.result(job)
    with (
        looking(rows.dsn, OLD) as app,
        pytest.raises(errors.UnknownKey, match="need the encryption key 2026"),
    ):
        app.job(job)
    with looking(rows.dsn, OLD, NEW) as app:
        info = app.job(job)
        assert info is not None
        assert (info.state, info.result) == (JobState.COMPLETED, f"charged {SECRET}")


def test_sealed_args_do_not_replace_those_of_a_job_in_another_queue(rows: Rows) -> None:
    replace = pgqueue.Unique(key="one", on_conflict="replace")
    tasks.charge.using(unique=replace).enqueue(rows.connection, card="first")
    replaced = tasks.charge.using(unique=replace).enqueue(rows.connection, card=SECRET)
    assert replaced.outcome == "replaced"
    with pytest.raises(errors.InvalidOption, match="encrypted args are sealed for queue other"):
        tasks.charge.using(unique=replace, queue="other").enqueue(rows.connection, card=SECRET)


def test_the_settings_show_the_ids_of_keys_alone() -> None:
    shown = CliRunner(env={"PGQUEUE_ENCRYPTION_KEYS": f"{NEW},{OLD}"}).invoke(
        main, ["config", "show", "--json"]
    )
    assert json.loads(shown.stdout)["encryption_keys"]["value"] == ["2026", "2025"]
    assert NEW.partition(":")[2] not in shown.output
    assert NEW.partition(":")[2] not in repr(Settings(encryption_keys=(NEW,)))
