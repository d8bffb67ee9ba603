"""Checkpoint files without stored weights: every tensor is drawn from its name.

`goldens/*/manifest.json` lists each key of a small reference model with its shape and kind. A tensor is standard
normal noise of NumPy's frozen `RandomState`, seeded with crc32(key) + the manifest's seed, then scaled by its kind.
What the reference computes with these tensors is stored beside the manifest.
"""

import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

GOLDENS = Path(__file__).parent / "goldens"
ALIASES = ("t5_model.encoder.embed_tokens.weight", "t5_model.decoder.embed_tokens.weight")
VISION, LANGUAGE_MODEL = "visual_encoder.", "t5_model."


def seeded_tensor(key: str, shape: list[int], kind: str, seed: int) -> torch.Tensor:
    """The tensor of one key.

    Kinds: `norm` 1 + 0.1 x, `router` 0.5 + 0.5 x, `scale` 1 + 0.2 x, `embed` 0.5 x, `vec` 0.05 x, `vec+b` that and
    b, `dense` x over the root of the fan-in, `dense*g` the same times g.
    """
    state = np.random.RandomState((zlib.crc32(key.encode()) + seed) % 2**32)
    x = state.standard_normal(shape or (1,)).astype(np.float32).reshape(shape)
    name, _, number = kind.replace("*", "+").partition("+")
    fan_in = np.prod(shape[1:]) if len(shape) == 4 else (shape or [1])[-1]
    if name == "dense":
        x = (x / np.sqrt(int(fan_in))).astype(np.float32) * float(number or 1)
    else:
        offset, factor = {
            "norm": (1, 0.1),
            "router": (0.5, 0.5),
            "scale": (1, 0.2),
            "embed": (0, 0.5),
            "vec": (0, 0.05),
        }[name]
        x = offset + float(number or 0) + factor * x
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))


def seeded_weights(manifest: dict[str, Any], seed: int | None = None) -> dict[str, torch.Tensor]:
    """All tensors of a manifest; `seed` replaces its own for another set of weights."""
    seed = manifest["seed"] if seed is None else seed
    weights: dict[str, torch.Tensor] = {}
    for key, (shape, kind) in manifest["keys"].items():
        if key.endswith("position_ids"):
            weights[key] = torch.arange(shape[-1]).reshape(shape)
        elif not kind.startswith(("buffer:", "tied:")):
            weights[key] = seeded_tensor(key, shape, kind, seed)
    for key, (_, kind) in manifest["keys"].items():
        if kind.startswith("tied:"):
            weights[key] = weights[kind.removeprefix("tied:")]
    return weights


def lion_manifest() -> dict[str, Any]:
    """The manifest of the small LION."""
    return json.loads((GOLDENS / "lion" / "manifest.json").read_text())


def released_layout(weights: dict[str, torch.Tensor], trainable: list[str]) -> dict[str, Any]:
    """What the reference's training code saves: trainable tensors, the table's two aliases, and an optimizer."""
    model = {key: weights[key] for key in (*trainable, *ALIASES)}
    position_ids = "Qformer.bert.embeddings.position_ids"
    if any(key.startswith("Qformer.") for key in trainable):
        model[position_ids] = weights[position_ids]
    moments = {i: {"step": 1, "exp_avg": torch.zeros_like(weights[key])} for i, key in enumerate(trainable)}
    return {"model": model, "optimizer": {"state": moments, "param_groups": []}, "epoch": 1}


def one_branch(trainable: list[str], branch: str) -> list[str]:
    """The trainable keys of a stage with one visual branch, and so with one adapter and no router."""
    foreign = {
        "qformer": ("fusion_adapter.", "adapter_proj.", "ln_adapter."),
        "aggregator": ("Qformer.", "query_tokens", "t5_proj.", "ln_vision."),
    }[branch]
    return [
        key
        for key in trainable
        if not key.startswith(foreign) and ".adapter.adapters.1." not in key and ".router_ratio" not in key
    ]


def write_lion_files(folder: Path, seed: int | None = None) -> Path:
    """The files that a user of the small LION has.

    `lion.pth` in the released layout, `lion_full.pth` with everything, `lion_qformer.pth` and `lion_aggregator.pth` of
    the stages with one branch, `eva_vit.pth`, `llm/`, `bert/`, and `overrides.json` with the head counts.
    """
    manifest = lion_manifest()
    weights, trainable = seeded_weights(manifest, seed), manifest["trainable"]
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("bert", "llm"):
        shutil.copytree(GOLDENS / "lion" / name, folder / name)
    torch.save(released_layout(weights, trainable), folder / "lion.pth")
    torch.save({"model": weights}, folder / "lion_full.pth")
    for branch in ("qformer", "aggregator"):
        torch.save(released_layout(weights, one_branch(trainable, branch)), folder / f"lion_{branch}.pth")
    vision = {key.removeprefix(VISION): tensor for key, tensor in weights.items() if key.startswith(VISION)}
    torch.save(vision, folder / "eva_vit.pth")
    language_model = {
        key.removeprefix(LANGUAGE_MODEL): tensor.clone()
        for key, tensor in weights.items()
        if key.startswith(LANGUAGE_MODEL) and ".adapter." not in key and key not in ALIASES
    }
    save_file(language_model, folder / "llm" / "model.safetensors", metadata={"format": "pt"})
    heads = {"num_attention_heads": 4}
    (folder / "overrides.json").write_text(json.dumps({"vision_config": heads, "qformer_config": heads}))
    return folder
