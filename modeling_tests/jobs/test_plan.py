"""How many actors are started, and which plans are refused."""

import pytest

from transformers_lion.jobs.plan import Node, Plan, make_plan

GB = 1 << 30
SMALL = Node(2, 0, 8 * GB)
LARGE = Node(64, 0, 256 * GB)
GPUS = Node(32, 4, 256 * GB)


def test_a_small_model_gets_an_actor_per_cpu() -> None:
    assert make_plan([SMALL], 10_000_000) == Plan(2, 1.0, 0.0)


def test_memory_limits_the_actors_and_they_share_the_cpus() -> None:
    assert make_plan([LARGE], 8 * GB) == Plan(15, 4.0, 0.0)


def test_a_model_that_is_larger_than_expected_still_gets_one_actor() -> None:
    assert make_plan([SMALL], 100 * GB) == Plan(1, 2.0, 0.0)


def test_each_gpu_gets_an_actor_and_an_equal_share_of_cpus() -> None:
    assert make_plan([GPUS, GPUS], 8 * GB) == Plan(8, 8.0, 1.0)


def test_actors_can_share_a_gpu() -> None:
    assert make_plan([GPUS], 8 * GB, gpus=0.5) == Plan(8, 4.0, 0.5)


def test_gpus_can_be_left_alone() -> None:
    assert make_plan([GPUS], 10_000_000, num_actors=2, gpus=0) == Plan(2, 16.0, 0.0)


def test_actors_can_be_smaller_than_a_cpu() -> None:
    assert make_plan([SMALL], 10_000_000, num_actors=4, cpus=0.5) == Plan(4, 0.5, 0.0)


@pytest.mark.parametrize(("options", "message"), [
    ({"num_actors": 3}, r"no room for 3 actors, each with 1 CPU: this machine \(2 CPUs, 0 GPUs\) can hold 2"),
    ({"cpus": 4.0}, "can hold 0"),
    ({"gpus": 1.0}, "can hold 0"),
    ({"gpus": 1.5}, "must be a whole number"),
    ({"gpus": -1.0}, "must not be negative"),
    ({"num_actors": 0}, "num_actors is 0"),
])  # fmt: skip
def test_a_plan_that_could_never_start_is_refused_with_both_numbers(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_plan([SMALL], 10_000_000, **options)


def test_an_actor_does_not_span_nodes() -> None:
    with pytest.raises(ValueError, match=r"the cluster of 2 nodes \(4 CPUs, 0 GPUs\) can hold 0"):
        make_plan([SMALL, SMALL], 0, cpus=3.0)
