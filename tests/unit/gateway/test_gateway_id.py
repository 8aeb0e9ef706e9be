"""Which partition of gateway.replies a gateway listens on."""

from __future__ import annotations

from mini_visa.gateway.app import gateway_id
from mini_visa.settings import Settings

PARTITIONS = 24
PODS = [f"gateway-7d9c5b8f4-{suffix}" for suffix in ("x2x7q", "9kfzl", "b4w2m", "hn8vc", "r6t5d", "zq3jp")]


def test_pods_spread_over_the_partitions_by_their_names():
    taken = {gateway_id(Settings(instance=pod)) % PARTITIONS for pod in PODS}
    assert len(taken) >= 4


def test_a_name_always_gives_the_same_partition():
    assert gateway_id(Settings(instance=PODS[0])) == gateway_id(Settings(instance=PODS[0]))


def test_a_number_that_is_set_counts():
    assert gateway_id(Settings(instance=PODS[0], gateway_id=3)) == 3


def test_one_gateway_without_a_name_takes_the_first_partition():
    assert gateway_id(Settings()) == 0
