# %% [markdown]
# # Numbers of finished runs
#
# Every finished run is a directory with `results.json`, a report and its figures' data. `mechint.results` reads one, or
# all of a directory, as rows of tables.

# %%
import tempfile

import mechint
from mechint.ground_truth import BLUEPRINTS

folder = tempfile.mkdtemp()
for seed in (0, 1):
    compiled = BLUEPRINTS["recall"]().compile(seed=seed)
    mechint.analyse(
        compiled.model, "sparsity", {"name": "recall", "pairs": 3, "keys": 8, "values": 8},
        output_dir=f"{folder}/seed{seed}", prompts=16, eval_prompts=32, controls=1, bootstrap=200,
    )  # fmt: skip
runs = mechint.results(folder)
runs

# %%
for run in runs:
    print(run.headline)

# %% [markdown]
# A row for each number; `frame()` gives the same as a pandas DataFrame.

# %%
rows = [row for row in runs.rows("cells") if row["metric"] == "gini" and row["site"] == "resid_post"]
for row in rows:
    print(row["layer"], row["site"], f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]", f"n = {row['n']}")

# %%
runs[0].plot_cells("out")
