from mini_visa.domain.commands import OpenAccount, PayAccount
from mini_visa.domain.events import AccountChanged, AccountOpened, AccountPaid, RequestRefused
from mini_visa.domain.ledger import postings_of, receivable_of
from mini_visa.domain.payment import AccountStatus
from mini_visa.domain.testing import NOON, Host


def test_an_account_is_opened_once() -> None:
    host = Host(limit="250.00", expiry="2030-06")
    [event] = host.events
    assert type(event) is AccountOpened and (event.seq, event.account) == (1, host.account)
    assert (host.account.limit, host.account.opened_at, host.account.expiry) == (25_000, NOON, "2030-06")
    again = OpenAccount(
        account=host.account_id, request_id="again", bin="411111", last4="1111", currency="EUR", limit=1
    )
    assert host.send(again).outcome.status == 409 and host.account.currency == "USD"


def test_limit_and_status_change_each_alone() -> None:
    host = Host(limit="100.00")
    assert host.change(limit="50.00").outcome.account.limit == 5000
    [event] = host.change(status=AccountStatus.BLOCKED).events
    assert type(event) is AccountChanged
    assert (host.account.limit, host.account.status, host.account.version) == (5000, "blocked", 3)


def test_a_payment_by_the_cardholder_may_leave_a_credit() -> None:
    host = Host(limit="100.00")
    decision = host.pay("30.00")
    assert [type(event) for event in decision.events] == [AccountPaid]
    assert decision.outcome.account.available == 13_000
    assert host.authorize("130.00").outcome.response_code == "00"


def test_a_payment_in_other_decimals_or_of_nothing_is_bad_input() -> None:
    host = Host()
    yen = PayAccount(account=host.account_id, request_id="y", amount=10, currency="JPY")
    assert (host.send(yen).outcome.status, host.pay("0.00").outcome.status) == (400, 400)
    assert host.account.posted == 0


def test_a_limit_that_was_read_with_other_decimals_is_refused() -> None:
    host = Host()
    limit = host.account.limit
    refused = host.change(limit="7.00", currency="JPY")
    assert refused.outcome.status == 400 and host.account.limit == limit
    assert host.change(limit="7.00", currency="USD").outcome.status == 200 and host.account.limit == 7_00
    assert host.change(limit="8.00").outcome.status == 200, "of an older gateway"


def test_commands_on_an_account_that_is_not_there_are_refused_with_404() -> None:
    host = Host(opened=False)
    for decision in (host.change(limit="1.00"), host.pay("1.00")):
        assert decision.outcome.status == 404
        assert [type(event) for event in decision.events] == [RequestRefused]


def test_events_of_an_account_are_numbered_without_a_gap() -> None:
    host = Host()
    payment = host.authorize("10.00").outcome.payment
    host.capture(payment, "11.00")  # refused: it has no number
    host.capture(payment)
    host.clear(payment)
    assert [event.seq for event in host.events if hasattr(event, "seq")] == [1, 2, 3, 4]


def test_an_account_from_elsewhere_brings_its_balance_along() -> None:
    host = Host(limit="100.00")
    for number, posted in enumerate((2_500, -700)):
        opened = host.send(
            OpenAccount(
                account=f"tok_{number}", request_id=f"o{number}", bin="411111", last4="1111",
                currency="USD", limit=10_000, posted=posted,
            )
        )  # fmt: skip
        assert opened.outcome.account.available == 10_000 - posted
        [event] = opened.events
        assert {(p.account, p.amount) for p in postings_of(event)} == {
            (receivable_of(f"tok_{number}"), posted),
            ("opening:balances", -posted),
        }


def test_a_client_that_may_touch_only_its_own_finds_nothing_of_anothers() -> None:
    host = Host(client="bank")
    payment = host.authorize("10.00", client="shop").outcome.payment
    for client, own, status in (("other", True, 404), ("other", False, 200), ("shop", True, 409)):
        decision = host.capture(payment, client=client, own=own)
        assert decision.outcome.status == status, (client, own)
    for client, own, status in (("other", True, 404), ("bank", True, 200), ("other", False, 200)):
        assert host.pay("1.00", client=client, own=own).outcome.status == status, (client, own)


def test_anybody_may_ask_for_money_on_a_card() -> None:
    host = Host(client="bank")
    assert host.authorize("10.00", client="shop", own=True).outcome.response_code == "00"
