"""LION and its tagger composed like the reference, from parts of transformers, as a baseline for the package.

Source: the authors' public code as of September 2025. Besides the mathematics, these properties are reproduced:

- Attention is computed eagerly, with all its probabilities, in all parts.
- Both adapters run at each feed-forward layer and are weighted afterwards. The task is state on the modules.
- The image is encoded for each question, even if several questions are about the same image.
- The encoder output is repeated for each beam, and so are the keys and values of cross-attention.
- Generation has no effective cache. The reference's T5 expects the past under the name `past`, which transformers no
  longer uses. Each step therefore decodes all previous tokens again, recomputes the keys and values of the encoder
  output, and discards what it cached (transformers still reorders it among beams).
- Training keeps graphs through the last text positions of the Q-Former, which affect no output.
- The tagger projects its labels and repeats them for each image in every call.

Not reproduced are tokenization inside the model, and code for older versions of transformers and PyTorch. Nothing here
uses the forward methods of the package, so that optimizing them does not change this baseline.
"""

import copy
from typing import Any

import torch
from torch import nn
from transformers import (
    InstructBlipQFormerModel,
    InstructBlipVisionModel,
    SwinModel,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.models.instructblip.modeling_instructblip import (
    InstructBlipQFormerAttention,
    InstructBlipQFormerIntermediate,
    InstructBlipQFormerOutput,
)
from transformers.models.t5.modeling_t5 import T5LayerFF

from transformers_lion import LionConfig, LionForConditionalGeneration
from transformers_lion.ram import RamConfig, RamForImageTagging

EAGER = {"attn_implementation": "eager"}


class Adapter(nn.Module):
    """One bottleneck adapter."""

    def __init__(self, width: int, bottleneck: int):
        super().__init__()
        self.down_proj = nn.Linear(width, bottleneck)
        self.up_proj = nn.Linear(bottleneck, width)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.up_proj(torch.relu(self.down_proj(hidden_states))) * self.scale


class Mixture(nn.Module):
    """Both adapters, weighted by the row of the most recently set task."""

    def __init__(self, width: int, bottleneck: int):
        super().__init__()
        self.adapters = nn.ModuleList([Adapter(width, bottleneck) for _ in range(2)])
        self.router = nn.ModuleList([nn.Embedding(2, width) for _ in range(2)])
        self.task = 1

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        first, second = (adapter(hidden_states) for adapter in self.adapters)
        return first * self.router[0].weight[self.task] + second * self.router[1].weight[self.task]


class FeedForward(T5LayerFF):
    """T5's feed-forward sublayer, plus the mixture on the same input."""

    def __init__(self, config: T5Config, bottleneck: int):
        super().__init__(config)
        self.adapter = Mixture(config.d_model, bottleneck)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        adapted = self.adapter(hidden_states)
        return super().forward(hidden_states) + adapted


class UncachedT5(T5ForConditionalGeneration):
    """T5 whose `prepare_inputs_for_generation` ignores `past_key_values`."""

    def prepare_inputs_for_generation(  # the cache is in `kwargs` and is dropped
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_outputs: Any = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        return {
            "decoder_input_ids": input_ids,
            "encoder_outputs": encoder_outputs,
            "attention_mask": attention_mask,
            "use_cache": use_cache,
        }


class AggregatorLayer(nn.Module):
    """Self-attention, cross-attention, feed-forward."""

    def __init__(self, config: Any):
        super().__init__()
        self.attention = InstructBlipQFormerAttention(config)
        self.crossattention = InstructBlipQFormerAttention(config, is_cross_attention=True)
        self.intermediate = InstructBlipQFormerIntermediate(config)
        self.output = InstructBlipQFormerOutput(config)

    def forward(self, hidden_states: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
        hidden_states = self.attention(hidden_states)
        hidden_states = self.crossattention(hidden_states, encoder_hidden_states=depth)
        return self.output(self.intermediate(hidden_states), hidden_states)


class Projection(nn.Module):
    """Norm and two-layer MLP."""

    def __init__(self, width: int, output_width: int, eps: float):
        super().__init__()
        self.layernorm = nn.LayerNorm(width, eps=eps)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, output_width)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(self.layernorm(hidden_states))))


class ComposedLion(nn.Module):
    """LION with both branches. Parameters have LION's names, except for T5's feed-forward layers."""

    def __init__(self, config: LionConfig):
        super().__init__()
        self.config = config = copy.deepcopy(config)  # building a part sets its attention implementation
        text = config.text_config
        self.vision_model = InstructBlipVisionModel._from_config(config.vision_config, **EAGER)
        self.vision_model.post_layernorm.eps = config.vision_config.post_layernorm_eps
        self.query_tokens = nn.Embedding(config.num_query_tokens, config.qformer_config.hidden_size)
        self.qformer = InstructBlipQFormerModel._from_config(config.qformer_config, **EAGER)
        self.language_projection = nn.Linear(config.qformer_config.hidden_size, text.d_model)
        aggregator = config.aggregator_config
        aggregator._attn_implementation = "eager"
        layers = nn.ModuleList([AggregatorLayer(aggregator) for _ in range(aggregator.num_hidden_layers)])
        self.aggregator = nn.ModuleDict({"layers": layers})
        width = config.vision_config.hidden_size
        self.aggregator_projection = Projection(width, text.d_model, aggregator.projection_layer_norm_eps)
        self.soft_prompt = nn.Embedding(1, text.d_model)
        self.language_model = uncached_t5(config)

    def encode(
        self, pixel_values: torch.Tensor, qformer_input_ids: torch.Tensor, qformer_attention_mask: torch.Tensor
    ) -> torch.Tensor:
        """Compute the visual features that precede the text, (B, Q + P, D)."""
        vision = self.vision_model(pixel_values, output_hidden_states=True)
        states, *depths = (
            vision.hidden_states[block + 1] for block in self.config.aggregator_config.vision_feature_layers
        )
        for layer, depth in zip(self.aggregator["layers"], depths, strict=True):
            states = layer(states, depth)
        spatial = self.aggregator_projection(states)
        queries = self.query_tokens.weight.expand(len(pixel_values), -1, -1)
        mask = torch.cat([torch.ones(queries.shape[:2], dtype=torch.long), qformer_attention_mask], dim=1)
        patches = vision.last_hidden_state
        outputs = self.qformer(
            qformer_input_ids,
            attention_mask=mask,
            query_embeds=queries,
            encoder_hidden_states=patches,
            encoder_attention_mask=torch.ones(patches.shape[:2], dtype=torch.long),
        )
        query_features = self.language_projection(outputs.last_hidden_state[:, : queries.shape[1]])
        return torch.cat([query_features, spatial], dim=1)

    def merge(
        self, visual: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Compute the inputs of the language model."""
        embeds = self.language_model.shared(input_ids).clone()
        marked = (input_ids == self.config.soft_prompt_token_id).nonzero(as_tuple=True)
        embeds[marked] = self.soft_prompt.weight.expand(len(input_ids), -1)
        ones = torch.ones(visual.shape[:2], dtype=torch.long)
        return {
            "inputs_embeds": torch.cat([visual, embeds], dim=1),
            "attention_mask": torch.cat([ones, attention_mask], dim=1),
        }

    def set_task(self, task: int) -> None:
        for module in self.modules():
            if isinstance(module, Mixture):
                module.task = task

    def language_inputs(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Convert images and prompts to the inputs of the language model."""
        self.set_task(int(inputs["task_type_ids"][0]))
        visual = self.encode(inputs["pixel_values"], inputs["qformer_input_ids"], inputs["qformer_attention_mask"])
        return self.merge(visual, inputs["input_ids"], inputs["attention_mask"])

    def loss(self, inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        return self.language_model(**self.language_inputs(inputs), labels=labels).loss

    @torch.no_grad()
    def generate(self, inputs: dict[str, torch.Tensor], **options: Any) -> torch.Tensor:
        return self.language_model.generate(**self.language_inputs(inputs), **options)


def uncached_t5(config: LionConfig) -> UncachedT5:
    """Build FlanT5 with the mixture in each feed-forward layer and an untied `lm_head`."""
    fields = config.text_config.to_dict()
    text = T5Config(**{name: value for name, value in fields.items() if name != "model_type"})
    text.dense_act_fn, text.scale_decoder_outputs = fields["dense_act_fn"], fields["scale_decoder_outputs"]
    model = UncachedT5._from_config(text, **EAGER)
    model.lm_head = nn.Linear(text.d_model, text.vocab_size, bias=False)
    for stack in (model.encoder, model.decoder):
        for block in stack.block:
            block.layer[-1] = FeedForward(stack.config, config.text_config.adapter_hidden_size)
    return model


def composed_state(lion: LionForConditionalGeneration) -> dict[str, torch.Tensor]:
    """Rename LION's weights to the names used here."""
    state = {}
    for name, tensor in lion.state_dict().items():
        layers = "1" if ".encoder.block." in name else "2"
        state[name.replace(".feed_forward.", f".layer.{layers}.")] = tensor
    return state


def compose_lion(lion: LionForConditionalGeneration) -> ComposedLion:
    """Compose the same model, in eval mode, with its own copy of the weights."""
    model = ComposedLion(lion.config).eval()
    model.load_state_dict(composed_state(lion), strict=True)
    return model


class TaggingLayer(nn.Module):
    """Cross-attention and feed-forward."""

    def __init__(self, config: RamConfig):
        super().__init__()
        self.crossattention = InstructBlipQFormerAttention(config, is_cross_attention=True)
        self.intermediate = InstructBlipQFormerIntermediate(config)
        self.output = InstructBlipQFormerOutput(config)

    def forward(self, hidden_states: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden_states = self.crossattention(hidden_states, encoder_hidden_states=tokens, encoder_attention_mask=mask)
        return self.output(self.intermediate(hidden_states), hidden_states)


class ComposedTagger(nn.Module):
    """RAM's tagging, with all steps in every call."""

    def __init__(self, config: RamConfig):
        super().__init__()
        config = copy.deepcopy(config)
        config._attn_implementation = "eager"
        self.vision_model = SwinModel._from_config(config.vision_config, **EAGER)
        self.vision_projection = nn.Linear(config.vision_config.hidden_size, config.encoder_hidden_size)
        self.label_embeddings = nn.Embedding(config.num_labels, config.label_embed_dim)
        self.label_projection = nn.Linear(config.label_embed_dim, config.hidden_size)
        self.head = nn.ModuleDict(
            {"layers": nn.ModuleList([TaggingLayer(config) for _ in range(config.num_hidden_layers)])}
        )
        self.classifier = nn.Linear(config.hidden_size, 1)

    @torch.no_grad()
    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> logits (B, L)."""
        labels = torch.relu(self.label_projection(self.label_embeddings.weight))
        vision = self.vision_model(pixel_values)
        tokens = torch.cat([vision.pooler_output.unsqueeze(1), vision.last_hidden_state], dim=1)
        tokens = self.vision_projection(tokens)
        mask = torch.zeros(len(tokens), 1, 1, tokens.shape[1])
        states = labels.unsqueeze(0).repeat(len(tokens), 1, 1)
        for layer in self.head["layers"]:
            states = layer(states, tokens, mask)
        return self.classifier(states).squeeze(-1)


def compose_tagger(tagger: RamForImageTagging) -> ComposedTagger:
    """Compose the same tagger, in eval mode, with its own copy of the weights."""
    model = ComposedTagger(tagger.config).eval()
    model.load_state_dict(tagger.state_dict(), strict=True)
    return model
