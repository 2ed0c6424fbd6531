"""Hooks: their registration, those of `enqueued`, and how a worker calls the others."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import re
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

import pgqueue
from pgqueue import App
from pgqueue.calls import CrashedJob
from pgqueue.error_text import ErrorText
from pgqueue.errors import ConfigurationError
from pgqueue.hooks import APP_EVENTS, EVENTS, Alert, Enqueued, Failed, JobEvent
from pgqueue.job import ClaimedJob, Job
from pgqueue.settings import Settings
from pgqueue.worker import telling
from pgqueue.worker.decide import Failed as FailedEnding
from pgqueue.worker.telling import Telling
from tests.worker.harness import REPOSITORY, until

BROKEN = ErrorText("ValueError", "no such card", "Traceback …", "0123456789abcdef")


@pytest.fixture
def app() -> App:
    return App(settings=Settings())


def claimed(id: int = 7, task: str = "send", args: str = '{"user_id": 7}') -> ClaimedJob:
    return ClaimedJob(id, 1, "mail", 11, 1, task, args, 2, 5, 0, None)


def told_by(app: App, use: Callable[[Telling], Coroutine[Any, Any, None]]) -> Telling:
    """Runs a worker's telling of the app's hooks."""

    async def run() -> Telling:
        told = Telling(app.tasks, app.hooks)
        told.start()
        await use(told)
        await told.close()
        return told

    return asyncio.run(run())


# Registration -----------------------------------------------------------------------------------------


def test_a_hook_is_added_to_an_app_or_a_task_and_stays_a_function(app: App) -> None:
    @app.task
    async def send(user_id: int) -> None: ...

    @app.on("failed")
    @send.on("dead")
    def told(event: pgqueue.hooks.Failed | pgqueue.hooks.Dead) -> str:
        return event.task

    assert app.hooks.of("failed") == [told]
    assert send.hooks.of("dead") == [told]
    assert send.hooks.of("failed") == app.hooks.of("dead") == []
    event = Failed(
        id=1, task="send", queue="q", args={}, attempt=1, max_attempts=5, error=BROKEN, retry_in=2.0
    )
    assert told(event) == "send"
    with pytest.raises(FrozenInstanceError):
        event.task = "other"  # type: ignore[misc]


def test_an_event_that_does_not_exist_is_refused_with_those_that_do(app: App) -> None:
    with pytest.raises(
        ConfigurationError, match=r"no event 'succeded', did you mean succeeded\?: .*rescued, alert$"
    ):
        app.on("succeded")(print)  # type: ignore[call-overload]
    with pytest.raises(ConfigurationError, match="a hook is a function of one event, got 7"):
        app.on("failed")(7)  # type: ignore[type-var]


def test_alerts_and_dead_letters_have_names_of_their_own(app: App) -> None:
    @app.task
    async def send(user_id: int) -> None: ...

    @app.on_dead_letter
    @send.on_dead_letter
    def mourn(_event: pgqueue.hooks.Dead) -> None: ...

    @app.on_alert
    @app.on("alert")
    async def page(_alert: Alert) -> None: ...

    assert app.hooks.of("dead") == send.hooks.of("dead") == [mourn]
    assert app.hooks.of("alert") == [page, page]
    with pytest.raises(
        ConfigurationError, match=r"alert is of the whole and of no task: use @app\.on\('alert'\)"
    ):
        send.on("alert")(page)


def test_a_hook_of_enqueued_has_to_be_sync(app: App) -> None:
    async def told(event: Enqueued) -> None: ...

    with pytest.raises(
        ConfigurationError, match=r"test_hooks\..*told: a hook of enqueued is called by whoever"
    ):
        app.on("enqueued")(told)  # type: ignore[type-var]


# Enqueued ---------------------------------------------------------------------------------------------


def test_hooks_of_enqueued_are_told_when_the_statement_has_succeeded(app: App) -> None:
    told: list[Enqueued] = []
    app.on("enqueued")(told.append)

    @app.task(queue="mail")
    async def send(user_id: int) -> None: ...

    send.on("enqueued")(told.append)
    call = send.using(queue="other").call(user_id=7)
    assert told == []
    assert call.decode([(11, True)]) == Job(11, True)
    assert told == [Enqueued(id=11, task="send", queue="other", args={"user_id": 7})] * 2


def test_hooks_are_not_told_of_a_job_that_was_there_before(app: App) -> None:
    told: list[Enqueued] = []
    app.on("enqueued")(told.append)

    @app.task
    async def send() -> None: ...

    assert send.using(unique_key="x").call().decode([(11, False)]) == Job(11, False)
    assert told == []


def test_a_hook_of_enqueued_that_raises_harms_neither_the_enqueue_nor_the_next_hook(
    app: App, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[Enqueued] = []

    @app.on("enqueued")
    def breaks(_event: Enqueued) -> None:
        raise ValueError("no statsd")

    app.on("enqueued")(told.append)

    @app.task
    async def send() -> None: ...

    assert send.call().decode([(11, True)]) == Job(11, True)
    assert len(told) == 1
    log = capsys.readouterr().out
    assert "hook.failed" in log
    assert "no statsd" in log
    assert "breaks" in log


def test_without_hooks_an_enqueue_is_the_call_itself(app: App) -> None:
    @app.task
    async def send() -> None: ...

    plain = send.call()
    app.on("dead")(print)
    assert send.call().decode is plain.decode
    assert send.item().tell is None


def test_what_the_howto_page_shows_is_true(app: App) -> None:
    page = (REPOSITORY / "docs/howto/hooks-and-middleware.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)

    @app.task
    async def send_mail(user_id: int) -> None: ...

    names: dict[str, Any] = {"app": app, "pgqueue": pgqueue, "send_mail": send_mail, "Any": Any}
    names |= {
        "statsd": None,
        "chat": None,
        "time": time,
        "GatewayTimeout": TimeoutError,
        "Callable": Callable,
    }
    exec("\n".join(blocks), names)

    assert app.hooks.of("failed") == [names["count"]]
    assert send_mail.hooks.of("dead") == [names["alert"]]
    assert app.tasks["charge"].middleware == (names["patient"],)
    assert app.middlewares[-1] == (names["timed"], names["timed_sync"])
    assert app.hooks.of("alert") == [names["page"]]
    for field in dataclasses.fields(APP_EVENTS["alert"]):
        assert f"`{field.name}`" in page
    assert re.findall(r"^\| `(\w+)` \|", page, re.M) == list(EVENTS)
    for name, told in re.findall(r"^\| `(\w+)` \|.*\| ?(.*) \|$", page, re.M):
        for field in re.findall(r"`(\w+)`", told.partition(" (")[0]):
            assert field in {each.name for each in dataclasses.fields(EVENTS[name])}, (name, field)


# Telling ----------------------------------------------------------------------------------------------


def test_each_ending_tells_its_events_of_the_jobs_that_were_accepted(app: App) -> None:
    told: list[JobEvent] = []

    @app.task
    async def send(user_id: int) -> None: ...

    for name in EVENTS:
        if name != "enqueued":
            app.on(name)(told.append)  # type: ignore[call-overload]

    async def use(telling: Telling) -> None:
        again = FailedEnding(BROKEN, 2.5)
        dead = FailedEnding(BROKEN, None, "permanent")
        telling.started(claimed())
        telling.ended("complete", [(claimed(1), 0), (claimed(2), 0)], [2])
        telling.ended("fail", [(claimed(3), 0, again), (claimed(4), 0, dead), (claimed(5), 0, dead)], [3, 4])
        telling.ended("cancel", [(claimed(6), 0, "withdrawn"), (claimed(7), 0, None)], [6, 7])
        telling.ended("snooze", [(claimed(8), 0, 1.0)], [8])
        telling.ended("release", [(claimed(9), 0)], [9])
        telling.crashed(
            [
                CrashedJob(10, "send", "mail", '{"user_id": 10}', 2, 5, 1, "pgqueue.Crashed", "died", None),
                CrashedJob(
                    11, "send", "mail", '{"user_id": 11}', 2, 5, 3, "pgqueue.Crashed", "died", "crashed"
                ),
            ]
        )

    told_by(app, use)
    common: dict[str, Any] = {"task": "send", "queue": "mail", "attempt": 2, "max_attempts": 5}
    sent: dict[str, Any] = {**common, "args": {"user_id": 7}}
    died = ErrorText("pgqueue.Crashed", "died", "", "crashed")
    assert sorted(told, key=lambda event: event.id) == [
        pgqueue.hooks.Succeeded(id=2, **sent),
        pgqueue.hooks.Failed(id=3, **sent, error=BROKEN, retry_in=2.5),
        pgqueue.hooks.Retried(id=3, **sent, error=BROKEN, delay=2.5),
        pgqueue.hooks.Failed(id=4, **sent, error=BROKEN, retry_in=None),
        pgqueue.hooks.Dead(id=4, **sent, error=BROKEN, reason="permanent"),
        pgqueue.hooks.Cancelled(id=6, **sent, reason="withdrawn"),
        *sorted(
            [
                pgqueue.hooks.Started(id=7, **sent),
                pgqueue.hooks.Cancelled(id=7, **sent, reason=None),
            ],
            key=lambda event: type(event) is pgqueue.hooks.Cancelled,
        ),
        pgqueue.hooks.Rescued(id=10, **common, args={"user_id": 10}, crashes=1, error=died),
        pgqueue.hooks.Dead(id=11, **common, args={"user_id": 11}, reason="crashed", error=died),
    ]


def test_two_claims_of_a_job_in_one_batch_are_told_once(app: App) -> None:
    told: list[JobEvent] = []

    @app.task
    async def send() -> None: ...

    app.on("succeeded")(told.append)

    async def use(telling: Telling) -> None:
        telling.ended("complete", [(claimed(1), 0), (claimed(1)._replace(lease=2), 1)], [1])

    told_by(app, use)
    assert len(told) == 1


def test_only_tasks_with_hooks_are_told_of(app: App) -> None:
    told: list[JobEvent] = []

    @app.task
    async def send() -> None: ...

    @app.task
    async def other() -> None: ...

    send.on("succeeded")(told.append)

    async def use(telling: Telling) -> None:
        assert set(telling.watched("succeeded")) == {"send"}
        assert set(telling.watched("failed")) == set()
        telling.ended("complete", [(claimed(1, "other"), 0), (claimed(2), 0)], [1, 2])
        telling.ended("fail", [(claimed(3), 0, FailedEnding(BROKEN, None))], [3])

    told_by(app, use)
    assert [event.id for event in told] == [2]


def test_hooks_of_the_app_come_before_those_of_the_task_and_sync_ones_run_in_threads(app: App) -> None:
    told: list[tuple[str, bool]] = []

    @app.task
    async def send() -> None: ...

    @send.on("succeeded")
    async def of_task(_event: pgqueue.hooks.Succeeded) -> None:
        told.append(("task", threading.current_thread() is threading.main_thread()))

    @app.on("succeeded")
    def of_app(_event: pgqueue.hooks.Succeeded) -> None:
        told.append(("app", threading.current_thread() is threading.main_thread()))

    async def use(telling: Telling) -> None:
        telling.succeeded(claimed())

    told_by(app, use)
    assert told == [("app", False), ("task", True)]


def test_the_events_of_a_job_are_told_in_order_also_when_a_hook_is_slow(app: App) -> None:
    told: list[tuple[int, str]] = []

    @app.task
    async def send() -> None: ...

    @app.on("started")
    async def slow(event: pgqueue.hooks.Started) -> None:
        await asyncio.sleep(0.02)
        told.append((event.id, "started"))

    @app.on("succeeded")
    def quick(event: pgqueue.hooks.Succeeded) -> None:
        told.append((event.id, "succeeded"))

    async def use(telling: Telling) -> None:
        for id in range(4):
            telling.started(claimed(id))
            telling.succeeded(claimed(id))

    told_by(app, use)
    for id in range(4):
        assert [what for job, what in told if job == id] == ["started", "succeeded"]


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt, asyncio.CancelledError])
@pytest.mark.parametrize("is_async", [False, True])
def test_whatever_a_hook_raises_the_next_one_is_told(
    app: App, is_async: bool, kind: type[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[JobEvent] = []

    @app.task
    async def send() -> None: ...

    def breaks(_event: pgqueue.hooks.Succeeded) -> None:
        raise kind("no statsd")

    async def breaks_async(_event: pgqueue.hooks.Succeeded) -> None:
        raise kind("no statsd")

    app.on("succeeded")(breaks_async if is_async else breaks)
    app.on("succeeded")(told.append)

    async def use(telling: Telling) -> None:
        telling.succeeded(claimed())
        telling.succeeded(claimed())

    told_by(app, use)
    assert len(told) == 2
    assert capsys.readouterr().out.count("hook.failed") == 2


@pytest.mark.parametrize("kind", ["async", "stubborn", "sync"])
def test_nobody_waits_for_a_hook_that_hangs(
    app: App, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(telling, "HOOK_SECONDS", 0.05)
    release, ended = threading.Event(), threading.Event()
    told: list[JobEvent] = []

    @app.task
    async def send() -> None: ...

    async def hangs(_event: pgqueue.hooks.Succeeded) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def hangs_stubbornly(_event: pgqueue.hooks.Succeeded) -> None:
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)
        ended.set()

    def hangs_in_a_thread(_event: pgqueue.hooks.Succeeded) -> None:
        release.wait(10)
        ended.set()

    hook: Any = {"async": hangs, "stubborn": hangs_stubbornly, "sync": hangs_in_a_thread}[kind]
    app.on("succeeded")(hook)
    app.on("succeeded")(told.append)

    async def use(telling: Telling) -> None:
        telling.succeeded(claimed())
        await until(lambda: told)
        release.set()
        await until(ended.is_set)

    told_by(app, use)
    assert "hook.timeout" in capsys.readouterr().out


def test_what_waits_for_hooks_is_bounded_and_what_is_dropped_is_said(
    app: App, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(telling, "BACKLOG", 10)
    told: list[JobEvent] = []

    @app.task
    async def send() -> None: ...

    app.on("succeeded")(told.append)

    async def use(telling: Telling) -> None:
        for id in range(25):
            telling.succeeded(claimed(id))

    told_by(app, use)
    assert len(told) == 10
    log = capsys.readouterr().out
    assert re.findall(r"hooks\.dropped +events=(\d+)", log) == ["1", "14"]  # when it began, and at the end


def test_a_worker_that_ends_gives_hooks_a_moment_and_says_what_was_not_told(
    app: App, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(telling, "CLOSE_SECONDS", 0.05)

    @app.task
    async def send() -> None: ...

    @app.on("succeeded")
    async def hangs(_event: pgqueue.hooks.Succeeded) -> None:
        await asyncio.Event().wait()

    async def use(telling: Telling) -> None:
        telling.succeeded(claimed())

    told_by(app, use)
    log = capsys.readouterr().out
    assert "hooks.dropped" in log
    assert "events=1" in log


@pytest.mark.parametrize("args", ["[1]", '"text"', "{" * 100_000, '{"n": ' + "9" * 5000 + "}"])
def test_args_that_cannot_be_read_keep_nobody_from_being_told(app: App, args: str) -> None:
    told: list[JobEvent] = []

    @app.task
    async def send() -> None: ...

    app.on("succeeded")(told.append)

    async def use(telling: Telling) -> None:
        telling.succeeded(claimed(args=args))

    told_by(app, use)
    assert [event.args for event in told] == [{}]


def test_an_app_is_told_of_alerts_and_one_hook_that_raises_harms_no_other(
    app: App, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[Alert] = []
    late = Alert(check_name="depth", queue="mail", value=9, threshold=5, detail="ready jobs: 9, allowed: 5")

    @app.on_alert
    def breaks(_alert: Alert) -> None:
        raise ValueError("no pager")

    @app.on_alert
    async def hear(alert: Alert) -> None:
        told.append(alert)

    async def use(telling: Telling) -> None:
        assert telling.hears_alerts
        telling.alert([late, dataclasses.replace(late, is_resolved=True)])

    told_by(app, use)
    assert told == [late, dataclasses.replace(late, is_resolved=True)]
    log = capsys.readouterr().out
    assert log.count("hook.failed") == 2
    assert "check=depth" in log
    assert "told_of=alert" in log


def test_an_app_without_hooks_for_alerts_hears_none(app: App) -> None:
    app.on("failed")(print)

    async def use(telling: Telling) -> None:
        assert not telling.hears_alerts
        telling.alert([Alert(check_name="leader", queue=None, value=None, threshold=30, detail="nobody")])

    told_by(app, use)


def test_args_are_exact() -> None:
    number = 2**60 + 1
    assert pgqueue.hooks.args_of(json.dumps({"n": number})) == {"n": number}
