"""What a site usually holds: its mean over the discovery prompts' tokens of the same role."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...interventions.model import Model
from ...interventions.run import run
from ...utils.errors import MechintError
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
        sums: dict[str, Tensor] = {}
        self.names: tuple[str, ...] = ()
        for batch in loader:
            self.names, roles = loader.task.roles(batch)
            member = torch.nn.functional.one_hot(roles.to(batch.tokens.device) + 1, len(self.names) + 1)[
                ..., 1:
            ].double()
            values = run(model, batch.tokens, sites, logits_at=batch.positions[:, :0]).values
            found = {"": member.sum((0, 1))} | {
                site: torch.einsum("nlr,nl...->r...", member, values[site].double()) for site in sites
            }
            sums = {site: value + sums[site] if sums else value for site, value in found.items()}
        count = sums.pop("")  # [role]
        dtype = torch.float64 if next(model.parameters()).dtype == torch.float64 else torch.float32
        self.means = {
            site: (total / count.view(-1, *[1] * (total.dim() - 1))).to(dtype) for site, total in sums.items()
        }
        self.there = (count > 0).cpu()

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
