"""What is in the application image, and what is not."""

from __future__ import annotations

import json
import re
from typing import Any

import docker
import pytest
from docker.errors import APIError, ContainerError

from tests.containers.conftest import HEALTH, Images
from tests.containers.engine import ROOT

pytestmark = pytest.mark.timeout(900)

WALK = """
import json, os, stat
writable, setuid, programs = [], [], []
for folder, folders, files in os.walk("/"):
    folders[:] = [name for name in folders if folder != "/" or name not in ("proc", "sys", "dev")]
    if os.access(folder, os.W_OK):
        writable.append(folder)
    for name in files:
        path = os.path.join(folder, name)
        mode = os.lstat(path).st_mode
        if mode & (stat.S_ISUID | stat.S_ISGID):
            setuid.append(path)
        if os.access(path, os.W_OK) and not stat.S_ISLNK(mode):
            writable.append(path)
        if folder in ("/usr/bin", "/usr/sbin", "/usr/local/bin"):
            programs.append(name)
print(json.dumps({"writable": writable, "setuid": setuid, "programs": programs, "uid": os.getuid()}))
"""
INSTALLED = """
import json
from importlib import metadata
print(json.dumps({found.metadata["Name"]: found.version for found in metadata.distributions()}))
"""
PYTHON = "/opt/mini-visa/bin/python3"


@pytest.fixture
def python(engine: docker.DockerClient, images: Images) -> Any:
    def run(code: str) -> Any:
        output = engine.containers.run(
            images.application, ["-c", code], entrypoint=PYTHON, remove=True, network_mode="none"
        )
        return json.loads(output)

    return run


def test_it_is_not_root_and_only_its_home_and_tmp_can_be_written(python):
    found = python(WALK)
    assert found["uid"] == 10001
    assert set(found["writable"]) == {"/tmp", "/var/lib/mini-visa"}
    assert found["setuid"] == []
    assert set(found["programs"]) == {"python3", "python3.11"}


@pytest.mark.parametrize(
    "program", ["/bin/sh", "/bin/bash", "/usr/bin/apt-get", "/usr/bin/dpkg", "/usr/bin/env"]
)
def test_it_has_no_shell_and_no_package_manager(engine, images, program):
    with pytest.raises(APIError, match="no such file or directory"):
        engine.containers.run(images.application, [], entrypoint=program, remove=True, network_mode="none")
    for container in engine.containers.list(all=True, filters={"status": "created"}):
        container.remove()


def test_its_bill_of_materials_is_what_is_installed(python):
    bill = python("print(open('/usr/share/mini-visa/sbom.cdx.json').read())")
    named = {
        part["name"]: part["version"]
        for part in [*bill["components"], bill["metadata"]["component"]]
        if part["purl"].startswith("pkg:pypi/")
    }
    installed = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in python(INSTALLED).items()}
    assert named == installed
    lock = (ROOT / "docker" / "requirements.lock").read_text()
    assert all(f"{name}=={version} " in lock for name, version in named.items() if name != "mini-visa")
    debian = [part["purl"] for part in bill["components"] if part["purl"].startswith("pkg:deb/")]
    assert any(purl.startswith("pkg:deb/debian/libssl3@3.") for purl in debian) and len(debian) > 15


def test_it_says_what_it_is(engine, images):
    configuration = engine.images.get(images.application).attrs["Config"]
    labels = configuration["Labels"]
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version and labels["org.opencontainers.image.version"] == version[1]
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert re.fullmatch(r"[0-9a-f]{40}", labels["org.opencontainers.image.revision"])
    assert configuration["User"] == "10001:10001"
    assert configuration["Healthcheck"]["Test"] == ["CMD", *HEALTH]


def test_every_file_has_the_same_time_so_that_a_second_build_has_the_same_layers(python):
    times = python(
        "import json, os\n"
        "walk = [found for top in ('/usr', '/opt') for found in os.walk(top)]\n"
        "paths = [os.path.join(folder, name) for folder, _, names in walk for name in names]\n"
        "print(json.dumps(sorted({int(os.lstat(path).st_mtime) for path in paths})))"
    )
    assert times == [315532800], "1980-01-01"


def test_nothing_that_listens_is_unhealthy(engine, images):
    with pytest.raises(ContainerError) as failed:
        engine.containers.run(
            images.application, HEALTH[1:], entrypoint=HEALTH[0], remove=True, network_mode="none"
        )
    assert failed.value.exit_status == 1
