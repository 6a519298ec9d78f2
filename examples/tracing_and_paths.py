# %% [markdown]
# # Where an answer is carried, and through which parts
#
# Prompts have *twins* of the same length with another answer. Tracing puts tensors of the clean run into the run of the
# twin and asks how much of the answer comes back; path patching changes what one part gives another one, and nothing else.

# %%
import mechint
from mechint.ground_truth import BLUEPRINTS, GPT2_BLUEPRINTS

compiled = BLUEPRINTS["recall"]().compile()
asked = {"name": "recall", "pairs": compiled.task.pairs, "keys": compiled.task.keys, "values": compiled.task.values}

# %%
traced = mechint.trace(compiled.model, asked, prompts=8, eval_prompts=32, bootstrap=200, sites="resid_post")
traced

# %%
traced.plot_cells("resid_post")

# %% [markdown]
# Direct paths of a GPT-2 whose links are known. A large effect from `embed` to a query means that the head asks for what
# the token is.

# %%
known = GPT2_BLUEPRINTS["gpt2_induction"]().compile()
prompts = known.task.sample(32, "evaluation", 0)
effects = mechint.paths(known.model, prompts)
mean = effects.effects.mean(-1)
pairs = [
    (float(mean[i, j]), str(sender), str(receiver))
    for i, sender in enumerate(effects.senders)
    for j, receiver in enumerate(effects.receivers)
    if mean[i, j] == mean[i, j]
]
for effect, sender, receiver in sorted(pairs, key=lambda pair: -abs(pair[0]))[:6]:
    print(f"{sender:>22} → {receiver:<22} {effect:8.2f}")
