"""The state is where recall is kept: wiped, it is gone; restored, it is back; the residual does not bring it back."""

from __future__ import annotations

import pytest

import mechint
from mechint import Edit
from mechint.ground_truth import BLUEPRINTS


@pytest.mark.parametrize("seed", range(5))
def test_wiping_and_restoring_the_state_of_a_model_that_recalls(seed: int) -> None:
    """Wiped two tokens before the last query, restored one before it: state or residual, at the same token."""
    compiled = BLUEPRINTS["recall"]().compile(seed=seed)  # type: ignore[abstract]
    model, prompts = compiled.model, compiled.task.sample(600, "evaluation", seed)
    queries = prompts.tokens[:, 2 * compiled.task.pairs :: 2]
    prompts = prompts[(queries[:, :-1] != queries[:, -1:]).all(1)]  # an earlier query repeats the pair behind the wipe
    layers, length = range(model.config.n_layer), prompts.tokens.shape[1]
    clean = mechint.run(model, prompts.tokens, ["layers.*.state", "layers.*.resid_post"])

    def recalled(edits: list[Edit]) -> float:
        said = mechint.run(model, prompts.tokens, edits=edits).logits[:, -1].argmax(-1)
        return float((said == prompts.answers[:, -1]).double().mean())

    def restored(kind: str) -> list[Edit]:
        values = {f"layers.{i}.{kind}": clean[f"layers.{i}.{kind}"][:, length - 2 : length - 1] for i in layers}
        return [Edit(site, "replace", value, positions=[length - 2]) for site, value in values.items()]

    wipe = [Edit(f"layers.{i}.state", "replace", 0.0, positions=[length - 3]) for i in layers]
    wiped = recalled(wipe)
    assert len(prompts) > 200 and recalled([]) == 1.0
    assert wiped < 0.3
    assert recalled([*wipe, *restored("state")]) >= 0.95
    assert abs(recalled([*wipe, *restored("resid_post")]) - wiped) <= 0.05

    # only the layer that keeps the table matters, and only its propagating state: its read-out there is nobody's memory
    active = {part.layer for part in compiled.truth.parts if part.kind == "mode"}
    assert recalled([edit for i, edit in enumerate(wipe) if i not in active]) == 1.0
    assert recalled([edit for i, edit in enumerate(wipe) if i in active]) == wiped
    aside = [Edit(f"layers.{i}.state", "readout", 0.0, positions=[length - 3]) for i in layers]
    assert recalled(aside) == 1.0
