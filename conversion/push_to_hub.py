"""Put a converted folder on the Hub, with a model card.

    python conversion/push_to_hub.py lion-flant5-xl --repo user/lion-flant5-xl --private

The folder is checked first and never changed: the card, where the folder and the repository have none, and the code,
with `--with-code`, go to the Hub only. How to log in and what to do after an interruption is in `docs/hub.md`.

The upload is `HfApi.upload_folder`, which is in every version of huggingface_hub that transformers allows. With hf_xet,
which comes along where it can, files that are committed already are skipped and data that is there already is not sent
again; without it, the same holds for whole files. So the same command resumes an interrupted upload.
`upload_large_folder`, which once was needed for that, is gone from huggingface_hub 2.
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
"""What a folder may hold that is not part of the model: hidden files, training state, originals."""

BRANCH = re.compile(r"\w[\w-]*([./][\w-]+)*")

TOKENIZERS = {"the T5 tokenizer": "", "the Q-Former's tokenizer": QFORMER_TOKENIZER}
VOCABULARIES = ("tokenizer.json", "spiece.model", "vocab.txt")


def check_folder(folder: Path, with_code: bool = False) -> None:
    """Check that `folder` holds everything that `from_pretrained` and the pipeline need.

    Args:
        folder: a converted folder, or one that `save_pretrained` wrote.
        with_code: whether the code will be added, so that it need not be there.

    Raises:
        ValueError: that names the first thing that is missing or broken.
    """
    config = load_config(folder, LionConfig.model_type)
    if config.get("quantization_config"):  # has other tensors than the configuration tells
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
        raise SourceError(f"{folder}: config.json leads to {ENTRY_MODULE}.py, which is missing; use --with-code.")
    tagger = folder / TAGGER_FOLDER
    if tagger.is_dir():
        load_config(tagger, RamConfig.model_type)
        FolderReader(tagger)


def check_names(repo: str, base_models: Sequence[str], revision: str | None) -> None:
    """Raise `ValueError` if a name is none that the Hub knows repositories and branches by."""
    for name in (repo, *base_models):
        validate_repo_id(name)
    if "/" not in repo:
        raise ValueError(f"{repo}: the repository must be user/name or organization/name.")
    if revision is not None and not BRANCH.fullmatch(revision):
        raise ValueError(f"{revision}: is no name of a branch.")


def files_of(folder: Path) -> dict[str, int]:
    """Sizes in bytes of the files that are uploaded, by their names in the repository."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name: (folder / name).stat().st_size for name in filter_repo_objects(names, ignore_patterns=IGNORED)}


def written_here(folder: Path, repo: str, base_models: Sequence[str], with_code: bool) -> dict[str, bytes]:
    """Files that the repository gets and the folder has not, or has in another form."""
    texts = files_with_code(folder) if with_code else {}
    if not (folder / QFORMER_TOKENIZER / "config.json").is_file():  # saved by an earlier version
        texts[f"{QFORMER_TOKENIZER}/config.json"] = QFORMER_TOKENIZER_CONFIG
    if not (folder / CARD).is_file():
        texts[CARD] = model_card(folder, repo, base_models, with_code)
    return {name: text.encode() for name, text in texts.items()}


def upload(
    api: HfApi, folder: Path, repo: str, written: Mapping[str, bytes], private: bool, revision: str | None
) -> str:
    """Upload the folder, then what is `written` for it, and return the repository's address.

    A card that is on the Hub already is kept, since someone may have edited it there.

    Raises:
        ValueError: if the repository exists and is public although `private` is wanted.
    """
    url = str(api.create_repo(repo, private=private or None, exist_ok=True))
    if private and not api.model_info(repo).private:
        raise ValueError(f"{repo} exists and is public: make it private on the Hub first, or leave --private out.")
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
    """A line for each file, with its size, and a sum."""
    sizes = {**files, **{name: len(content) for name, content in written.items()}}
    for name, size in sorted(sizes.items()):
        yield f"{in_bytes(size):>10}  {name}" + ("  (written for the Hub)" if name in written else "")
    yield f"{in_bytes(sum(sizes.values())):>10}  in {len(sizes)} files"


def in_bytes(size: float) -> str:
    """A size as people read it: 8.1 GB."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def explain(error: Exception, repo: str) -> str:
    """What went wrong, in one sentence."""
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status == 401:
            return "the Hub does not accept the token; log in again with `hf auth login`, or set HF_TOKEN."
        if status == 403:
            return f"the token may not write to {repo}; it needs the permission to write there."
        if status == 404 or isinstance(error, RepositoryNotFoundError):
            return f"the Hub has no {repo}, or does not show it to this token."
        return f"the Hub answered {status}: {getattr(error, 'server_message', None) or first_line(error)}"
    if isinstance(error, RuntimeError):
        reason = first_line(error.__cause__ or error)
        return f"the upload broke off ({reason}); the same command again resumes it."
    if isinstance(error, HTTPError):
        return f"the connection to the Hub failed ({first_line(error)}); the same command again resumes an upload."
    return sentence(error)


def first_line(error: BaseException) -> str:
    """The start of an error's text."""
    return (str(error).strip() or type(error).__name__).split("\n", 1)[0]


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Put a converted folder on the Hub, with a model card.")
    parser.add_argument("folder", type=Path, help="a converted folder, or one that save_pretrained wrote")
    parser.add_argument("--repo", required=True, help="user/name on the Hub; it is created if it does not exist")
    parser.add_argument("--private", action="store_true", help="create a private repository")
    parser.add_argument("--revision", help="branch to upload to; it is created if it does not exist")
    parser.add_argument("--base-model", action="append", default=[], help="Hub id for the card; may be repeated")
    parser.add_argument("--with-code", action="store_true", help="let it load without this package, if it is trusted")
    parser.add_argument("--dry-run", action="store_true", help="show what would be uploaded, and talk to nobody")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; the exit code."""
    arguments = parse_arguments(argv)
    folder, repo = arguments.folder, arguments.repo
    try:
        check_names(repo, arguments.base_model, arguments.revision)
        check_folder(folder, arguments.with_code)
        files = files_of(folder)
        written = written_here(folder, repo, arguments.base_model, arguments.with_code)
        print("\n".join(report(files, written)))
        if arguments.dry_run:
            print(f"\n{(written.get(CARD) or (folder / CARD).read_bytes()).decode(errors='replace')}")
            print(f"Nothing was uploaded to {repo}: this was a dry run.")
            return 0
        if get_token() is None:
            raise ValueError("there is no token; log in with `hf auth login`, or set HF_TOKEN.")
        url = upload(HfApi(), folder, repo, written, arguments.private, arguments.revision)
    except (ValueError, OSError, HTTPError, RuntimeError) as error:
        print(f"error: {explain(error, repo)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted; the same command again resumes the upload.", file=sys.stderr)
        return 130
    print(f"{folder}: uploaded to {url}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
