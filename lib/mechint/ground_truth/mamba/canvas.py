"""A Mamba on which circuits are drawn by hand: exact weights where they are drawn, idle weights of like size elsewhere.

Some parts of a Mamba resist exactness and are treated as follows:

* RMSNorm: one direction of the residual stream, the *pin*, holds ``PIN · √D`` at every position and is never written.
  The root mean square is then ``PIN`` to a relative ``junk² / 2 PIN²``, whatever anybody writes elsewhere, and with
  norm weights of ``PIN`` the norm is the identity: a layer reads exactly what stands in the residual stream.
* SiLU: signals are one-hot, 0 or ``SIGNAL`` before it, so 0 or ``ON`` after it: SiLU(0) = 0 to the bit.
* Δ: softplus of a bias, so any positive step; a rate of ``HOLD`` keeps a state unchanged for as long as prompts are.
* Gate: z reads the pin, which reads as 1, so SiLU(z) is ``ON``.

A unit is idle because no circuit unit reads it, which its own size does not show: an idle channel reads and writes like
others, but writes into residual directions that nothing of the circuit reads (``unread``), and feeds only Δ of idle
channels and states that are written and never read, or read and never written. Half of the idle channels of a layer are
decoys: they copy the input weights, convolution, Δ, A and D of one of the circuit's channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from ...interventions.taps import Tap
from ...models.mamba import Layer, Mamba, MambaConfig
from ..blueprint import Sizes

PIN = 2.0**16
SIGNAL = 4.0
ON = SIGNAL / (1 + math.exp(-SIGNAL))
"""SiLU(SIGNAL)."""
HOLD = math.exp(-16)
"""Rate −A of a state that keeps: of 64 steps of Δ = 1 it loses 7e-6."""
SHUT = math.log1p(math.exp(-18))
"""A step Δ at which nothing is written and nothing decays: softplus(−18) = 1.5e-8."""


@dataclass(frozen=True)
class Size(Sizes):
    """Sizes of a Mamba, all of them in total; what the circuit does not need is idle."""

    d_model: int = 64
    d_inner: int = 128
    d_state: int = 16
    n_layer: int = 2
    d_conv: int = 4
    dt_rank: int = 4

    def plus(
        self, directions: int = 0, channels: int = 0, states: int = 0, layers: int = 0, taps: int = 0, ranks: int = 0
    ) -> Size:
        """This size with that many idle units of each kind more."""
        more = zip(asdict(self).items(), (directions, channels, states, layers, taps, ranks), strict=True)
        return Size(**{name: size + extra for (name, size), extra in more})

    def comfortable(self) -> Size:
        """This least size with about as much idle: twice the channels, more directions and states, one layer more."""
        width = max(self.d_model + 16, self.d_inner)
        width += -width % 8
        size = replace(self, d_model=width, d_inner=2 * width)  # a whole ratio: others' programs want one
        return replace(size, d_conv=max(4, self.d_conv), dt_rank=max(4, self.dt_rank + 2)).plus(states=4, layers=1)

    def wide(self, d_model: int) -> Size:
        """This size with a residual stream of so many directions, and twice as many channels."""
        return replace(self, d_model=d_model, d_inner=2 * d_model)


class Canvas:
    """A Mamba with the circuit drawn and nothing else, until :meth:`fill`.

    Args:
        size: Sizes of the model.
        tokens: Vocabulary; residual direction ``("token", v)`` holds 1 where v stands, and the tied head reads it.
        codes: More named groups of residual directions and their sizes; zero until a layer writes them.
        active: Number of layers that the circuit has.
        seed: Seed of all places and all idle weights.
    """

    def __init__(self, size: Size, tokens: int, codes: Mapping[str, int], active: int, seed: int) -> None:
        self.size = size
        self.random = torch.Generator().manual_seed(seed)
        self.model = Mamba(MambaConfig(vocab_size=tokens, **asdict(size))).requires_grad_(False).eval()
        order = torch.randperm(size.d_model, generator=self.random).tolist()
        self.pin = order.pop()
        self.names = {(group, i): order.pop() for group, n in {"token": tokens, **codes}.items() for i in range(n)}
        self.unread = torch.tensor(sorted(order))
        """Residual directions that nothing of the circuit reads or writes."""
        for parameter in self.model.parameters():
            parameter.zero_()
        places = torch.randperm(size.n_layer, generator=self.random)[:active].sort().values.tolist()
        self.mixers = [Mixer(self, layer) for layer in range(size.n_layer)]
        self.active = [self.mixers[place] for place in places]
        self.layers = places
        token = [self.names["token", v] for v in range(tokens)]
        embedding = self.model.embedding.weight
        embedding[:, self.unread] = torch.randn(tokens, len(self.unread), generator=self.random)
        embedding[range(tokens), token] = 1.0
        embedding[:, self.pin] = PIN * math.sqrt(size.d_model)
        for mixer in self.mixers:
            mixer.weights.norm.weight.fill_(PIN)
            mixer.weights.norm.weight[self.pin] = size.d_model**-0.5  # so that the pin reads as 1
        self.model.norm_f.weight[token] = PIN

    def at(self, group: str, index: int = 0) -> int:
        """Number of a named residual direction."""
        return self.names[group, index]

    def fill(self, tokens: Tensor, noise: float) -> None:
        """Gives everything idle its weights.

        Layer by layer: the norm weights of the unread directions, and in an idle layer of all but the pin, are set so
        that the layer reads each of them as at most 1.5, whatever the layers before wrote there. Without it idle
        numbers grow from layer to layer: a mixer is a polynomial of the fifth degree, and this norm does not divide.

        Args:
            tokens: Prompts to take these sizes from, [batch, position].
            noise: Standard deviation of what is added to each projection of inputs of size 1.
        """
        templates = Templates(self)
        r = self.model.begin(tokens, Tap())
        for mixer in self.mixers:
            w = mixer.weights
            free = self.unread if mixer.used else torch.arange(self.size.d_model) != self.pin
            w.norm.weight[free] = 1.5 * PIN / r[..., free].abs().amax((0, 1)).clamp(min=1.0)
            mixer.fill(templates)
            for weight in (w.in_proj.weight, w.x_proj.weight, w.out_proj.weight) if noise else ():
                std = noise / math.sqrt(weight.shape[1])
                weight += std * torch.randn(weight.shape, generator=self.random)
            r, _ = self.model.block(mixer.layer, r, self.model.empty_cache(mixer.layer, len(r)), Tap())


class Mixer:
    """One layer of a canvas: hands out its channels, states and Δ-ranks in random order, and draws on them."""

    def __init__(self, canvas: Canvas, layer: int) -> None:
        size, random = canvas.size, canvas.random
        self.canvas, self.layer = canvas, layer
        self.weights: Layer = canvas.model.layers[layer]  # type: ignore[assignment]
        self.channels = torch.randperm(size.d_inner, generator=random).tolist()  # the free ones
        self.states = torch.randperm(size.d_state, generator=random).tolist()
        self.ranks = torch.randperm(size.dt_rank, generator=random).tolist()
        self.used: list[int] = []
        self.drawn_ranks: list[int] = []
        self.written: list[int] = []
        """Those of the used channels that write into the residual stream."""

    def channel(
        self,
        reads: Mapping[int, float],
        writes: Mapping[int, float] | None = None,
        *,
        tap: int = 0,
        bias: float = 0.0,
        skip: float = 0.0,
        step: float = 1.0,
        rate: float = HOLD,
    ) -> int:
        """Draws a channel and returns its number.

        Args:
            reads: Residual directions and the weights of x.
            writes: Residual directions and the weights of the output; None when only Δ, B or C read the channel.
            tap: Number of tokens that the convolution looks back.
            bias: Bias of the convolution.
            skip: D.
            step: Δ without any input from a rank.
            rate: −A, the same for every state.
        """
        w, e, size = self.weights, self.channels.pop(), self.canvas.size
        self.used.append(e)
        w.in_proj.weight[e, list(reads)] = torch.tensor(list(reads.values()))
        w.in_proj.weight[size.d_inner + e, self.canvas.pin] = SIGNAL
        w.conv1d.weight[e, 0, size.d_conv - 1 - tap] = 1.0
        if w.conv1d.bias is not None:
            w.conv1d.bias[e] = bias
        w.dt_proj.bias[e] = math.log(math.expm1(step))
        w.A_log[e] = math.log(rate)
        w.D[e] = skip
        if writes:
            self.written.append(e)
            w.out_proj.weight[list(writes), e] = torch.tensor(list(writes.values()))
        return e

    def state(self, B: Mapping[int, float], C: Mapping[int, float]) -> int:
        """Draws a state, whose B and C are sums of u of the channels with these weights; returns its number."""
        size, n = self.canvas.size, self.states.pop()
        for row, weights in ((size.dt_rank + n, B), (size.dt_rank + size.d_state + n, C)):
            self.weights.x_proj.weight[row, list(weights)] = torch.tensor(list(weights.values()))
        return n

    def rank(self, reads: Mapping[int, float], channels: list[int], weight: float) -> None:
        """Adds ``weight`` times a sum of u of the channels ``reads`` to the Δ (before softplus) of ``channels``."""
        rank = self.ranks.pop()
        self.drawn_ranks.append(rank)
        self.weights.x_proj.weight[rank, list(reads)] = torch.tensor(list(reads.values()))
        self.weights.dt_proj.weight[channels, rank] = weight

    def fill(self, templates: Templates) -> None:
        """Idle weights for everything that was not drawn."""
        size, random, w = self.canvas.size, self.canvas.random, self.weights
        E, N, R = size.d_inner, size.d_state, size.dt_rank
        normal = lambda *shape: torch.randn(shape, generator=random)
        idle = torch.tensor(self.channels, dtype=torch.long)
        # Δ, B and C: some rows read every channel, the others are empty; none reaches the circuit
        x_rows, in_circuit = templates.x_scale * normal(R + 2 * N, E) / math.sqrt(E), bool(self.used)
        live = [True] * R + [True] * 2 * N
        for k, rank in enumerate(self.ranks):
            live[rank] = k % 2 == 0 if in_circuit else k > 0 or not templates.selective
        for k, n in enumerate(self.states):  # written and never read, or read and never written
            live[R + n], live[R + N + n] = not in_circuit or k % 2 == 0, not in_circuit or k % 2 == 1
        drawn = (w.x_proj.weight != 0).any(1)
        fresh = torch.tensor(live) & ~drawn
        w.x_proj.weight[fresh] = x_rows[fresh]
        low = (torch.rand(E, R, generator=random) * 2 - 1) * R**-0.5
        rows = torch.ones(E, dtype=torch.bool)
        rows[self.used] = False
        w.dt_proj.weight[rows] = low[rows]
        dead = [rank for rank in self.ranks if not live[rank]]
        w.dt_proj.weight[:, dead] = low[:, dead]
        templates.copy_inputs(self, idle)
        # the output: along random unread directions
        silent = torch.tensor(sorted({*self.channels, *self.used} - set(self.written)), dtype=torch.long)
        out = normal(len(self.canvas.unread), len(silent))
        out *= templates.out_norms(len(silent), random) / out.norm(dim=0)
        w.out_proj.weight[self.canvas.unread.unsqueeze(1), silent] = out


class Templates:
    """The weights of the circuit's channels, for idle ones to resemble."""

    x_scale = 0.3
    """Root of the summed squares of an idle row of W_x."""

    def __init__(self, canvas: Canvas) -> None:
        rows: dict[str, list[Tensor]] = {name: [] for name in ("x", "conv", "bias", "dt", "A", "D", "selective")}
        norms = []
        for mixer in canvas.active:
            w, used = mixer.weights, torch.tensor(mixer.used)
            selective = w.dt_proj.weight.amax(1)
            assert w.conv1d.bias is not None
            for name, tensor in (
                ("x", w.in_proj.weight), ("conv", w.conv1d.weight[:, 0]), ("bias", w.conv1d.bias),
                ("dt", w.dt_proj.bias), ("A", w.A_log), ("D", w.D), ("selective", selective),
            ):  # fmt: skip
                rows[name].append(tensor[used].clone())
            norms.append(w.out_proj.weight[:, mixer.written].norm(dim=0))
        self.rows = {name: torch.cat(tensors) for name, tensors in rows.items()}
        self.norms = torch.cat(norms)
        self.selective = bool((self.rows["selective"] > 0).any())

    def out_norms(self, count: int, random: torch.Generator) -> Tensor:
        """Norms of output columns, as the circuit's are, give or take a third, [count]."""
        chosen = self.norms[torch.randint(len(self.norms), (count,), generator=random)]
        return chosen * torch.empty(count).uniform_(2 / 3, 4 / 3, generator=random)

    def copy_inputs(self, mixer: Mixer, idle: Tensor) -> None:
        """Everything before the scan, and its A and D, of the idle channels: half decoys, half random."""
        size, random, w = mixer.canvas.size, mixer.canvas.random, mixer.weights
        E, N, count = size.d_inner, size.d_state, len(idle)
        assert w.conv1d.bias is not None
        pick = torch.randint(len(self.rows["D"]), (count,), generator=random)
        decoy = torch.rand(count, 1, generator=random) < 0.5
        if not mixer.used:  # states that keep, or steps that open wide, grow without bound on dense B and ranks
            keeps = self.rows["A"][pick][:, :1] < math.log(HOLD) + 1
            decoy &= ~keeps & (self.rows["selective"][pick].unsqueeze(1) == 0)
        theirs = {name: tensor[pick] for name, tensor in self.rows.items()}
        x, z = (torch.randn(count, size.d_model, generator=random) for _ in range(2))
        conv = torch.randn(count, size.d_conv, generator=random)
        unit = lambda rows, norm: norm * rows / rows.norm(dim=1, keepdim=True)
        jitter = lambda: torch.empty(count, 1).uniform_(2 / 3, 4 / 3, generator=random)  # or equal norms would tell
        log_dt = torch.empty(count).uniform_(math.log(1e-3), math.log(1e-1), generator=random)
        pinned = torch.zeros(size.d_model)
        pinned[mixer.canvas.pin] = SIGNAL
        w.in_proj.weight[idle] = jitter() * torch.where(decoy, theirs["x"], unit(x, SIGNAL))
        w.in_proj.weight[E + idle] = jitter() * torch.where(decoy, pinned, unit(z, SIGNAL))
        w.conv1d.weight[idle, 0] = torch.where(decoy, theirs["conv"], unit(conv, 1.0))
        flat = decoy[:, 0]
        w.conv1d.bias[idle] = torch.where(flat, theirs["bias"], torch.zeros(()))
        w.dt_proj.bias[idle] = torch.where(flat, theirs["dt"], log_dt.exp().expm1().log())  # the published start
        w.A_log[idle] = torch.where(decoy, theirs["A"], torch.arange(1, N + 1).log())
        w.D[idle] = torch.where(flat, theirs["D"], torch.ones(()))
        # what opens the step of the circuit's channels opens the decoys' too; in an idle layer such weights read 0
        selects = (flat if mixer.used else torch.ones_like(flat)) & (theirs["selective"] > 0)
        rank = (mixer.drawn_ranks or mixer.ranks)[0]
        if mixer.drawn_ranks or not mixer.used:
            w.dt_proj.weight[idle[selects], rank] = theirs["selective"][selects]
