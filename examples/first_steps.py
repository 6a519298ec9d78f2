# %% [markdown]
# # Reading and editing a model
#
# Every tensor of a forward pass is a *site*: it can be recorded, edited and differentiated through. The model here is a
# Mamba whose weights were written by hand for associative recall, so it needs no download and its circuit is known.
# `mechint.load("state-spaces/mamba-130m-hf")` opens a real one.

# %%
import torch

import mechint
from mechint.ground_truth import BLUEPRINTS

compiled = BLUEPRINTS["recall"]().compile()
model, task = compiled.model, compiled.task
print(task.description)
prompts = task.sample(64, "evaluation", 0)
prompts.tokens[0], prompts.positions[0], prompts.answers[0]

# %% [markdown]
# The first sites of a layer, with their axes:

# %%
print(*[site for name, site in model.sites.items() if name.startswith("layers.0.")][:12], sep="\n")

# %% [markdown]
# One forward with sites recorded. The model answers every prompt.

# %%
run = mechint.run(model, prompts.tokens, record=["layers.0.state", "layers.0.dt"])
read = run.logits.gather(1, prompts.positions[..., None].expand(-1, -1, run.logits.shape[-1]))
accuracy = (read.argmax(-1) == prompts.answers).double().mean()
print(f"{accuracy:.1%} of answers are right")
run

# %% [markdown]
# An edit of the state is carried on by the recurrence. Here the memory is emptied behind the pairs, before the first
# question: the model is left with chance, 12.5 %, and with questions whose answer was given a moment before.

# %%
first_question = int(prompts.positions.min())
wipe = mechint.Edit("layers.0.state", "replace", 0.0, positions=[first_question - 1])
empty = mechint.run(model, prompts.tokens, edits=[wipe]).logits
read = empty.gather(1, prompts.positions[..., None].expand(-1, -1, empty.shape[-1]))
print(f"{(read.argmax(-1) == prompts.answers).double().mean():.1%} of answers are right")

# %% [markdown]
# Many edits are one sweep: each channel of the layer is zeroed in turn, and the sweep skips what no edit can change.

# %%
from mechint.interventions.sweep import sweep

rows = torch.arange(len(prompts.tokens))[:, None]


def right_logit(logits: torch.Tensor) -> torch.Tensor:
    """The mean logit of the right answers of each prompt, [..., prompt]."""
    return logits[..., rows, prompts.positions, prompts.answers].mean(-1)


cells = [[mechint.Edit("layers.0.readout", "scale", 0.0, units=[channel])] for channel in range(80)]
with torch.no_grad():
    lost = right_logit(model(prompts.tokens)) - sweep(model, prompts.tokens, cells, right_logit)  # [channel, prompt]
strongest = lost.mean(1).argsort(descending=True)[:8]
written = {unit[0] for layer, unit in compiled.truth.units("channel") if layer == 0}
print("channels whose loss costs most:", strongest.tolist())
print("all of them are in the circuit as it was written:", set(strongest.tolist()) <= written)
