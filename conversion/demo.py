"""`make demo`: original files -> conversion -> a caption, an answer and a box for a photograph.

The original files are those of a small model with seeded random weights, so the text that it writes is noise. All
else is what a user of LION's real files would run.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "modeling_tests"))

from transformers import pipeline  # noqa: E402
from transformers.utils import logging  # noqa: E402

import transformers_lion  # noqa: E402, F401 (registers LION)
from recipe import write_lion_files  # noqa: E402

REQUESTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("caption", {}),
    ("answer", {"text": "Is there a flower in the image?", "tags": ["flower", "red", "plant"]}),
    ("locate", {"text": "How can I locate the flower in the image? Please provide the coordinates.",
                "tags": ["flower", "red", "plant"], "task_type": "region_level"}),
)  # fmt: skip


def photograph(folder: Path) -> Path:
    """A real photograph, which scikit-learn ships."""
    import sklearn.datasets

    source = Path(sklearn.datasets.__file__).parent / "images" / "flower.jpg"
    return Path(shutil.copy(source, folder / "flower.jpg"))


def convert(files: Path, output: Path) -> None:
    """Run the conversion as a user does."""
    command = ["conversion/convert_lion_checkpoint.py", "--lion", "lion.pth", "--vision", "eva_vit.pth"]
    command += ["--language-model", "llm", "--qformer-tokenizer", "bert", "--overrides", "overrides.json"]
    print("$ python", *command, "--output", output.name)
    paths = [str(files / part) if (files / part).exists() else part for part in command[1:]]
    subprocess.run([sys.executable, str(ROOT / command[0]), *paths, "--output", str(output)], check=True)


def main() -> None:
    """Run the demo in a temporary folder."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        convert(write_lion_files(folder / "files"), folder / "lion")
        pipe = pipeline("image-to-text", model=str(folder / "lion"))
        image = photograph(folder)
        print(f"\n{image.name}, with seeded random weights (so the words are noise):")
        for label, options in REQUESTS:
            answer = pipe(str(image), max_new_tokens=24, **options)[0]["generated_text"]
            print(f"  {label:8} {answer!r}")
            if label == "locate":
                print(f"  {'boxes':8} {pipe.processor.post_process_generation(answer)[1]}")


if __name__ == "__main__":
    main()
