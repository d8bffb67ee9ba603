"""Processor of LION: prepares images, questions, tags and tasks for the model, and parses boxes in answers.

Source: LION (arXiv:2311.11860), section 3.4, for the tag sentence with its soft prompt; the reference code for the
maximum lengths of texts.

Shape letters: B samples, T prompt tokens, T' question tokens, L answer tokens.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.processing_utils import ProcessingKwargs, TextKwargs, Unpack

from .checkpoint_utils import HUB_OPTIONS, PROCESSOR_FILES, QFORMER_TOKENIZER, check_processor_files, local_folder
from .columns import is_missing, to_plain
from .configuration_lion import TASK_TYPES
from .grounding import Entity, extract_entities, read_grounded_text, score_boxes
from .images import ImageSource, find_size, is_batch, warn_about_gray_batch
from .plain_text import PlainTextTokenizer
from .tag_source import Tags, check_tags

TAG_PROMPT = "According to <extra_id_0>, you are allowed to use or partially use the following tags: [{tags}]. "
CAPTION_PROMPT = "Please describe the image using a single short sentence."
CHAT_TEMPLATE = """\
{%- set lines = namespace(all=[]) -%}
{%- for message in messages -%}
  {%- set texts = namespace(all=[]) -%}
  {%- if message['content'] is string -%}
    {%- set texts.all = [message['content']] -%}
  {%- else -%}
    {%- for part in message['content'] -%}
      {%- if part['type'] == 'text' and part['text'] is string -%}
        {%- set texts.all = texts.all + [part['text']] -%}
      {%- elif part['type'] not in ['image', 'image_url'] -%}
        {{- raise_exception('LION reads parts of type text and image, not ' ~ part | string | truncate(80)) -}}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
  {%- set lines.all = lines.all + [texts.all | map('trim') | select | join(' ')] -%}
{%- endfor -%}
{{- lines.all | select | join('\\n') -}}
"""
"""Joins the texts of all messages, one per line, because LION was trained on single questions."""

QFORMER_TOKENIZER_CONFIG = '{\n  "model_type": "bert"\n}\n'
"""Without this file, transformers loads the wrong tokenizer when a Hub repository is used offline."""

PROMPT_OPTIONS = ("padding", "padding_side", "truncation", "max_length", "pad_to_multiple_of", "return_tensors")
"""Supported options of `TextKwargs`. The others do not apply to prompts that are assembled from parts."""


class LionTextKwargs(TextKwargs, total=False):  # type: ignore[call-arg]
    """Options of prompts. Only those in `PROMPT_OPTIONS` are supported."""


class LionProcessorKwargs(ProcessingKwargs, total=False):  # type: ignore[call-arg]
    """Options of a call, passed directly or grouped as `text_kwargs` and `images_kwargs`."""

    text_kwargs: LionTextKwargs


LionProcessorKwargs._defaults = {"text_kwargs": {"padding": True}}


class LionProcessor(ProcessorMixin):
    r"""
    Combines an image processor, a T5 tokenizer and a Q-Former tokenizer.

    User text is never tokenized into special tokens, such as the soft prompt marker or the end token. Answers
    (`text_target`) may contain special tokens that were added to the tokenizer. To add tokens for prompts, add them as
    regular tokens with `tokenizer.add_tokens`.

    Args:
        image_processor (`LionImageProcessor`): Image processor that returns `pixel_values`.
        tokenizer (`T5Tokenizer`): Tokenizer for prompts and answers.
        qformer_tokenizer (`BertTokenizer`): Tokenizer for the questions that the Q-Former reads.
        chat_template (`str`, *optional*): Template that converts messages to a question.
        tag_prompt (`str`, *optional*): Sentence before the question, containing `soft_prompt_token` and `{tags}`.
        soft_prompt_token (`str`, *optional*): Marker of the soft prompt in `tag_prompt`.
        caption_prompt (`str`, *optional*): Default question of the image-to-text pipeline.
        max_prompt_length (`int`, *optional*): Maximum number of tokens in a training prompt. Longer prompts are
            truncated on the left. Prompts for generation are not truncated.
        max_question_length (`int`, *optional*): Maximum number of tokens in a question for the Q-Former. Longer
            questions are truncated on the left.
        max_answer_length (`int`, *optional*): Maximum number of tokens in an answer. Longer answers are truncated on
            the right.

    Raises:
        ValueError: If `tag_prompt` does not contain `{tags}` exactly once, contains `soft_prompt_token` more than once,
            or a tokenizer is of the wrong kind.
    """

    valid_processor_kwargs = LionProcessorKwargs
    image_token = "<image>"
    """Text that questions may use to refer to the image. It is not a placeholder: both tokenizers treat it as text."""

    def __init__(
        self,
        image_processor: BaseImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        qformer_tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = CHAT_TEMPLATE,
        tag_prompt: str = TAG_PROMPT,
        soft_prompt_token: str = "<extra_id_0>",
        caption_prompt: str = CAPTION_PROMPT,
        max_prompt_length: int = 128,
        max_question_length: int = 128,
        max_answer_length: int = 128,
    ):
        if tag_prompt.count("{tags}") != 1:
            raise ValueError(
                f"tag_prompt must contain {{tags}} exactly once, but contains it {tag_prompt.count('{tags}')} times."
            )
        if tag_prompt.count(soft_prompt_token) > 1:
            raise ValueError(
                f"tag_prompt must contain {soft_prompt_token} at most once, but contains it "
                f"{tag_prompt.count(soft_prompt_token)} times."
            )
        check_tokenizers(tokenizer, qformer_tokenizer)
        self.tag_prompt = tag_prompt
        self.soft_prompt_token = soft_prompt_token
        self.caption_prompt = caption_prompt
        self.max_prompt_length = max_prompt_length
        self.max_question_length = max_question_length
        self.max_answer_length = max_answer_length
        self._plain_ids = PlainTextTokenizer(tokenizer)
        self._answer_ids = PlainTextTokenizer(tokenizer, keep_added=True)
        self._plain_question_ids = PlainTextTokenizer(qformer_tokenizer)
        super().__init__(image_processor, tokenizer, qformer_tokenizer, chat_template=chat_template)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """Load a processor like `ProcessorMixin.from_pretrained`, but with a single request to the Hub.

        Raises:
            OSError: If a file is missing.
            ValueError: If the files are inconsistent.
        """
        subfolder = kwargs.get("subfolder") or ""
        options = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        folder = local_folder(pretrained_model_name_or_path, PROCESSOR_FILES, subfolder, **options)
        if os.path.isdir(folder):
            check_processor_files(os.path.join(folder, subfolder))
            kwargs = {name: value for name, value in kwargs.items() if name not in HUB_OPTIONS}
        return super().from_pretrained(folder, **kwargs)

    def to_json_file(self, json_file_path: str | os.PathLike) -> None:
        """Save the processor config, and a config that lets transformers recognize the Q-Former tokenizer."""
        super().to_json_file(json_file_path)
        folder = Path(json_file_path).parent / QFORMER_TOKENIZER
        if folder.is_dir():
            (folder / "config.json").write_text(QFORMER_TOKENIZER_CONFIG, encoding="utf-8")

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        tags: Tags | Sequence[Tags] = None,
        task_type: str | Sequence[str] | None = None,
        text_target: str | Sequence[str] | None = None,
        **kwargs: Unpack[LionProcessorKwargs],
    ) -> BatchFeature:
        """Prepare inputs for the model.

        Args:
            images: An image or a list of images: paths, URLs, base64 strings, bytes of image files,
                `{"bytes", "path"}` dictionaries, PIL images, arrays or tensors. A single image is used for all
                questions.
            text: A question, or a list, array or table column with one question per sample. A single question is used
                for all images.
            tags: Tags of one image, or a list with the tags of each sample. Tags are a string or a list of names. With
                an empty list, the prompt has a tag sentence without tags; with `None`, it has no tag sentence. The
                processor has no tagger, unlike `Lion` and the pipeline.
            task_type: "image_level" (default) or "region_level", for all samples or for each one.
            text_target: Answers, returned as `labels`. If set, prompts are truncated as in training.
            **kwargs: `return_tensors` ("pt" for tensors; lists by default), options of the image processor (such as
                `do_resize` or `size`) and options of padding (`LionTextKwargs`). They can also be grouped as
                `images_kwargs` and `text_kwargs`.

        Returns:
            Depending on the arguments: `pixel_values` (B, 3, H, W), `input_ids` and `attention_mask` (B, T),
            `qformer_input_ids` and `qformer_attention_mask` (B, T'), `task_type_ids` (B,), `labels` (B, L).

        Raises:
            ValueError: If there are neither images nor text, a batch is empty, lengths differ, a task is unknown, an
                image cannot be read, or an option is passed twice.
            TypeError: If an option is unknown.
        """
        if images is None and text is None:
            raise ValueError("Pass images, text or both.")
        if text is None and (tags is not None or text_target is not None):
            raise ValueError("tags and text_target require text.")
        text, tags, task_type, text_target = (to_plain(value) for value in (text, tags, task_type, text_target))
        images_kwargs, text_kwargs = self._options(kwargs)
        return_tensors = text_kwargs.pop("return_tensors", None)
        data: dict[str, Any] = {}
        batched = is_batch(images)
        if images is not None:
            data.update(self.image_processor(images, **images_kwargs))
        if text is not None:
            texts = self._texts(text, len(data["pixel_values"]) if batched else None)
            warn_about_gray_batch(images, len(texts))
            data.update(self._prompts(texts, tags, training=text_target is not None, **text_kwargs))
            tasks = broadcast("task_type", task_type or "image_level", len(texts))
            data["task_type_ids"] = [task_type_id(task) for task in tasks]
            if text_target is not None:
                answers = broadcast("text_target", text_target, len(texts))
                check_strings("text_target", answers)
                data["labels"] = self._labels(answers)
        return BatchFeature(data, tensor_type=return_tensors)

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        """Apply the chat template like `ProcessorMixin.apply_chat_template`. The default supports text and images.

        Raises:
            ValueError: If the template does not support the content of a message.
        """
        try:
            return super().apply_chat_template(conversation, *args, **kwargs)
        except TemplateError as error:
            raise ValueError(f"The chat template does not support these messages: {error}.") from error

    def _options(self, kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the image options and the text options of a call, with the tokenizer's settings as defaults.

        Raises:
            TypeError: If an option is unknown. transformers would only log a warning.
        """
        merged = self._merge_kwargs(
            self.valid_processor_kwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs
        )
        known = {"common_kwargs", *merged, *merged["images_kwargs"], *PROMPT_OPTIONS}
        passed = [name for name, value in kwargs.items() if value is not None]  # apply_chat_template sets videos=None
        unknown = [name for name in passed if name not in known]
        unknown += [name for name in kwargs.get("text_kwargs") or {} if name not in PROMPT_OPTIONS]
        if unknown:
            raise TypeError(f"LionProcessor has no option {unknown[0]!r}.")
        text_kwargs = {name: value for name, value in merged["text_kwargs"].items() if name in PROMPT_OPTIONS}
        return merged["images_kwargs"], text_kwargs

    @staticmethod
    def _texts(text: str | Sequence[str], num_images: int | None) -> list[str]:
        """Return the question of each sample. `num_images` is `None` for a single image, which all questions use."""
        texts: list[Any] = list(text) if isinstance(text, list | tuple) else [text] * (num_images or 1)
        if not texts:
            raise ValueError("text is empty; pass at least one question.")
        check_strings("text", texts)
        if num_images is not None and len(texts) != num_images:
            raise ValueError(
                f"Got {num_images} images for {len(texts)} texts. Pass the same number of both, or one of either."
            )
        return texts

    def _prompts(
        self,
        texts: list[str],
        tags: Tags | Sequence[Tags],
        training: bool,
        padding: bool | str,
        padding_side: str | None = None,
        truncation: bool = False,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
    ) -> dict[str, Any]:
        """Tokenize and pad the prompts for the language model and the questions for the Q-Former."""
        limit = (max_length or self.max_prompt_length) if training or truncation else None
        if len(texts) == 1 and isinstance(tags, list | tuple) and all(isinstance(tag, str) for tag in tags):
            tags = [list(tags)]  # a list of names for a single sample
        names = broadcast("tags", tags, len(texts))
        for row in names:
            check_tags(row)
            if row is not None and not isinstance(row, str):
                check_strings("tags", row)
        prompts = [self._prompt_ids(text, tags_, limit) for text, tags_ in zip(texts, names, strict=True)]
        padded = self.tokenizer.pad(
            {"input_ids": prompts},
            padding=padding,
            max_length=max_length,
            pad_to_multiple_of=pad_to_multiple_of,
            padding_side=padding_side,
        )
        questions = self.qformer_tokenizer.pad(
            {"input_ids": [self._question_ids(text) for text in texts]}, padding=bool(padding)
        )
        return {**padded, **{f"qformer_{name}": questions[name] for name in ("input_ids", "attention_mask")}}

    def _question_ids(self, text: str) -> list[int]:
        """Tokenize a question for the Q-Former."""
        ids = self._plain_question_ids(text)
        ids = ids[max(0, len(ids) - self.max_question_length + 2) :]
        return [self.qformer_tokenizer.cls_token_id, *ids, self.qformer_tokenizer.sep_token_id]

    def _prompt_ids(self, text: str, tags: Tags, max_length: int | None) -> list[int]:
        """Tokenize the tag sentence and the question. Only the marker in `tag_prompt` becomes the soft prompt."""
        ids: list[int] = []
        if tags is not None:
            joined = tags if isinstance(tags, str) else ", ".join(tags)
            before, marker, after = self.tag_prompt.partition(self.soft_prompt_token)
            if marker:
                ids = [*self._plain_ids(before.replace("{tags}", joined)), self.soft_prompt_token_id]
            text = (after if marker else before).replace("{tags}", joined) + text
        ids += self._plain_ids(text)
        if max_length is not None:
            ids = ids[max(0, len(ids) - max_length + 1) :]
        return [*ids, self.tokenizer.eos_token_id]

    def _labels(self, answers: list[str]) -> list[list[int]]:
        """Tokenize answers and pad them with -100."""
        rows = [
            [*self._answer_ids(answer)[: self.max_answer_length - 1], self.tokenizer.eos_token_id] for answer in answers
        ]
        longest = max(len(row) for row in rows)
        return [row + [-100] * (longest - len(row)) for row in rows]

    @property
    def soft_prompt_token_id(self) -> int:
        """Token id of the soft prompt marker; see `LionConfig.soft_prompt_token_id`."""
        return self.tokenizer.convert_tokens_to_ids(self.soft_prompt_token)

    @property
    def model_input_names(self) -> list[str]:
        """Names of the model inputs that `__call__` returns."""
        return [
            *self.image_processor.model_input_names,
            *self.tokenizer.model_input_names,
            "qformer_input_ids",
            "qformer_attention_mask",
            "task_type_ids",
        ]

    def post_process_generation(
        self, text: str, image_size: tuple[int, int] | ImageSource | None = None
    ) -> tuple[str, list[Entity]]:
        """Extract the boxes from an answer.

        Args:
            text: Decoded answer. Any text is allowed.
            image_size: Size for converting boxes from fractions to pixels: the image itself in any form, or its
                (width, height), such as `to_rgb(path).size`. The size must be that of the upright image. Don't use the
                `size` of a photo from `PIL.Image.open`, which ignores the EXIF orientation.

        Returns:
            `(clean_text, [(phrase, (start, end), [(x1, y1, x2, y2), ...]), ...])`, where `clean_text[start:end]` is the
            phrase.

        Raises:
            ValueError: If the image cannot be read.
        """
        return extract_entities(text, find_size(image_size))

    def post_process_grounded_object_detection(
        self,
        outputs: torch.Tensor | Sequence[str],
        target_sizes: Sequence[tuple[int, int]] | torch.Tensor | None = None,
        scores: torch.Tensor | None = None,
    ) -> list[dict[str, Any]]:
        """Extract the boxes from answers, in the format of transformers' object detectors.

        Args:
            outputs: Generated ids of shape (B, L), or decoded answers.
            target_sizes: (height, width) of each image, to convert boxes from fractions to pixels.
            scores: Log-probabilities of the last S ids, of shape (B, S), from `grounding.token_log_probs`.

        Returns:
            A dictionary for each answer: `boxes` (N, 4), `text_labels` with the phrase of each box, `labels` with the
            same phrases, and `scores` (N,), the confidence of each box (see `grounding.score_boxes`). Without `scores`,
            all confidences are 1, because the text does not contain any.

        Raises:
            ValueError: If the number of sizes differs from the number of answers, or `scores` do not match the ids.
        """
        if scores is not None and (not isinstance(outputs, torch.Tensor) or scores.shape[0] != outputs.shape[0]):
            kind = "sequences" if isinstance(outputs, torch.Tensor) else "texts"
            raise ValueError(
                f"scores are for {scores.shape[0]} sequences of ids, but outputs are {len(outputs)} {kind}."
            )
        texts = self.batch_decode(outputs, skip_special_tokens=True) if isinstance(outputs, torch.Tensor) else outputs
        check_strings("outputs", texts)
        if target_sizes is not None and len(target_sizes) != len(texts):
            raise ValueError(f"Got {len(target_sizes)} target_sizes for {len(texts)} outputs.")
        results = []
        for index, text in enumerate(texts):
            size = None if target_sizes is None else (int(target_sizes[index][1]), int(target_sizes[index][0]))
            found = read_grounded_text(text)
            boxes = torch.tensor([box for _, _, boxes in found.entities(size) for box in boxes], dtype=torch.float32)
            labels = [region.phrase for region in found.regions for _ in region.boxes]
            confidence = torch.ones(len(labels))
            if scores is not None and isinstance(outputs, torch.Tensor):
                tokens = self.tokenizer.convert_ids_to_tokens(outputs[index, -scores.shape[1] :].tolist())
                confidence = torch.tensor(score_boxes(text, tokens, scores[index].tolist()), dtype=torch.float32)
            results.append(
                {"boxes": boxes.reshape(-1, 4), "text_labels": labels, "scores": confidence, "labels": list(labels)}
            )
        return results


def check_tokenizers(tokenizer: PreTrainedTokenizerBase, qformer_tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `ValueError` if the Q-Former tokenizer is not BERT's, or the other tokenizer has no end token."""
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"The tokenizer of the language model must be FlanT5's, but is {type(tokenizer).__name__}, which has no "
            "end token."
        )
    model = type(qformer_tokenizer.backend_tokenizer.model).__name__
    words = qformer_tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
    ids = (qformer_tokenizer.cls_token_id, qformer_tokenizer.sep_token_id)
    if model != "WordPiece" or qformer_tokenizer.unk_token not in words or None in ids:
        raise ValueError(
            f"qformer_tokenizer is {type(qformer_tokenizer).__name__} ({model}, {len(words)} pieces), but the Q-Former "
            f"needs BERT's WordPiece tokenizer with [UNK], [CLS] and [SEP]. Check the files in {QFORMER_TOKENIZER}/."
        )


def broadcast(name: str, value: Any, count: int) -> list[Any]:
    """Return `value` as a list with one entry per sample. A list is returned as is; any other value is repeated.

    Raises:
        ValueError: If the length of the list is not `count`.
    """
    if not isinstance(value, list | tuple):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{name} has {len(value)} entries for {count} samples.")
    return list(value)


def check_strings(name: str, values: Any) -> None:
    """Raise `ValueError` if `values` is not a list of strings."""
    if not isinstance(values, list | tuple):
        raise ValueError(f"{name} must be a string or a list of strings, but is {type(values).__name__}.")
    for position, value in enumerate(values):
        if not isinstance(value, str):
            kind = "a missing value" if is_missing(value) else type(value).__name__
            raise ValueError(f"{name} must contain only strings, but contains {kind} at position {position}.")


def task_type_id(task_type: str) -> int:
    """Return the id of a task, which is its row in the router.

    Raises:
        ValueError: If the task is unknown.
    """
    if task_type not in TASK_TYPES:
        raise ValueError(f"task_type is {task_type!r}, but must be one of {', '.join(map(repr, TASK_TYPES))}.")
    return TASK_TYPES.index(task_type)


__all__ = ["LionProcessor", "LionProcessorKwargs"]
