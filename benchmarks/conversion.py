"""Memory and time of converting a full-size checkpoint.

    python benchmarks/conversion.py --size xl --folder /somewhere/with/room

Creates the files of LION-FlanT5-XL or -XXL with all keys, shapes and dtypes of the real ones. They take little disk
space, because their tensors repeat one number and the files of the language model are sparse, but the conversion reads,
converts, writes and compares the full size. Prints the peaks of anonymous and total resident memory of the process.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "conversion"))

from shards import Slot, header_of, plan_shards, write_index  # noqa: E402

GOLDENS = ROOT / "modeling_tests" / "goldens"
ALIASES = ("t5_model.encoder.embed_tokens.weight", "t5_model.decoder.embed_tokens.weight")


def keys_of(size: str) -> dict[str, tuple[list[int], bool]]:
    """Return all keys of the reference model with their shape and whether they are trained."""
    keys = {}
    for template, shape, trained, layers in json.loads((GOLDENS / "keys" / f"lion_{size}.json").read_text()):
        for layer in range(*layers) if layers else [None]:
            keys[template if layer is None else template.format(layer)] = (shape, trained)
    return keys


def repeated(shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    """Create a tensor of zeros that stores a single element."""
    return torch.zeros(1, dtype=dtype).expand(shape)


def write_pickles(keys: dict[str, tuple[list[int], bool]], folder: Path) -> None:
    """Write `lion.pth` in the released layout, with optimizer state, and `eva_vit_g.pth`."""
    trained = {key: repeated(shape, torch.float32) for key, (shape, is_trained) in keys.items() if is_trained}
    model = {**trained, **{key: repeated(keys[key][0], torch.bfloat16) for key in ALIASES}}
    model["Qformer.bert.embeddings.position_ids"] = torch.arange(512).reshape(1, -1)
    moments = {i: {"step": 1, "exp_avg": t, "exp_avg_sq": t} for i, t in enumerate(trained.values())}
    torch.save({"model": model, "optimizer": {"state": moments}, "epoch": 9}, folder / "lion.pth")
    prefix = "visual_encoder."
    tower = {key.removeprefix(prefix): shape for key, (shape, _) in keys.items() if key.startswith(prefix)}
    torch.save({key: repeated(shape, torch.float16) for key, shape in tower.items()}, folder / "eva_vit_g.pth")


def write_language_model(keys: dict[str, tuple[list[int], bool]], folder: Path) -> None:
    """Write FlanT5's folder with sparse float32 files of up to 10 GB."""
    shutil.copytree(GOLDENS / "lion" / "llm", folder)
    slots = {
        key.removeprefix("t5_model."): Slot(tuple(shape), torch.float32)
        for key, (shape, _) in keys.items()
        if key.startswith("t5_model.") and ".adapter." not in key and key not in ALIASES
    }
    shards = plan_shards(slots, 10**10)
    for shard in shards:
        header = header_of(shard)
        with (folder / shard.file).open("wb") as file:
            file.write(header)
            file.truncate(len(header) + shard.num_bytes)
    if len(shards) > 1:
        write_index(folder, shards)


def write_bert_tokenizer(folder: Path) -> None:
    """Write a tokenizer with the vocabulary size of bert-base-uncased."""
    folder.mkdir()
    tokens = (GOLDENS / "lion" / "bert" / "vocab.txt").read_text().split()
    tokens += [f"filler{index}" for index in range(30522 - len(tokens))]
    (folder / "vocab.txt").write_text("\n".join(tokens))


def watch(process: subprocess.Popen) -> tuple[float, float]:
    """Watch a process until it ends, and return its peak anonymous and total resident memory in GB."""
    anonymous = resident = 0
    while process.poll() is None:
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if ":" in line
        )
        if "RssAnon" in status:
            anonymous = max(anonymous, int(status["RssAnon"].split()[0]))
            resident = max(resident, int(status["VmHWM"].split()[0]))
        time.sleep(0.02)
    return anonymous / 1e6, resident / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--size", choices=("xl", "xxl"), default="xl")
    parser.add_argument("--folder", type=Path, required=True)
    arguments = parser.parse_args()
    folder = arguments.folder / f"lion-{arguments.size}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    keys = keys_of(arguments.size)
    write_pickles(keys, folder)
    write_language_model(keys, folder / "llm")
    write_bert_tokenizer(folder / "bert")
    command = [sys.executable, str(ROOT / "conversion" / "convert_lion_checkpoint.py"), "--lion", folder / "lion.pth"]
    command += ["--vision", folder / "eva_vit_g.pth", "--language-model", folder / "llm"]
    command += ["--qformer-tokenizer", folder / "bert", "--output", folder / "converted"]
    start = time.monotonic()
    process = subprocess.Popen([str(part) for part in command])
    anonymous, resident = watch(process)
    assert process.returncode == 0
    written = sum(path.stat().st_size for path in (folder / "converted").glob("*.safetensors")) / 1e9
    print(f"{arguments.size}: {written:.1f} GB written in {time.monotonic() - start:.0f} s; peak of anonymous memory "
          f"{anonymous:.2f} GB, of all resident memory with mapped files {resident:.2f} GB")  # fmt: skip


if __name__ == "__main__":
    main()
