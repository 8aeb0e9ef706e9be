"""Named steps of the kernel at which a test makes something go wrong. Off, and free, unless a test asks.

A worker under test is started with ``MINI_VISA_FAULT="committed:kill:3"``: the third time this process
reaches the step ``committed``, it is killed. Several faults are separated by commas.

    STEP:kill[:N]             SIGKILL itself
    STEP:raise[:N]            raise `Injected`
    STEP:delay=SECONDS[:N]    wait (only this task; N=* means every time)
    STEP:block=SECONDS[:N]    stop the whole event loop for so long
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import dataclass
from typing import Final, Literal, get_args

VARIABLE: Final = "MINI_VISA_FAULT"

Step = Literal[
    "handled",  # the handler has run over the batch, nothing is begun
    "begin",  # the batch is packed, nothing is sent
    "produced",  # every record of it is acknowledged
    "offsets",  # so is the source offset
    "commit_sent",  # the commit is on its way
    "committed",  # the broker has answered the commit
    "stored",  # RocksDB has it too
    "fenced",  # acquiring: the former owner is fenced
    "restored",  # acquiring: the changelog's tail is in RocksDB
    "restore_batch",  # acquiring: one more batch of the changelog is in RocksDB
]


class Injected(RuntimeError):
    """A test asked for it."""


@dataclass(slots=True)
class _Fault:
    action: str
    seconds: float
    at: int
    """Which time; 0: every time."""
    seen: int = 0


def _parse(text: str) -> dict[str, _Fault]:
    faults = {}
    for item in filter(None, text.split(",")):
        step, action, *count = item.split(":")
        name, _, seconds = action.partition("=")
        assert step in get_args(Step), f"{VARIABLE}: no step {step!r}, there are {get_args(Step)}"
        assert name in ("kill", "raise", "delay", "block"), f"{VARIABLE}: no action {name!r}"
        times = count[0] if count else "1"
        faults[step] = _Fault(name, float(seconds or 0), 0 if times == "*" else int(times))
    return faults


ARMED: Final = _parse(os.environ.get(VARIABLE, ""))
"""Empty in every process but a test's: callers write ``if ARMED: await reach("begin")``."""


async def reach(step: Step) -> None:
    """This process has come to `step`: do what the test asked for there, if anything."""
    fault = ARMED.get(step)
    if fault is None:
        return
    fault.seen += 1
    if fault.at and fault.seen != fault.at:
        return
    print(f"fault: {fault.action} at {step}", flush=True)
    if fault.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault.action == "raise":
        raise Injected(f"fault injected at {step}")
    elif fault.action == "delay":
        await asyncio.sleep(fault.seconds)
    else:
        time.sleep(fault.seconds)  # noqa: ASYNC251  (stopping the loop is the point)
