from mini_visa.domain.ledger import payable_of, postings_of
from mini_visa.domain.payment import Merchant
from mini_visa.domain.testing import Host


def test_every_entry_balances_and_has_no_zero() -> None:
    host = Host()
    payment = host.authorize("100.00", merchant=Merchant(id="m1")).outcome.payment
    host.increment(payment, "20.00")
    host.reverse(payment, "10.00")
    host.capture(payment, "50.00", final=False)
    host.capture(payment, "10.00")
    host.refund(payment, "55.00")
    host.clear(payment, 1)
    host.clear(payment, 2, accepted=False)
    host.charge_back(payment, "0.00")
    host.pay("5.00")
    host.authorize("10000.00")
    for event in host.events:
        postings = postings_of(event)
        assert sum(posting.amount for posting in postings) == 0
        assert all(posting.amount for posting in postings)
        assert len({posting.account for posting in postings}) == len(postings)


def test_a_hold_and_its_release_sum_to_zero() -> None:
    host = Host()
    payment = host.authorize("100.00").outcome.payment
    host.reverse(payment, "30.00")
    host.pass_time(8 * 86_400)
    host.tick()
    assert not host.ledger


def test_a_compensated_payment_sums_to_zero_on_every_account() -> None:
    host = Host()
    payment = host.authorize("100.00", merchant=Merchant(id="m1"), capture=True).outcome.payment
    host.refund(payment, "30.00")
    host.clear(payment, accepted=False)
    assert not host.ledger


def test_a_merchant_that_was_not_named_has_an_account_too() -> None:
    assert payable_of("") == "payable:merchant:unnamed" and payable_of("m1") == "payable:merchant:m1"


def test_another_currency_is_another_balance() -> None:
    host = Host(currency="JPY", limit="1000")
    host.authorize("10")
    assert {currency for _, currency in host.ledger} == {"JPY"}
