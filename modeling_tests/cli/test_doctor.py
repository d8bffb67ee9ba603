import json
from importlib import import_module
from typing import Any

import pytest

from cli.command_line import lion, refusal
from transformers_lion import self_check
from transformers_lion.modeling_lion_t5 import LionT5Stack
from transformers_lion.self_check import CHECKS


def test_the_doctor_finds_nothing_where_nothing_is_broken() -> None:
    ran = lion("doctor")
    assert (ran.code, ran.errors) == (0, [])
    assert [line for line in ran.lines if line.endswith(": right")] == [f"  {name}: right" for name in CHECKS]
    assert any(line.startswith("  transformers 5.") for line in ran.lines)
    assert any(line.startswith("dtypes on cpu: bfloat16 ") for line in ran.lines)
    assert not any("pytest" in line for line in ran.lines)


def test_the_doctor_names_what_is_broken_and_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LionT5Stack, "_choose_cache", lambda self, cache, use_cache: None)
    ran = lion("doctor", "--json")
    facts = json.loads("\n".join(ran.lines))
    assert ran.code == 1
    assert facts["checks"]["steps"] == "generated tokens differ from those of a forward pass"
    assert facts["checks"]["tagger"] == ""


def test_a_version_newer_than_tested_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(self_check.NEWEST_TESTED, "transformers", "5.1")
    assert "is newer than 5.1, the newest tested." in lion("doctor").lines[-1]


def test_what_is_missing_of_an_extra_is_named_with_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    versions: dict[str, Any] = {"accelerate": "0.1", "peft": None}
    doctor = import_module("transformers_lion.cli.doctor")
    monkeypatch.setattr(doctor, "installed_version", lambda name: versions.get(name, "9999"))
    missing = doctor.missing_of_extras()
    assert [text.split(">=")[0] for text in missing["train"]] == ["accelerate", "peft"]
    assert missing["eval"] == []


def test_a_command_says_in_one_line_what_the_self_check_found(workplace: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_check, "STATE", self_check.CheckState())
    monkeypatch.setattr(self_check, "NEWEST_TESTED", {"transformers": "5.1", "torch": "2.99"})
    monkeypatch.setattr(LionT5Stack, "_choose_cache", lambda self, cache, use_cache: None)
    assert "5.1 is the newest tested" in refusal("caption", "scene.png")
