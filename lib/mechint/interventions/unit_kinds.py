"""Kinds of unit of a family: which entries of a layer's sites a circuit keeps or drops together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..utils.errors import MechintError
from .sites import Site


@dataclass(frozen=True)
class Block:
    """Units of a layer that are found at the same sites, where a dropped one is replaced at all of them.

    Attributes:
        sites: Sites of a layer.
        axes: Number of a site's unit axes that tell the units apart: None for all, 0 when the whole site is one unit,
            1 at ``head_out`` for whole heads.
    """

    sites: tuple[str, ...]
    axes: int | None = None


@dataclass(frozen=True)
class UnitKind:
    """A kind of unit of a family.

    Attributes:
        name: As the menus say it.
        blocks: All units of a layer, block after block; blocks are of one shape.
        meaning: One sentence for reports.
        labels: Names of the blocks, where there are several.
        apart: True if the blocks are different things (keys, values), which controls and figures count apart.
        plural: The plural of the name, unless that is the name with an s.
        some: True if a layer with only some of the sites has such units too: a whole layer is what its parts add,
            whichever parts it has.
        at_sites: True if a unit is numbers that the model has at its sites, rather than what is computed from them.
        beside: The kinds that units of several kinds are of; empty for a kind of its own.
    """

    name: str
    blocks: tuple[Block, ...]
    meaning: str
    labels: tuple[str, ...] = ()
    apart: bool = False
    plural: str = ""
    some: bool = False
    at_sites: bool = True
    beside: tuple[UnitKind, ...] = ()

    @property
    def several(self) -> str:
        return self.plural or f"{self.name}s"

    @property
    def sites(self) -> list[str]:
        """The sites of a layer that are replaced."""
        return [site for block in self.blocks for site in block.sites]

    def blocks_of(self, sites: Mapping[str, Site], layer: int) -> tuple[Block, ...]:
        """The blocks at the sites that a layer has; none where it has no such units."""
        there = [tuple(site for site in block.sites if f"layers.{layer}.{site}" in sites) for block in self.blocks]
        enough = all(there) if self.some else all(a == b.sites for a, b in zip(there, self.blocks, strict=True))
        return tuple(Block(a, b.axes) for a, b in zip(there, self.blocks, strict=True)) if enough else ()

    def shape(self, sites: Mapping[str, Site], layer: int) -> tuple[int, ...]:
        """Units of a layer that has some: of its one block, or [block, …]."""
        blocks = self.blocks_of(sites, layer)
        shapes = {tuple(sites[f"layers.{layer}.{block.sites[0]}"].units)[: block.axes] for block in blocks}
        if len(shapes) > 1:
            raise MechintError(
                f"the sites {', '.join(self.sites)} of layer {layer} have different sizes, so that {self.several} are "
                "no one kind of unit there; choose units of one of the sites"
            )
        [shape] = shapes
        return (len(blocks), *shape) if len(blocks) > 1 else shape or (1,)


def side_by_side(kinds: tuple[UnitKind, ...]) -> UnitKind:
    """Units of several kinds in one circuit.

    Raises:
        MechintError: two of them are replaced at the same site, where one unit would then be a part of another.
    """
    for number, kind in enumerate(kinds):
        for other in kinds[:number]:
            if shared := sorted(set(kind.sites) & set(other.sites)):
                raise MechintError(
                    f"units of the kinds {other.name!r} and {kind.name!r} are both replaced at {', '.join(shared)}; a "
                    "circuit takes one of the two"
                )
    return UnitKind(
        "+".join(kind.name for kind in kinds),
        tuple(block for kind in kinds for block in kind.blocks),
        "; or ".join(kind.meaning for kind in kinds),
        plural=" and ".join(kind.several for kind in kinds) if len(kinds) < 3 else ", ".join(k.several for k in kinds),
        beside=kinds,
    )


def kinds(*every: UnitKind) -> dict[str, UnitKind]:
    return {kind.name: kind for kind in every}


PATHS = ("x", "z", "dt", "B", "C")


# Other channels read a channel only at u (for Δ, B and C) and at gated (for the mixer's output), so a dropped channel
# is replaced at both; the values in between then reach nothing.
SSM_UNITS = kinds(
    UnitKind("channel", (Block(("u", "gated")),), "an SSM channel: all it computes, replaced where others read it"),
    UnitKind("mode", (Block(("readout",)),), "one (channel, state) entry of the recurrent state, as C reads it"),
    UnitKind(
        "path",
        tuple(Block((site,), axes=0) for site in PATHS),
        "a whole path of a layer: x, z, Δ, B or C",
        labels=PATHS,
    ),
    UnitKind("layer", (Block(("out",), axes=0),), "a whole mixer: what it adds to the residual stream"),
)


ATTENTION_UNITS = kinds(
    UnitKind(
        "kv",
        (Block(("k",)), Block(("v",))),
        "a key or value channel: one dimension of one head's keys, or of its values, at every position",
        labels=("K", "V"),
        apart=True,
        plural="K and V channels",
    ),
    UnitKind(
        "k", (Block(("k",)),), "a key channel: one dimension of one head's keys, at every position", plural="K channels"
    ),
    UnitKind(
        "v",
        (Block(("v",)),),
        "a value channel: one dimension of one head's values, at every position",
        plural="V channels",
    ),
    UnitKind(
        "q",
        (Block(("q",)),),
        "a query channel: one dimension of one head's queries, at every position",
        plural="Q channels",
    ),
    UnitKind(
        "o",
        (Block(("head_out",)),),
        "an output channel: one dimension of what one head has read, before heads are mixed",
        plural="O channels",
    ),
    UnitKind(
        "head",
        (Block(("head_out",), axes=1),),
        "an attention head: what it reads, before heads are mixed",
        plural="attention heads",
    ),
)


NEURON_UNITS = kinds(
    UnitKind("mlp", (Block(("mlp_post",)),), "an MLP neuron, behind its activation", plural="MLP neurons")
)


KV_UNITS = {
    **ATTENTION_UNITS,
    **NEURON_UNITS,
    **kinds(
        UnitKind(
            "layer", (Block(("attn_out", "mlp_out"), axes=0),), "a whole layer: what its attention and its MLP add"
        )
    ),
}


EXPERT_UNITS = kinds(
    UnitKind("expert", (Block(("expert_weight",)),), "an expert of a mixture, by the weight that its router gives it")
)


# The norm behind a read-out mixes the heads, so a dropped one is replaced before it.
MEMORY_UNITS = kinds(
    UnitKind(
        "ssm_head",
        (Block(("y",), axes=1),),
        "a head of the recurrence: what it reads of its memory, before heads are mixed",
        plural="SSM heads",
    ),
    UnitKind(
        "ssm_channel",
        (Block(("y",)),),
        "one value channel of a head of the recurrence, before heads are mixed",
        plural="SSM channels",
    ),
    UnitKind(
        "ssm_mode",
        (Block(("readout",)),),
        "one (head, key, value) entry of the recurrent state, as the query reads it",
        plural="SSM modes",
    ),
)


SHORT_CONV_UNITS = kinds(
    UnitKind(
        "conv_channel",
        (Block(("u", "gated")),),
        "a channel of a short convolution: all it computes, replaced where others read it",
    )
)


EVERY_KIND = {
    name: kind
    for name, kind in {
        **ATTENTION_UNITS, **MEMORY_UNITS, **SSM_UNITS, **SHORT_CONV_UNITS, **NEURON_UNITS, **EXPERT_UNITS
    }.items()
    if name not in ("path", "layer")
}  # fmt: skip
"""Kinds of unit, of all parts, that can stand beside others: a path or a whole layer holds several of them."""
