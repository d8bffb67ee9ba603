import re
from collections import Counter

import numpy as np
import pytest

from examples.small_world.language import (
    ASKERS,
    KIND_WEIGHTS,
    RELATIONS,
    SUPERLATIVES,
    Sample,
    ask,
    caption,
    chatter,
    full_description,
    is_beside,
    roughen,
    unique_phrase,
)
from examples.small_world.scenes import COLORS, HELD_OUT_PAIRS, SHAPES, Scene, sample_scene
from examples.small_world.vocabulary import (
    language_model_tokenizer,
    qformer_tokenizer,
    sample_sentences,
)
from transformers_lion.grounding import extract_entities

SYNONYMS = {"little": "small", "big": "large"}


def samples(kind: str, count: int = 150) -> list[tuple[Scene, Sample]]:
    found = []
    for index in range(count):
        scene = sample_scene("train", index)
        sample = ASKERS[kind](np.random.default_rng(index), scene)
        if sample is not None:
            found.append((scene, sample))
    assert len(found) > count / 3
    return found


def fits(words: str, thing: object) -> bool:
    """Whether plain words (`little red circle`) are true of an object; an own reading, apart from the code's."""
    for word in words.split():
        word = SYNONYMS.get(word, word)
        if word in ("small", "large") and thing.size != word:
            return False
        if word in COLORS and thing.color != word:
            return False
        if word in SHAPES and thing.shape != word:
            return False
    return True


def resolve(phrase: str, scene: Scene) -> list[int]:
    """The objects that a referring expression means, by an own reading of it."""
    phrase = phrase.removeprefix("the ")
    for name, (axis, side) in RELATIONS.items():
        if f" {name} the " in phrase:
            words, anchor = phrase.split(f" {name} the ")
            anchors = [thing for thing in scene.objects if fits(anchor, thing)]
            assert len(anchors) == 1
            return [i for i, x in enumerate(scene.objects) if fits(words, x) and is_beside(x, anchors[0], axis, side)]
    first, _, rest = phrase.partition(" ")
    if first in SUPERLATIVES:
        axis, side = SUPERLATIVES[first]
        fitting = [index for index, thing in enumerate(scene.objects) if fits(rest, thing)]
        return [max(fitting, key=lambda index: side * scene.objects[index].center[axis])]
    return [index for index, thing in enumerate(scene.objects) if fits(phrase, thing)]


def test_a_referring_expression_means_its_object_alone() -> None:
    forms: Counter[str] = Counter()
    for index in range(300):
        scene = sample_scene("train", index)
        generator = np.random.default_rng(index)
        for target in range(len(scene.objects)):
            phrase = unique_phrase(generator, scene, target)
            if phrase is not None:
                assert resolve(phrase, scene) == [target], (phrase, scene)
                forms["beside" if any(f" {name} the " in phrase for name in RELATIONS) else
                      "superlative" if phrase.split()[1] in SUPERLATIVES else "plain"] += 1  # fmt: skip
    assert set(forms) == {"beside", "superlative", "plain"}


def test_answers_of_locating_are_the_objects_boxes() -> None:
    for scene, sample in samples("locate"):
        [(_, _, [box])] = extract_entities(sample.answer)[1]
        assert re.fullmatch(r"Answer: \[(\d\.\d{3},){3}\d\.\d{3}\]", sample.answer)
        assert np.allclose(box, scene.objects[sample.target].box, atol=6e-4)


def test_captions_name_every_object_from_left_to_right() -> None:
    for index in range(50):
        scene = sample_scene("train", index)
        ordered = sorted(scene.objects, key=lambda thing: thing.center[0])
        positions = [caption(scene).find(full_description(thing)) for thing in ordered]
        assert min(positions) >= 0
        assert caption(scene).endswith(f"{scene.background} background")


def test_existence_is_true_of_the_scene_and_balanced() -> None:
    answers: Counter[str] = Counter()
    for scene, sample in samples("existence", 600):
        words = set(re.findall(r"[a-z]+", sample.question)) | {
            singular for word in re.findall(r"[a-z]+", sample.question)
            for singular in (word.removesuffix("s"), word.removesuffix("es"))
        }  # fmt: skip
        present = any(
            all(getattr(thing, part) in words or not words & options for part, options in (
                ("size", {"small", "little", "large", "big"}), ("color", set(COLORS)), ("shape", set(SHAPES))
            ) if part != "size") and (not words & {"small", "little"} or thing.size == "small")
            and (not words & {"large", "big"} or thing.size == "large")
            for thing in scene.objects
        )  # fmt: skip
        assert sample.answer == ("yes" if present else "no"), (sample, scene)
        answers[sample.answer] += 1
    assert 0.42 < answers["yes"] / answers.total() < 0.58


def test_counts_are_right_and_none_is_asked_for_too() -> None:
    numbers: Counter[str] = Counter()
    for scene, sample in samples("count", 300):
        plural = re.search(
            r"((?:(?:small|little|large|big) )?(?:\w+ )?)(\w+?)(?:e?s)? (?:are|in|can|does)|$", sample.question
        )
        assert plural is not None
        numbers[sample.answer] += 1
        assert 0 <= int(sample.answer) <= len(scene.objects)
    assert {"0", "1", "2"} <= set(numbers)


def test_relations_are_never_a_close_call() -> None:
    answers = Counter(sample.answer for _, sample in samples("relation", 400))
    assert 0.35 < answers["yes"] / answers.total() < 0.65


@pytest.mark.parametrize("kind", ["color", "shape", "size"])
def test_a_question_for_an_attribute_does_not_say_it(kind: str) -> None:
    for scene, sample in samples(kind):
        assert sample.answer == getattr(scene.objects[sample.target], kind)
        if kind != "size":
            subject = re.split("|".join(f" {name} the " for name in RELATIONS), sample.question)[0]
            assert sample.answer not in re.findall(r"[a-z]+", subject)


def test_questions_of_the_training_world_name_no_held_out_pair() -> None:
    pairs = [f"{color} {shape}" for color, shape in HELD_OUT_PAIRS]
    for sentence in sample_sentences(150):
        for pair in pairs:
            assert pair not in sentence.replace("es ", " ").replace("s ", " "), sentence


def test_all_kinds_are_asked_by_their_weights() -> None:
    generator, counts = np.random.default_rng(0), Counter()
    scene = next(sample_scene("train", i) for i in range(99) if len(sample_scene("train", i).objects) == 3)
    counts.update(ask(generator, scene).kind for _ in range(2000))
    for kind, weight in KIND_WEIGHTS.items():
        assert abs(counts[kind] / 2000 - weight) < 0.05


def test_roughened_questions_keep_their_words() -> None:
    generator = np.random.default_rng(0)
    for _, sample in samples("locate", 40):
        words = re.findall(r"[a-z]+", roughen(generator, sample.question).lower())
        assert [word for word in words if word != "please"] == [
            word for word in re.findall(r"[a-z]+", sample.question.lower()) if word != "please"
        ]


def test_chatter_keeps_what_is_asked_and_most_often_changes_how() -> None:
    generator, changed = np.random.default_rng(0), 0
    for _, sample in samples("locate", 60):
        said = chatter(generator, sample.question)
        changed += said != sample.question
        named = re.findall("|".join([*COLORS, *SHAPES, *SUPERLATIVES]), sample.question)
        assert all(word in said.lower() for word in named)
    assert changed > 40


def test_the_worlds_sentences_are_words_to_both_tokenizers() -> None:
    language, questions = language_model_tokenizer(), qformer_tokenizer()
    for sentence in sample_sentences(60):
        assert language.unk_token_id not in language(sentence).input_ids
        assert questions.unk_token_id not in questions(sentence).input_ids
        pieces = [piece.strip("▁") for piece in language.tokenize(sentence.replace("<image>", ""))]
        words = set(re.findall(r"[A-Za-z]+", sentence))
        assert all(piece in words for piece in pieces if piece.isalpha()), sentence
        assert language.decode(language(sentence).input_ids, skip_special_tokens=True) == sentence


def test_other_text_is_spelled_out() -> None:
    tokenizer = language_model_tokenizer()
    ids = tokenizer("Zebras! 1+1=2").input_ids
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Zebras! 1+1=2"
