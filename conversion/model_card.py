"""The model card of a converted folder, written from what is in the folder.

    print(model_card(Path("lion-flant5-xl"), "user/lion-flant5-xl"))

Source of the numbers: LION (arXiv:2311.11860), its tables. They stand on cards of the paper's two sizes only, as the
paper's.
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
"""The Hub has this tag and "image-to-text". LION takes a question with the image, which is this one; and
`pipeline(model=...)`, which takes the task from the tag, finds LION under it in every transformers: "image-to-text" is
unknown to 5.18 and rewritten to this one later. The older name stands among the tags, for those who search for it."""

LICENSE = "apache-2.0"
"""One name for the whole: the stricter of its parts' two licences. The card says which part has which."""

TAGS = ["lion", "image-to-text", "image-captioning", "visual-question-answering", "visual-grounding",
        "referring-expression-comprehension", "multimodal"]  # fmt: skip

SIZES = {(2048, 5120, 24): "xl", (4096, 10240, 24): "xxl"}
"""FlanT5's name by its width, feed-forward width and depth."""

VISION_TOWER = (1408, 39)
"""Width and depth of EVA-ViT-g as LION runs it."""

BRANCHES = {
    "both": "Q-Former and vision aggregator (the full model)",
    "qformer": "Q-Former only (the first stage of the training: image-level tasks)",
    "aggregator": "vision aggregator only (the second stage of the training: region-level tasks)",
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
    """The text of the folder's `README.md`: metadata, then what a user has to know.

    Args:
        folder: a converted folder; its weights are not read, only their names and shapes.
        name: what `from_pretrained` is given in the examples, `user/name`; the folder's name by default.
        base_models: Hub ids of models that these weights were made from, besides those that the sizes tell.
        with_code: whether the folder will carry the code, even if it does not yet.

    Raises:
        SourceError: if the folder misses what the card tells.
    """
    name = name or folder.resolve().name
    config = load_lion_config(folder)
    processor = load_json(folder / "processor_config.json")
    for prompt in ("caption_prompt", "tag_prompt"):
        if not isinstance(processor.get(prompt), str):
            raise SourceError(f"{folder / 'processor_config.json'}: has no {prompt}.")
    with_code = with_code or leads_to_code(getattr(config, "auto_map", None))
    has_tagger = (folder / TAGGER_FOLDER).is_dir()
    sections = [
        f"---\n{metadata(config, base_models).to_yaml()}\n---",
        f"# {name.split('/')[-1]}",
        introduction(config, folder),
        usage(config, name, with_code),
        prompts(config, processor),
        tags(processor, has_tagger),
        paper_numbers(config),
        limits(config),
        licences(config, has_tagger),
        f"## Citation\n\n```bibtex\n{CITATION}\n```",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def size_of(config: LionConfig) -> str | None:
    """ "xl" or "xxl" if the model has the sizes of one of the paper's, otherwise `None`."""
    text, vision = config.text_config, config.vision_config
    if (vision.hidden_size, vision.num_hidden_layers) != VISION_TOWER:
        return None
    return SIZES.get((text.d_model, text.d_ff, text.num_layers))


def metadata(config: LionConfig, base_models: Sequence[str] = ()) -> ModelCardData:
    """What the Hub reads."""
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


def introduction(config: LionConfig, folder: Path) -> str:
    """What the model is and how large."""
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
        "knowledge: it captions images, answers questions about them, and locates things in them as `[x1,y1,x2,y2]`.\n"
        "These are weights in the form of 🤗 transformers, for the package `transformers-lion`.\n\n"
        f"| | |\n|---|---|\n{table}"
    )


def usage(config: LionConfig, name: str, with_code: bool) -> str:
    """How to load it. The blocks run as they stand."""
    trust = ", trust_remote_code=True" if with_code else ""
    if with_code:
        first = (
            "This repository carries the code, so that `transformers` (5.18 or later) is enough, with\n"
            "`trust_remote_code=True`.\n"
            "After `pip install transformers-lion` and `import transformers_lion` no trust is needed."
        )
        package = ""
    else:
        first = "`pip install transformers-lion`. Importing the package makes transformers know LION."
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
    """Prompts that the model was tuned on, with their task types."""
    rows = [
        ("a caption", f"`{processor['caption_prompt']}`", "`image_level`"),
        ("an answer", "the question, as it is", "`image_level`"),
        ("a box", "`How can I locate {phrase} in the image? Please provide the coordinates.`", "`region_level`"),
        (
            "a box",
            "`In the image <image>, can you locate {phrase} and let me know its coordinates?`",
            "`region_level`",
        ),
    ]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    if config.text_config.num_adapters > 1:
        note = "The task type chooses the mixture of adapters, for each sample; without one it is `image_level`."
    else:
        note = "This model has one adapter for everything, so that the task type changes nothing."
    return f"## Prompts\n\n| to get | prompt | `task_type` |\n|---|---|---|\n{table}\n\n{note}"


def tags(processor: dict, has_tagger: bool) -> str:
    """Where the tag sentence comes from."""
    if has_tagger:
        source = (
            f"This repository holds a tagger, RAM, in `{TAGGER_FOLDER}/`: the pipeline uses it where no tags are given."
        )
    else:
        source = "This repository holds no tagger: give `tags=`, or the prompt has no tag sentence."
    return (
        "## Tags\n\nNames of what is in the image, as the tagger RAM gives them, are the model's high-level visual\n"
        f"knowledge. They stand before the question:\n\n> {processor['tag_prompt'].strip()}\n\n{source}"
    )


def paper_numbers(config: LionConfig) -> str:
    """The paper's table for the model's size; nothing for any other model."""
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
        f"## The paper's numbers\n\nThese are **the paper's**, for its {paper_name}, measured by its authors with\n"
        "their own code. They were not measured with the files of this repository.\n\n"
        "| data set | metric | the paper |\n|---|---|---|\n" + "\n".join(rows)
    )


def limits(config: LionConfig) -> str:
    """What not to expect."""
    side = config.vision_config.image_size
    lines = [
        f"Images are squashed to {side} x {side} pixels: small text and small things are lost.",
        "It was tuned on single questions in English, not on conversations, and on one image at a time.",
        "It may name what is not there, above all with wrong tags, and a box comes without a measure of confidence.",
        "It inherits the biases of the image and text collections that its parts were trained on. It was not tested "
        "for decisions about people, and should not make any.",
    ]
    if config.visual_branch != "both":
        lines.insert(0, f"It has one visual branch, `{config.visual_branch}`: it is a stage of the training, not LION.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def licences(config: LionConfig, has_tagger: bool) -> str:
    """The licence of each part."""
    rows = [
        ("`transformers-lion`, and LION's original code", "MIT"),
        ("EVA-CLIP (the vision tower)", "MIT"),
        ("FlanT5 (the language model)", "Apache-2.0"),
    ]
    if config.uses_qformer:
        rows.append(("BERT (the Q-Former's tokenizer)", "Apache-2.0"))
    if has_tagger:
        rows.append((f"RAM (the tagger in `{TAGGER_FOLDER}/`)", "Apache-2.0"))
    table = "\n".join(f"| {part} | {licence} |" for part, licence in rows)
    return (
        f"## Licences\n\n| part | licence |\n|---|---|\n{table}\n\n"
        "The data sets that the model was trained on have terms of their own."
    )


def count_parameters(folder: Path) -> Counter[str]:
    """How many numbers the weights hold, by precision; their data is not read."""
    reader, counts = FolderReader(folder), Counter[str]()
    for name, shape in reader.shapes.items():
        counts[reader.dtypes[name]] += math.prod(shape)
    return counts


def in_words(count: int) -> str:
    """A count with three digits: 4.05 billion, 1.35 million."""
    for size, word in ((1e9, " billion"), (1e6, " million"), (1e3, " thousand")):
        if count >= size:
            return f"{count / size:.3g}{word}"
    return str(count)
