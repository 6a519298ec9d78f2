# %% [markdown]
# # Finding a circuit, and checking it against the truth
#
# `mechint.circuit` finds the channels that a task needs, on a model whose circuit is known: weights were written by hand
# for associative recall. `mechint.circuit("output/final_model_stepV0.pt", "recall")` does it for a checkpoint.

# %%
import mechint
from mechint.ground_truth import BLUEPRINTS

compiled = BLUEPRINTS["recall"]().compile()
model, task = compiled.model, compiled.task
asked = {"name": "recall", "pairs": task.pairs, "keys": task.keys, "values": task.values}
written = {unit[0] for layer, unit in compiled.truth.units("channel") if layer == 0}
print(f"{len(written)} of {model.config.n_layer * model.config.d_inner} channels were written to do the task")

# %% [markdown]
# The options make it quick; those of a real run are more prompts, steps and seeds (`mechint ssm --help`).

# %%
found = mechint.circuit(
    model, asked, prompts=32, eval_prompts=64, steps=20, bootstrap=200, seeds=1, random_circuits=4, ablation="zero"
)
found

# %% [markdown]
# The curve of faithfulness over sizes, and the controls beside it:

# %%
found.plot_curve()

# %%
kept = set(found.raw["layers"][0]["units"])
print(
    f"{len(kept)} channels of layer 0 are kept, {len(kept & written)} of them of the {len(written)} that were written"
)
for name in ("faithfulness", "faithfulness_random", "accuracy_circuit"):
    value = found.metrics[name]
    print(f"{name:<20} {value.value:.3f} [{value.low:.3f}, {value.high:.3f}]")
