"""The two tokenizers of the small world: each word of its sentences is one token, and all other words are spelled out.

The language model's tokenizer follows T5 (Unigram), with FlanT5's special tokens; numbers such as `0.440` are split
into `0.44` and `0`. The Q-Former's tokenizer follows BERT (WordPiece, lowercase).
"""

import re
import string
from collections.abc import Iterable

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from transformers_lion.processing_lion import TAG_PROMPT

from .language import ASKERS, RELATIONS, SUPERLATIVES, TEMPLATES, WORDS, article, pluralize
from .scenes import BACKGROUNDS, COLORS, SHAPES, SIZES, TAGS, sample_scene

SOFT_PROMPT_TOKEN = "<extra_id_0>"
WORD = re.compile(r"[A-Za-z]+")
SPACE = "▁"


def _world_words() -> list[str]:
    """Return all words of the small world's sentences, sorted, as written and with a lowercase first letter."""
    texts: list[str] = [
        *TAGS,
        *BACKGROUNDS,
        *COLORS,
        *SIZES,
        *RELATIONS,
        *SUPERLATIVES,
        *["yes", "no", "please", "Answer", "a", "an"],
    ]
    texts += [template for templates in TEMPLATES.values() for template in templates]
    texts += [option for options in WORDS.values() for option in options]
    texts += [pluralize(noun) for noun in (*SHAPES, *WORDS["object"])]
    texts.append(TAG_PROMPT.replace(SOFT_PROMPT_TOKEN, ""))
    texts.append("orientation caption using short single sentence where there on of and is it the")
    words = set(WORD.findall(" ".join(re.sub(r"\{\w+\}", "", text) for text in texts)))
    words |= set(WORD.findall(article("orange")))
    return sorted(words | {word.lower() for word in words} | {word.capitalize() for word in words})


def _number_pieces() -> list[str]:
    """`0.00` to `0.99` and `1.00`."""
    return [f"0.{value:02d}" for value in range(100)] + ["1.00"]


def language_model_tokenizer() -> PreTrainedTokenizerBase:
    """Build a T5-style tokenizer: pad 0, end of sequence 1, unknown 2, and the soft prompt's placeholder last."""
    words = _world_words()
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), (SPACE, -4.0)]
    pieces += [(SPACE + word, -2.0) for word in words]
    pieces += [(f"{SPACE}[", -2.0), *((number, -2.0) for number in _number_pieces())]
    pieces += [(character, -6.0) for character in string.digits + string.ascii_letters + string.punctuation]
    pieces.append((SOFT_PROMPT_TOKEN, 0.0))
    backend = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")
    backend.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always")
    backend.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=[SOFT_PROMPT_TOKEN], model_max_length=512,
        model_input_names=["input_ids", "attention_mask"], clean_up_tokenization_spaces=False,
    )  # fmt: skip


def qformer_tokenizer() -> PreTrainedTokenizerBase:
    """Build a BERT-style tokenizer, with `[DEC]` as in the reference."""
    characters = string.ascii_lowercase + string.digits + string.punctuation
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces += [*characters, *(f"##{c}" for c in string.ascii_lowercase + string.digits)]
    pieces += sorted({word.lower() for word in _world_words() if len(word) > 1})
    tokenizer = BertTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, do_lower_case=True)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    return tokenizer


def sample_sentences(count: int, seed: int = 0) -> Iterable[str]:
    """Return questions and answers of the training split, to inspect their tokenization."""
    for index in range(count):
        generator = np.random.default_rng([seed, index])
        for asker in ASKERS.values():
            sample = asker(generator, sample_scene("train", index, seed))
            if sample is not None:
                yield from (sample.question, sample.answer)


__all__ = ["language_model_tokenizer", "qformer_tokenizer", "sample_sentences"]
