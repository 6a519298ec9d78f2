"""Replacement values for patching: means of a site over the discovery prompts' tokens of the same role."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...interventions.model import Model
from ...interventions.run import run
from ...utils.errors import MechintError
from ..ablation import means, of_role
from ..loader import PromptLoader


class RoleValues:
    """Means of sites by role of the token, so that prompts of other lengths and layouts have values to be given.

    Args:
        model: From :func:`mechint.load`.
        sites: Names of sites with as many entries at every position.
        loader: The discovery prompts, answered or not; each token counts once.

    Attributes:
        means: By site [role, unit …]; NaN for a role that no token has.
    """

    @torch.no_grad()
    def __init__(self, model: Model, sites: Sequence[str], loader: PromptLoader) -> None:
        if uneven := [site for site in sites if model.sites[site].has_sources]:
            raise MechintError(
                f"{uneven[0]} has an entry for each token of its prompt, so prompts have no mean of it; take the "
                f"twins' values or other sites"
            )
        self.names, _ = loader.task.roles(loader.groups[0])
        read = lambda batch: run(model, batch.tokens, sites, logits_at=batch.positions[:, :0]).values
        roles = of_role(lambda batch: loader.task.roles(batch)[1], len(self.names))
        found, count = means(loader, read, roles)
        dtype = torch.float64 if next(model.parameters()).dtype == torch.float64 else torch.float32
        self.means = {site: mean.to(dtype) for site, mean in found.items()}
        self.there = (torch.as_tensor(count) > 0).cpu()

    def of(self, roles: Tensor, sites: Sequence[str]) -> dict[str, Tensor]:
        """The values for tokens of these roles [n, L], by site [n, L, unit …]; tokens without a role get zeros.

        Raises:
            MechintError: no discovery prompt has a token of one of the roles.
        """
        for role in sorted(set(roles.flatten().tolist()) - {-1}):
            if not self.there[role]:
                raise MechintError(
                    f"no discovery prompt has a token of the role {self.names[role]!r} to take a mean over; take more "
                    f"discovery prompts"
                )
        at = roles.to(next(iter(self.means.values())).device)
        found = {site: self.means[site][at.clamp(min=0)] for site in sites}
        return {site: value.masked_fill((at < 0).view(*at.shape, *[1] * (value.dim() - 2)), 0.0) for site, value in
                found.items()}  # fmt: skip
