"""The Docker engine that the tests use: the machine's, or one of their own that ends with them."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
MACHINE = ROOT / "docker" / "machine"
START_S = 180.0
"""Docker may have to be installed first."""
STOP_S = 60.0
PR_SET_PDEATHSIG = 1


def answers() -> bool:
    """Whether the engine that DOCKER_HOST names, or the machine's, can be used."""
    if shutil.which("docker") is None:
        return False
    done = subprocess.run(["docker", "version"], capture_output=True, timeout=30)
    return done.returncode == 0


class Unavailable(Exception):
    """No engine runs and none can be started. The text says what is missing."""


class Engine:
    """An engine with all its state in a folder of its own. Whatever ends the tests ends it too."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mini-visa-engine-"))
        self.log = self.folder / "log"
        libc = ctypes.CDLL(None)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [MACHINE, "engine", self.folder],
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the tests, which end it when they are through
                preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM),
            )
        self.address = f"unix://{self.folder}/docker.sock"

    def start(self) -> None:
        """Sets DOCKER_HOST. Raises `Unavailable`."""
        os.environ["DOCKER_HOST"] = self.address
        deadline = time.monotonic() + START_S
        while not answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                said = self.log.read_text(errors="replace").strip()[-2000:]
                self.stop()
                raise Unavailable(said or "dockerd said nothing")
            time.sleep(0.2)

    def stop(self) -> None:
        """SIGTERM: it stops every container, and its own containerd; then its folder goes."""
        os.environ.pop("DOCKER_HOST", None)
        self.process.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def left(self) -> list[str]:
        """What is still there of one that has stopped: files (mounts keep them), its bridge, processes."""
        places = [self.folder, Path(f"/sys/class/net/mv-docker{self.process.pid % 100_000}")]
        with_it = [str(one) for one in Path("/proc").glob("[0-9]*") if str(self.folder) in _command(one)]
        return [str(place) for place in places if place.exists()] + with_it


def _command(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
