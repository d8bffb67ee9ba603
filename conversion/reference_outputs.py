"""Compute the outputs of LION's reference code from the original files, for comparison with a converted folder.

    PYTHON conversion/reference_outputs.py CHECKOUT request.json pixels.safetensors outputs.safetensors

`verify_checkpoint.py --reference` runs this script in a Python that has the reference's requirements (transformers
4.42), so it does not import this package. CHECKOUT is a copy of https://github.com/JiuTian-VL/JiuTian-LION.
`output_ladder.py` writes the request: the files, the sizes as `LionConfig` fields, the prompts, and what to run.

The reference builds its own model. The script patches it as follows:

* Sizes that its code hard-codes for the released models are taken from the request.
* Its language model is loaded in float32 instead of bfloat16. The weights are then rounded to their dtype in the
  converted folder, so that differences come from the code and not from the precision.
* The package `ram` is replaced by an empty module, because the tags are given and the tagger is not needed.
* `icecream`, `omegaconf` and `timm` are replaced by small modules if they cannot be imported. The reference imports
  them but hardly uses them here.
"""

import contextlib
import functools
import importlib
import json
import sys
import zipfile
from collections.abc import Iterator, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

VISUAL_INPUTS = {"both": "ALL", "qformer": "QFORMER", "aggregator": "AGGREGATOR"}
"""The reference's names for `LionConfig.visual_branch`."""

VISION, LANGUAGE_MODEL = "visual_encoder.", "t5_model."
EMBEDDING_ALIASES = ("t5_model.encoder.embed_tokens.weight", "t5_model.decoder.embed_tokens.weight")
"""Other names of the embedding table. The released file has them in lower precision than the table."""

Outputs = dict[str, torch.Tensor]


def _import_reference(checkout: Path) -> SimpleNamespace:
    """Import the reference's modules for the model, the adapters and the vision tower."""
    sys.dont_write_bytecode = True  # do not write to the user's checkout
    sys.path[0] = str(checkout)  # replaces the folder of this script
    _stand_in("ram", get_transform=None)
    _stand_in("ram.models", ram=None)
    layers = {"drop_path": None, "to_2tuple": lambda size: (size, size), "trunc_normal_": nn.init.trunc_normal_}
    for name, content in (
        ("icecream", {"ic": None}),
        ("omegaconf", {"OmegaConf": None}),
        ("timm.models.layers", layers),
        ("timm.models.registry", {"register_model": lambda function: function}),
    ):
        try:
            importlib.import_module(name)
        except ImportError:
            _stand_in(name, **content)
    names = {"lion": "models.lion_t5", "adapters": "models.lion_adapters", "vision": "models.eva_vit"}
    return SimpleNamespace(**{short: importlib.import_module(name) for short, name in names.items()})


def _stand_in(name: str, **content: Any) -> None:
    """Register a module with the given content, so that `import name` finds it."""
    parent, _, _ = name.rpartition(".")
    if parent and parent not in sys.modules:
        _stand_in(parent)
    module = ModuleType(name)
    module.__dict__.update(content, __path__=[], __spec__=ModuleSpec(name, None))  # transformers asks for the spec
    sys.modules[name] = module


def build(checkout: Path, request: Mapping[str, Any]) -> nn.Module:
    """Build the reference's model in float32, with the original weights rounded as in the converted folder."""
    reference, config, files = _import_reference(checkout), request["config"], request["files"]
    _set_sizes(reference, config)
    model = reference.lion.LIONT5InstructAdapter(
        bert_model=files["qformer_tokenizer"],
        vit_model=files["lion"],  # must not be empty; the weights are loaded below
        llm_model=files["language_model"],
        ram_model=None,
        visual_input=VISUAL_INPUTS[config["visual_branch"]],
        enable_semantic_tags=config["use_soft_prompt"],
        img_size=config["vision_config"]["image_size"],
        num_query_token=config["num_query_tokens"],
    )
    load_weights(model, files, reference.vision.interpolate_pos_embed)
    for name, tensor in model.state_dict().items():
        if name in request["dtypes"]:
            tensor.copy_(tensor.to(getattr(torch, request["dtypes"][name])))
    return model.float().eval()


def _set_sizes(reference: SimpleNamespace, config: Mapping[str, Any]) -> None:
    """Replace the functions that create the parts of the reference's model by versions with other sizes."""
    lion, adapters = reference.lion, reference.adapters
    aggregator, bottleneck = config["aggregator_config"], config["text_config"]["adapter_hidden_size"]
    set_adapters = lion.set_adapter_t5
    bert_config = lion.BertConfig
    lion.create_eva_vit_g = lambda *_: _vision_tower(reference.vision, config["vision_config"])
    lion.BertConfig = SimpleNamespace(
        from_pretrained=lambda folder: qformer_config(bert_config, folder, config["qformer_config"])
    )
    lion.T5ForConditionalGeneration = SimpleNamespace(
        from_pretrained=functools.partial(_load_language_model, lion.T5ForConditionalGeneration)
    )
    lion.set_adapter_t5 = lambda *arguments, **options: set_adapters(
        *arguments, **{**options, "bottleneck": bottleneck}
    )
    lion.FusionAdapter = functools.partial(lion.FusionAdapter, num_heads=aggregator["num_attention_heads"])
    adapters.BertConfig = functools.partial(adapters.BertConfig, intermediate_size=aggregator["intermediate_size"])


def _vision_tower(vision: ModuleType, sizes: Mapping[str, Any]) -> nn.Module:
    """Create the reference's vision tower with the given sizes and otherwise the settings of EVA-ViT-g."""
    return vision.VisionTransformer(
        img_size=sizes["image_size"],
        patch_size=sizes["patch_size"],
        embed_dim=sizes["hidden_size"],
        depth=sizes["num_hidden_layers"],
        num_heads=sizes["num_attention_heads"],
        mlp_ratio=(sizes["intermediate_size"] + 0.5) / sizes["hidden_size"],  # the reference multiplies and truncates
        qkv_bias=True,
        use_mean_pooling=False,
        norm_layer=functools.partial(nn.LayerNorm, eps=1e-6),
    )


def qformer_config(config_class: Any, folder: str, sizes: Mapping[str, Any]) -> Any:
    """Create the configuration of the Q-Former from BERT's, if the folder has it, and the sizes of the model."""
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    chosen = {name: sizes[name] for name in (*names, "max_position_embeddings")}
    if (Path(folder) / "config.json").is_file():
        return config_class.from_pretrained(folder, **chosen)
    return config_class(**chosen)


def _load_language_model(model_class: Any, folder: str, config: Any, torch_dtype: torch.dtype) -> nn.Module:
    """Load the language model in float32, regardless of the `torch_dtype` that the reference requests.

    Raises:
        ValueError: If the folder lacks a tensor.
    """
    model, loading = model_class.from_pretrained(
        folder, config=config, torch_dtype=torch.float32, output_loading_info=True
    )
    missing = sorted({LANGUAGE_MODEL + name for name in loading["missing_keys"]} - set(EMBEDDING_ALIASES))
    if missing:
        raise ValueError(f"{folder} lacks {len(missing)} tensors of the reference's language model: {missing[0]}.")
    return model


def load_weights(model: nn.Module, files: Mapping[str, Any], interpolate_positions: Any) -> None:
    """Load the files of the vision tower and of LION, which takes precedence.

    Raises:
        ValueError: If a tensor of the model is in neither file.
    """
    tower = read_tensors(Path(files["vision"])) if files["vision"] else {}
    tower = {name.removeprefix(VISION): tensor for name, tensor in tower.items()}
    interpolate_positions(model.visual_encoder, tower)
    own = read_tensors(Path(files["lion"]))
    tensors = {**{VISION + name: tensor for name, tensor in tower.items()}, **own}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in EMBEDDING_ALIASES}
    loaded = model.load_state_dict(tensors, strict=False)
    missing = [
        name
        for name in loaded.missing_keys
        if not name.endswith("position_ids") and (not name.startswith(LANGUAGE_MODEL) or ".adapter." in name)
    ]
    if missing:
        raise ValueError(f"{len(missing)} tensors of the reference's model are not in any file: {missing[0]}.")


def read_tensors(path: Path) -> Outputs:
    """Load the state dict of a `.safetensors` or `.pth` file, without running code that a pickle may contain."""
    if path.suffix == ".safetensors":
        return load_file(path)
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    content = content.get("model", content)
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


@contextlib.contextmanager
def kept(outputs: Outputs, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Record the outputs of `modules` by name while the block runs."""

    def hook(name: str) -> Any:
        return lambda module, arguments, output: outputs.update({name: output})

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _first_input(outputs: Outputs, name: str, module: nn.Module) -> Iterator[None]:
    """Record the first argument of the first call of `module` while the block runs."""

    def keep(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        outputs.setdefault(name, arguments[0])

    handle = module.register_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()


def _visual_outputs(model: Any, request: Mapping[str, Any], pixels: torch.Tensor) -> Outputs:
    """Compute the outputs of the visual branches, from the blocks of the vision tower upwards."""
    outputs: Outputs = {}
    modules = {f"vision block {index}": model.visual_encoder.blocks[index] for index in request["blocks"]}
    if hasattr(model, "ln_vision"):
        modules["vision norm"] = model.ln_vision
    if hasattr(model, "fusion_adapter"):
        modules["aggregator"] = model.fusion_adapter
    with contextlib.ExitStack() as stack:
        stack.enter_context(kept(outputs, modules))
        if hasattr(model, "Qformer"):
            stack.enter_context(_first_input(outputs, "question ids", model.Qformer.bert))
        outputs["image features"], _ = model.encode_img(pixels, request["questions"])
    return outputs


def _case_outputs(model: Any, request: Mapping[str, Any], pixels: torch.Tensor, case: Mapping[str, Any]) -> Outputs:
    """Compute the forward pass of training and generated ids for one task, with or without tags."""
    outputs: Outputs = {}
    questions = request["questions"]
    model.enable_semantic_tags = case["tags"]
    samples = {"image": pixels, "question": questions, "tags": request["tags"], "answer": request["answers"]}
    with _first_input(outputs, "prompt ids", model.t5_model.encoder.embed_tokens):
        outputs.update(_training_outputs(model, {**samples, "category": [case["task_type"]] * len(questions)}))
    for name, num_beams in request["searches"].items():
        outputs[name] = _generated_ids(
            model,
            {**samples, "category": case["task_type"]},
            num_beams=num_beams,
            max_length=request["max_new_tokens"],
            repetition_penalty=request["repetition_penalty"],
        )
    return {f"{case['name']}: {name}": tensor for name, tensor in outputs.items()}


def _training_outputs(model: Any, samples: Mapping[str, Any]) -> Outputs:
    """Return the encoder output, the logits of answer tokens (without padding), and the loss."""
    outputs: Outputs = {}

    def keep(module: nn.Module, arguments: Any, options: dict[str, Any], output: Any) -> None:
        outputs["encoder output"] = output.encoder_last_hidden_state
        outputs["logits"] = output.logits[options["labels"] != -100]

    handle = model.t5_model.register_forward_hook(keep, with_kwargs=True)
    try:
        outputs["loss"] = model(samples)["loss"]
    finally:
        handle.remove()
    return outputs


def _generated_ids(model: Any, samples: Mapping[str, Any], **options: Any) -> torch.Tensor:
    """Return the ids of the texts that the reference's `generate` returns."""
    found = []
    generate = model.t5_model.generate

    def keep(**arguments: Any) -> torch.Tensor:
        found.append(generate(**arguments))
        return found[-1]

    model.t5_model.generate = keep
    try:
        model.generate(samples, **options)
    finally:
        del model.t5_model.generate
    return found[0]


@torch.no_grad()
def main(checkout: str, request_file: str, pixels_file: str, outputs_file: str) -> None:
    """Build the model, compute the outputs and write them."""
    request = json.loads(Path(request_file).read_text())
    pixels = load_file(pixels_file)["pixel_values"]
    model = build(Path(checkout), request)
    outputs = _visual_outputs(model, request, pixels)
    for case in request["cases"]:
        outputs.update(_case_outputs(model, request, pixels, case))
    save_file({name: tensor.contiguous() for name, tensor in outputs.items()}, outputs_file)


if __name__ == "__main__":
    main(*sys.argv[1:])
