"""Checks a wheel and a source distribution, or an installed wheel without extras.

`check_release.py FOLDER` checks the distributions in a folder; with `--tag v0.1.0` also that the version matches the
tag. `check_release.py --installed` checks the installed package; run it in an environment with only the wheel.
"""

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

NAME = "transformers_lion"
CARRIED = ("py.typed", "cli/__init__.py", "example_checkpoint/model.safetensors",
           "example_checkpoint/tagger/model.safetensors", "example_checkpoint/tokenizer.json",
           "example_checkpoint/qformer_tokenizer/tokenizer.json", "example_images/scene.png")  # fmt: skip
LICENCES = ("LICENSE", "NOTICE")
CAPTIONS = '{"images": [{"id": 1, "file_name": "sketch.png"}], "annotations": [{"image_id": 1, "caption": "a circle"}]}'


def check(is_right: bool, complaint: str) -> None:
    """Exit with an error message unless a condition holds."""
    if not is_right:
        sys.exit(f"error: {complaint}")


def check_files(folder: Path, tag: str | None) -> None:
    """Check the built distributions."""
    (wheel,) = folder.glob("*.whl")
    (source,) = folder.glob("*.tar.gz")
    version = wheel.name.split("-")[1]
    names = zipfile.ZipFile(wheel).namelist()
    for name in CARRIED:
        check(f"{NAME}/{name}" in names, f"{wheel.name} has no {name}.")
    for name in LICENCES:
        check(f"{NAME}-{version}.dist-info/licenses/{name}" in names, f"{wheel.name} has no {name}.")
    others = [name for name in names if name.split("/")[0] not in (NAME, f"{NAME}-{version}.dist-info")]
    check(not others, f"{wheel.name} has {others[:3]}.")
    with tarfile.open(source) as archive:
        members = {name.partition("/")[2] for name in archive.getnames()}
    for name in (
        *LICENCES,
        "README.md",
        "CHANGELOG.md",
        f"src/{NAME}/py.typed",
        "modeling_tests/conftest.py",
        "examples/small_world/scenes.py",
    ):
        check(name in members, f"{source.name} has no {name}.")
    check(source.name == f"{NAME}-{version}.tar.gz", f"{source.name} is not of version {version}.")
    check(tag in (None, f"v{version}"), f"the tag is {tag}, but the version is {version}.")
    print(f"{wheel.name}, {wheel.stat().st_size / 1e6:.1f} MB, {len(names)} files; {source.name}: as they should be")


def check_installed() -> None:
    """Run everything that needs no extra, and check that the rest names the missing extra."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        run(0, "python", "-c", "from transformers_lion.example import sketch; sketch().save('sketch.png')")
        shown = run(0, "lion", "--help").stdout
        check(all(name in shown for name in ("caption", "ask", "locate", "tag", "eval", "train", "info")), shown)
        version = run(0, "python", "-c", f"from importlib.metadata import version; print(version('{NAME}'))").stdout
        check(run(0, "lion", "--version").stdout.split()[-1] == version.strip(), "two versions")
        for command in (("caption", "sketch.png"), ("locate", "sketch.png", "-p", "the red circle"), ("info",)):
            print(run(0, "lion", *command).stdout.splitlines()[0])
        Path("recipe.yaml").write_text("output: runs\n")
        check("transformers-lion[train]" in run(1, "lion", "train", "--config", "recipe.yaml").stderr, "lion train")
        Path("captions.json").write_text(CAPTIONS)
        Path("answers.jsonl").write_text('{"id": "1", "answer": "a circle"}\n')
        scored = run(0, "lion", "eval", "captioning", "--data", "captions.json", "--predictions", "answers.jsonl",
                     "--output", "runs/captions")  # fmt: skip
        check("transformers-lion[eval]" in scored.stderr + scored.stdout, f"lion eval: {scored.stderr}")
        code = f"from {NAME}.grounding import to_supervision; to_supervision([])"
        check("transformers-lion[supervision]" in run(1, "python", "-c", code).stderr, "to_supervision")
        print(run(1, "python", "-c", f"import {NAME}.training").stderr.splitlines()[-1])
    print("what is installed works without extras, and names those that are missing")


def run(code: int, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program of this environment, and check its exit code."""
    path = Path(sys.executable).parent / program
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run([str(path), *arguments], capture_output=True, text=True, env=environment)
    check(ran.returncode == code, f"exit code {ran.returncode} of {program} {arguments}: {ran.stderr}")
    return ran


def main() -> None:
    """Run the requested check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("dist"))
    parser.add_argument("--tag")
    parser.add_argument("--installed", action="store_true")
    arguments = parser.parse_args()
    if arguments.installed:
        check_installed()
    else:
        check_files(arguments.folder, arguments.tag)


if __name__ == "__main__":
    main()
