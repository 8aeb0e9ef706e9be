"""What the images and compose.yaml must be, as far as their sources show: no Docker engine is needed here."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from mini_visa import topics
from mini_visa.broker.properties import Node, properties
from mini_visa.settings import Settings, settings

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"


def pins(lock: Path) -> dict[str, str]:
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", lock.read_text(), re.M))


class TestLocks:
    def test_the_images_packages_are_those_of_the_projects_lock(self):
        everything = pins(ROOT / "requirements.lock")
        inside = pins(DOCKER / "requirements.lock")
        assert len(inside) > 30
        assert inside.items() <= everything.items(), "run `make lock`"
        assert pins(DOCKER / "build.lock").items() <= everything.items(), "run `make lock`"

    def test_they_are_pinned_by_hash_name_no_registry_and_bring_no_test_tool(self):
        lock = (DOCKER / "requirements.lock").read_text()
        assert "://" not in lock and lock.count("--hash=sha256:") > len(pins(DOCKER / "requirements.lock"))
        assert (
            not {"pytest", "hypothesis", "ruff", "testcontainers"} & pins(DOCKER / "requirements.lock").keys()
        )


class TestCompose:
    @pytest.fixture
    def services(self) -> dict[str, Any]:
        return yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]

    def test_every_service_of_the_system_is_there(self, services):
        commands = [" ".join(service.get("command", [])) for service in services.values()]
        assert {f"worker {name}" for name in topics.SERVICES} <= set(commands)
        assert {"gateway", "clearing-house", "topics apply"} <= set(commands)

    def test_each_is_hardened_and_has_limits(self, services):
        for name, service in services.items():
            assert service["read_only"] is True, name
            assert service["cap_drop"] == ["ALL"], name
            assert "no-new-privileges:true" in service["security_opt"], name
            assert service["mem_limit"] and service["pids_limit"], name
            assert "privileged" not in service and "user" not in service, name

    def test_each_waits_for_what_it_needs_to_be_healthy(self, services):
        for name, service in services.items():
            for other, how in service.get("depends_on", {}).items():
                once = services[other]["restart"] == "no"
                wanted = "service_completed_successfully" if once else "service_healthy"
                assert how["condition"] == wanted, (name, other)

    def test_every_variable_is_a_setting_and_none_is_a_secret(self, services):
        names = {f"MINI_VISA_{name.upper()}" for name in Settings.model_fields}
        for name, service in services.items():
            for variable, value in service.get("environment", {}).items():
                if variable.startswith("MINI_VISA_"):
                    assert variable in names, (name, variable)
                assert "PASSWORD" not in variable or variable.endswith("_FILE"), (name, variable)
                assert "://mini_visa:" not in str(value), (name, variable)

    def test_only_the_gateway_is_published_and_only_on_this_machine(self, services):
        published = {name: service["ports"] for name, service in services.items() if "ports" in service}
        assert published.keys() == {"gateway"}
        assert all(port.startswith("127.0.0.1:") for port in published["gateway"])

    def test_its_kafka_differs_from_the_embedded_one_only_where_a_network_asks_for_it(self, services):
        embedded = properties(Node(), port=9092, controller_port=9093, data="/var/lib/kafka/data/log")
        given = {
            key.removeprefix("KAFKA_").lower().replace("_", "."): value
            for key, value in services["kafka"]["environment"].items()
            if key.startswith("KAFKA_") and key != "KAFKA_HEAP_OPTS"
        }
        different = {key for key, value in given.items() if value != embedded.get(key)}
        assert {"listeners", "advertised.listeners"} <= different
        assert all("listener" in key for key in different), different
        assert given["auto.create.topics.enable"] == "false"
        assert "add.partitions.to.txn.retry.backoff.ms" in given, "what a transaction waits for most"


class TestSecretsAsFiles:
    def test_a_file_is_a_setting_and_a_variable_counts_before_it(self, tmp_path, monkeypatch):
        (tmp_path / "mini_visa_database_url").write_text("postgresql://a:b@c/d\n")
        found = Settings(_secrets_dir=tmp_path)
        assert found.database_url == "postgresql://a:b@c/d"
        monkeypatch.setenv("MINI_VISA_DATABASE_URL", "sqlite:////x")
        assert Settings(_secrets_dir=tmp_path).database_url == "sqlite:////x"

    def test_without_the_folder_nothing_is_said(self, recwarn):
        settings.cache_clear()
        settings()
        assert not recwarn.list


class TestHealth:
    @pytest.fixture
    def server(self) -> Iterator[tuple[int, dict[str, int]]]:
        """(port, path -> status that it answers with)"""
        answers: dict[str, int] = {}

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(answers.get(self.path, 404))
                self.end_headers()
                self.wfile.write(b"said")

            def log_message(self, *_: object) -> None:
                pass

        made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made.server_port, answers
        made.shutdown()
        made.server_close()

    def health(self, **ports: int) -> subprocess.CompletedProcess[str]:
        closed = {"GATEWAY_PORT": 1, "WEB_PORT": 1, "CLEARING_HOUSE_PORT": 1}  # nothing listens on port 1
        environment = {f"MINI_VISA_{name}": str(port) for name, port in (closed | ports).items()}
        return subprocess.run(
            [sys.executable, "-I", "-S", DOCKER / "health.py"],
            env=environment,
            capture_output=True,
            text=True,
        )

    @pytest.mark.parametrize("name", ["GATEWAY_PORT", "WEB_PORT"])
    def test_a_service_is_healthy_when_it_is_ready(self, server, name):
        port, answers = server
        answers["/readyz"] = 503
        assert self.health(**{name: port}).returncode == 1
        answers["/readyz"] = 200
        done = self.health(**{name: port})
        assert (done.returncode, done.stdout) == (0, "said\n")

    def test_the_clearing_house_has_healthz_only(self, server):
        port, answers = server
        answers["/healthz"] = 200
        assert self.health(CLEARING_HOUSE_PORT=port).returncode == 0

    def test_nothing_that_listens_is_unhealthy(self):
        done = self.health()
        assert done.returncode == 1 and "nothing listens" in done.stdout


class TestBillOfMaterials:
    def write(self, tmp_path: Path) -> dict[str, Any]:
        packages = tmp_path / "status.d"
        packages.mkdir(exist_ok=True)
        (packages / "libc6").write_text(
            "Package: libc6\nArchitecture: amd64\nVersion: 2.36-9\nDescription: C\n more\n"
        )
        site = next(Path(p) for p in sys.path if p.endswith("site-packages"))
        done = subprocess.run(
            [sys.executable, DOCKER / "sbom.py", "--packages", packages, "--site", site,
             "--lock", ROOT / "requirements.lock"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return json.loads(done.stdout)

    def test_it_names_what_is_there_with_its_version_and_its_locked_hashes(self, tmp_path):
        document = self.write(tmp_path)
        found = {component["name"]: component for component in document["components"]}
        assert found["libc6"]["purl"] == "pkg:deb/debian/libc6@2.36-9?arch=amd64&distro=debian-12"
        locked = pins(ROOT / "requirements.lock")
        assert found["aiokafka"]["version"] == locked["aiokafka"]
        hashes = [entry["value"] for entry in found["aiokafka"]["properties"]]
        assert hashes and all(
            f"sha256:{value}" in (ROOT / "requirements.lock").read_text() for value in hashes
        )
        assert document["metadata"]["component"]["name"] == "mini-visa"

    def test_the_same_image_has_the_same_bill(self, tmp_path):
        assert self.write(tmp_path) == self.write(tmp_path)


def test_health_asks_on_the_ports_that_the_settings_have():
    asked = runpy.run_path(str(DOCKER / "health.py"))["ASKED"]
    image = (DOCKER / "Dockerfile").read_text()
    for variable, default, _ in asked:
        name = variable.removeprefix("MINI_VISA_").lower()
        if name == "web_port":
            assert f"MINI_VISA_WEB_PORT={default}" in image
        else:
            assert Settings.model_fields[name].default == default
