"""Contexts of latents for whoever explains them, and other contexts for the judge of the explanations.

The strongest contexts of a latent are shown to the explainer. Held out are contexts drawn from all intervals of its
activation, in rows that are not shown, and as many contexts of rows without any activation of it, at the same
positions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....interventions.model import Model
from ....interventions.prefix import up_to
from ....sae.activations.contexts import excluded, special_kinds
from ....sae.activations.flattening import check_fit, flatten, rule_of, strongest
from ....sae.base import SparseAutoencoder
from ....tasks import READERS
from ....tasks.base import generator
from ....utils import files
from ....utils.errors import MechintError
from .stored_latents import Latents

SHOWN, HELD_OUT = "contexts.jsonl", "held_out.jsonl"
FEWEST = 2
"""Held-out contexts of either kind without which a latent is not judged."""
ROWS = 64
"""Rows of one forward."""


@torch.no_grad()
def fires(latents: Latents, model: Model, sae: SparseAutoencoder) -> dict[int, Tensor]:
    """For each row of the text that is shown, the largest activation of each latent there, [latent].

    Raises:
        MechintError: the features are not of this dictionary and this model.
    """
    check_fit(sae, model, latents.site)
    raw = latents.raw
    tokenizer = model.tokenizer if raw["task"]["name"] in READERS else None
    left_out = torch.tensor(excluded(raw["config"].get("exclude", "")), dtype=torch.uint8)
    lengths: dict[int, list[int]] = {}
    for row, ids in latents.rows.items():
        lengths.setdefault(len(ids), []).append(row)
    found: dict[int, Tensor] = {}
    for rows in lengths.values():
        for some in (rows[k : k + ROWS] for k in range(0, len(rows), ROWS)):
            tokens = torch.tensor([latents.rows[row] for row in some])
            keep = ~torch.isin(special_kinds(tokens, tokenizer), left_out)
            x = flatten(up_to(model, tokens.to(model.device), latents.site)[0], rule_of(sae))
            f = strongest(sae.encode(x.flatten(0, -2)).view(*x.shape[:-1], -1)).cpu() * keep.unsqueeze(-1)
            found.update(zip(some, f.amax(1), strict=True))
    for number, feature in latents.features.items():
        for shown in (*feature["top"], *feature["samples"]):
            told, now = max(value for _, value in shown["acts"]), float(found[shown["row"]][number])
            if abs(now - told) > 1e-2 * abs(told):
                raise MechintError(
                    f"{latents.directory}: latent {number} of {latents.name} has {told} on a row where this model "
                    f"gives {now:.4g}; name the model and the run that belong together"
                )
    return found


def held_out(
    latents: Latents, feature: dict[str, Any], peaks: dict[int, Tensor], seed: int
) -> list[dict[str, Any]] | None:
    """The contexts that a judge is shown, active and silent in turn; None where there are too few."""
    number = int(feature["id"])
    seen = {int(shown["row"]) for shown in feature["top"]}
    active: dict[int, dict[str, Any]] = {}
    for shown in feature["samples"]:
        if int(shown["row"]) not in seen:
            active.setdefault(int(shown["row"]), shown)
    silent = [row for row in latents.rows if float(peaks[row][number]) == 0.0]
    draw = generator("silent contexts", seed, latents.name, number)
    order = [silent[k] for k in torch.randperm(len(silent), generator=draw).tolist()]
    found: list[dict[str, Any]] = []
    for shown in active.values():
        ids, _ = latents.window(shown)
        low, high = int(shown["from"]), int(shown["to"])
        row = next((row for row in order if len(latents.rows[row]) >= high), None)
        if row is None:
            continue
        order.remove(row)
        found.append(context(latents, ids, active=True))
        found.append(context(latents, latents.rows[row][low:high], active=False))
    return found if len(found) >= 2 * FEWEST else None


def context(latents: Latents, ids: Sequence[int], active: bool) -> dict[str, Any]:
    return {"text": latents.text(ids), "active": active}


def shown_to_explain(latents: Latents, feature: dict[str, Any]) -> dict[str, Any]:
    """A line for the explainer: the strongest contexts with the activation on each token, and tokens raised."""
    contexts = []
    for shown in feature["top"]:
        ids, values = latents.window(shown)
        contexts.append({
            "text": latents.text(ids), "tokens": [latents.words[token] for token in ids], "values": values,
            "peak": int(shown["peak"]) - int(shown["from"]),
        })  # fmt: skip
    words = lambda side: [latents.words[int(token)] for token, _ in feature.get(side, ())]
    return {
        "dictionary": latents.name, "site": latents.site, "latent": int(feature["id"]),
        "density": float(feature["density"]), "max": float(feature["max"]), "raises": words("raises"),
        "lowers": words("lowers"), "contexts": contexts,
    }  # fmt: skip


def write_contexts(
    every: Sequence[tuple[Latents, SparseAutoencoder]], model: Model, output: Path, seed: int
) -> tuple[int, int, list[Path]]:
    """Writes both files for the latents that can be judged.

    Returns:
        The number of latents written and of those left out, and the files.

    Raises:
        MechintError: no latent has contexts enough.
    """
    shown: list[dict[str, Any]] = []
    asked: list[dict[str, Any]] = []
    left_out = 0
    for latents, sae in every:
        peaks = fires(latents, model, sae)
        for number, feature in sorted(latents.features.items()):
            contexts = held_out(latents, feature, peaks, seed)
            if contexts is None:
                left_out += 1
                continue
            shown.append(shown_to_explain(latents, feature))
            asked.append({"dictionary": latents.name, "latent": number, "contexts": contexts})
    if not shown:
        raise MechintError(
            f"none of {left_out} latents has {FEWEST} contexts with and {FEWEST} without an activation beside those "
            f"that are shown; read features on more prompts"
        )
    lines = lambda rows: "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    written = [
        files.write_text(output / name, lines(rows)) for name, rows in ((SHOWN, shown), (HELD_OUT, asked))
    ]  # fmt: skip
    return len(shown), left_out, written
