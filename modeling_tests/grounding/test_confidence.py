import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from factories import row_of, tiny_inputs, tiny_model
from transformers_lion import LionProcessor
from transformers_lion.grounding import score_boxes, token_log_probs, token_spans

TEXT = "a dog [0.5,0,1,0.75], not?"
TOKENS = ["<pad>", "\u2581a", "\u2581dog", "\u2581[", "0.", "5", ",", "0", ",", "1,", "0", ".75", "],", "\u2581not",
          "\u2581?", "</s>"]  # fmt: skip


def test_tokens_are_found_in_the_text_they_were_decoded_to() -> None:
    spans = token_spans(TEXT, TOKENS)
    assert [TEXT[start:end] for start, end in spans] == [
        "", "a", "dog", "[", "0.", "5", ",", "0", ",", "1,", "0", ".75", "],", "not", "?", ""
    ]  # fmt: skip


def test_tokens_are_found_after_one_that_decodes_to_other_characters() -> None:
    text = "犬 [0,0,1,1]"
    tokens = ["<0xE7>", "<0x8A>", "<0xAC>", "\u0120[", "0", ",", "0", ",", "1", ",", "1", "]"]
    spans = token_spans(text, tokens)
    assert [text[start:end] for start, end in spans] == ["", "", "", "[", "0", ",", "0", ",", "1", ",", "1", "]"]


@given(st.lists(st.text(max_size=5), max_size=20), st.text(max_size=40))
def test_spans_of_any_tokens_are_in_order(tokens: list[str], text: str) -> None:
    spans = token_spans(text, tokens)
    edges = [0, *(edge for span in spans for edge in span), len(text)]
    assert len(spans) == len(tokens)
    assert edges == sorted(edges)


def test_a_score_is_the_geometric_mean_over_tokens_with_digits() -> None:
    probabilities = {4: 0.5, 5: 0.25, 7: 1.0, 9: 0.5, 10: 0.8, 11: 0.1}  # of the tokens with digits
    log_probs = [math.log(probabilities.get(index, 0.01)) for index in range(len(TOKENS))]
    expected = (0.5 * 0.25 * 1.0 * 0.5 * 0.8 * 0.1) ** (1 / 6)
    assert score_boxes(TEXT, TOKENS, log_probs) == [pytest.approx(expected)]


def test_each_box_has_the_score_of_its_own_tokens() -> None:
    text = "[0,0,1,1;0,0,1,0] x [0,1,1,1]"
    tokens = list(text)
    log_probs = [math.log(0.9)] * 9 + [math.log(0.5)] * 10 + [-math.inf] * (len(tokens) - 19)
    assert score_boxes(text, tokens, log_probs) == [pytest.approx(0.9), pytest.approx(0.5), 0.0]


def test_a_box_that_no_token_wrote_has_no_score() -> None:
    assert math.isnan(score_boxes("[0,0,1,1]", ["x"], [0.0])[0])
    assert score_boxes("no box", ["\u2581no", "\u2581box"], [0.0, 0.0]) == []


def test_ids_unknown_to_the_tokenizer_are_ignored() -> None:
    assert score_boxes("[0,0,1,1]", [None, *"[0,0,1,1]", None], [-9.0, *[0.0] * 9, -9.0]) == [1.0]


def test_numbers_of_tokens_and_log_probs_must_agree() -> None:
    with pytest.raises(ValueError, match="1 log_probs for 2 tokens"):
        score_boxes("a b", ["a", "b"], [0.0])


@pytest.mark.parametrize("options", [{"num_beams": 1}, {"num_beams": 5}, {"num_beams": 5, "repetition_penalty": 1.5},
                                     {"num_beams": 3, "num_return_sequences": 2}])  # fmt: skip
def test_log_probabilities_are_those_of_the_model_for_greedy_and_beams(options: dict[str, Any]) -> None:
    model, inputs = tiny_model(), tiny_inputs(2)
    generated = model.generate(
        **inputs, **options, max_new_tokens=6, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    found = token_log_probs(model, generated)
    copies = options.get("num_return_sequences", 1)
    assert found.shape[0] == 2 * copies
    for row, ids in enumerate(generated.sequences):
        with torch.no_grad():
            logits = model(**row_of(inputs, row // copies), decoder_input_ids=ids[None, :-1]).logits[0]
        by_hand = logits.log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
        length = int((ids[1:] != model.generation_config.pad_token_id).sum())
        torch.testing.assert_close(found[row, :length], by_hand[:length], atol=1e-4, rtol=1e-4)


def test_without_logits_the_error_names_the_missing_option() -> None:
    model = tiny_model()
    generated = model.generate(**tiny_inputs(1), num_beams=1, max_new_tokens=2, return_dict_in_generate=True)
    with pytest.raises(ValueError, match="output_logits=True"):
        token_log_probs(model, generated)


def test_the_processor_fills_in_the_scores_of_generated_boxes(lion_processor: LionProcessor) -> None:
    tokenizer = lion_processor.tokenizer
    text = "dog [0.511,0.818,0.955,0.912]"
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    sequences = torch.tensor([[tokenizer.pad_token_id, *ids, 0]])
    tokens = tokenizer.convert_ids_to_tokens(ids)
    probabilities = [0.8 if any(letter.isdigit() for letter in token) else 0.1 for token in tokens]
    log_probs = torch.tensor([[*map(math.log, probabilities), 0.0]])
    (result,) = lion_processor.post_process_grounded_object_detection(sequences, scores=log_probs)
    assert result["scores"].tolist() == pytest.approx([0.8])
    (plain,) = lion_processor.post_process_grounded_object_detection(sequences)
    assert plain["scores"].tolist() == [1.0]
    assert plain["boxes"].equal(result["boxes"])


def test_scores_must_match_the_ids(lion_processor: LionProcessor) -> None:
    with pytest.raises(ValueError, match="scores are for 1 sequences of ids, but outputs are 1 texts"):
        lion_processor.post_process_grounded_object_detection(["a"], scores=torch.zeros(1, 3))
    with pytest.raises(ValueError, match="scores are for 2 sequences of ids, but outputs are 1 sequences"):
        lion_processor.post_process_grounded_object_detection(torch.zeros(1, 3).long(), scores=torch.zeros(2, 3))
