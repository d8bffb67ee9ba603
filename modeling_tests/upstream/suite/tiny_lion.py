"""A tiny LION, whole: configuration, tokenizers, processor and a folder with all of it."""

from pathlib import Path

from transformers import BertTokenizer, T5Tokenizer

from transformers_lion import LionConfig, LionForConditionalGeneration, LionImageProcessor, LionProcessor

IMAGE_SIZE = 8
PATCH_SIZE = 4
NUM_PATCHES = (IMAGE_SIZE // PATCH_SIZE) ** 2 + 1
NUM_QUERY_TOKENS = 4
VISION = {
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH_SIZE,
    "initializer_range": 0.2,
}
QFORMER = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
AGGREGATOR = {
    "vision_feature_layers": [1, 0],
    "num_attention_heads": 4,
    "intermediate_size": 37,
}
TEXT = {
    "vocab_size": 99,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 37,
    "num_layers": 2,
    "num_heads": 4,
    "adapter_hidden_size": 8,
    "relative_attention_num_buckets": 8,
    "initializer_factor": 1.0,  # larger than the T5 checks of transformers, which could not see much at 0.002
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
WORDS = ["lower", "newer", "upper", "older", "longer", "string", "a", "cat", "dog", "is", "the", "what", "this"]
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,?!:;'()[]<>_-/"


def tiny_config(**overrides) -> LionConfig:
    """Both branches, two adapters, a soft prompt; nothing wider than 37."""
    parts = {
        "vision_config": dict(VISION),
        "qformer_config": dict(QFORMER),
        "aggregator_config": dict(AGGREGATOR),
        "text_config": dict(TEXT),
        "num_query_tokens": NUM_QUERY_TOKENS,
        "soft_prompt_token_id": 5,  # not the last, so that the checks may shrink the vocabulary
    }
    return LionConfig(**{**parts, **overrides})


def t5_tokenizer() -> T5Tokenizer:
    pieces = ["▁", *("▁" + word for word in WORDS), *LETTERS]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocab += [(piece, -2.0 - 0.01 * rank) for rank, piece in enumerate(pieces)]
    return T5Tokenizer(vocab=vocab, extra_ids=4)


def bert_tokenizer() -> BertTokenizer:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *LETTERS, *("##" + letter for letter in LETTERS)]
    return BertTokenizer(vocab={token: index for index, token in enumerate(dict.fromkeys(tokens))})


def image_processor() -> LionImageProcessor:
    return LionImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})


def tiny_processor() -> LionProcessor:
    return LionProcessor(image_processor(), t5_tokenizer(), bert_tokenizer())


def save_tiny_lion(folder: Path) -> None:
    """Write a model with seeded noise for weights, and its processor."""
    processor = tiny_processor()
    config = tiny_config(
        qformer_config={**QFORMER, "vocab_size": len(processor.qformer_tokenizer)},
        text_config={**TEXT, "vocab_size": len(processor.tokenizer)},
        soft_prompt_token_id=processor.soft_prompt_token_id,
    )
    LionForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
