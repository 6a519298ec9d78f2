"""A GPT-2 on which circuits are drawn by hand: exact weights where they are drawn, idle weights of like size elsewhere.

Some parts of a GPT-2 resist exactness and are treated as follows:

* LayerNorm: two directions of the residual stream, the *pins*, hold ``±PIN · √(D/2)`` at every position and are never
  written, and all that is written, embeddings too, adds up to zero over the directions: what is drawn is *balanced* in
  directions that nothing of the circuit reads (``unread``). The mean is then 0 and the standard deviation ``PIN`` to a
  relative ``junk² / 2 PIN²``, so with norm weights of ``PIN`` the norm is the identity.
* Attention: keys and queries are one-hot codes times ``√(score · √d)``, so a match has the score that is asked for,
  others have 0; two scores that differ by 20 share attention 1 : 2e-9.
* GELU: neurons are x or 0 to the bit where x is outside ±6.

A unit is idle because no circuit unit reads it, which its own size does not show: idle heads and neurons read like
others, but write into unread directions. Half of the idle heads are decoys: they copy queries, keys and values of a
head of the circuit. In such a head itself, key channels that no query reads have keys of the usual size, and as many
queries no keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from ...interventions.taps import Tap
from ...models.gpt2 import GPT2, GPT2Config, Layer
from ..blueprint import Sizes

PIN = 2.0**11
"""Above it float32's mean of the pins is off by more, below it what idle units write is felt in the deviation."""
STEEP = 20.0
"""Slope of drawn neurons: half a step away from where they open they are exactly open, or shut."""


@dataclass(frozen=True)
class GPT2Size(Sizes):
    """Sizes of a GPT-2, all of them in total; what the circuit does not need is idle."""

    n_head: int = 4
    d_head: int = 16
    n_layer: int = 2
    d_mlp: int = 64
    n_ctx: int = 16

    @property
    def d_model(self) -> int:
        return self.n_head * self.d_head

    def plus(self, heads: int = 0, dimensions: int = 0, layers: int = 0, neurons: int = 0, places: int = 0) -> GPT2Size:
        """This size with that many idle units of each kind more."""
        more = zip(asdict(self).items(), (heads, dimensions, layers, neurons, places), strict=True)
        return GPT2Size(**{name: size + extra for (name, size), extra in more})

    def comfortable(self) -> GPT2Size:
        """This least size with about as much idle: at least four heads, a third more channels, one layer more.

        At least ten channels a head: what idle units write is felt in the deviation, the less the wider the stream is.
        """
        wide = max(10, self.d_head + max(2, self.d_head // 3))
        heads = max(4, -(-self.d_model // wide) + 1)
        return replace(self, n_head=heads, d_head=wide).plus(layers=1, neurons=2 * wide, places=4)

    def wide(self, d_model: int) -> GPT2Size:
        """This size with heads for a residual stream of at least so many directions, and four times the neurons."""
        return replace(self, n_head=-(-d_model // self.d_head), d_mlp=max(self.d_mlp, 4 * d_model))


class GPT2Canvas:
    """A GPT-2 with the circuit drawn and nothing else, until :meth:`fill`.

    Args:
        size: Sizes of the model.
        tokens: Vocabulary; residual direction ``("token", v)`` holds 1 where v stands, and the tied head reads it.
        codes: More named groups of residual directions and their sizes; zero until something is drawn there.
        active: Number of layers that the circuit has.
        seed: Seed of all places and all idle weights.
    """

    def __init__(self, size: GPT2Size, tokens: int, codes: Mapping[str, int], active: int, seed: int) -> None:
        self.size, self.width = size, size.d_model
        self.random = torch.Generator().manual_seed(seed)
        config = GPT2Config(tokens, size.n_ctx, self.width, size.n_layer, size.n_head, size.d_mlp)
        self.model = GPT2(config).requires_grad_(False).eval()
        order = torch.randperm(self.width, generator=self.random).tolist()
        self.pins = [order.pop(), order.pop()]
        self.names = {(group, i): order.pop() for group, n in {"token": tokens, **codes}.items() for i in range(n)}
        self.unread = torch.tensor(sorted(order))
        """Residual directions that nothing of the circuit reads, and writes only to balance."""
        for parameter in self.model.parameters():
            parameter.zero_()
        self.layers = torch.randperm(size.n_layer, generator=self.random)[:active].sort().values.tolist()
        self.blocks = [Block(self, layer) for layer in range(size.n_layer)]
        self.active = [self.blocks[layer] for layer in self.layers]
        token = [self.names["token", v] for v in range(tokens)]
        for embedding in (self.model.wte.weight, self.model.wpe.weight):
            embedding[:, self.unread] = self.normal(len(embedding), len(self.unread))
        self.model.wte.weight[range(tokens), token] = 1.0
        for pin, sign in zip(self.pins, (1, -1), strict=True):
            self.model.wte.weight[:, pin] = sign * PIN * math.sqrt(self.width / 2)
        for block in self.blocks:
            for norm in (block.weights.ln_1, block.weights.ln_2):
                norm.weight.fill_(PIN)
                norm.weight[self.pins] = math.sqrt(2 / self.width)  # so that they read as 1 and -1
        self.model.ln_f.weight[token] = PIN

    def at(self, group: str, index: int = 0) -> int:
        """Number of a named residual direction."""
        return self.names[group, index]

    def place(self, group: str, positions: range | list[int]) -> None:
        """The i-th direction of a group holds 1 at the i-th of some positions."""
        for i, position in enumerate(positions):
            self.model.wpe.weight[position, self.at(group, i)] = 1.0

    def digits(self, group: str, count: int) -> None:
        """Directions that tell positions apart but for the first: the binary digits of a number, as 1 and -1.

        The number is an odd multiple of the position modulo 2^count, by Fibonacci hashing (Knuth 1998, section 6.4), so
        that among neighbours each digit is about as often 1 as -1: digits of positions themselves hardly ever change.
        """
        odd = int((math.sqrt(5) - 1) / 2 * 2**count) | 1
        numbers = odd * torch.arange(1, self.size.n_ctx) % 2**count
        for i in range(count):
            self.model.wpe.weight[1:, self.at(group, i)] = 2.0 * (numbers >> i & 1) - 1

    def ramp(self, group: str, length: int) -> None:
        """A direction that rises from 0 to 1 over ``length`` positions."""
        ramp = torch.arange(self.size.n_ctx) / length
        self.model.wpe.weight[:, self.at(group)] = ramp

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.random)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(shape).uniform_(low, high, generator=self.random)

    def outputs(self, norms: Tensor) -> Tensor:
        """Random columns of an output, of these norms, along unread directions and balanced, [width, columns]."""
        columns = torch.zeros(self.width, len(norms))
        free = self.normal(len(self.unread), len(norms))
        free -= free.mean(0)
        columns[self.unread] = norms * free / free.norm(dim=0)
        return columns

    def balance(self, columns: Tensor) -> Tensor:
        """The same columns [width, …] with what adds up to zero written into the unread directions."""
        columns = columns.clone()
        columns[self.unread] -= columns.double().sum(0).float() / len(self.unread)
        return columns

    def fill(self, tokens: Tensor, noise: float) -> None:
        """Gives everything idle its weights.

        Layer by layer: the norm weights of the unread directions, and in an idle layer of all but the pins, are set so
        that they read as at most 1.5, whatever the layers before wrote there: this norm does not divide.

        Args:
            tokens: Prompts to take these sizes from, [batch, position].
            noise: Standard deviation of what is added to each projection of inputs of size 1.
        """
        for embedding in (self.model.wte.weight, self.model.wpe.weight):
            embedding.copy_(self.balance(embedding.T).T)
        templates = Templates(self)
        r = self.model.begin(tokens, Tap())
        for block in self.blocks:
            site = f"layers.{block.layer}.resid_mid"
            block.fit(block.weights.ln_1, r)
            block.fill_attention(templates)
            block.add_noise(block.weights.attn.c_attn, block.weights.attn.c_proj, noise)
            block.fit(block.weights.ln_2, self.through(block, r, site))
            block.fill_mlp(templates)
            block.add_noise(block.weights.mlp.c_fc, block.weights.mlp.c_proj, noise)
            r = self.through(block, r, f"layers.{block.layer}.resid_post")

    def through(self, block: Block, r: Tensor, site: str) -> Tensor:
        tap = Tap([site])
        self.model.block(block.layer, r, self.model.empty_cache(block.layer, len(r)), tap)
        return tap.values[site]


class Block:
    """One layer of a canvas: hands out its heads and neurons in random order, and draws on them."""

    def __init__(self, canvas: GPT2Canvas, layer: int) -> None:
        self.canvas, self.layer = canvas, layer
        self.weights: Layer = canvas.model.layers[layer]  # type: ignore[assignment]
        size = canvas.size
        self.free = torch.randperm(size.n_head, generator=canvas.random).tolist()
        self.heads: list[Head] = []
        self.neurons = torch.randperm(size.d_mlp, generator=canvas.random).tolist()
        self.used: list[int] = []

    def head(self) -> Head:
        """One more head."""
        self.heads.append(Head(self, self.free.pop()))
        return self.heads[-1]

    def neuron(self, reads: Mapping[int, float], bias: float, writes: Mapping[int, float]) -> int:
        """Draws a neuron, GELU(reads + bias), and returns its number."""
        n, mlp, canvas = self.neurons.pop(), self.weights.mlp, self.canvas
        self.used.append(n)
        mlp.c_fc.weight[n, list(reads)] = torch.tensor(list(reads.values()))
        mlp.c_fc.bias[n] = bias
        mlp.c_proj.weight[list(writes), n] = torch.tensor(list(writes.values()))
        mlp.c_proj.weight[:, n] = canvas.balance(mlp.c_proj.weight[:, n])
        return n

    def add(self, constant: Mapping[int, float]) -> None:
        """Lets the neurons' output have a constant at every position."""
        bias = self.weights.mlp.c_proj.bias
        bias[list(constant)] += torch.tensor(list(constant.values()))
        bias.copy_(self.canvas.balance(bias))

    @property
    def in_circuit(self) -> bool:
        return bool(self.heads or self.used)

    def fit(self, norm: torch.nn.Module, r: Tensor) -> None:
        """Norm weights of what is not drawn, from the residual stream [batch, position, width] that it reads."""
        free = torch.ones(self.canvas.width, dtype=torch.bool)
        free[self.canvas.pins] = False
        if self.in_circuit:
            free[:] = False
            free[self.canvas.unread] = True
        norm.weight[free] = 1.5 * PIN / r[..., free].abs().amax((0, 1)).clamp(min=1.0)  # type: ignore[operator]

    def add_noise(self, first: torch.nn.Linear, second: torch.nn.Linear, noise: float) -> None:
        for weight in (first.weight, second.weight) if noise else ():
            weight += noise / math.sqrt(weight.shape[1]) * self.canvas.normal(*weight.shape)

    def fill_attention(self, templates: Templates) -> None:
        canvas, d = self.canvas, self.canvas.size.d_head
        attn, width = self.weights.attn, self.canvas.width
        rows = lambda count, norms: norms * torch.nn.functional.normalize(canvas.normal(count, width), dim=1)
        for head in self.heads:
            dead, idle = torch.tensor(head.keys, dtype=torch.long), torch.tensor(head.values, dtype=torch.long)
            for k, e in enumerate(dead.tolist()):  # keys that no query asks for, queries that nothing answers
                attn.c_attn.weight[(width if k % 2 else 0) + head.row(e)] = rows(1, templates.like("match", 1))[0]
            attn.c_attn.weight[2 * width + head.start + idle] = rows(len(idle), templates.like("value", len(idle)))
            attn.c_proj.weight[:, head.start + idle] = canvas.outputs(templates.like("out", len(idle))[:, 0])
        for h in self.free:
            start = h * d
            every = start + torch.arange(d)
            decoy = templates.heads and torch.rand((), generator=canvas.random) < 0.5
            if decoy:
                pick = int(torch.randint(len(templates.heads), (), generator=canvas.random))
                theirs, bias = templates.heads[pick]
                for part in range(3):  # the same scale for all of a kind, or keys of one code would not tell
                    by = float(canvas.uniform(2 / 3, 4 / 3, 1))
                    attn.c_attn.weight[part * width + every] = by * theirs[part]
                    attn.c_attn.bias[part * width + every] = by * bias[part]
                bare = (attn.c_attn.weight[2 * width + every] == 0).all(1)
                attn.c_attn.weight[2 * width + every[bare]] = rows(int(bare.sum()), 1.0)
            else:
                for part, kind in enumerate(("match", "match", "value")):
                    attn.c_attn.weight[part * width + every] = rows(d, templates.like(kind, d))
            attn.c_proj.weight[:, every] = canvas.outputs(templates.like("out", d)[:, 0])

    def fill_mlp(self, templates: Templates) -> None:
        canvas, mlp = self.canvas, self.weights.mlp
        idle = torch.tensor(self.neurons, dtype=torch.long)
        reads = torch.nn.functional.normalize(canvas.normal(len(idle), canvas.width), dim=1)
        mlp.c_fc.weight[idle] = reads * templates.like("neuron", len(idle))
        mlp.c_fc.bias[idle] = canvas.normal(len(idle))
        mlp.c_proj.weight[:, idle] = canvas.outputs(templates.like("neuron out", len(idle))[:, 0])


class Head:
    """An attention head that is drawn on: hands out its key and value channels in random order."""

    def __init__(self, block: Block, number: int) -> None:
        self.block, self.number = block, number
        canvas = block.canvas
        self.width, d = canvas.width, canvas.size.d_head
        self.start, self.scale = number * d, math.sqrt(d)
        self.keys = torch.randperm(d, generator=canvas.random).tolist()
        self.values = torch.randperm(d, generator=canvas.random).tolist()
        self.drawn_keys: list[int] = []
        self.drawn_values: list[int] = []

    def row(self, e: int) -> int:
        return self.start + e

    def match(self, asks: Mapping[int, float] | float, has: Mapping[int, float], score: float) -> int:
        """Draws a key channel, which adds ``score`` times what is asked times what a source has to every score.

        Args:
            asks: Residual directions and weights of the query; a number is the same at every position.
            has: Residual directions and weights of the key.
            score: Score of a match of 1 with 1.
        """
        e, attn = self.keys.pop(), self.block.weights.attn
        self.drawn_keys.append(e)
        each = math.sqrt(score * self.scale)
        q, k = self.row(e), self.width + self.row(e)
        if isinstance(asks, Mapping):
            attn.c_attn.weight[q, list(asks)] = each * torch.tensor(list(asks.values()))
        else:
            attn.c_attn.bias[q] = each * asks
        attn.c_attn.weight[k, list(has)] = each * torch.tensor(list(has.values()))
        return e

    def value(self, reads: Mapping[int, float], writes: Mapping[int, float]) -> int:
        """Draws a value channel, from residual directions of the sources to those of the reader."""
        e, attn, canvas = self.values.pop(), self.block.weights.attn, self.block.canvas
        self.drawn_values.append(e)
        attn.c_attn.weight[2 * self.width + self.row(e), list(reads)] = torch.tensor(list(reads.values()))
        column = torch.zeros(self.width)
        column[list(writes)] = torch.tensor(list(writes.values()))
        attn.c_proj.weight[:, self.row(e)] = canvas.balance(column)
        return e


class Templates:
    """The weights of the circuit, for idle ones to resemble."""

    def __init__(self, canvas: GPT2Canvas) -> None:
        self.canvas = canvas
        D, d = canvas.width, canvas.size.d_head
        self.heads = []
        """The queries, keys and values of each head [3, d, width], and their biases [3, d]."""
        norms: dict[str, list[Tensor]] = {"match": [], "value": [], "out": [], "neuron": [], "neuron out": []}
        for block in canvas.active:
            attn, mlp, used = block.weights.attn, block.weights.mlp, block.used
            weight, bias = attn.c_attn.weight.view(3, -1, d, D), attn.c_attn.bias.view(3, -1, d)
            for head in block.heads:
                self.heads.append((weight[:, head.number].clone(), bias[:, head.number].clone()))
                norms["match"].append(weight[1, head.number, head.drawn_keys].norm(dim=1))
                norms["value"].append(weight[2, head.number, head.drawn_values].norm(dim=1))
                columns = [head.row(e) for e in head.drawn_values]
                norms["out"].append(attn.c_proj.weight[:, columns].norm(dim=0))
            norms["neuron"].append(mlp.c_fc.weight[used].norm(dim=1))
            norms["neuron out"].append(mlp.c_proj.weight[:, used].norm(dim=0))
        self.norms = {kind: torch.cat(found) for kind, found in norms.items()}
        for kind, other in (("neuron", "value"), ("neuron out", "out")):  # where no neuron is drawn
            self.norms[kind] = self.norms[kind] if len(self.norms[kind]) else self.norms[other]

    def like(self, kind: str, count: int) -> Tensor:
        """Norms as the circuit's are, give or take a third, [count, 1]."""
        norms = self.norms[kind]
        chosen = norms[torch.randint(len(norms), (count,), generator=self.canvas.random)]
        return (chosen * self.canvas.uniform(2 / 3, 4 / 3, count)).unsqueeze(1)
