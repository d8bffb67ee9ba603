"""`lion serve`: which engine it takes, and what it passes on."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from cli.command_line import lion, refusal

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
pytest.importorskip("ray.serve", reason="the extra [serve] is not installed")

from transformers_lion.serving import local, ray_serve


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The arguments with which an engine is started."""
    calls: list[Any] = []
    monkeypatch.setattr(local, "serve_locally", lambda *arguments: calls.append(("local", *arguments)))
    monkeypatch.setattr(ray_serve, "serve_on_ray", lambda *arguments: calls.append(("ray", *arguments)))
    monkeypatch.setattr(ray_serve, "stop_from_outside", lambda *arguments: calls.append(arguments) or len(calls) == 1)
    return calls


def test_by_default_one_process_serves_the_example_on_this_machine_only(served: list[Any]) -> None:
    assert lion("serve").code == 0
    ((engine, service, host, port, _),) = served
    assert (engine, host, port, service.name) == ("local", "127.0.0.1", 8000, "lion-example")
    assert service.limits.allowed_hosts == ()


def test_limits_reach_the_service(served: list[Any]) -> None:
    options = "--batch-size 3 --max-requests 5 --timeout 7 --max-image-megabytes 2 --max-megapixels 300 --name me"
    assert lion("serve", *options.split(), "--allow-host", "a.org", "--allow-host", "b.org:81").code == 0
    limits = served[0][1].limits
    assert (limits.max_batch_size, limits.max_requests, limits.timeout) == (3, 5, 7.0)
    assert (limits.max_image_bytes, limits.max_megapixels, limits.max_decoded_megapixels) == (2_000_000, 300, 300)
    assert limits.allowed_hosts == ("a.org", "b.org:81")
    assert served[0][1].name == "me"


def test_options_of_ray_choose_ray(served: list[Any]) -> None:
    assert lion("serve", "--address", "auto", "--num-replicas", 2, "--num-gpus", 0.5, "--app", "mine").code == 0
    engine, _, name, _, settings, _ = served[0]
    assert (engine, name) == ("ray", "lion-example")
    assert (settings.address, settings.num_replicas, settings.num_gpus, settings.name) == ("auto", 2, 0.5, "mine")


def test_options_of_ray_are_refused_with_the_local_engine(served: list[Any]) -> None:
    ran = lion("serve", "--engine", "local", "--num-replicas", 2)
    assert ran.code == 2
    assert "--num-replicas needs --engine ray" in " ".join(ran.errors)
    assert served == []


def test_an_application_is_stopped_from_outside(served: list[Any]) -> None:
    ran = lion("serve", "--stop", "mine")
    assert (ran.code, served) == (0, [("mine", "auto", 120.0)])
    assert "not all running requests" in refusal("serve", "--stop", "mine")


def test_an_invalid_model_is_refused_before_anything_starts(served: list[Any], tmp_path: Path) -> None:
    assert str(tmp_path) in refusal("serve", "--model", tmp_path)
    assert served == []


def test_without_its_packages_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "fastapi" else find(name))
    ran = lion("serve")
    assert ran.code == 2
    assert "the extra 'serve' installs" in ran.errors[0]
