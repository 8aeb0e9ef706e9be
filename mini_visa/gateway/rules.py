"""Risk rules: which are in force, a new version of one, and what it would have decided.

A version goes into the first partition of card.requests. Risk puts it in force there and passes it on to
the other partitions, so that all of them see every change in one order.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any, Final

import msgspec
import orjson

from mini_visa import topics
from mini_visa.domain.commands import PutRule
from mini_visa.domain.risk import CURRENCY_PREFIX, DEFAULT_RULES, RULES_MAX, InvalidRule, Rule, rule_of
from mini_visa.gateway import views
from mini_visa.gateway.endpoints import Call, Reply
from mini_visa.gateway.exchange import NoAnswer, NotSent
from mini_visa.gateway.problems import FieldError, Problem, bad_input, busy, not_found
from mini_visa.gateway.queries import reading, view_reply
from mini_visa.gateway.service import holds_a_pan
from mini_visa.readmodel import ReadModel
from mini_visa.settings import environment_of

LOOK_S: Final = 0.02
LOOK_S_MAX: Final = 0.5
"""A version is in force within some tens of ms as a rule. Each look that finds it is not comes half as much
later again: a risk service that is away must not have every PUT ask SQL fifty times a second."""
BACKTEST_TIMEOUT_S: Final = 60.0


async def rules(call: Call) -> Reply:
    """The rules in force, each with its version."""
    async with reading(call, None) as read_model:
        found = await in_force(read_model, _partitions(call))
        age = await read_model.lag_ms(topics.RISK_RULES.name)
    return view_reply({"items": [views.whole_rule_view(found[name]) for name in sorted(found)]}, age)


async def in_force(read_model: ReadModel, partitions: int) -> dict[str, Rule]:
    """By id: the newest version that every partition has put in force; the defaults before any."""
    found = {rule.id: rule for rule in DEFAULT_RULES}
    for rule, puts in await read_model.rules():
        if puts >= partitions and rule.version > getattr(found.get(rule.id), "version", 0):
            found[rule.id] = rule
    return found


async def put_rule(call: Call) -> Reply:
    """Put a version of a rule in force. The same version again changes nothing."""
    put, rule = _proposed(call)
    gateway = call.gateway
    deadline = asyncio.get_running_loop().time() + gateway.settings.gateway_deadline_s
    async with reading(call, None) as read_model:
        known = await in_force(read_model, _partitions(call))
        former = known.get(rule.id)
        if former == rule:
            return view_reply(views.whole_rule_view(rule), await read_model.lag_ms(topics.RISK_RULES.name))
        if former is None and len(known) >= RULES_MAX:
            raise Problem(409, "conflict", f"there are {RULES_MAX} rules, the most there can be")
        if former is not None and former.version >= rule.version:
            raise Problem(
                409,
                "conflict",
                f"version {former.version} is in force: the next must be higher.",
                more={"state": f"version {former.version}"},
            )
        try:
            await gateway.exchange.tell(
                topics.CARD_REQUESTS, put, deadline=deadline, key=rule.id.encode(), partition=0
            )
        except NotSent:
            raise busy("not-recorded", "The log did not take the rule in time: send it again.") from None
        except NoAnswer:
            raise _unknown() from None
        pause_s = LOOK_S
        while asyncio.get_running_loop().time() < deadline:
            now = (await in_force(read_model, _partitions(call))).get(rule.id)
            if now == rule:
                return view_reply(
                    views.whole_rule_view(rule), await read_model.lag_ms(topics.RISK_RULES.name)
                )
            if now is not None and now.version >= rule.version:
                raise Problem(409, "conflict", f"another version {now.version} was put in force meanwhile.")
            await asyncio.sleep(pause_s)
            pause_s = min(1.5 * pause_s, LOOK_S_MAX)
    raise _unknown()


def _partitions(call: Call) -> int:
    """Of card.requests, as the cluster has it."""
    return call.gateway.exchange.partitions[topics.CARD_REQUESTS.name]


def _unknown() -> Problem:
    return Problem(
        504,
        "outcome-unknown",
        "The version is not in force everywhere yet. It may still be put in force: look at GET /rules, or "
        "send it again.",
    )


async def back_test(call: Call) -> Reply:
    """What a version would have decided over a stretch of the log, against the rules in force. It runs in
    a process of its own, one at a time: the gateway goes on answering."""
    _, rule = _proposed(call)
    gateway = call.gateway
    since, until = call.values["from"], call.values["to"]
    if since is not None and until is not None and until <= since:
        raise bad_input(FieldError("to", "must be later than from"))
    async with reading(call, None) as read_model:
        current = await in_force(read_model, _partitions(call))
    if rule.id in current and current[rule.id].version >= rule.version:
        raise Problem(409, "conflict", f"version {current[rule.id].version} is in force: try a higher one.")
    if rule.id not in current and len(current) >= RULES_MAX:
        raise Problem(409, "conflict", f"there are {RULES_MAX} rules, the most there can be")
    question = {
        "rule": rule,
        "current": list(current.values()),
        "from_ms": since,
        "to_ms": until,
    }
    if gateway.back_test.locked():  # asked for last: between this and the lock nobody else has a turn
        raise busy("busy", "A back-test is running: try again when it is done.")
    async with gateway.back_test:
        answer = await _run(gateway.settings, orjson.dumps(msgspec.to_builtins(question)))
    return Reply(answer, headers={})


async def _run(settings: Any, question: bytes) -> bytes:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "mini_visa.cli", "rules", "backtest", "-", "--json",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env=environment_of(settings),
    )  # fmt: skip
    try:
        async with asyncio.timeout(BACKTEST_TIMEOUT_S):
            out, error = await process.communicate(question)
    except TimeoutError:
        raise Problem(
            504, "too-much", f"Not done within {BACKTEST_TIMEOUT_S:.0f} s: choose a shorter stretch."
        ) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        reason = error.decode(errors="replace").strip().rpartition("mini-visa: ")[2][:300]
        raise busy("no-backtest", f"The back-test failed: {reason or 'it said nothing'}")
    return out


def _proposed(call: Call) -> tuple[PutRule, Rule]:
    """The version that the body describes. Raises `Problem` 400 with the field at fault."""
    values = call.values
    if holds_a_pan(call.path["rule"]):
        raise not_found("rule")
    body: dict[str, str | int | bool] = {
        name: values[name]
        for name in ("metric", "window_s", "threshold", "outcome", "score", "retired")
        if values[name] is not None
    }
    body |= {CURRENCY_PREFIX + currency: amount for currency, amount in values["thresholds"].items()}
    put = PutRule(rule=call.path["rule"], version=values["version"], body=body)
    try:
        return put, rule_of(put)
    except InvalidRule as error:
        if "$.id" in str(error):
            raise not_found("rule: an id has a-z, 0-9 and -") from None
        field, _, message = str(error).partition(": ")
        name = field if field in values else "thresholds" if field.startswith(CURRENCY_PREFIX) else ""
        raise bad_input(FieldError(name or "rule", message or str(error))) from None
