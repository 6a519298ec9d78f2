# %% [markdown]
# # Coming from TransformerLens, SAELens or nnsight
#
# The same things under their names here. A site is a tensor of the forward pass, `layers.N.KIND`; what other libraries do by
# hooks is here a record or an edit of one.
#
# ## From TransformerLens
#
# | there | here |
# |---|---|
# | `HookedTransformer.from_pretrained("gpt2")` | `mechint.load("openai-community/gpt2")` |
# | `model.to_tokens(text)` | `torch.tensor([model.tokenizer.encode(text).ids])` |
# | `model(tokens)` | `model(tokens)` |
# | `model.run_with_cache(tokens)` | `run = mechint.run(model, tokens, record=["*"])`; `run.logits`, `run["layers.0.pattern"]` |
# | `model.run_with_hooks(tokens, fwd_hooks=[(name, f)])` | `mechint.run(model, tokens, edits=[mechint.Edit(site, "replace", f)])` |
# | `model.generate(tokens)` | `mechint.generate(model, tokens, 8, edits=[…])` |
# | `blocks.0.hook_resid_pre`, `…_mid`, `…_post` | `layers.0.resid_pre`, `layers.0.resid_mid`, `layers.0.resid_post` |
# | `blocks.0.attn.hook_q`, `hook_k`, `hook_v`, `hook_z` | `layers.0.q`, `layers.0.k`, `layers.0.v`, `layers.0.head_out` |
# | `blocks.0.attn.hook_attn_scores`, `hook_pattern` | `layers.0.scores`, `layers.0.pattern` |
# | `blocks.0.hook_attn_out`, `hook_mlp_out` | `layers.0.attn_out`, `layers.0.mlp_out` |
# | `blocks.0.mlp.hook_pre`, `hook_post` | `layers.0.mlp_pre`, `layers.0.mlp_post` |
# | `hook_embed`, `hook_pos_embed`, `ln_final.hook_normalized` | `embed`, `pos_embed`, `final_norm` |
# | activation patching in a loop | `mechint.trace`, `mechint.patch`, or `mechint.interventions.sweep.sweep` for cells of your own |
# | path patching | `mechint.paths` |
# | `cache.logit_attrs`, `cache.decompose_resid` | `mechint.lens(model, text, answer).contribution_frame()` |
#
# Weights are as they are on disk: no norm is folded, nothing is centred.
#
# ## From SAELens
#
# | there | here |
# |---|---|
# | `SAE.load_from_disk(directory)` | `mechint.sae.load(directory)` |
# | `sae.save_model(directory)` | `mechint.sae.save(sae, directory)` |
# | `sae.encode(x)`, `sae.decode(latents)` | the same |
# | `LanguageModelSAETrainingRunner(config).run()` | `mechint.analyse(model, "sae", task, sites="resid_post")`, with seeds, baselines and a feature browser |
#
# ## From nnsight
#
# | there | here |
# |---|---|
# | `with model.trace(text): h = model.transformer.h[0].output.save()` | `mechint.run(model, tokens, record=["layers.0.resid_post"])` |
# | `with model.trace(text): model.transformer.h[0].output[0][:] = 0` | `mechint.run(model, tokens, edits=[mechint.Edit("layers.0.resid_post", "replace", 0.0)])` |
# | `model.transformer.h[0].attn.output` while a forward runs | `with mechint.watch(model, [(0, "attn")]) as parts: model(tokens)`; `parts[0, "attn"].output` |
#
# What has no counterpart there: the state of a recurrence and its parts (`state`, `decay`, `write`, `readout`), edits that
# the recurrence carries on, and cuts of what one token gives another (`Edit("layers.0.state", "cut", …)`).

# %%
import torch

import mechint
from mechint.ground_truth import GPT2_BLUEPRINTS

compiled = GPT2_BLUEPRINTS["gpt2_induction"]().compile()
model = compiled.model
prompts = compiled.task.sample(4, "evaluation", 0)
tokens = prompts.tokens

# %% [markdown]
# `run_with_cache`:

# %%
run = mechint.run(model, tokens, record=["*"])
print(len(run), "sites, among them", [name for name in run if name.startswith("layers.0.")][:6])
run["layers.0.pattern"].shape

# %% [markdown]
# `run_with_hooks`, with a function of the clean tensor, at some heads and positions only:

# %%
halve = mechint.Edit("layers.0.head_out", "replace", lambda clean: clean / 2, units=[0], positions=[-1])
edited = mechint.run(model, tokens, edits=[halve])
print("changed at:", (edited.logits != run.logits).flatten(2).any(-1).any(0).nonzero().flatten().tolist())

# %% [markdown]
# A part of a layer by its usual name, while any forward runs:

# %%
with mechint.watch(model, [(0, "attn"), (1, "mlp")]) as parts:
    logits = model(tokens)
print(parts[0, "attn"].output.shape, torch.equal(parts[0, "attn"].output, run["layers.0.attn_out"]))
