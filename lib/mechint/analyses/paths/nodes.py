"""The senders and receivers of path patching, as options name them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...interventions.model import Model, layer_kinds
from ...interventions.path_patching import END, Node, Place, check_node, check_path, places
from ...utils.errors import MechintError, an, did_you_mean
from ...utils.options import listed

READS = (
    ("q", "k", "v"),
    ("key", "value", "query", "decay", "z"),
    ("x", "z", "dt", "B", "C"),
)
"""Inputs of a part, by kind of site. A part has the first row whose first kind it has, or it is a receiver as a
whole."""
ANY_LENGTH = 2**40
"""Positions are checked against the prompts, once there are any."""

Said = str | Sequence[str]


def senders(model: Model, said: Said = "usual", heads: bool = True) -> list[Node]:
    """The nodes that give something, in the order of the forward.

    Raises:
        MechintError: a name that the model has no site for; no name at all.
    """
    return chosen(model, said, usual_senders(model), heads, "sender")


def receivers(model: Model, said: Said = "usual", heads: bool = True) -> list[Node]:
    """The nodes that are given something, in the order of the forward.

    Raises:
        MechintError: a name that the model has no site for; no name at all.
    """
    return chosen(model, said, usual_receivers(model), heads, "receiver")


def paths(model: Model, said: Said) -> list[list[Node]]:
    """Paths of several parts, each written as ``embed > layers.0.attn_out > logits``.

    Raises:
        MechintError: a part that does not exist, or one that reads before the part before it writes.
    """
    texts = [said] if isinstance(said, str) else list(said)
    texts = [path for text in texts for path in listed(re.sub(r"\s*>\s*", ">", text), "paths: further paths")]
    found = [[Node.parse(name) for name in text.split(">")] for text in texts]
    for path in found:
        check_path(model, places(model), path, ANY_LENGTH)
    return found


def chosen(model: Model, said: Said, usual: Sequence[str], heads: bool, what: str) -> list[Node]:
    """Nodes of kinds of site in all layers, and of single sites."""
    known, kinds = places(model), [END, *model.first_sites, *layer_kinds(model)]
    names = [said.strip()] if isinstance(said, str) else list(said)
    if names == ["usual"]:
        return [node for site in usual for node in split(model, site, heads)]
    names = [part for name in names for part in listed(name, f"paths: {what}s")]
    if not names:
        raise MechintError(f"paths: no {what} is named; leave it at 'usual', or name sites such as {usual[0]}")
    found: list[Node] = []
    for name in names:
        if name in kinds and name not in known:
            here = [f"layers.{layer}.{name}" for layer in range(model.num_layers)]
            sites = [site for site in here if site in known]
            if not sites:
                raise MechintError(f"paths: {name!r} is no {what}: it is the residual stream, or has several sources")
            found += [node for site in sites for node in split(model, site, heads)]
            continue
        node = Node.parse(name)
        if "." not in node.site and node.site not in known:
            raise MechintError(
                f"paths: {an(model.config.family)} model has no kind of site {name!r}{did_you_mean(name, kinds)}; it "
                f"has {', '.join(kinds)}"
            )
        check_node(model, known, node, ANY_LENGTH, what)
        found.append(node)
    order = {site: k for k, site in enumerate(known)}
    return sorted(dict.fromkeys(found), key=lambda node: (order[node.site], -1 if node.unit is None else node.unit))


def split(model: Model, site: str, heads: bool) -> list[Node]:
    """A node for each head of a site, or one of all."""
    spec = model.sites[site]
    if heads and spec.axes[2] == "head":
        return [Node(site, head) for head in range(spec.units[0])]
    return [Node(site)]


def parts(model: Model) -> list[list[str]]:
    """The sites of every part, each ending with the one that is added to the stream."""
    found: list[list[str]] = []
    last: Place | None = None
    closed = True
    for site, place in places(model).items():
        if site == END or place.layer < 0:
            continue
        if closed or place != last:
            found.append([])
        found[-1].append(site)
        last, closed = place, site in place.added
    return [sites for sites in found if sites[-1] in places(model)[sites[-1]].added]


def usual_senders(model: Model) -> list[str]:
    """The embeddings; of each part what its output projection reads, where that is heads, or else what it adds."""
    found = [model.first_sites[0]]
    for sites in parts(model):
        by_head = [site for site in sites if kind(site) in model.projected and model.sites[site].axes[2] == "head"]
        found.append(by_head[-1] if by_head else sites[-1])
    return found


def usual_receivers(model: Model) -> list[str]:
    """The inputs of each part that :data:`READS` has a row for, or the whole part; and the logits."""
    found = []
    for sites in parts(model):
        there = {kind(site): site for site in sites}
        row = next((row for row in READS if row[0] in there), ())
        found += [there[name] for name in row if name in there] or [sites[-1]]
    return [*found, END]


def axes(model: Model) -> dict[str, str]:
    """The axis that the units of every site are counted along."""
    return {name: site.axes[2] for name, site in model.sites.items()}


def kind(site: str) -> str:
    """The name of a site within its layer."""
    return site.rpartition(".")[2]
