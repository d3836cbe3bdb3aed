"""The backbone as transformers knows models: config, cache, and a causal language model.

An exported checkpoint carries this file and what it needs (`python -m train.publish`), so that
`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` works without this project.
Nothing of the backbone is done twice here: left padding is a document of its own, the cache is the
backbone's state, and thoughts are put in behind the first `<think>` of a text (`models.reading`).

Legend: B batch, T time, D width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from .backbone import Backbone
from .config import backbone_from_dict
from .depth.stop import Stop
from .reading import TextMemory, Way, read_text, text_segments


class PaucaConfig(PreTrainedConfig):
    """Settings of a published backbone.

    Attributes:
        backbone: the backbone's own settings (`models.config.BackboneConfig`) as plain data.
        context: tokens of a row in training.
        think_token_id: the token that thoughts follow; None where nothing thinks before it answers.
        thought_token_id: the token that stands at a thought's place, for schemes that read it.
        fills: whether answers are filled in where padding stands, in one pass, and not written.
    """

    model_type = "pauca"
    attribute_map = {"dim": "hidden_size", "num_layers": "num_hidden_layers"}  # noqa: RUF012
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012

    def __init__(
        self,
        backbone: dict[str, Any] | None = None,
        context: int = 0,
        think_token_id: int | None = None,
        thought_token_id: int | None = None,
        fills: bool = False,
        **kwargs: Any,
    ) -> None:
        self.backbone = backbone or {}
        self.context, self.fills = context, fills
        self.think_token_id, self.thought_token_id = think_token_id, thought_token_id
        for name, key in (
            ("vocab_size", "vocab_size"),
            ("hidden_size", "dim"),
            ("num_hidden_layers", "num_layers"),
            ("tie_word_embeddings", "tie_embeddings"),
        ):
            kwargs[name] = self.backbone.get(key, kwargs.get(name, 0))
        super().__init__(**kwargs)


class BackboneCache(Cache):
    """A backbone's state, as `generate` keeps and reorders caches.

    Args:
        max_len: tokens that each row can hold, padding included; thoughts have room beside them.
    """

    def __init__(self, max_len: int) -> None:
        super().__init__(layers=[])
        self.memory = TextMemory(max_len)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens read so far, padding included and thoughts not."""
        return self.memory.length

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Tokens that fit."""
        return self.memory.max_len

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep these rows, in this order: the beams that go on."""
        self.memory.take(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        self.memory.take(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        rows = torch.arange(max(0, self.batch_size)).repeat_interleave(repeats)
        if self.memory.thought_B is not None:
            self.memory.take(rows.to(self.memory.thought_B.device))

    def reset(self) -> None:
        """Forget everything."""
        self.memory = TextMemory(self.memory.max_len)

    def crop(self, tokens_to_remove: int) -> None:
        """Refused with ValueError, but for nothing: a recurrent state can't be taken back."""
        if tokens_to_remove:
            raise ValueError("a backbone's state can't be shortened: read the text anew instead")

    @property
    def batch_size(self) -> int:
        """Rows; -1 before anything was read."""
        return -1 if self.memory.thought_B is None else len(self.memory.thought_B)

    @property
    def is_compileable(self) -> bool:
        """Never: blocks are compiled, not the whole."""
        return False

    @property
    def is_croppable(self) -> bool:
        """Never."""
        return False


class PaucaForCausalLM(PreTrainedModel, GenerationMixin):
    """A published backbone.

    Beside what `forward` and `generate` take everywhere, both take `loops` (a loop count), `stop`
    (a rule by which tokens stop looping, such as "kl:0.01") and `thoughts` (their number behind
    `<think>`), where the backbone has a choice.
    """

    config_class = PaucaConfig
    base_model_prefix = "backbone"
    _tied_weights_keys = {"backbone.head.weight": "backbone.embedding.weight"}  # noqa: RUF012
    _is_stateful = True

    def __init__(self, config: PaucaConfig) -> None:
        super().__init__(config)
        self.backbone = Backbone(backbone_from_dict(config.backbone))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Clear counters, which no checkpoint holds; weights are drawn by the constructors."""
        for name in module._non_persistent_buffers_set:
            module.get_buffer(name).zero_()

    def get_input_embeddings(self) -> nn.Module:
        """The embedding."""
        return self.backbone.embedding

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.backbone.head

    def make_cache(self, max_len: int) -> BackboneCache:
        """Return an empty cache for texts of up to `max_len` tokens.

        Only for reading by hand, or in several calls of `generate`: one call makes its own.

        Raises:
            ValueError: the backbone fills answers in, so it keeps nothing.
        """
        self._refuse_filling()
        return BackboneCache(max_len)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        loops: int | None = None,
        stop: str | None = None,
        thoughts: int | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Read tokens; the logits at the first `<think>` are those after its thoughts.

        Args:
            input_ids: token ids `[B, T]`.
            attention_mask: 0 where padding stands, of the cache's tokens and these; at a row's
                ends only.
            past_key_values: what was read before (see `make_cache`); it is brought on in place.
            labels: token ids to be predicted, not shifted; -100 has no weight.
            use_cache: whether to make a cache where none is given; None is no.
            logits_to_keep: read out so many last places, or these; 0 is all.
            loops: loop count; None is the backbone's own.
            stop: rule by which tokens stop looping; None is the backbone's own.
            thoughts: thoughts behind the first `<think>`; None is the backbone's own number.
            kwargs: handed to the loss.

        Raises:
            ValueError: on what the backbone can't run, in one line.
        """
        cache = past_key_values
        if cache is None and use_cache:
            cache = self.make_cache(max(self.config.context, 2 * input_ids.shape[1]))
        memory = None if cache is None else self._memory_of(cache)
        segments_BT = text_segments(attention_mask, input_ids.shape[1])
        way = self._way(loops, stop, thoughts)
        hidden_BTD = read_text(self.backbone, input_ids, segments_BT, memory, way)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits_BTV = self.backbone.head(hidden_BTD[:, kept])
        loss: Any = None
        if labels is not None:
            loss = self.loss_function(logits_BTV, labels, self.config.vocab_size, **kwargs)
        made: Any = logits_BTV
        return CausalLMOutputWithPast(loss=loss, logits=made, past_key_values=cache)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Continue prompts, as `GenerationMixin.generate` does.

        Raises:
            ValueError: answers of this backbone are filled in, or its vectors need a cache.
        """
        self._refuse_filling()
        if self.backbone.latent.sees_ahead and kwargs.get("use_cache") is False:
            raise ValueError(
                "use_cache=False: this backbone infers vectors from a prompt alone, which without a"
                " cache can't be told from what follows it: leave use_cache out"
            )
        mixin: Any = super()
        return mixin.generate(*args, **kwargs)

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Make a state that holds the longest text asked for, in place of keys and values."""
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise ValueError(
                f"cache_implementation={generation_config.cache_implementation}: a backbone keeps "
                "a state of its own: leave cache_implementation out"
            )
        if generation_config.use_cache is False or model_kwargs.get("past_key_values") is not None:
            return
        model_kwargs["past_key_values"] = BackboneCache(generation_config.max_length)

    def _way(self, loops: int | None, stop: str | None, thoughts: int | None) -> Way:
        rule = None if stop is None else Stop.parse(stop)
        count = self.backbone.config.latent.slots(thoughts)
        return Way(
            loops, rule, count, self.config.think_token_id, self.config.thought_token_id or 0
        )

    def _memory_of(self, cache: Any) -> TextMemory:
        self._refuse_filling()
        if not isinstance(cache, BackboneCache):
            raise ValueError(
                f"past_key_values is a {type(cache).__name__}: a backbone keeps a state of its own:"
                " make one with model.make_cache(max_len)"
            )
        return cache.memory

    def _refuse_filling(self) -> None:
        if self.config.fills:
            raise ValueError(
                "this backbone fills answers in and can't write word by word: put padding where the"
                " answer goes and take the likeliest token of the logits there"
            )
