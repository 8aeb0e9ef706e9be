"""The auditor must fail: each invariant is broken once in a copy of what a real system left, and it says so.

MINI_VISA_TEST_RECORDING=FOLDER takes a recording that is there already, for work on these tests.
"""

from __future__ import annotations

import ast
import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from audit.__main__ import main
from audit.auditor import Audit
from audit.commands import said_by, said_in
from audit.evidence import Cluster, Record, Recording, Unreadable, read_lines
from audit.findings import CHECKS, Findings
from audit.stories import Story, is_amount

ROOT = Path(__file__).parents[2]


class Copy(Recording):
    """A recording in memory that can be changed."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.topics: dict[str, list[list[Record]]] = {
            topic: [list(super(Copy, self).records(topic, partition)) for partition in range(partitions)]
            for topic, partitions in self.partitions.items()
        }
        self.tables = {
            path.stem: list(super(Copy, self).rows(path.stem) or ()) for path in folder.glob("readmodel/*")
        }
        self.lines = list(super().history() or ())

    def records(self, topic: str, partition: int) -> Iterator[Record]:
        return iter(self.topics[topic][partition])

    def rows(self, table: str) -> Iterator[dict[str, Any]] | None:
        return iter(self.tables[table]) if table in self.tables else None

    def history(self) -> Iterator[dict[str, Any]] | None:
        return iter(self.lines)

    # -- how to break it

    def find(
        self, topic: str, holds: Callable[[dict[str, Any]], Any]
    ) -> tuple[list[Record], int, dict[str, Any]]:
        """(partition's records, index, message) of the first message that `holds`."""
        for records in self.topics[topic]:
            for index, record in enumerate(records):
                message = message_of(record)
                if message and holds(message):
                    return records, index, message
        raise AssertionError(f"nothing in {topic} to break: the recording is too small")

    def change(
        self, topic: str, holds: Callable[[dict[str, Any]], Any], how: Callable[[dict[str, Any]], Any]
    ) -> None:
        records, index, message = self.find(topic, holds)
        how(message)
        records[index] = records[index]._replace(value=msgspec.json.encode(message))

    def drop(self, topic: str, holds: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        records, index, message = self.find(topic, holds)
        del records[index]
        return message

    def append(self, topic: str, record: Record) -> None:
        records = self.topics[topic][record.partition]
        records.append(record._replace(offset=records[-1].offset + 1 if records else 0))

    def row(
        self, processor: str, table: str, holds: Callable[[Any], Any] = lambda row: True
    ) -> tuple[list[Record], int, Any]:
        """(partition's records, index, row) of the newest row of a table that `holds`."""
        for records in self.topics[f"{self.environment}.{processor}.changelog"]:
            newer = set()
            for index in reversed(range(len(records))):
                record = records[index]
                if record.key in newer or not record.key or not record.key.startswith(table.encode() + b"\0"):
                    continue
                newer.add(record.key)
                if record.value and holds(row := msgspec.msgpack.decode(record.value[1:])):
                    return records, index, row
        raise AssertionError(f"no row of {table} to break")

    def change_row(
        self, processor: str, table: str, holds: Callable[[Any], Any], how: Callable[[Any], Any]
    ) -> None:
        records, index, row = self.row(processor, table, holds)
        how(row)
        value = (records[index].value or b"")[:1] + msgspec.msgpack.encode(row)
        records[index] = records[index]._replace(value=value)

    def decide(self, partition: int, command: dict[str, Any], event: dict[str, Any]) -> None:
        """One more command, with its event, as authorization would have done it."""
        commands, events = (
            self.topics["account.commands"][partition],
            self.topics["payment.events"][partition],
        )
        last = commands[-1]
        event = {**event, "position": last.offset + 1, "at": last.timestamp}
        self.append("account.commands", last._replace(value=msgspec.json.encode(command)))
        self.append("payment.events", events[-1]._replace(value=msgspec.json.encode(event)))
        changelog = self.topics[f"{self.environment}.authorization.decide.changelog"][partition]
        progress = next(one for one in reversed(changelog) if one.key == b"\0progress")
        row = msgspec.msgpack.decode(progress.value or b"")
        row[1] = last.offset + 2
        value = msgspec.msgpack.encode(row)
        changelog.append(progress._replace(value=value, offset=changelog[-1].offset + 1))

    def attempts(self, path: str, holds: Callable[[dict[str, Any]], Any] = bool) -> list[dict[str, Any]]:
        """All attempts at the first request to a path that ends so, which was answered 200."""
        line = next(
            line
            for line in self.lines
            if line.get("path", "").endswith(path)
            and line["status"] == 200
            and "body" in line
            and holds(line)
        )
        request_id = line["body"]["request_id"]
        return [one for one in self.lines if one.get("body", {}).get("request_id") == request_id]

    def held(self) -> str:
        """Id of an authorization's request that was answered and still holds money."""
        later = set()
        answered = {
            line["body"]["request_id"] for line in self.lines if "body" in line and line["status"] == 200
        }
        for records in self.topics["payment.events"]:
            for record in reversed(records):
                event = message_of(record)
                payment = event.get("payment", {}).get("payment_id")
                if (
                    payment
                    and payment not in later
                    and kind(event) == "payment_authorized"
                    and event.get("amount")
                    and event["request_id"] in answered
                ):
                    return str(event["request_id"])
                later.add(payment)
        raise AssertionError("nothing is held")


def message_of(record: Record) -> dict[str, Any]:
    """{} for poison."""
    try:
        message = msgspec.json.decode(record.value or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}


def kind(message: dict[str, Any]) -> str:
    return str(message.get("type", "")).partition("/")[0]


def of(*kinds: str) -> Callable[[dict[str, Any]], bool]:
    return lambda message: kind(message) in kinds


def client_of(message: dict[str, Any]) -> bool:
    return str(message.get("request_id", "")).startswith("c")


# -- one way to break each invariant


def lose_an_outcome(data: Copy) -> None:
    data.drop("payment.events", lambda event: kind(event) == "payment_authorized" and client_of(event))


def do_it_twice(data: Copy) -> None:
    """The same command once more, and its effect: another payment for one request."""
    commands, index, command = data.find("account.commands", lambda one: kind(one) == "authorize")
    command_again = commands[index]._replace(offset=commands[-1].offset + 1)
    events = data.topics["payment.events"][command_again.partition]
    for record in events:
        event = message_of(record)
        if event.get("request_id") == command["request_id"] and event.get(
            "account", event.get("payment", {})
        ):
            break
    commands.append(command_again)
    event["position"] = command_again.offset
    data.append("payment.events", record._replace(value=msgspec.json.encode(event)))


def do_it_again_for_another_client(data: Copy) -> None:
    """One request of the history, and its payment once more under a name that sent nothing."""
    records, _, command = data.find("account.commands", of("authorize"))
    _, _, event = data.find("payment.events", lambda one: one.get("request_id") == command["request_id"])
    other = {"client": "another"}
    payment_id = f"pay_{command['account'][4:]}_{records[-1].offset + 1:x}"
    payment = {**event["payment"], **other, "payment_id": payment_id}
    data.decide(records[0].partition, {**command, **other}, {**event, **other, "payment": payment})


def do_it_twice_with_nobody_watching(data: Copy) -> None:
    """The history has no request: only which records are poison."""
    do_it_twice(data)
    data.lines = [line for line in data.lines if "planted" in line]


def ask_another_amount(data: Copy) -> None:
    for line in data.attempts("/authorize"):
        line["body"]["amount"] = "1" + line["body"]["amount"]


def ask_for_other_decimals(data: Copy) -> None:
    """The same digits: seven hundred yen of seven dollars."""
    for line in data.attempts("/authorize"):
        line["body"]["amount"] = line["body"]["amount"].replace(".", "")
        line["body"]["currency"] = "USD"


def ask_for_another_payment(data: Copy) -> None:
    for line in data.attempts("/captures"):
        line["path"] = "/payments/pay_another_1/captures"


def ask_something_else(data: Copy) -> None:
    for line in data.attempts("/captures"):
        line["path"] = line["path"].replace("captures", "refunds")


def ask_besides(path: str, **named: Any) -> Callable[[Copy], None]:
    """All attempts at the first request that did not name this."""

    def breaks(data: Copy) -> None:
        fits = data.attempts(path, lambda line: all(line["body"].get(name) != named[name] for name in named))
        for line in fits:
            line["body"].update(named)

    breaks.__name__ = f"ask_besides_for_{'_'.join(named)}"
    return breaks


def ask_for_another_status(data: Copy) -> None:
    blocked = next(
        line for line in data.lines if line.get("body", {}).get("status") and line["status"] == 200
    )
    data.lines = [one for one in data.lines if one is blocked or one.get("body") != blocked["body"]]
    blocked["body"]["status"] = "closed"


def never_answer_and_do_something_else(data: Copy) -> None:
    for line in data.attempts("/captures"):
        line.update(path=line["path"].replace("captures", "refunds"), status=0)


def capture_a_part_of_what_was_asked(data: Copy) -> None:
    data.change(
        "account.commands",
        lambda one: kind(one) == "capture" and one.get("amount"),
        lambda one: one.update(amount=one["amount"] * 10),
    )


def capture_a_part_where_all_was_asked(data: Copy) -> None:
    data.change(
        "account.commands",
        lambda one: kind(one) == "capture" and one.get("amount") and not one.get("final", True),
        lambda one: one.pop("amount"),
    )


def capture_another_payment(data: Copy) -> None:
    data.change(
        "account.commands",
        of("capture"),
        lambda one: one.update(payment_id=one["payment_id"].rpartition("_")[0] + "_0"),
    )


def capture_for_another_merchant(data: Copy) -> None:
    data.change(
        "payment.events",
        of("payment_authorized"),
        lambda e: e["payment"]["merchant"].update(id="another"),
    )


def drop_the_verdict(data: Copy) -> None:
    data.change("payment.events", of("payment_authorized"), lambda e: e["payment"].pop("verdict"))


def increment_against_the_verdict(data: Copy) -> None:
    """It is so in both topics of commands: risk is right, and was not heard."""
    data.change(
        "account.commands",
        of("increment"),
        lambda one: one.setdefault("verdict", {}).update(response_code="61"),
    )


def change_the_status_beside_the_limit(data: Copy) -> None:
    data.change(
        "account.commands",
        lambda one: kind(one) == "change_account" and one.get("status") == "blocked",
        lambda one: (one.pop("status"), one.update(limit=1)),
    )


def refund_what_was_to_be_captured(data: Copy) -> None:
    data.change("account.commands", of("capture"), lambda one: one.update(type="refund/1"))


def pass_something_else_on(data: Copy) -> None:
    """A request leaves risk without its merchant."""
    data.change(
        "account.commands", lambda one: kind(one) == "authorize", lambda one: one["merchant"].pop("id")
    )


def take_back_what_was_acknowledged(data: Copy) -> None:
    """A time-out of an attempt that nobody knows undoes an answer that somebody has."""
    request_id = data.held()
    records, _, command = data.find("account.commands", lambda one: one.get("request_id") == request_id)
    _, _, event = data.find("payment.events", lambda one: one.get("request_id") == request_id)
    time_out = {**command, "type": "time_out_reversal/1", "attempt": "another"}
    undone = {**event, "type": "payment_reversed/1", "response_code": "68"}
    data.decide(records[0].partition, time_out, undone)


def release_what_was_not_rejected(data: Copy) -> None:
    """In the name of reversal, which needs nobody's request."""
    records, _, event = data.find("payment.events", lambda one: one.get("request_id") == data.held())
    payment, service = event["payment"], {"client": "reversal", "request_id": "release-1-0-0"}
    released = {"status": "reversed", "reversed": event["amount"], "released": event["amount"]}
    command = {"type": "reverse/1", "account": payment["account"], "payment_id": payment["payment_id"]}
    undone = {**event, **service, "type": "payment_reversed/1", "seq": event["seq"] + 1}
    undone["payment"] = {**payment, **released, "hold_ended": True}
    data.decide(records[0].partition, {**command, **service}, undone)


def refund_in_the_name_of_clearing(data: Copy) -> None:
    records, _, event = data.find("payment.events", of("payment_refunded"))
    service = {"client": "clearing", "request_id": "another"}
    command = {
        "type": "refund/1", "account": event["payment"]["account"], "amount": event["amount"],
        "payment_id": event["payment"]["payment_id"],
    }  # fmt: skip
    data.decide(records[0].partition, {**command, **service}, {**event, **service})


def refuse_what_took_effect(data: Copy) -> None:
    for line in data.attempts("/authorize"):
        line["status"] = 404


def forbid_what_took_effect(data: Copy) -> None:
    """It is refused, too."""
    attempts = data.attempts("/captures")
    for line in attempts:
        line["status"] = 409
    request_id = attempts[0]["body"]["request_id"]
    records, index, event = data.find("payment.events", lambda one: one.get("request_id") == request_id)
    refused = {
        "type": "request_refused/1", "at": event["at"], "position": event["position"],
        "account_id": event["account"]["account_id"], "client": event["client"], "request_id": request_id,
        "payment_id": event["payment"]["payment_id"], "http_status": 409, "reason": "the moon is full",
    }  # fmt: skip
    records.insert(index + 1, records[index]._replace(value=msgspec.json.encode(refused)))


def refuse_a_good_capture(status: int) -> Callable[[Copy], None]:
    def breaks(data: Copy) -> None:
        records, _, event = data.find("payment.events", lambda one: one.get("request_id") == data.held())
        of = {"client": "local", "request_id": "another", "payment_id": event["payment"]["payment_id"]}
        account = event["payment"]["account"]
        data.decide(
            records[0].partition,
            {"type": "capture/1", "account": account, **of},
            {"type": "request_refused/1", "account_id": account, **of, "http_status": status, "reason": "no"},
        )

    breaks.__name__ = f"refuse_a_good_capture_with_{status}"
    return breaks


def refused_in_the_history(data: Copy, status: int) -> None:
    """A capture of a payment that is there; the log knows nothing of it."""
    line = data.attempts("/authorize", lambda line: line["payment_id"] and line["code"] == "00")[0]
    path, body = f"/payments/{line['payment_id']}/captures", {"request_id": "another"}
    data.lines.append({**line, "path": path, "body": body, "status": status, "code": None})


def not_find_what_is_there(data: Copy) -> None:
    refused_in_the_history(data, 404)


def say_that_its_id_was_used(data: Copy) -> None:
    refused_in_the_history(data, 422)


def refuse_after_an_answer(data: Copy) -> None:
    line = data.attempts("/authorize")[0]
    data.lines.append({**line, "status": 400})


def do_something_for_a_repetition(data: Copy) -> None:
    """A request that was answered is refused when it comes again."""
    records, _, event = data.find("payment.events", of("account_paid"))
    _, _, command = data.find("account.commands", lambda one: one.get("request_id") == event["request_id"])
    refused = {
        "type": "request_refused/1", "account_id": command["account"], "client": event["client"],
        "request_id": command["request_id"], "http_status": 409, "reason": "the moon is full",
    }  # fmt: skip
    data.decide(records[0].partition, command, refused)


def forget_a_request_that_was_answered(data: Copy) -> None:
    records, index, _ = data.row("authorization.decide", "requests")
    records.append(records[index]._replace(value=None, offset=records[-1].offset + 1))


def remember_another_refusal(data: Copy) -> None:
    data.change_row(
        "authorization.decide",
        "requests",
        lambda row: row[5] and row[5]["status"] == 409,
        lambda row: row[5].update(status=404),
    )


def remember_another_answer_on_an_account(data: Copy) -> None:
    data.change_row(
        "authorization.decide",
        "requests",
        lambda row: row[5] and row[5].get("account"),
        lambda row: row[5].update(status=409),
    )


def remember_another_request(data: Copy) -> None:
    data.change_row(
        "authorization.decide", "requests", lambda row: row[2], lambda row: row.__setitem__(2, "another")
    )


def answer_otherwise(data: Copy) -> None:
    line = next(line for line in data.lines if line.get("status") == 200 and "body" in line)
    data.lines.append({**line, "code": "51", "digest": "another"})


def forget_a_request(data: Copy) -> None:
    lost = next(one for one in data.lines if one.get("status") == 200 and "body" in one)["body"]["request_id"]
    data.lines = [line for line in data.lines if line.get("body", {}).get("request_id") != lost]


def forget_a_command(data: Copy) -> None:
    data.drop("account.commands", lambda one: kind(one) == "authorize")


def decide_twice(data: Copy) -> None:
    records, index, _ = data.find("payment.events", of("payment_declined", "payment_authorized"))
    records.insert(index + 1, records[index])


def leave_it_unknown_and_do_it_twice(data: Copy) -> None:
    do_it_twice(data)
    for line in data.lines:
        if "body" in line:
            line["status"] = 0


def promise_no_hold(data: Copy) -> None:
    request_id = data.held()
    for line in data.lines:
        if line.get("body", {}).get("request_id") == request_id:
            line["status"] = 504


def a_read(
    data: Copy, path: str, fits: Callable[[dict[str, Any]], bool] = lambda line: True
) -> dict[str, Any]:
    """The last answer that `fits` to a reader with a token."""
    return next(
        line
        for line in reversed(data.lines)
        if line.get("path", "").startswith(path)
        and line.get("wants")
        and line["status"] == 200
        and fits(line)
    )


def show_another_amount(data: Copy) -> None:
    shows = a_read(data, "/payments/")["shows"]
    shows["amounts"]["authorized"] = "1" + shows["amounts"]["authorized"]


def show_it_as_it_was_before(data: Copy) -> None:
    def wants_all_of_several(line: dict[str, Any]) -> bool:
        events, wants = line["shows"]["events"], [int(part) for part in line["wants"].split(":")]
        return len(events) > 1 and events[-1][0] == wants[0] and events[-1][1] <= wants[1]

    a_read(data, "/payments/", wants_all_of_several)["shows"]["events"].pop()


def show_another_balance(data: Copy) -> None:
    shows = a_read(data, "/accounts/")["shows"]
    shows["held"], shows["posted"] = shows["held"] + "1", shows["posted"] + "1"


def held_since(data: Copy, line: dict[str, Any]) -> list[int]:
    """What the account of a read has had on hold since what its token stands for."""
    partition, position = (int(part) for part in line["wants"].split(":"))
    states = [
        (record.offset, message["account"].get("held", 0))
        for record in data.topics["payment.events"][partition]
        if (message := message_of(record)).get("account", {}).get("account_id") == line["account"]
    ]
    told = sum(offset <= position for offset, _ in states)
    return [held for _, held in states[max(0, told - 1) :]]


def show_the_account_as_it_was_before(data: Copy) -> None:
    """What a reader was shown at first, to the one who looks last."""
    first: dict[str, dict[str, Any]] = {}
    for line in data.lines:
        if line.get("path", "").startswith("/accounts/") and "body" not in line and line["status"] == 200:
            was = first.setdefault(line["path"], line)["shows"]
            if (
                line["wants"]
                and was["held"] != line["shows"]["held"]
                and was["posted"] == line["shows"]["posted"]
                and int(was["held"].replace(".", "")) not in held_since(data, line)
            ):
                line["shows"] = was
                return
    raise AssertionError("no account that was looked at twice has changed")


def not_find_it(data: Copy) -> None:
    a_read(data, "/payments/")["status"] = 404


def hold_a_cent_more(data: Copy) -> None:
    data.change(
        "payment.events",
        of("payment_authorized"),
        lambda e: e["account"].update(held=e["account"].get("held", 0) + 1),
    )


def capture_a_cent_more(data: Copy) -> None:
    data.change(
        "payment.events",
        of("payment_captured"),
        lambda e: e["payment"].update(captured=e["payment"]["captured"] + 1),
    )


def skip_a_status(data: Copy) -> None:
    data.change("payment.events", of("payment_captured"), lambda e: e["payment"].update(status="expired"))


def later(data: Copy, kinds: str, first: str, how: Callable[[dict[str, Any]], Any]) -> None:
    """Change the first such event of a payment that began with another, in the log and the read model."""
    begun = {
        event["payment"]["payment_id"]
        for records in data.topics["payment.events"]
        for event in map(message_of, records)
        if kind(event) == first
    }

    def fits(event: dict[str, Any]) -> bool:
        return kind(event) == kinds and event["payment"]["payment_id"] in begun

    records, index, _ = data.find("payment.events", fits)
    data.change("payment.events", fits, how)
    place = records[index].offset << 14 | records[index].partition
    for row in data.tables["payment_events"]:
        if row["place"] == place:
            row["event"] = (records[index].value or b"").decode()


def capture_to_another_merchant(data: Copy) -> None:
    """The authorization named the one who is paid."""
    later(
        data,
        "payment_captured",
        "payment_authorized",
        lambda e: e["payment"]["merchant"].update(id="another"),
    )


def take_another_card(data: Copy) -> None:
    later(data, "payment_captured", "payment_authorized", lambda e: e["payment"]["card"].update(last4="0000"))


def decline_what_was_there(data: Copy) -> None:
    """For an amount below whatever the account had, which may be nothing."""
    declined = data.find("payment.events", of("payment_declined"))[2]
    data.change(
        "payment.events",
        lambda e: e == declined,
        lambda e: (
            e.update(response_code="51"),
            e["payment"].update(amount=-(10**12), response_code="51", verdict={}),
        ),
    )
    data.change(
        "account.commands",
        lambda one: one.get("request_id") == declined["request_id"] and kind(one) == "authorize",
        lambda one: one.update(amount=-(10**12), verdict={}),
    )


def decline_an_increment_that_was_covered(data: Copy) -> None:
    def declined(event: dict[str, Any]) -> None:
        event.update(response_code="51")
        event.pop("amount")

    data.change(
        "payment.events", lambda e: kind(e) == "payment_incremented" and "response_code" not in e, declined
    )


def decline_for_another_reason(data: Copy) -> None:
    data.change(
        "payment.events",
        of("payment_declined"),
        lambda e: (e.update(response_code="54"), e["payment"].update(response_code="54")),
    )


def refund_another_amount_than_was_asked_for(data: Copy) -> None:
    refund = data.find("payment.events", lambda e: kind(e) == "payment_refunded" and client_of(e))[2]
    data.change(
        "account.commands",
        lambda one: one.get("request_id") == refund["request_id"],
        lambda one: one.update(amount=refund["amount"] - 1),
    )


def hold_for_a_day_more(data: Copy) -> None:
    data.change(
        "payment.events",
        lambda e: kind(e) == "payment_authorized" and e.get("amount"),
        lambda e: e["payment"].update(expires_at=e["payment"]["expires_at"] + 86_400_000),
    )


def never_end_a_hold(data: Copy) -> None:
    """Of an account that does nothing more: two ticks of the month after next."""
    later = [60 * 86_400_000 + at for at in (0, 1_000)]
    for p, records in enumerate(data.topics["account.commands"]):
        for at in later:
            tick, told = {"type": "tick/1"}, {"type": "time_passed/1"}
            data.decide(p, tick, told)
            events = data.topics["payment.events"][p]
            event = message_of(events[-1])
            event["at"] = records[-1].timestamp + at
            events[-1] = events[-1]._replace(value=msgspec.json.encode(event))


def leave_out_what_was_available(data: Copy) -> None:
    data.change("payment.events", lambda e: e.get("available_before"), lambda e: e.pop("available_before"))


def take_another_currency(data: Copy) -> None:
    data.change("payment.events", of("payment_captured"), lambda e: e["payment"].update(currency="EUR"))


def say_that_it_has_cleared(data: Copy) -> None:
    data.change(
        "payment.events",
        of("payment_captured"),
        lambda e: e["payment"]["captures"][-1].update(state="cleared"),
    )


def approve_too_often(data: Copy) -> None:
    data.change(
        "account.commands",
        lambda one: one.get("verdict", {}).get("response_code") == "65",
        lambda one: one["verdict"].pop("response_code"),
    )


def count_wrongly(data: Copy) -> None:
    data.change(
        "account.commands",
        lambda one: one.get("verdict", {}).get("hits"),
        lambda one: one["verdict"]["hits"][0].update(value=one["verdict"]["hits"][0]["value"] + 1),
    )


def post_a_cent_more(data: Copy) -> None:
    data.change(
        "ledger.journal",
        of("journal_entry"),
        lambda e: e["postings"][0].__setitem__(2, e["postings"][0][2] + 1),
    )


def change_an_entry(data: Copy) -> None:
    data.change("ledger.journal", of("journal_entry"), lambda entry: entry.update(at=entry["at"] + 1))


def leave_out_an_entry(data: Copy) -> None:
    data.drop("ledger.journal", lambda entry: entry["kind"] == "payment_captured")


def lose_a_posting(data: Copy) -> None:
    data.drop("ledger.postings", of("ledger_postings"))


def lose_what_was_cleared(data: Copy) -> None:
    data.drop("ledger.journal", lambda entry: entry["kind"] == "capture_cleared")


def present_ten_times_the_amount(data: Copy) -> None:
    data.change("clearing.submissions", of("presentment"), lambda one: one.update(amount=one["amount"] * 10))


def present_for_another_merchant(data: Copy) -> None:
    data.change("clearing.submissions", of("presentment"), lambda one: one["merchant"].update(id="another"))


def never_present_it(data: Copy) -> None:
    """As often as it was."""
    key = data.find("clearing.submissions", of("presentment"))[2]["key"]
    for records in data.topics["clearing.submissions"]:
        records[:] = [record for record in records if message_of(record).get("key") != key]


def call_back_what_nobody_captured(data: Copy) -> None:
    records, index, one = data.find("clearing.submissions", of("presentment"))
    cancel = {"type": "cancel_presentment/1", "payment_id": one["payment_id"], "n": 7}
    cancel["key"] = f"{one['payment_id']}-7"
    data.append("clearing.submissions", records[index]._replace(value=msgspec.json.encode(cancel)))


def pay_a_merchant_more(data: Copy) -> None:
    data.change(
        "settlement.positions",
        of("settlement_position"),
        lambda one: one.update(sales=one.get("sales", 0) + 1),
    )


def settle_it_twice(data: Copy) -> None:
    """An item once more, as the last one of its partition: no cycle has been closed since."""
    records, index, _ = data.find("clearing.items", of("clearing_item"))
    data.append("clearing.items", records[index])


def never_settle_it(data: Copy) -> None:
    """As a tick, so that offsets and cycles stay as they are."""
    records, index, _ = data.find("clearing.items", of("clearing_item"))
    records[index] = records[index]._replace(value=b'{"type":"tick/1"}')


def settle_for_another(data: Copy) -> None:
    data.change("clearing.items", of("clearing_item"), lambda one: one.update(merchant_id="another"))


def skip_an_item(data: Copy) -> None:
    """A cycle that begins after its first item."""
    first = data.find("clearing.items", of("clearing_item"))
    data.change(
        "settlement.positions",
        lambda one: kind(one) == "cycle_closed" and one["partition"] == first[0][0].partition,
        lambda one: one.update(first_item=first[0][first[1]].offset + 1),
    )


def pay_in_another_currency(data: Copy) -> None:
    """Both sides of the entry, which balances."""
    records, index, entry = data.find("ledger.settlement-journal", of("journal_entry"))
    for posting in entry["postings"]:
        posting[1] = "EUR"
    records[index] = records[index]._replace(value=msgspec.json.encode(entry))


def forget_a_saga(data: Copy) -> None:
    records = data.topics[f"{data.environment}.reversal.compensate.changelog"][0]
    row = b"\x01" + msgspec.msgpack.encode([1, 2, "clearing", [1]])
    data.append(
        f"{data.environment}.reversal.compensate.changelog",
        records[-1]._replace(key=b"sagas\0pay_x_0", value=row),
    )


def change_an_account(data: Copy) -> None:
    records, index, row = data.row("authorization.decide", "accounts")
    row["posted"] = row.get("posted", 0) + 1
    records[index] = records[index]._replace(value=b"\x01" + msgspec.msgpack.encode(row))


def change_a_balance(data: Copy) -> None:
    records, index, row = data.row("ledger.balances", "balances")
    row[0] += 1
    records[index] = records[index]._replace(value=b"\x01" + msgspec.msgpack.encode(row))


def forget_a_hold(data: Copy) -> None:
    for records in data.topics[f"{data.environment}.authorization.decide.changelog"]:
        for record in reversed(records):
            if record.key and record.key.startswith(b"holds\0") and record.value:
                newest = next(one for one in reversed(records) if one.key == record.key)
                if newest.value is not None:
                    records.append(record._replace(value=None, offset=records[-1].offset + 1))
                    return
    raise AssertionError("nothing is held")


def sleep_too_long(data: Copy) -> None:
    """The account of a hold is looked at a day late; so says its wake too."""
    account = data.row("authorization.decide", "accounts", lambda row: row.get("held"))
    records, index, row = account
    was = row["next_expiry"]
    row["next_expiry"] = was + 86_400_000
    records[index] = records[index]._replace(value=b"\x01" + msgspec.msgpack.encode(row))
    for n, record in enumerate(records):
        if record.key == f"wakes\0{was:015d}/{row['account_id']}".encode():
            key = f"wakes\0{row['next_expiry']:015d}/{row['account_id']}".encode()
            records[n] = record._replace(key=key)


def change_a_row(data: Copy) -> None:
    data.tables["payment_events"][0]["event"] += " "


def leave_out_a_row(data: Copy) -> None:
    data.tables["payments"].pop()


def change_a_column(table: str, column: str, value: Any) -> Callable[[Copy], None]:
    def breaks(data: Copy) -> None:
        data.tables[table][0][column] = value

    breaks.__name__ = f"change_{column}_in_{table}"
    return breaks


def alert_of_nothing(data: Copy) -> None:
    data.tables["alerts"].append({**data.tables["alerts"][0], "alert_id": "another"})


def forget_what_was_applied(data: Copy) -> None:
    """And all that was: an empty database."""
    for rows in data.tables.values():
        rows.clear()


def leave_out_a_table(data: Copy) -> None:
    del data.tables["sagas"]


def leave_out_all_postings_of_an_entry(data: Copy) -> None:
    rows = data.tables["journal_postings"]
    data.tables["journal_postings"] = [row for row in rows if row["entry_key"] != rows[0]["entry_key"]]


def leave_work_undone(data: Copy) -> None:
    records, index, _ = data.find("account.commands", of("authorize"))
    data.append("account.commands", records[index])


def bury_a_message(data: Copy) -> None:
    letter = Record(0, 0, 0, b"k", b"v", {"source": b"card.requests/0/0", "reason": b"it was a full moon"})
    data.append("risk.dead-letters", letter)


def tell_an_event_without_its_command(data: Copy) -> None:
    data.change("payment.events", of("payment_authorized"), lambda event: event.pop("position"))


def tell_what_nobody_knows(data: Copy) -> None:
    data.change(
        "payment.events", of("payment_authorized"), lambda event: event.update(type="payment_teleported/1")
    )


def ask_without_a_name(data: Copy) -> None:
    data.change("account.commands", of("capture"), lambda command: command.pop("request_id"))


def number_the_types(data: Copy) -> None:
    data.change("fraud.alerts", of("fraud_alert"), lambda alert: alert.update(type=7))


def write_a_card_number(data: Copy) -> None:
    pan = next(line["body"]["pan"] for line in data.lines if line.get("body", {}).get("pan"))
    data.change(
        "payment.events",
        of("payment_authorized"),
        lambda e: e["payment"].update(metadata={"note": f"card {pan}"}),
    )


def a_card_number(data: Copy) -> bytes:
    return str(next(line["body"]["pan"] for line in data.lines if line.get("body", {}).get("pan"))).encode()


def write_a_card_number_into(topic: str, field: str) -> Callable[[Copy], None]:
    def breaks(data: Copy) -> None:
        records = next(records for records in data.topics[topic] if records)
        pan = a_card_number(data)
        value = {"key": pan, "headers": {**records[0].headers, "note": b"card " + pan}, "value": pan}[field]
        records[0] = records[0]._replace(**{field: value})

    breaks.__name__ = f"write_a_card_number_into_{field}_of_{topic}"
    return breaks


def write_a_card_number_into_a_row(data: Copy) -> None:
    data.tables["payments"][0]["client"] = a_card_number(data).decode()


def leave_a_submission_undone(data: Copy) -> None:
    """After the mark that ends the last transaction, which has an offset too."""
    records, index, _ = data.find("clearing.submissions", of("presentment"))
    records.append(records[index]._replace(offset=records[-1].offset + 2))


def never_bury_what_the_connector_read(data: Copy) -> None:
    data.topics["connector.dead-letters"] = [[] for _ in data.topics["connector.dead-letters"]]


MUTATIONS: tuple[tuple[str, Callable[[Copy], None]], ...] = (
    ("acknowledged-once", lose_an_outcome),
    ("acknowledged-once", do_it_twice),
    ("acknowledged-once", ask_another_amount),
    ("acknowledged-once", ask_for_other_decimals),
    ("acknowledged-once", ask_for_another_payment),
    ("acknowledged-once", ask_something_else),
    ("acknowledged-once", take_back_what_was_acknowledged),
    ("acknowledged-once", refuse_what_took_effect),
    ("acknowledged-once", forbid_what_took_effect),
    ("acknowledged-once", ask_besides("/authorize", merchant_id="another")),
    ("acknowledged-once", ask_besides("/authorize", capture=True)),
    ("acknowledged-once", ask_besides("/authorize", partial_approval=True)),
    ("acknowledged-once", ask_besides("/captures", final=False)),
    ("acknowledged-once", ask_besides("/payments/reversals", original_request_id="another")),
    ("acknowledged-once", ask_besides("/chargebacks", reason_code="another")),
    ("acknowledged-once", ask_for_another_status),
    ("acknowledged-once", not_find_what_is_there),
    ("acknowledged-once", say_that_its_id_was_used),
    ("answers-stable", answer_otherwise),
    ("answers-stable", refuse_after_an_answer),
    ("event-has-request", forget_a_request),
    ("event-has-request", do_it_again_for_another_client),
    ("event-has-request", forget_a_command),
    ("event-has-request", capture_a_part_of_what_was_asked),
    ("event-has-request", capture_a_part_where_all_was_asked),
    ("event-has-request", capture_another_payment),
    ("event-has-request", capture_for_another_merchant),
    ("event-has-request", drop_the_verdict),
    ("event-has-request", increment_against_the_verdict),
    ("event-has-request", change_the_status_beside_the_limit),
    ("event-has-request", release_what_was_not_rejected),
    ("event-has-request", refund_in_the_name_of_clearing),
    ("command-decided-once", decide_twice),
    ("command-decided-once", do_it_twice_with_nobody_watching),
    ("command-decided-once", do_something_for_a_repetition),
    ("command-decided-once", refund_what_was_to_be_captured),
    ("command-decided-once", take_back_what_was_acknowledged),
    ("unknown-ended", leave_it_unknown_and_do_it_twice),
    ("unknown-ended", never_answer_and_do_something_else),
    ("time-out-leaves-no-hold", promise_no_hold),
    ("reads", show_another_amount),
    ("reads", show_it_as_it_was_before),
    ("reads", show_another_balance),
    ("reads", show_the_account_as_it_was_before),
    ("reads", not_find_it),
    ("account-sums", hold_a_cent_more),
    ("account-sums", leave_out_what_was_available),
    ("payment-sums", capture_a_cent_more),
    ("payment-sums", take_another_currency),
    ("payment-sums", say_that_it_has_cleared),
    ("lifecycle", skip_a_status),
    ("lifecycle", capture_to_another_merchant),
    ("lifecycle", take_another_card),
    ("decisions", decline_what_was_there),
    ("decisions", decline_an_increment_that_was_covered),
    ("decisions", decline_for_another_reason),
    ("decisions", refund_another_amount_than_was_asked_for),
    ("decisions", hold_for_a_day_more),
    ("decisions", never_end_a_hold),
    ("decisions", refuse_a_good_capture(404)),
    ("decisions", refuse_a_good_capture(400)),
    ("decisions", refuse_a_good_capture(409)),
    ("velocity", approve_too_often),
    ("velocity", count_wrongly),
    ("velocity", pass_something_else_on),
    ("journal-balanced", post_a_cent_more),
    ("hash-chain", change_an_entry),
    ("hash-chain", leave_out_an_entry),
    ("journal-complete", leave_out_an_entry),
    ("trial-balance", post_a_cent_more),
    ("trial-balance", lose_a_posting),
    ("captures", lose_what_was_cleared),
    ("presentments", present_ten_times_the_amount),
    ("presentments", present_for_another_merchant),
    ("presentments", never_present_it),
    ("presentments", call_back_what_nobody_captured),
    ("merchant-items", settle_it_twice),
    ("merchant-items", never_settle_it),
    ("merchant-items", settle_for_another),
    ("settlement", pay_a_merchant_more),
    ("settlement", settle_it_twice),
    ("settlement", skip_an_item),
    ("settlement", pay_in_another_currency),
    ("sagas", forget_a_saga),
    ("tables", change_an_account),
    ("tables", change_a_balance),
    ("tables", forget_a_hold),
    ("tables", sleep_too_long),
    ("tables", forget_a_request_that_was_answered),
    ("tables", remember_another_refusal),
    ("tables", remember_another_answer_on_an_account),
    ("tables", remember_another_request),
    ("read-model", change_a_row),
    ("read-model", leave_out_a_row),
    ("read-model", change_a_column("payments", "merchant_id", "another")),
    ("read-model", change_a_column("payments", "amount_e4", 7)),
    ("read-model", change_a_column("payment_events", "seq", 7_000)),
    ("read-model", change_a_column("journal_entries", "kind", "another")),
    ("read-model", change_a_column("ledger_balances", "debits", 7)),
    ("read-model", change_a_column("clearing_items", "offset", 7_000)),
    ("read-model", change_a_column("settlement_positions", "position", "{}")),
    ("read-model", change_a_column("settlement_cycles", "end_item", 7_000)),
    ("read-model", change_a_column("sagas", "state", "overdue")),
    ("read-model", leave_out_all_postings_of_an_entry),
    ("read-model", leave_out_a_table),
    ("read-model", alert_of_nothing),
    ("read-model", forget_what_was_applied),
    ("all-processed", forget_what_was_applied),
    ("all-processed", leave_work_undone),
    ("dead-letters", bury_a_message),
    ("dead-letters", tell_an_event_without_its_command),
    ("dead-letters", tell_what_nobody_knows),
    ("dead-letters", ask_without_a_name),
    ("dead-letters", number_the_types),
    ("all-processed", leave_a_submission_undone),
    ("dead-letters", never_bury_what_the_connector_read),
    ("no-pan", write_a_card_number),
    ("no-pan", write_a_card_number_into("card.requests", "key")),
    ("no-pan", write_a_card_number_into("gateway.replies", "headers")),
    ("no-pan", write_a_card_number_into("risk.dead-letters", "value")),
    ("no-pan", write_a_card_number_into_a_row),
)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a real system left after some seconds of real requests."""
    if given := os.environ.get("MINI_VISA_TEST_RECORDING"):
        return Path(given)
    folder = tmp_path_factory.mktemp("recording") / "recording"
    command = [
        sys.executable,
        "-m",
        "tests.faults.harness",
        "--minutes",
        "0.1",
        "--requests",
        "1200",
        "--seed",
        "11",
        "--kinds",
        "poison",
    ]
    done = subprocess.run(
        [*command, "--database", "sqlite", "--shoppers", "8", "--record", str(folder),
         "--reports", str(folder.parent)],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6_000:] + done.stderr[-4_000:]
    return folder


@pytest.fixture
def data(recording: Path) -> Copy:
    return Copy(recording)


def audit(data: Copy) -> Findings:
    return Audit(data).run()


@pytest.mark.broker
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_a_real_system_leaves_adds_up_and_every_check_saw_some_of_it(data: Copy) -> None:
    findings = audit(data)
    assert not findings.violations
    seen = {check.name for check in findings.checks.values() if check.looked_at}
    assert seen >= {name for name, *_ in CHECKS} - {
        "answers-stable",
        "unknown-ended",
        "time-out-leaves-no-hold",
    }


@pytest.mark.broker
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "breaks"), MUTATIONS, ids=[f"{name}:{how.__name__}" for name, how in MUTATIONS]
)
def test_a_broken_invariant_is_named(name: str, breaks: Callable[[Copy], None], data: Copy) -> None:
    breaks(data)
    findings = audit(data)
    assert findings[name].wrong, f"{breaks.__name__} went unseen by {name}: {findings.violations}"
    assert not findings.passed
    if breaks in (lose_an_outcome, take_back_what_was_acknowledged, ask_another_amount):
        assert findings.lost == 1
    if breaks in (do_it_twice, do_it_twice_with_nobody_watching):
        assert findings.duplicated == 1


@pytest.mark.broker
@pytest.mark.slow
def test_what_the_audit_does_not_know_ends_it_with_a_line_that_says_where(data: Copy) -> None:
    data.change("clearing.items", of("clearing_item"), lambda item: item.pop("merchant_id"))
    with pytest.raises(Unreadable, match=r"clearing\.items/.*merchant_id"):
        audit(data)


@pytest.mark.parametrize(
    ("answers", "changes"),
    [
        ([("a", 404), ("a", 404), ("a", 504)], 0),
        ([("a", 504), ("a", 200), ("a", 200)], 0),
        ([("a", 200), ("b", 422), ("b", 422)], 0),
        ([("b", 422), ("a", 200)], 0),
        ([("a", 200), ("a", 422)], 1),
        ([("a", 400), ("a", 200)], 1),
        ([("a", 200), ("a", 409)], 1),
    ],
)
def test_an_answer_is_for_ever_and_another_request_with_its_id_is_refused(
    answers: list[tuple[str, int]], changes: int
) -> None:
    story, findings = Story(), Findings()
    for reason, status in answers:
        body = {"request_id": "r", "reason": reason}
        story.add({"path": "/payments/pay_x_1/reversals", "body": body, "status": status}, findings)
    assert findings["answers-stable"].wrong == changes


@pytest.mark.parametrize(
    ("path", "body", "command", "same"),
    [
        ("chargebacks/2/represent", {}, {"type": "represent_chargeback/1", "n": 2}, True),
        ("chargebacks/2/represent", {}, {"type": "represent_chargeback/1", "n": 1}, False),
        ("chargebacks/2/accept", {}, {"type": "represent_chargeback/1", "n": 2}, False),
        ("captures", {"amount": None}, {"type": "capture/1"}, True),
        ("captures", {"amount": "1.00"}, {"type": "capture/1"}, False),
        ("captures", {}, {"type": "capture/1", "amount": 100}, False),
        ("refunds", {}, {"type": "refund/1", "amount": 100}, False),
    ],
)
def test_what_a_request_names_is_what_its_command_names(
    path: str, body: dict[str, Any], command: dict[str, Any], same: bool
) -> None:
    assert (said_in(f"/payments/pay_x_1/{path}", body) == said_by(command)) == same


@pytest.mark.parametrize(
    ("text", "minor", "currency", "right"),
    [
        ("7", 7, "JPY", True), ("7", 700, "JPY", False), ("7", 700, "USD", False), ("7.00", 700, "USD", True),
        ("7.00", 700, "", True), ("7.000", 7_000, "KWD", True), ("7.0000", 70_000, "CLF", True),
        ("seven", 7, "JPY", False), ("", 0, "JPY", False),
    ],
)  # fmt: skip
def test_an_amount_has_the_decimals_of_its_currency(
    text: str, minor: int, currency: str, right: bool
) -> None:
    assert is_amount(text, minor, currency) == right


@pytest.mark.broker
@pytest.mark.slow
def test_what_retention_has_taken_is_said_and_is_no_violation(data: Copy) -> None:
    for topic in ("card.requests", "ledger.postings"):
        for p, records in enumerate(data.topics[topic]):
            del records[: len(records) // 2]
            data.begins[f"{topic}/{p}"] = records[0].offset
    findings = audit(data)
    assert not findings.violations
    assert all(findings[name].partly for name in ("velocity", "tables", "trial-balance"))
    assert "not all of it: ledger.postings/" in findings.text()


def test_every_check_can_fail() -> None:
    assert {name for name, _ in MUTATIONS} == {name for name, *_ in CHECKS}


def test_the_auditor_imports_nothing_of_what_it_audits() -> None:
    ours = {"mini_visa", "agents", "tables", "tests"}
    for path in sorted((ROOT / "audit").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path.name}: a relative import"
                names = [str(node.module)]
            assert not {name.partition(".")[0] for name in names} & ours, f"{path.name} imports {names}"


def test_a_system_without_anything_does_not_add_up(tmp_path: Path) -> None:
    (tmp_path / "recording.json").write_text('{"environment": "dev", "partitions": {}}')
    assert "account-sums: there is nothing to look at" in Audit(Recording(tmp_path)).run().violations
    assert main(["--recording", str(tmp_path)]) == 1


def no_history(folder: Path) -> list[str]:
    return ["--broker", "localhost:1", "--history", str(folder / "missing.jsonl")]


def no_recording(folder: Path) -> list[str]:
    return ["--recording", str(folder / "missing")]


def no_topic(folder: Path) -> list[str]:
    """The recording names a partition that is not in it."""
    (folder / "recording.json").write_text('{"environment": "dev", "partitions": {"payment.events": 1}}')
    return ["--recording", str(folder)]


def a_broken_line(folder: Path) -> list[str]:
    (folder / "recording.json").write_text('{"environment": "dev", "partitions": {}}')
    (folder / "history.jsonl").write_text('{"planted": ["t", 0, 0]}\n{"pla\n')
    return ["--recording", str(folder)]


@pytest.mark.parametrize("arguments", [no_history, no_recording, no_topic, a_broken_line])
def test_evidence_that_cannot_be_read_is_no_violation(
    arguments: Callable[[Path], list[str]], tmp_path: Path
) -> None:
    assert main(arguments(tmp_path)) == 2


def test_a_database_that_is_not_there_cannot_be_read(tmp_path: Path) -> None:
    cluster = Cluster({}, "dev", f"sqlite:///{tmp_path}/missing.sqlite")
    with pytest.raises(Unreadable):
        cluster.rows("positions")
    cluster.close()


def test_only_the_end_of_a_history_may_be_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text('{"a": 1}\n{"a"')
    assert list(read_lines(path)) == [{"a": 1}]
    path.write_text('{"a"\n{"a": 1}\n')
    with pytest.raises(Unreadable, match="line 1"):
        list(read_lines(path))


def test_a_recording_of_bytes_is_read_back_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "topics" / "t"
    folder.mkdir(parents=True)
    line = [3, 5, None, base64.b64encode(b"\x00\xff").decode(), {"h": base64.b64encode(b"v").decode()}]
    (folder / "0.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "recording.json").write_text('{"environment": "dev", "partitions": {"t": 1}}')
    assert list(Recording(tmp_path).records("t", 0)) == [Record(0, 3, 5, None, b"\x00\xff", {"h": b"v"})]
