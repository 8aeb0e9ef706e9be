"""A cluster of several brokers on one machine, for tests of what a single one cannot show."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from mini_visa.broker.embedded import EmbeddedBroker, free_port
from mini_visa.broker.properties import Node, new_cluster_id

HEAP_BYTES = 256 << 20
SIZE_MAX = 5


class Cluster:
    """`size` brokers that are controllers too. With three: every partition has three copies, a write
    is acknowledged by two, and any one broker may die (`cluster.nodes[1].kill()`) and come back
    (`cluster.nodes[1].start()`) on its own port."""

    def __init__(self, home: Path, size: int = 3, *, libs_cache: Path) -> None:
        assert 1 <= size <= SIZE_MAX, "a cluster of tests is small"
        ports: list[int] = []
        while len(ports) < 2 * size:
            if (port := free_port()) not in ports:
                ports.append(port)
        client_ports, controller_ports = ports[:size], ports[size:]
        voters = ",".join(f"{i}@127.0.0.1:{port}" for i, port in enumerate(controller_ports, start=1))
        cluster_id = new_cluster_id()
        self.nodes = [
            EmbeddedBroker(
                home / f"broker-{i}",
                libs_cache=libs_cache,
                port=client_ports[i - 1],
                controller_port=controller_ports[i - 1],
                heap_bytes=HEAP_BYTES,
                node=Node(i, voters, cluster_id, replication=min(3, size)),
            )
            for i in range(1, size + 1)
        ]
        self.addresses = ",".join(f"127.0.0.1:{port}" for port in client_ports)
        """HOST:PORT of every broker, running or not: what `kafka://` takes."""

    def start(self) -> None:
        """Returns when every broker answers and knows of all others. Raises BrokerError."""
        try:
            # At once: none of them answers before a majority of the controllers is there.
            with ThreadPoolExecutor(len(self.nodes)) as pool:
                list(pool.map(lambda node: node.start(wait=False), self.nodes))
                list(pool.map(lambda node: node.await_ready(len(self.nodes)), self.nodes))
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """All at once, as a loss of power would: in order, the last has no quorum left to say goodbye to."""
        for node in self.nodes:
            node.kill()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
