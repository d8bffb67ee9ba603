"""Uploads to a small local Hub, and downloads from it."""

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import TOKEN, HubServer, git_hash
from huggingface_hub import ModelCard, constants
from safetensors.torch import load_file, save_file
from transformers import pipeline

from processes import WITHOUT_PACKAGE, answer_of, run_python
from push_to_hub import files_of, main
from remote_code import ENTRY_MODULE, add_code, code_files
from transformers_lion import LionForConditionalGeneration, LionProcessor

SCRIPT = Path(__file__).parents[2] / "conversion" / "push_to_hub.py"


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


def environment(hub: HubServer, token: str = TOKEN) -> dict[str, str]:
    """Environment of a process that only uses this Hub. Large files use LFS, because this Hub has no Xet."""
    return {
        "HF_ENDPOINT": hub.endpoint,
        "HF_TOKEN": token,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }


@pytest.fixture
def online(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Use that environment in this process."""
    for name, value in environment(hub).items():
        monkeypatch.setenv(name, value)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    return monkeypatch


@pytest.fixture(scope="module")
def private_repo(hub: HubServer, lion_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A repository uploaded by the command in a new process."""
    repo = "someone/private-lion"
    home = tmp_path_factory.mktemp("upload") / "process"
    process = run_python(SCRIPT, lion_folder, "--repo", repo, "--private", home=home, **environment(hub))
    assert process.returncode == 0, process.stderr
    assert f"uploaded to {hub.endpoint}/{repo}." in process.stdout
    return repo


@pytest.fixture
def folder(lion_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(lion_folder, tmp_path / "lion"))


@pytest.fixture
def sharded(lion_model: LionForConditionalGeneration, lion_processor: LionProcessor, tmp_path: Path) -> Path:
    lion_model.save_pretrained(tmp_path / "sharded", max_shard_size="1MB")
    lion_processor.save_pretrained(tmp_path / "sharded")
    return tmp_path / "sharded"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_upload_contains_the_folders_files_and_a_card(private_repo: str, hub: HubServer, lion_folder: Path) -> None:
    files = dict(hub.repositories[private_repo].files())
    card = ModelCard(files.pop("README.md").decode())
    assert files == contents(lion_folder)
    assert card.data.pipeline_tag == "image-text-to-text"
    assert f'model="{private_repo}"' in card.text


def test_weights_go_by_lfs_and_the_rest_in_the_commit(private_repo: str, hub: HubServer, lion_folder: Path) -> None:
    assert (lion_folder / "model.safetensors").read_bytes() in hub.large_files.values()
    assert (lion_folder / "tokenizer.json").read_bytes() not in hub.large_files.values()


def test_a_fresh_process_downloads_a_model_that_answers_like_the_folder(
    private_repo: str, hub: HubServer, lion_folder: Path, image: Path, tmp_path: Path
) -> None:
    code = (
        "import transformers_lion; from transformers import pipeline\n"
        f"print(pipeline('image-to-text', model={private_repo!r})({str(image)!r}, max_new_tokens=8))"
    )
    there = answer_of(code, home=tmp_path / "process", **environment(hub))
    here = pipeline("image-to-text", model=str(lion_folder))(str(image), max_new_tokens=8)
    assert there == str(here)


def test_a_cached_repository_is_requested_once(
    private_repo: str, hub: HubServer, online: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = LionProcessor.from_pretrained(private_repo, cache_dir=tmp_path)
    hub.requests.clear()
    second = LionProcessor.from_pretrained(private_repo, cache_dir=tmp_path)
    assert hub.requests == [("GET", f"/api/models/{private_repo}")]
    assert second(text="a dog", tags="cat").data == first(text="a dog", tags="cat").data
    assert not list(tmp_path.rglob("*.safetensors")), "a processor needs no weights"


def test_an_older_folder_gets_the_type_of_its_second_tokenizer(
    hub: HubServer, folder: Path, online: pytest.MonkeyPatch
) -> None:
    (folder / "qformer_tokenizer" / "config.json").unlink()
    assert main([str(folder), "--repo", "someone/older"]) == 0
    assert (
        hub.repositories["someone/older"].files()["qformer_tokenizer/config.json"] == b'{\n  "model_type": "bert"\n}\n'
    )
    assert not (folder / "qformer_tokenizer" / "config.json").exists()


def test_a_pushed_processor_has_the_type_of_its_second_tokenizer(
    hub: HubServer, lion_folder: Path, tmp_path: Path
) -> None:
    code = (
        "import transformers_lion\n"
        f"processor = transformers_lion.LionProcessor.from_pretrained({str(lion_folder)!r})\n"
        "processor.push_to_hub('someone/processor')\n"
        f"processor.save_pretrained({str(tmp_path / 'saved')!r}, push_to_hub=True, repo_id='someone/saved')\n"
    )
    process = run_python("-c", code, home=tmp_path / "process", **environment(hub))
    assert process.returncode == 0, process.stderr
    for repo in ("someone/processor", "someone/saved"):
        assert "qformer_tokenizer/config.json" in hub.repositories[repo].files()


def test_a_private_repository_is_refused_without_a_token(private_repo: str, hub: HubServer, tmp_path: Path) -> None:
    code = f"import transformers_lion\ntransformers_lion.LionForConditionalGeneration.from_pretrained({private_repo!r})"
    process = run_python("-c", code, home=tmp_path / "process", **environment(hub, token=""))
    assert process.returncode == 1
    assert "make sure to pass a token" in process.stderr
    assert not list((tmp_path / "process").rglob("*.safetensors"))


@pytest.mark.parametrize("options", [[], ["--with-code"]])
def test_a_second_upload_sends_no_weights_and_makes_no_commit(
    options: list[str], hub: HubServer, lion_folder: Path, online: pytest.MonkeyPatch
) -> None:
    repo = f"someone/twice{len(options)}"
    assert main([str(lion_folder), "--repo", repo, *options]) == 0
    uploads, messages = list(hub.uploads), list(hub.repositories[repo].messages)
    assert main([str(lion_folder), "--repo", repo, *options]) == 0
    assert hub.uploads == uploads
    assert hub.repositories[repo].messages == messages


def test_an_interrupted_upload_is_resumed(
    hub: HubServer, sharded: Path, online: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = {path.name: path.read_bytes() for path in sharded.glob("*.safetensors")}
    assert len(shards) > 3
    online.setattr(hub, "uploads", [])
    online.setattr(hub, "large_files", {})
    online.setattr(hub, "uploads_to_break_off", 1)
    command = [str(sharded), "--repo", "someone/resumed"]
    assert main(command) == 1
    assert "run the same command again to resume it" in capsys.readouterr().err
    assert not hub.repositories["someone/resumed"].messages, "a commit without all of the weights"
    assert main(command) == 0
    assert len(hub.uploads) == len(set(hub.uploads)) == len(shards), "a shard was sent twice"
    assert shards.items() <= hub.repositories["someone/resumed"].files().items()


def test_a_users_card_is_kept(hub: HubServer, folder: Path, online: pytest.MonkeyPatch) -> None:
    (folder / "README.md").write_text("---\nlicense: mit\n---\nMine.\n")
    assert main([str(folder), "--repo", "someone/own-card"]) == 0
    assert hub.repositories["someone/own-card"].files()["README.md"] == b"---\nlicense: mit\n---\nMine.\n"


def test_a_card_that_was_edited_on_the_hub_is_kept(
    hub: HubServer, lion_folder: Path, online: pytest.MonkeyPatch
) -> None:
    assert main([str(lion_folder), "--repo", "someone/edited"]) == 0
    hub.repositories["someone/edited"].files()["README.md"] = b"Edited."
    assert main([str(lion_folder), "--repo", "someone/edited"]) == 0
    assert hub.repositories["someone/edited"].files()["README.md"] == b"Edited."


def test_the_folder_is_not_changed(hub: HubServer, folder: Path, online: pytest.MonkeyPatch) -> None:
    before = contents(folder)
    assert main([str(folder), "--repo", "someone/untouched", "--with-code"]) == 0
    assert contents(folder) == before


def test_a_revision_is_a_branch_and_main_stays_as_it_was(
    hub: HubServer, lion_folder: Path, online: pytest.MonkeyPatch
) -> None:
    assert main([str(lion_folder), "--repo", "someone/branches", "--revision", "trial"]) == 0
    assert "model.safetensors" in hub.repositories["someone/branches"].files("trial")
    assert "README.md" in hub.repositories["someone/branches"].files("trial")
    assert not hub.repositories["someone/branches"].files("main")


def test_a_public_repository_gets_no_private_upload(
    hub: HubServer, lion_folder: Path, online: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(lion_folder), "--repo", "someone/public"]) == 0
    assert not hub.repositories["someone/public"].private
    hub.repositories["someone/public"].files().clear()
    assert main([str(lion_folder), "--repo", "someone/public", "--private"]) == 1
    assert "exists and is public" in capsys.readouterr().err
    assert not hub.repositories["someone/public"].files()


def test_files_that_are_not_part_of_the_model_are_not_uploaded(folder: Path) -> None:
    expected = files_of(folder)
    assert expected == {name: len(content) for name, content in contents(folder).items()}
    for name in (
        ".git/config",
        ".cache/x",
        "optimizer.pt",
        "training_args.bin",
        "checkpoint-10/model.safetensors",
        "lion.pth",
        "tagger/.x",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    assert files_of(folder) == expected


@pytest.mark.parametrize(
    ("repo", "token", "message"),
    [
        ("someone/lion", "", "error: there is no token; log in with `hf auth login`, or set HF_TOKEN.\n"),
        ("someone/lion", "hf_other", "error: the Hub does not accept the token; log in again with `hf auth login`"),
        ("another/lion", TOKEN, "error: the token has no write permission for another/lion"),
        ("a/b/c", TOKEN, "error: Repo id must be in the form"),
    ],
)
def test_an_error_of_the_hub_is_one_sentence(
    repo: str,
    token: str,
    message: str,
    hub: HubServer,
    lion_folder: Path,
    online: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    online.setenv("HF_TOKEN", token)
    online.setattr(constants, "HF_TOKEN_PATH", "/nonexistent")
    known = set(hub.repositories)
    assert main([str(lion_folder), "--repo", repo]) == 1
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1
    assert set(hub.repositories) == known


def test_a_connection_error_is_one_sentence(
    lion_folder: Path, online: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    online.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    assert main([str(lion_folder), "--repo", "someone/lion"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: the connection to the Hub failed")
    assert error.count("\n") == 1


def test_a_dry_run_shows_files_and_card_without_network_access(
    folder: Path, online: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def connect(*arguments: Any) -> None:
        raise AssertionError("a dry run connected to something")

    online.setattr(socket.socket, "connect", connect)
    before = contents(folder)
    assert main([str(folder), "--repo", "someone/never", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert contents(folder) == before
    for name in (*before, "README.md  (written for the Hub)"):
        assert f"  {name}\n" in shown
    assert f"{len(before['model.safetensors']) / 1e6:.1f} MB  model.safetensors\n" in shown
    assert ModelCard(shown[shown.index("---\n") :]).data.library_name == "transformers"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--repo", "lion"], "lion: the repository must be user/name"),
        (["--repo", "some one/lion"], "'some one/lion'"),
        (["--repo", "someone/lion.git"], "'someone/lion.git'"),
        (["--repo", "someone/lion", "--base-model", "not a model"], "'not a model'"),
        (["--repo", "someone/lion", "--revision", "not a..branch"], "not a..branch: not a valid branch name"),
    ],
)
def test_a_dry_run_refuses_names_that_the_hub_would_refuse(
    options: list[str], message: str, lion_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(lion_folder), *options, "--dry-run"]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def remove(*names: str) -> Any:
    return lambda folder: [(folder / name).unlink() for name in names]


def rewrite(name: str, text: str) -> Any:
    return lambda folder: (folder / name).write_text(text)


def cut_off(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def broken_tagger(folder: Path) -> None:
    (folder / "tagger").mkdir()
    shutil.copy(folder / "config.json", folder / "tagger")


BROKEN = {
    "no configuration": (remove("config.json"), "config.json: no such file"),
    "an invalid part": (
        rewrite("config.json", '{"model_type": "lion", "text_config": 3}'),
        "config.json: not a valid configuration",
    ),
    "another size": (rewrite("config.json", '{"model_type": "lion"}'), "do not match its configuration"),
    "a truncated configuration": (rewrite("config.json", "{"), "config.json: not valid JSON"),
    "another model": (rewrite("config.json", '{"model_type": "t5"}'), "expected a model of type 'lion', not 't5'"),
    "no weights": (remove("model.safetensors"), "model.safetensors: no such file"),
    "truncated weights": (cut_off, "model.safetensors: not a readable safetensors file"),
    "an invalid index": (rewrite("model.safetensors.index.json", "{}"), "has no weight_map"),
    "a processor without prompts": (rewrite("processor_config.json", "{}"), "caption_prompt is missing"),
    "no processor": (remove("processor_config.json"), "processor_config.json: no such file"),
    "no T5 tokenizer": (remove("tokenizer_config.json"), "tokenizer_config.json: no such file"),
    "no T5 vocabulary": (remove("tokenizer.json"), "the T5 tokenizer has no vocabulary"),
    "no Q-Former vocabulary": (remove("qformer_tokenizer/tokenizer.json"), "the Q-Former's tokenizer has no vocab"),
    "an invalid tagger": (broken_tagger, "expected a model of type 'ram', not 'lion'"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_an_incomplete_folder_is_refused_first(
    what: str, folder: Path, hub: HubServer, online: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    destroy, message = BROKEN[what]
    destroy(folder)
    requests = list(hub.requests)
    assert main([str(folder), "--repo", "someone/broken"]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert hub.requests == requests


def test_a_missing_shard_is_refused(sharded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    assert main([str(sharded), "--repo", "someone/broken", "--dry-run"]) == 1
    assert f"{shard.name}: no such file" in capsys.readouterr().err


def test_a_shard_without_its_tensors_is_refused(sharded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = sorted(sharded.glob("*.safetensors"))[:2]
    shutil.copy(first, second)
    assert main([str(sharded), "--repo", "someone/broken", "--dry-run"]) == 1
    error = capsys.readouterr().err
    assert f"{second.name}: contains " in error
    assert "which the index does not assign to this file" in error


def test_a_shard_that_lost_a_tensor_is_refused(sharded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    tensors = load_file(shard)
    name = sorted(tensors)[0]
    del tensors[name]
    save_file(tensors, shard)
    assert main([str(sharded), "--repo", "someone/broken", "--dry-run"]) == 1
    assert f"{shard.name}: does not contain {name}, although the index says so" in capsys.readouterr().err


def test_weights_in_one_file_and_in_shards_are_refused(
    sharded: Path, lion_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(lion_folder / "model.safetensors", sharded)
    assert main([str(sharded), "--repo", "someone/broken", "--dry-run"]) == 1
    assert "model.safetensors and shards" in capsys.readouterr().err


def test_a_folder_that_lost_its_code_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_code(folder)
    (folder / f"{ENTRY_MODULE}.py").unlink()
    assert main([str(folder), "--repo", "someone/broken", "--dry-run"]) == 1
    assert f"refers to {ENTRY_MODULE}.py, which is missing" in capsys.readouterr().err
    assert main([str(folder), "--repo", "someone/mended", "--dry-run", "--with-code"]) == 0


def test_a_repository_with_code_works_without_the_package(
    hub: HubServer, lion_folder: Path, online: pytest.MonkeyPatch, image: Path, tmp_path: Path
) -> None:
    assert main([str(lion_folder), "--repo", "someone/with-code", "--with-code"]) == 0
    assert code_files().keys() <= hub.repositories["someone/with-code"].files().keys()
    code = WITHOUT_PACKAGE + (
        "from transformers import pipeline\n"
        "pipe = pipeline('image-to-text', model={model!r}, trust_remote_code=True)\n"
        "pipe.model.save_pretrained({saved!r}); pipe.processor.save_pretrained({saved!r})\n"
        f"print(pipe({str(image)!r}, max_new_tokens=8))"
    )
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    there = answer_of(code.format(model="someone/with-code", saved=first), home=tmp_path / "one", **environment(hub))
    again = answer_of(code.format(model=first, saved=second), home=tmp_path / "two")
    here = pipeline("image-to-text", model=str(lion_folder))(str(image), max_new_tokens=8)
    assert there == again == str(here)


def test_the_methods_of_model_and_processor_push_too(
    hub: HubServer, lion_folder: Path, image: Path, tmp_path: Path
) -> None:
    code = f"""
import transformers_lion
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline
model = AutoModelForImageTextToText.from_pretrained({str(lion_folder)!r})
processor = AutoProcessor.from_pretrained({str(lion_folder)!r})
model.push_to_hub("someone/pushed", private=True)
processor.push_to_hub("someone/pushed")
model.save_pretrained("saved", push_to_hub=True, repo_id="someone/saved")
processor.save_pretrained("saved", push_to_hub=True, repo_id="someone/saved")
answers = {{pipeline("image-to-text", model=repo)({str(image)!r}, max_new_tokens=8)[0]["generated_text"]
           for repo in ("someone/pushed", "someone/saved", {str(lion_folder)!r})}}
assert len(answers) == 1, answers
print("done")
"""
    assert answer_of(code, home=tmp_path / "process", **environment(hub)) == "done"
    assert hub.repositories["someone/pushed"].private
    for repo in ("someone/pushed", "someone/saved"):
        assert contents(lion_folder).keys() <= hub.repositories[repo].files().keys()


def test_the_methods_push_the_code_that_a_folder_contains(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    add_code(folder)
    code = f"""{WITHOUT_PACKAGE}
from transformers import AutoModelForImageTextToText, AutoProcessor
model = AutoModelForImageTextToText.from_pretrained({str(folder)!r}, trust_remote_code=True)
model.push_to_hub("someone/model-with-code")
processor = AutoProcessor.from_pretrained({str(folder)!r}, trust_remote_code=True)
processor.push_to_hub("someone/processor-with-code")
processor.save_pretrained("saved", push_to_hub=True, repo_id="someone/saved-with-code")
print("done")
"""
    assert answer_of(code, home=tmp_path / "process", **environment(hub)) == "done"
    for repo in ("model-with-code", "processor-with-code", "saved-with-code"):
        assert code_files().keys() <= hub.repositories[f"someone/{repo}"].files().keys(), repo


def test_the_fake_hub_hashes_like_git() -> None:
    assert git_hash(b"") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
