"""Keys of dictionaries' configurations: understood, without effect, or refused by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ...models.loading.config_keys import listed, off, short_name
from ...utils.errors import MechintError, shown

LARGEST = 2**31
"""No size of a dictionary is larger."""
SAE_LENS = listed(
    """
    architecture d_in d_sae k apply_b_dec_to_input normalize_activations reshape_activations metadata
    rescale_acts_by_decoder_norm activation_fn_str activation_fn activation_fn_kwargs finetuning_scaling_factor
    """
)
SAE_LENS_HARMLESS = listed(
    """
    dtype device model_name model_class_name model_from_pretrained_kwargs hook_name hook_layer hook_head_index
    hook_point hook_point_layer hook_point_head_index prepend_bos dataset_path dataset_trust_remote_code
    context_size seqpos_slice sae_lens_version sae_lens_training_version neuronpedia_id from_pretrained_path
    """
)
DICTIONARY_LEARNING_HARMLESS = listed(
    """
    trainer_class lr l1_penalty l2_penalty warmup_steps sparsity_warmup_steps steps decay_start device
    wandb_name resample_steps auxk_alpha threshold_beta threshold_start_step top_k_aux group_fractions
    group_weights group_sizes k_anneal_steps bandwidth sparsity_penalty target_l0 seed layer lm_name
    submodule_name p_start p_end anneal_start anneal_end sparsity_function sparsity_queue_length
    n_sparsity_updates initial_sparsity_penalty lambda_l1 use_wandb k_start decay_end momentum log_steps p
    l1_warmup_steps initial_bandwidth
    """
)
CHANGED_HEADS = listed("fold_value_biases refactor_factored_attn_matrices")
"""Arguments of TransformerLens' loader that change queries, keys, values and the outputs of heads."""
WRITTEN = listed("embed pos_embed resid_pre resid_mid resid_post attn_out mlp_out")
"""Hooks of TransformerLens whose values have no mean over the width once writing weights are centred."""
SPARSIFY = listed("activation expansion_factor num_latents k skip_connection transcode d_in")
SPARSIFY_HARMLESS = listed("normalize_decoder multi_topk")


def refuse_unknown(raw: Mapping[str, Any], known: Collection[str], where: object) -> None:
    """Raises :class:`MechintError` naming the keys that are on and that nothing here reads."""
    on = {name: value for name, value in raw.items() if name not in known and not off(value)}
    unknown = [f"{short_name(name)} = {shown(value, 40)}" for name, value in on.items()]
    if unknown:
        raise MechintError(
            f"{where}: the configuration has {', '.join(unknown[:4])}{' …' * (len(unknown) > 4)}, which may change "
            "what the dictionary computes and is not read here; remove what has no effect"
        )


def size(raw: Mapping[str, Any], name: str, where: object, default: int | None = None) -> int:
    """A positive whole number of a configuration.

    Raises:
        MechintError: it is not there, no whole number, or no size of a dictionary.
    """
    value = raw.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= LARGEST:
        raise MechintError(
            f"{where} is not the configuration of a dictionary: {name} is {shown(value)}, which is not a size; "
            "correct it"
        )
    return value


def switch(raw: Mapping[str, Any], name: str, default: bool, where: object) -> bool:
    """A switch of a configuration; None is the default.

    Raises:
        MechintError: it is not a switch.
    """
    value = default if raw.get(name) is None else raw[name]
    if not isinstance(value, bool):
        raise MechintError(f"{where}: {name} is {shown(value)}, which is neither true nor false; correct it")
    return value


def text(raw: Mapping[str, Any], name: str) -> str:
    """A word that says where a dictionary comes from; '' where there is none."""
    return raw[name] if isinstance(raw.get(name), str) else ""
