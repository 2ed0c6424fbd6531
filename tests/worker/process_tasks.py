"""Tasks that run in processes of their own, and some that kill the one they are in.

A module of its own, so that the other workers under test do not pay for it.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import psycopg

import pgqueue
from pgqueue.retry import Fixed
from tests.worker.tasks import app, at_gate, at_gate_sync, is_first, is_open, note, noted

process = app.task(executor="process", retry=Fixed(0.05, attempts=2))
_leak: list[bytes] = []


@process
def in_process(ctx: pgqueue.Context[Any]) -> None:
    with noted(ctx):
        pass


@process
def hold_process(ctx: pgqueue.Context[Any], gate: str = "hold") -> None:
    """Never looks at `ctx.cancelled`."""
    with noted(ctx):
        at_gate_sync(gate)


@process
def hold_first_process(ctx: pgqueue.Context[Any], gate: str = "hold") -> None:
    """Waits when it starts for the first time; runs through after that."""
    with noted(ctx):
        if is_first(ctx):
            at_gate_sync(gate)


@process
def hold_gil_process(ctx: pgqueue.Context[Any], seconds: int) -> None:
    """Holds its interpreter's lock, as a long computation in C does."""
    with noted(ctx):
        ctypes.PyDLL(None).sleep(seconds)


@process
def with_program(ctx: pgqueue.Context[Any]) -> None:
    """Waits for a program that it has started, and that would go on for ever."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as program:
        note(ctx, "start", program=program.pid)


@process
def looks_around(ctx: pgqueue.Context[Any]) -> None:
    """Does what only the main thread may, and what stands on no other's stdin."""
    heard: list[int] = []
    old = signal.signal(signal.SIGUSR1, lambda number, _: heard.append(number))
    os.kill(os.getpid(), signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, old)
    read = subprocess.run([sys.executable, "-c", "print(len(input()))"], capture_output=True, check=False)
    note(
        ctx,
        "start",
        main_thread=threading.current_thread() is threading.main_thread(),
        heard=heard,
        loop=asyncio.run(asyncio.sleep(0.001, "ran")),
        program_read=read.returncode == 0,
        task=ctx.task,
        attempt=ctx.attempt,
        cancelled=ctx.cancelled,
    )


@process
def watches_for_the_end(ctx: pgqueue.Context[Any]) -> None:
    """Ends by itself when it is told to."""
    note(ctx, "start")
    while not ctx.cancelled:
        time.sleep(0.005)
    note(ctx, "saw the end")


@app.task(executor="process", max_jobs_per_child=2)
def twice_a_process(ctx: pgqueue.Context[Any]) -> None:
    note(ctx, "start")


@app.task(executor="process", max_memory="250MB")
def leaks(ctx: pgqueue.Context[Any], megabytes: int) -> None:
    note(ctx, "start")
    _leak.append(b"x" * (megabytes << 20))


@app.task(executor="process", keep_result=True)
def adds(ctx: pgqueue.Context[Any], a: int, b: int) -> dict[str, int]:
    note(ctx, "start")
    return {"sum": a + b}


@app.task(executor="process", transactional=True, retry=Fixed(0.05, attempts=2))
def writes_in_process(ctx: pgqueue.Context[psycopg.Connection[Any]], how: str) -> None:
    note(ctx, "start")
    ctx.connection.execute("insert into public.effects (job) values (%s)", [ctx.id])
    if is_first(ctx):
        die(how)


def is_apart() -> bool:
    """Whether this is a process that runs jobs apart."""
    spec = sys.modules["__main__"].__spec__
    return spec is not None and spec.name == "pgqueue.worker.apart"


# What kills a process


def die(how: str) -> None:
    """Ends this process in one of the ways; "live" ends nothing."""
    match how:
        case "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        case "SIGSEGV":
            ctypes.string_at(0)
        case "exit 0" | "exit 75" | "exit 3":
            os._exit(int(how.partition(" ")[2]))
        case "abort without memory":
            blow_up()
            os.abort()  # as a C library does that cannot have what it needs
        case "sys.exit":
            sys.exit(3)


def blow_up() -> None:
    """Takes memory until there is no more, under a limit a little above what this process has."""
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
    taken = []
    try:
        while True:
            taken.append(bytearray(8 << 20))
    except MemoryError:
        return


@process
def dies(ctx: pgqueue.Context[Any], how: str) -> None:
    note(ctx, "start")
    die(how)


@app.task(retry=Fixed(0.05, attempts=2))
async def poison(ctx: pgqueue.Context[Any], how: str, after: float = 0, gate: str | None = None) -> None:
    """Kills its process, in the worker's loop or apart."""
    note(ctx, "start")
    if gate is not None:
        await at_gate(gate)
    await asyncio.sleep(after)
    die(how)


@app.task(retry=Fixed(0.05, attempts=2))
def poison_in_thread(ctx: pgqueue.Context[Any], how: str) -> None:
    note(ctx, "start")
    die(how)


@app.task(retry=Fixed(0.05, attempts=3))
async def needs_memory(ctx: pgqueue.Context[Any]) -> None:
    note(ctx, "start")
    blow_up()
    bytearray(1 << 30)


@app.task(retry=Fixed(0.05, attempts=3), on_crash="dead")
async def poison_once(ctx: pgqueue.Context[Any], how: str) -> None:
    note(ctx, "start")
    die(how)


@app.task(executor="process", retry=Fixed(0.05, attempts=3), on_crash="dead")
def dies_once(ctx: pgqueue.Context[Any], how: str, gate: str | None = None) -> None:
    note(ctx, "start")
    if gate is not None:
        at_gate_sync(gate)
    die(how)


@app.task
async def innocent(ctx: pgqueue.Context[Any]) -> None:
    """Is under way whenever the worker's process dies, and runs through when it runs apart."""
    with noted(ctx):
        if not is_apart():
            await at_gate("innocent")


@app.task
async def hold_anywhere(ctx: pgqueue.Context[Any]) -> None:
    """Waits, wherever it is."""
    with noted(ctx):
        await at_gate("hold")


@app.task(name="naps apart")
async def naps(ctx: pgqueue.Context[Any]) -> None:
    """Long enough for a bomb to go off."""
    with noted(ctx):
        await asyncio.sleep(0.5)


@app.task
async def leaves_bomb(ctx: pgqueue.Context[Any]) -> None:
    """Ends well, and kills its process a moment later, whoever is in it then."""
    with noted(ctx):
        threading.Timer(0.2, die, ["SIGKILL"]).start()


@app.task(timeout=1)
async def blocks_its_loop(ctx: pgqueue.Context[Any]) -> None:
    """Whichever that is, until its process is killed."""
    note(ctx, "start")
    while not is_open("blocked"):
        time.sleep(0.01)  # noqa: ASYNC251
