"""Push a converted folder to the Hub, with a model card.

    python conversion/push_to_hub.py lion-flant5-xl --repo user/lion-flant5-xl --private

The folder is checked first and never changed. The model card (if neither the folder nor the repository has one) and the
code (with `--with-code`) are only written to the Hub. See `docs/hub.md` for logging in and resuming an upload.

The upload uses `HfApi.upload_folder`, which exists in every version of huggingface_hub that transformers allows. It
skips files that are already committed, and with hf_xet also data that is already uploaded. Run the same command again
to resume an interrupted upload. `upload_large_folder` is not used, because huggingface_hub 2 removed it.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, RepositoryNotFoundError
from huggingface_hub.utils import filter_repo_objects, validate_repo_id

from command import sentence
from lion_folder import open_lion_folder
from model_card import model_card
from remote_code import ENTRY_MODULE, files_with_code, leads_to_code
from shards import FolderReader
from sources import SourceError, load_config, load_json
from transformers_lion.checkpoint_utils import QFORMER_TOKENIZER, TAGGER_FOLDER
from transformers_lion.configuration_lion import LionConfig
from transformers_lion.processing_lion import QFORMER_TOKENIZER_CONFIG
from transformers_lion.ram import RamConfig

CARD = "README.md"
IGNORED = [".*", "*/.*", "*__pycache__*", "*.pth", "optimizer.*", "scheduler.*", "rng_state*", "checkpoint-*",
           "training_args.bin", "trainer_state.json"]  # fmt: skip
"""Files that are not part of the model: hidden files, training state and original checkpoints."""

BRANCH = re.compile(r"\w[\w-]*([./][\w-]+)*")

TOKENIZERS = {"the T5 tokenizer": "", "the Q-Former's tokenizer": QFORMER_TOKENIZER}
VOCABULARIES = ("tokenizer.json", "spiece.model", "vocab.txt")


def check_folder(folder: Path, with_code: bool = False) -> None:
    """Check that a folder has everything that `from_pretrained` and the pipeline need.

    Args:
        folder: Folder that was converted or written by `save_pretrained`.
        with_code: Whether the code will be added, so it does not have to be there yet.

    Raises:
        ValueError: If anything is missing or broken. The message names the first problem.
    """
    config = load_config(folder, LionConfig.model_type)
    if config.get("quantization_config"):  # has other tensors than the configuration implies
        FolderReader(folder)
    else:
        open_lion_folder(folder)
    load_json(folder / "processor_config.json")
    for owner, name in TOKENIZERS.items():
        load_json(folder / name / "tokenizer_config.json")
        if not any((folder / name / file).is_file() for file in VOCABULARIES):
            raise SourceError(f"{folder / name}: {owner} has no vocabulary ({', '.join(VOCABULARIES)}).")
    has_code = with_code or (folder / f"{ENTRY_MODULE}.py").is_file()
    if leads_to_code(config.get("auto_map")) and not has_code:
        raise SourceError(f"{folder}: config.json refers to {ENTRY_MODULE}.py, which is missing; pass --with-code.")
    tagger = folder / TAGGER_FOLDER
    if tagger.is_dir():
        load_config(tagger, RamConfig.model_type)
        FolderReader(tagger)


def _check_names(repo: str, base_models: Sequence[str], revision: str | None) -> None:
    """Raise `ValueError` if the name of a repository or branch is invalid."""
    for name in (repo, *base_models):
        validate_repo_id(name)
    if "/" not in repo:
        raise ValueError(f"{repo}: the repository must be user/name or organization/name.")
    if revision is not None and not BRANCH.fullmatch(revision):
        raise ValueError(f"{revision}: not a valid branch name.")


def files_of(folder: Path) -> dict[str, int]:
    """Return the sizes in bytes of the files to upload, by their path in the repository."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name: (folder / name).stat().st_size for name in filter_repo_objects(names, ignore_patterns=IGNORED)}


def _written_here(folder: Path, repo: str, base_models: Sequence[str], with_code: bool) -> dict[str, bytes]:
    """Return the files that are written only for the repository."""
    texts = files_with_code(folder) if with_code else {}
    if not (folder / QFORMER_TOKENIZER / "config.json").is_file():  # saved by an earlier version
        texts[f"{QFORMER_TOKENIZER}/config.json"] = QFORMER_TOKENIZER_CONFIG
    if not (folder / CARD).is_file():
        texts[CARD] = model_card(folder, repo, base_models, with_code)
    return {name: text.encode() for name, text in texts.items()}


def upload(
    api: HfApi, folder: Path, repo: str, written: Mapping[str, bytes], private: bool, revision: str | None
) -> str:
    """Upload the folder and the files `written` for it, and return the URL of the repository.

    A model card that is already on the Hub is kept, because it may have been edited there.

    Raises:
        ValueError: If the repository is public although `private` is set.
    """
    url = str(api.create_repo(repo, private=private or None, exist_ok=True))
    if private and not api.model_info(repo).private:
        raise ValueError(f"{repo} exists and is public: make it private on the Hub first, or omit --private.")
    if revision not in (None, constants.DEFAULT_REVISION):
        api.create_branch(repo, branch=revision, exist_ok=True)
    api.upload_folder(
        repo_id=repo,
        folder_path=folder,
        revision=revision,
        ignore_patterns=[*IGNORED, *written],
        commit_message="Upload LION",
    )
    operations = [
        CommitOperationAdd(name, content)
        for name, content in written.items()
        if name != CARD or not api.file_exists(repo, CARD, revision=revision)
    ]
    if operations:
        api.create_commit(repo, operations, commit_message="Upload the model card", revision=revision)
    return url


def report(files: Mapping[str, int], written: Mapping[str, bytes]) -> Iterator[str]:
    """Yield a line with the size of each file, and the total."""
    sizes = {**files, **{name: len(content) for name, content in written.items()}}
    for name, size in sorted(sizes.items()):
        yield f"{_in_bytes(size):>10}  {name}" + ("  (written for the Hub)" if name in written else "")
    yield f"{_in_bytes(sum(sizes.values())):>10}  in {len(sizes)} files"


def _in_bytes(size: float) -> str:
    """Format a size for display, such as "8.1 GB"."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _explain(error: Exception, repo: str) -> str:
    """Describe an error in one sentence."""
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status == 401:
            return "the Hub does not accept the token; log in again with `hf auth login`, or set HF_TOKEN."
        if status == 403:
            return f"the token has no write permission for {repo}."
        if status == 404 or isinstance(error, RepositoryNotFoundError):
            return f"{repo} does not exist on the Hub, or this token has no access to it."
        return f"the Hub answered {status}: {getattr(error, 'server_message', None) or _first_line(error)}"
    if isinstance(error, RuntimeError):
        reason = _first_line(error.__cause__ or error)
        return f"the upload was interrupted ({reason}); run the same command again to resume it."
    if isinstance(error, HTTPError):
        return f"the connection to the Hub failed ({_first_line(error)}); run the same command again to resume."
    return sentence(error)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n", 1)[0]


def _parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Push a converted folder to the Hub, with a model card.")
    parser.add_argument("folder", type=Path, help="folder that was converted or written by save_pretrained")
    parser.add_argument("--repo", required=True, help="user/name on the Hub; it is created if it does not exist")
    parser.add_argument("--private", action="store_true", help="create a private repository")
    parser.add_argument("--revision", help="branch to upload to; it is created if it does not exist")
    parser.add_argument(
        "--base-model", action="append", default=[], help="Hub id of a base model for the card; may be repeated"
    )
    parser.add_argument("--with-code", action="store_true", help="include the code, to load with trust_remote_code")
    parser.add_argument(
        "--dry-run", action="store_true", help="show what would be uploaded, without any network access"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = _parse_arguments(argv)
    folder, repo = arguments.folder, arguments.repo
    try:
        _check_names(repo, arguments.base_model, arguments.revision)
        check_folder(folder, arguments.with_code)
        files = files_of(folder)
        written = _written_here(folder, repo, arguments.base_model, arguments.with_code)
        print("\n".join(report(files, written)))
        if arguments.dry_run:
            print(f"\n{(written.get(CARD) or (folder / CARD).read_bytes()).decode(errors='replace')}")
            print(f"Nothing was uploaded to {repo}: this was a dry run.")
            return 0
        if get_token() is None:
            raise ValueError("there is no token; log in with `hf auth login`, or set HF_TOKEN.")
        url = upload(HfApi(), folder, repo, written, arguments.private, arguments.revision)
    except (ValueError, OSError, HTTPError, RuntimeError) as error:
        print(f"error: {_explain(error, repo)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted; run the same command again to resume the upload.", file=sys.stderr)
        return 130
    print(f"{folder}: uploaded to {url}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
