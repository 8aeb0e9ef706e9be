"""What an operator and bad luck do to the containers under load, and a payment's life in what is left.

The tests of this file share one system and run in order: one of the last accounts for every payment that was
made while those before it killed, paused, cut off and replaced what decided about it.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import docker
import pytest

from mini_visa.domain.cards import luhn_valid
from mini_visa.http_client import GatewayClient, Refused
from mini_visa.kafka import committed_records
from tests.containers.conftest import Images
from tests.containers.system import SESSION_S, Shopping, System

pytestmark = [pytest.mark.exercise, pytest.mark.timeout(900)]

SILENT_S = 1.5 * SESSION_S
UNTIL_S = 120.0


@pytest.fixture(scope="module")
def system(
    engine: docker.DockerClient, images: Images, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[System]:
    made = System(engine, images, tmp_path_factory.mktemp("containers"))
    begun = time.monotonic()
    try:
        made.start()
        count = len(made.services) + len(made.backbone)
        print(f"\n{count} containers ready in {time.monotonic() - begun:.1f} s")
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def shopping(system: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shopping]:
    """The load that the other tests are under, from the first of them that asks for it on."""
    made = Shopping(system, tmp_path_factory.mktemp("shopping"))
    try:
        made.decided()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def next_image(engine: docker.DockerClient, images: Images) -> Iterator[str]:
    """Another image of the same program, as the next version is."""
    source = io.BytesIO(f"FROM {images.application}\nLABEL mini-visa.test=next\n".encode())
    image, _ = engine.images.build(fileobj=source, tag="mini-visa:next", rm=True)
    yield "mini-visa:next"
    engine.images.remove(image.id, force=True)


def until(what: str, look: Any, seconds: float = UNTIL_S) -> Any:
    """The first result of `look` that is true."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.2)
    return found


def look_up(gateway: GatewayClient, path: str) -> dict[str, Any]:
    """{} while the read model does not have it yet."""
    try:
        return gateway.get(path)
    except Refused as refused:
        if refused.status != HTTPStatus.NOT_FOUND:
            raise
        return {}


@pytest.mark.parametrize("name", ["risk", "authorization", "gateway", "postgresql", "kafka"])
def test_a_killed_container_comes_back_and_the_payments_go_on(system: System, shopping: Shopping, name: str):
    part = system.part(name)
    part.inside.kill()
    part.inside.start()
    ready_s = system.until_ready(part)
    decided_s = shopping.decided()
    for other in system.services:
        system.until_ready(other)
    print(f"\n{name} ready {ready_s:.1f} s after its start, every partition decides {decided_s:.1f} s later")


def test_a_worker_that_is_paused_beyond_its_session_is_replaced_and_does_no_harm_when_it_wakes(
    system: System, shopping: Shopping
):
    second = system.add("authorization-1", ["worker", "authorization"], MINI_VISA_INSTANCE="authorization-1")
    first = system.part("authorization")
    shopping.decided()
    first.inside.pause()
    paused = time.monotonic()
    try:
        decided_s = shopping.decided()  # only when the other worker has taken every partition over
        time.sleep(max(0.0, SILENT_S - (time.monotonic() - paused)))
    finally:
        first.inside.unpause()
    assert decided_s > 1.0, "half of the partitions were the paused worker's"
    system.until_ready(first)
    shopping.decided()
    print(f"\nevery partition decides {decided_s:.1f} s after the pause began (session {SESSION_S:.0f} s)")
    assert system.end(second) == 0
    system.services.remove(second)
    shopping.decided()


@pytest.mark.parametrize("name", ["authorization", "postgresql"])
def test_a_container_that_is_cut_off_from_the_network_goes_on_when_it_is_back(
    system: System, shopping: Shopping, name: str
):
    part = system.part(name)
    system.cut_off(part)
    time.sleep(SILENT_S)
    system.connect(part)
    back = time.monotonic()
    decided_s = shopping.decided()
    for other in system.services:
        system.until_ready(other)
    print(f"\n{name}: decides {decided_s:.1f} s, all ready {time.monotonic() - back:.1f} s after it is back")


def test_every_container_is_replaced_by_the_next_version_under_load(
    system: System, shopping: Shopping, next_image: str
):
    waves = [["risk"], ["authorization"], ["clearing-house", "connector", "projection"],
             ["ledger", "clearing", "reversal"], ["gateway"]]  # fmt: skip
    assert sorted(name for wave in waves for name in wave) == sorted(part.name for part in system.services)
    for wave in waves:
        codes: dict[str, int] = {}

        def replace(part: Any, codes: dict[str, int] = codes) -> None:
            codes[part.name] = system.replace(part, next_image)

        begun = time.monotonic()
        system.at_once(replace, [system.part(name) for name in wave])
        assert codes == dict.fromkeys(wave, 0)
        shopping.decided()
        print(f"\n{', '.join(wave)}: replaced and deciding after {time.monotonic() - begun:.1f} s")
    assert {part.inside.image.labels.get("mini-visa.test") for part in system.services} == {"next"}


def test_the_auditor_finds_nothing_lost_and_nothing_doubled(system: System, shopping: Shopping):
    """By `mini-visa audit`, which shares no code with what it audits. What is late arrives soon."""
    shopping.end()
    client = shopping.client
    print(
        f"\n{client.requests} requests, {client.acknowledged} acknowledged, answers {dict(client.statuses)}"
    )
    assert client.acknowledged > 200
    deadline = time.monotonic() + UNTIL_S
    history = {str(shopping.history): "/history"}
    while True:
        code, found = system.once("audit", "--history", "/history", "--json", files=history)
        report = json.loads(found)
        wrong = {check["name"]: check["examples"] for check in report["checks"] if check["wrong"]}
        if code == 0 or time.monotonic() > deadline:
            break
        time.sleep(3)
    assert not wrong, wrong
    assert (report["lost"], report["duplicated"]) == (0, 0)
    assert sum(check["looked_at"] for check in report["checks"]) > client.acknowledged


async def test_a_payment_lives_from_authorization_to_settlement(system: System):
    gateway = GatewayClient(system.url)
    code, said = system.once("accounts", "open-test-cards", "--url", "http://gateway:8080")
    assert code == 0, said
    call = {"request_id": "test123", "pan": "4111111111111111", "amount": "10.00", "merchant_id": "shop-1"}
    payment = gateway.post("/payments/authorize", call)
    assert (payment["status"], payment["response_code"]) == ("authorized", "00")
    assert gateway.post("/payments/authorize", call) == payment

    one = f"/payments/{payment['payment_id']}"
    gateway.post(f"{one}/captures", {"request_id": "life-2", "amount": "10.00"})
    until("cleared", lambda: look_up(gateway, one).get("clearing_status") in ("cleared", "settled"))
    gateway.post(f"{one}/refunds", {"request_id": "life-3", "amount": "4.00"})
    until("refunded", lambda: look_up(gateway, one)["amounts"]["refunded"] == "4.00")

    other = gateway.post("/payments/authorize", call | {"request_id": "life-4"})
    reversed_ = gateway.post(f"/payments/{other['payment_id']}/reversals", {"request_id": "life-5"})
    assert reversed_["status"] == "reversed"
    declined = gateway.post("/payments/authorize", call | {"request_id": "life-6", "amount": "999.00"})
    assert (declined["status"], declined["response_code"]) == ("declined", "51")

    def balances() -> tuple[str, ...]:
        account = look_up(gateway, f"/accounts/{payment['account_id']}")
        return account["held"], account["posted"], account["available"]

    until("held, posted and available", lambda: balances() == ("0.00", "6.00", "994.00"))
    # Exit code 0: log, read model and tables agree, as soon as the read model is there.
    until("replay agrees", lambda: system.once("replay", payment["payment_id"], "--json")[0] == 0)

    async def settled() -> bool:
        topics = ["ledger.journal", "settlement.positions"]
        found = [record.topic async for record in committed_records(system.settings, topics, {})]
        return found.count("ledger.journal") >= 4 and "settlement.positions" in found

    deadline = time.monotonic() + UNTIL_S
    while not await settled():
        assert time.monotonic() < deadline, "no settlement"


def test_no_log_shows_a_card_number(system: System, shopping: Shopping):
    lines = [json.loads(line) for line in shopping.history.read_text().splitlines()]
    pans = {line["body"]["pan"] for line in lines if "pan" in line.get("body", {})}
    assert pans and all(luhn_valid(pan) for pan in pans)
    for part in system.services:
        log = part.inside.logs().decode(errors="replace")
        assert log, part.name
        assert not [pan for pan in pans if pan in log], part.name


def test_every_container_stops_by_itself(system: System):
    codes: dict[str, int] = {}

    def end(part: Any) -> None:
        codes[part.name] = system.end(part)

    gateway = system.part("gateway")
    workers = [part for part in system.services if part is not gateway]
    end(gateway)
    system.at_once(end, workers)
    assert codes == dict.fromkeys((part.name for part in system.services), 0)
