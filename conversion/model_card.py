"""Write the model card of a converted folder from its contents.

    print(model_card(Path("lion-flant5-xl"), "user/lion-flant5-xl"))

Source of the numbers: the tables of LION (arXiv:2311.11860). Only cards of models with one of the paper's two sizes
report them, as the paper's results.
"""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import ModelCardData

from lion_folder import load_lion_config
from remote_code import leads_to_code
from shards import FolderReader
from sources import SourceError, load_json
from transformers_lion.configuration_lion import LionConfig
from transformers_lion.pipelines import TAGGER_FOLDER

PIPELINE_TAG = "image-text-to-text"
"""The Hub has this tag and "image-to-text". LION takes a question with the image, which this tag describes.
`pipeline(model=...)` infers the task from the tag and finds LION under this one in every version of transformers,
whereas 5.18 does not know "image-to-text" and later versions rewrite it. The card lists the older name among its
other tags for users who search for it.
"""

LICENSE = "apache-2.0"
"""License of the whole: the stricter one of the licenses of its parts. The card lists the license of each part."""

TAGS = ["lion", "image-to-text", "image-captioning", "visual-question-answering", "visual-grounding",
        "referring-expression-comprehension", "multimodal"]  # fmt: skip

SIZES = {(2048, 5120, 24): "xl", (4096, 10240, 24): "xxl"}
"""FlanT5's name by width, feed-forward width and depth."""

VISION_TOWER = (1408, 39)
"""Width and depth of EVA-ViT-g in LION."""

BRANCHES = {
    "both": "Q-Former and vision aggregator (the full model)",
    "qformer": "Q-Former only (the first training stage: image-level tasks)",
    "aggregator": "vision aggregator only (the second training stage: region-level tasks)",
}

REGION_PROMPT = "How can I locate the cat in the image? Please provide the coordinates."

GROUNDING_ROWS = ("RefCOCO val / testA / testB", "RefCOCO+ val / testA / testB", "RefCOCOg val / test")
CAPTION_ROWS = ("Flickr30K", "COCO", "TextCaps")
QUESTION_ROWS = ("OKVQA", "A-OKVQA", "GQA", "IconQA", "VSR")

PAPER_NUMBERS = {
    "xl": {
        "grounding": ("89.73 / 92.29 / 84.82", "83.60 / 88.72 / 77.34", "85.69 / 85.63"),
        "captions": ("85.57", "138.20", "104.87"),
        "questions": ("51.08", "59.98", "49.50", "54.91", "72.96"),
    },
    "xxl": {
        "grounding": ("89.80 / 93.02 / 85.57", "83.95 / 89.22 / 78.06", "85.52 / 85.74"),
        "captions": ("87.12", "139.25", "108.76"),
        "questions": ("57.33", "60.87", "51.56", "54.89", "73.77"),
    },
}

CITATION = """\
@inproceedings{chen2024lion,
  title     = {{LION}: Empowering Multimodal Large Language Model with Dual-Level Visual Knowledge},
  author    = {Chen, Gongwei and Shen, Leyang and Shao, Rui and Deng, Xiang and Nie, Liqiang},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2024},
}"""


def model_card(folder: Path, name: str | None = None, base_models: Sequence[str] = (), with_code: bool = False) -> str:
    """Write the text of the folder's `README.md`: metadata and user documentation.

    Args:
        folder: Converted folder. Only the names and shapes of its weights are read.
        name: Repository id for `from_pretrained` in the examples, `user/name`. Defaults to the name of the folder.
        base_models: Hub ids of models that these weights are derived from, in addition to those inferred from the
            sizes.
        with_code: Whether the folder will include the code, even if it does not yet.

    Raises:
        SourceError: If the folder lacks information that the card needs.
    """
    name = name or folder.resolve().name
    config = load_lion_config(folder)
    processor = load_json(folder / "processor_config.json")
    for prompt in ("caption_prompt", "tag_prompt"):
        if not isinstance(processor.get(prompt), str):
            raise SourceError(f"{folder / 'processor_config.json'}: {prompt} is missing.")
    with_code = with_code or leads_to_code(getattr(config, "auto_map", None))
    has_tagger = (folder / TAGGER_FOLDER).is_dir()
    sections = [
        f"---\n{metadata(config, base_models).to_yaml()}\n---",
        f"# {name.split('/')[-1]}",
        _introduction(config, folder),
        _usage(config, name, with_code),
        prompts(config, processor),
        tags(processor, has_tagger),
        paper_numbers(config),
        limits(config),
        _licenses(config, has_tagger),
        f"## Citation\n\n```bibtex\n{CITATION}\n```",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def size_of(config: LionConfig) -> str | None:
    """Return "xl" or "xxl" if the model has the sizes of one of the paper's models, otherwise `None`."""
    text, vision = config.text_config, config.vision_config
    if (vision.hidden_size, vision.num_hidden_layers) != VISION_TOWER:
        return None
    return SIZES.get((text.d_model, text.d_ff, text.num_layers))


def metadata(config: LionConfig, base_models: Sequence[str] = ()) -> ModelCardData:
    """Return the metadata that the Hub reads."""
    size = size_of(config)
    bases = [*base_models, *([f"google/flan-t5-{size}"] if size else [])]
    if size and config.uses_qformer:
        bases.append("google-bert/bert-base-uncased")
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=PIPELINE_TAG,
        license=LICENSE,
        language="en",
        base_model=list(dict.fromkeys(bases)) or None,
        tags=list(TAGS),
    )


def _introduction(config: LionConfig, folder: Path) -> str:
    text, vision = config.text_config, config.vision_config
    counts = count_parameters(folder)
    stored = ", ".join(f"{dtype} {count / sum(counts.values()):.0%}" for dtype, count in counts.most_common())
    size = size_of(config)
    rows = {
        "Parameters": f"{in_words(sum(counts.values()))} ({stored})",
        "Language model": (f"FlanT5-{size.upper()}: " if size else "T5: ")
        + f"width {text.d_model}, {text.num_layers} encoder and {text.num_decoder_layers} decoder layers",
        "Adapters": f"{text.num_adapters} at each feed-forward layer, width {text.adapter_hidden_size}"
        + (", mixed by a router for each task type" if text.num_adapters > 1 else ""),
        "Vision tower": f"EVA-ViT: width {vision.hidden_size}, {vision.num_hidden_layers} layers, "
        f"{vision.image_size} x {vision.image_size} pixels",
        "Visual branch": f"`{config.visual_branch}`: {BRANCHES[config.visual_branch]}",
        "Soft prompt": "yes" if config.use_soft_prompt else "no",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return (
        "LION ([CVPR 2024](https://arxiv.org/abs/2311.11860)) is a multimodal language model with dual-level visual\n"
        "knowledge. It captions images, answers questions about them, and locates objects in them as `[x1,y1,x2,y2]`.\n"
        "These weights are in the 🤗 transformers format, for the package `transformers-lion`.\n\n"
        f"| | |\n|---|---|\n{table}"
    )


def _usage(config: LionConfig, name: str, with_code: bool) -> str:
    """Write the usage section. Its code blocks run as they are."""
    trust = ", trust_remote_code=True" if with_code else ""
    if with_code:
        first = (
            "This repository includes the code, so you only need `transformers` (5.18 or later) with\n"
            "`trust_remote_code=True`.\n"
            "After `pip install transformers-lion` and `import transformers_lion`, you can omit it."
        )
        package = ""
    else:
        first = "Run `pip install transformers-lion`. Importing the package registers LION with transformers."
        package = "import transformers_lion\n"
    task = "image_level" if config.visual_branch == "qformer" else "region_level"
    return f"""## Use

{first}

```python
{package}from transformers import pipeline

pipe = pipeline("image-to-text", model="{name}"{trust})
caption = pipe("photo.jpg")[0]["generated_text"]
answer = pipe("photo.jpg", text="Is there a cat in the image?", tags=["cat", "sofa"])[0]["generated_text"]
```

Step by step, for a region:

```python
{package}from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("{name}"{trust})
processor = AutoProcessor.from_pretrained("{name}"{trust})

question = "{REGION_PROMPT}"
inputs = processor("photo.jpg", question, task_type="{task}", return_tensors="pt")
answer = processor.batch_decode(model.generate(**inputs), skip_special_tokens=True)[0]
text, entities = processor.post_process_generation(answer)  # image_size=(width, height) for boxes in pixels
```"""


def prompts(config: LionConfig, processor: dict) -> str:
    """List the prompts that the model was tuned on, with their task types."""
    rows = [
        ("a caption", f"`{processor['caption_prompt']}`", "`image_level`"),
        ("an answer", "the question itself", "`image_level`"),
        ("a box", "`How can I locate {phrase} in the image? Please provide the coordinates.`", "`region_level`"),
        (
            "a box",
            "`In the image <image>, can you locate {phrase} and let me know its coordinates?`",
            "`region_level`",
        ),
    ]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    if config.text_config.num_adapters > 1:
        note = "The task type selects the mixture of adapters for each sample. It defaults to `image_level`."
    else:
        note = "This model has a single adapter for all tasks, so the task type has no effect."
    return f"## Prompts\n\n| to get | prompt | `task_type` |\n|---|---|---|\n{table}\n\n{note}"


def tags(processor: dict, has_tagger: bool) -> str:
    """Describe where tags come from."""
    if has_tagger:
        source = (
            f"This repository includes a tagger, RAM, in `{TAGGER_FOLDER}/`. The pipeline uses it if no tags are "
            "passed."
        )
    else:
        source = "This repository has no tagger. Pass `tags=`, or the prompt has no tag sentence."
    return (
        "## Tags\n\nTags name what is in the image, as recognized by the tagger RAM. They are the model's high-level "
        "visual\n"
        f"knowledge and precede the question:\n\n> {processor['tag_prompt'].strip()}\n\n{source}"
    )


def paper_numbers(config: LionConfig) -> str:
    """Write the paper's results for the size of the model, or nothing for other sizes."""
    size = size_of(config)
    if size is None or config.visual_branch != "both":
        return ""
    numbers = PAPER_NUMBERS[size]
    groups = (
        ("accuracy at IoU 0.5, fine-tuned", GROUNDING_ROWS, numbers["grounding"]),
        ("CIDEr", CAPTION_ROWS, numbers["captions"]),
        ("accuracy", QUESTION_ROWS, numbers["questions"]),
    )
    rows = [
        f"| {name} | {metric} | {value} |"
        for metric, names, values in groups
        for name, value in zip(names, values, strict=True)
    ]
    paper_name = {"xl": "LION-4B", "xxl": "LION-12B"}[size]
    return (
        f"## Results of the paper\n\nThese are **the paper's** results for {paper_name}, measured by its authors with\n"
        "their own code. They were not measured with the files in this repository.\n\n"
        "| dataset | metric | paper |\n|---|---|---|\n" + "\n".join(rows)
    )


def limits(config: LionConfig) -> str:
    """Describe the limitations."""
    side = config.vision_config.image_size
    lines = [
        f"Images are resized to {side} x {side} pixels, so small text and small objects are lost.",
        "It was tuned on single English questions about single images, not on conversations.",
        "It may name objects that are not in the image, especially with wrong tags, and boxes come without a "
        "confidence.",
        "It inherits the biases of the image and text collections that its parts were trained on. It was not tested "
        "for decisions about people and should not be used to make them.",
    ]
    if config.visual_branch != "both":
        lines.insert(
            0, f"It has only one visual branch, `{config.visual_branch}`: it is a training stage, not the full LION."
        )
    return "## Limitations\n\n" + "\n".join(f"- {line}" for line in lines)


def _licenses(config: LionConfig, has_tagger: bool) -> str:
    rows = [
        ("`transformers-lion`, and LION's original code", "MIT"),
        ("EVA-CLIP (the vision tower)", "MIT"),
        ("FlanT5 (the language model)", "Apache-2.0"),
    ]
    if config.uses_qformer:
        rows.append(("BERT (the Q-Former's tokenizer)", "Apache-2.0"))
    if has_tagger:
        rows.append((f"RAM (the tagger in `{TAGGER_FOLDER}/`)", "Apache-2.0"))
    table = "\n".join(f"| {part} | {license_name} |" for part, license_name in rows)
    return (
        f"## Licenses\n\n| part | license |\n|---|---|\n{table}\n\n"
        "The datasets that the model was trained on have their own terms."
    )


def count_parameters(folder: Path) -> Counter[str]:
    """Count the parameters by dtype, without reading the weights."""
    reader, counts = FolderReader(folder), Counter[str]()
    for name, shape in reader.shapes.items():
        counts[reader.dtypes[name]] += math.prod(shape)
    return counts


def in_words(count: int) -> str:
    """Format a count with three digits: 4.05 billion, 1.35 million."""
    for size, word in ((1e9, " billion"), (1e6, " million"), (1e3, " thousand")):
        if count >= size:
            return f"{count / size:.3g}{word}"
    return str(count)
