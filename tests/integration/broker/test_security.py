"""TLS and passwords: everything through an encrypted listener, and clear words where it is refused."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import ClientSession
from kafka_admin import add_users
from whole_system import Up, environment, make_home, mini_visa, none_left_within

from mini_visa.broker import EmbeddedBroker
from mini_visa.broker.embedded import free_port
from mini_visa.broker.properties import Node

pytestmark = [pytest.mark.broker, pytest.mark.slow]

USER, PASSWORD = "mini-visa", "correct horse battery staple"


def _certificate(directory: Path, name: str) -> Path:
    """A self-signed certificate for 127.0.0.1 and its key, in one file."""
    certificate, key = directory / f"{name}.crt", directory / f"{name}.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", f"/CN={name}",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    both = directory / f"{name}.pem"
    both.write_text(key.read_text() + certificate.read_text())
    return both


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory, jars_cache: Path) -> Iterator[dict[str, str]]:
    """The settings to reach a broker through its listener with TLS and passwords."""
    directory = tmp_path_factory.mktemp("secured")
    pem = _certificate(directory, "kafka")
    plain, secure, controller = free_port(), free_port(), free_port()
    extra = {
        "listeners": f"PLAINTEXT://127.0.0.1:{plain},CONTROLLER://127.0.0.1:{controller},"
        f"SECURE://127.0.0.1:{secure}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{plain},SECURE://127.0.0.1:{secure}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURE:SASL_SSL",
        "listener.name.secure.sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "listener.name.secure.scram-sha-512.sasl.jaas.config": (
            "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        ),
        "listener.name.secure.ssl.keystore.type": "PEM",
        "listener.name.secure.ssl.keystore.location": pem,
    }
    broker = EmbeddedBroker(
        directory / "broker", libs_cache=jars_cache, port=plain, controller_port=controller,
        node=Node(extra=extra),
    )  # fmt: skip
    broker.start()
    try:
        asyncio.run(add_users(f"127.0.0.1:{plain}", {USER: PASSWORD}))
        yield {
            "MINI_VISA_BROKER": f"kafka://127.0.0.1:{secure}",
            "MINI_VISA_KAFKA_SECURITY": "SASL_SSL",
            "MINI_VISA_KAFKA_CA_FILE": str(pem),
            "MINI_VISA_KAFKA_USERNAME": USER,
            "MINI_VISA_KAFKA_PASSWORD": PASSWORD,
        }
    finally:
        broker.stop()


@pytest.mark.timeout(600)
async def test_a_payment_goes_through_everything_encrypted(
    tmp_path: Path, jars_cache: Path, secured: dict[str, str]
) -> None:
    up = Up(make_home(tmp_path, jars_cache), **secured)
    try:
        await asyncio.to_thread(up.until, "Ready")
        card = {"pan": "4111111111111111"}
        async with ClientSession(up.state().gateway_url) as session:
            opened = await session.post("/accounts", json={"request_id": "a", "limit": "100.00", **card})
            assert opened.status == 200
            paid = await session.post(
                "/payments/authorize", json={"request_id": "b", "amount": "10.00", **card}
            )
            payment = await paid.json()
            assert payment["status"] == "authorized"
            async with asyncio.timeout(30):
                while (await session.get(f"/payments/{payment['payment_id']}")).status != 200:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        doctor = json.loads(_run(tmp_path, secured, "doctor", "--json").stdout)
        assert next(check for check in doctor if check["subject"] == "broker")["verdict"] == "OK"
    finally:
        up.process.terminate()
        assert up.process.wait(90) == 0, up.output.read_text()
    assert not none_left_within(up.home, 5.0)
    for file in (*up.home.glob("logs/*"), up.output):
        assert PASSWORD not in file.read_text()


def _run(tmp_path: Path, settings: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        mini_visa(*arguments),
        env=environment(tmp_path / "home", **settings),
        capture_output=True,
        text=True,
        timeout=60,
    )


REFUSALS = {
    "another password": (
        {"MINI_VISA_KAFKA_PASSWORD": "wrong"},
        "refused the user mini-visa or the password. Check MINI_VISA_KAFKA_USERNAME and",
    ),
    "no such user": ({"MINI_VISA_KAFKA_USERNAME": "nobody"}, "refused the user nobody"),
    "another mechanism": (
        {"MINI_VISA_KAFKA_SASL_MECHANISM": "PLAIN"},
        "does not take PLAIN. Check MINI_VISA_KAFKA_SASL_MECHANISM",
    ),
    "a certificate of somebody else": (
        {"MINI_VISA_KAFKA_CA_FILE": "{other}"},
        "certificate is not trusted (self-signed certificate). MINI_VISA_KAFKA_CA_FILE",
    ),
    "no TLS": ({"MINI_VISA_KAFKA_SECURITY": "PLAINTEXT"}, "Does it want TLS or a password"),
    "nobody there": ({"MINI_VISA_BROKER": "kafka://127.0.0.1:1"}, "Connection refused. Is it running?"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_refused_is_said_in_one_clear_line(
    tmp_path: Path, secured: dict[str, str], case: str
) -> None:
    changes, said = REFUSALS[case]
    other = _certificate(tmp_path, "other")
    changed = secured | {name: value.format(other=other) for name, value in changes.items()}
    done = _run(tmp_path, changed, "topics", "list")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"mini-visa: No Kafka answers at {changed['MINI_VISA_BROKER'][8:]}: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert changed["MINI_VISA_KAFKA_PASSWORD"] not in done.stderr
