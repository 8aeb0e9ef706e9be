"""docker/compose.yaml, as a user runs it: from nothing to an authorized payment, and gone again."""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import docker
import pytest

from mini_visa.broker.embedded import free_port
from mini_visa.http_client import GatewayClient
from tests.containers.conftest import Images
from tests.containers.engine import MACHINE, ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]

UP_S = 240.0
LABEL = "com.docker.compose"
GUIDE_CALL = {"request_id": "test123", "pan": "4111111111111111", "amount": "10.00"}


@pytest.fixture
def compose(engine: docker.DockerClient, images: Images) -> Iterator[tuple[Callable[..., str], str, str]]:
    """(runs `docker compose ARGUMENTS`, the project's name, the gateway's address)"""
    project, port = f"mini-visa-{secrets.token_hex(4)}", free_port()
    environment = {**os.environ, "MINI_VISA_GATEWAY_PORT": str(port)}

    def run(*arguments: str) -> str:
        file = ROOT / "docker" / "compose.yaml"
        done = subprocess.run(
            [MACHINE, "compose", "--project-name", project, "--file", file, *arguments],
            env=environment, capture_output=True, text=True, timeout=UP_S,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    try:
        yield run, project, f"http://127.0.0.1:{port}"
    finally:
        run("down", "--volumes", "--timeout", "20")


def test_up_to_an_authorized_payment(engine: docker.DockerClient, compose: Any):
    run, project, url = compose
    begun = time.monotonic()
    run("up", "--detach")
    [cards] = engine.containers.list(
        all=True,
        filters={"label": [f"{LABEL}.project={project}", f"{LABEL}.service=test-cards"]},
    )
    assert cards.wait(timeout=UP_S)["StatusCode"] == 0, cards.logs()
    payment = GatewayClient(url).post("/payments/authorize", GUIDE_CALL)
    print(f"\nauthorized {time.monotonic() - begun:.1f} s after `up`")
    assert (payment["status"], payment["response_code"]) == ("authorized", "00")

    mine = engine.containers.list(all=True, filters={"label": f"{LABEL}.project={project}"})
    assert len(mine) > 12
    for container in mine:
        state, host = container.attrs["State"], container.attrs["HostConfig"]
        assert state["Running"] or state["ExitCode"] == 0, container.name
        assert host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"] and host["Memory"], container.name
        if state["Running"] and "Health" in state:
            assert state["Health"]["Status"] == "healthy", container.name
        shown = str(container.attrs["Config"]["Env"])
        assert "postgresql://" not in shown and "PASSWORD=" not in shown, container.name
