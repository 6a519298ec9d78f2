"""Puts a representation of one prompt into another prompt and reads what the model says next.

1. Take the representation of every source prompt at each chosen site and layer, at one position; note what the model
   says behind the source prompt (:mod:`.targets`).
2. Put it in the place of the placeholder of the target prompt, in the same or another layer, and let the model read on:
   everything behind the placeholder sees it. Score the token that is looked for, and go on with some tokens: all
   sites, layers and prompts in one sweep (:mod:`.grid`, :mod:`.reading`).
3. Do the same with the representation of other source prompts, and with none.
4. At sites of the residual stream, read the same representation with the logit lens.
5. Average over prompts, with intervals from a bootstrap of whole templates; p-values of "the prompt's own
   representation makes the token no likelier than another's" are adjusted for all layers and sites.
6. Repeat on models with shuffled weights.
7. Put some prompts in token by token, for the map.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...interventions.model import Model, left_out
from ...interventions.prefix import divergence
from ...interventions.taps import Tap
from ...interventions.transplant import placed, placed_each, taken
from ...tasks import Prompts, Task
from ...tasks.answers import accepted_by
from ...utils import files
from ...utils.errors import MechintError
from ...utils.options import named
from ...utils.statistics import ClusterBootstrap, exact, said, said_p
from ..base import Analysis, ControlledAnalyzer, Later
from ..dictionaries.logits import in_stream
from ..effect_tables import few_notes
from ..lens.analyzer import rounded
from ..lens.reading import logits_of, stream_sites
from ..loader import PromptLoader
from ..options import fixed_sites, layer_list
from ..random_weights import control, told_apart
from . import results
from .grid import Asked, asked, continued, readings, together
from .options import OTHER, ScopeConfig, refuse
from .reading import Place, lens_scores, places, read_at_end, said_at_end, scores, seen
from .targets import Source, Target, fixed_target, partners, sources, targets

MOST_TOKENS = 48
"""Positions of a prompt of the map, the last ones."""


@dataclasses.dataclass(frozen=True)
class Work:
    """All that the readings of one run share.

    Attributes:
        parts, into: Source prompts and their target prompts.
        ids: Tokens that are looked for, [n, A]; -1 is none.
        clusters: Template of each prompt, [n].
        others: Numbers of other prompts, [draw, n]; None where there are none to draw.
        right: Share of right answers of each source prompt, [n].
        asked: The target prompts of the sweep.
    """

    parts: list[Source]
    into: list[Target]
    ids: Tensor
    clusters: Tensor
    others: Tensor | None
    right: Tensor
    asked: list[Asked]


class Scope(ControlledAnalyzer[ScopeConfig]):
    """Reads representations in other prompts; see the top of this file."""

    name = "patchscope"

    def __init__(self, model: Model, config: ScopeConfig, device: str | torch.device = "cpu", **others: Any) -> None:
        super().__init__(model, config, device, **others)
        layers = layer_list(config.layers, model.num_layers, self.name)
        chosen = fixed_sites(self.model, config.sites, layers, self.name)
        self.places = places(self.model, chosen, config.into, self.name)
        self.left = [site for site in chosen if site not in {place.site for place in self.places}]
        self.examples: list[dict[str, Any]] = []

    def check(self, train_loader: PromptLoader, val_loader: PromptLoader) -> None:
        sources(self.config, val_loader)
        fixed_target(self.config, self.model, train_loader, self.seed)

    def run_analysis(self, train_loader: PromptLoader, val_loader: PromptLoader) -> dict[str, Any]:
        """Reads the prompts of ``val_loader``; ``train_loader`` gives tokens for a target without text."""
        work = self.prepared(train_loader, val_loader)
        found: dict[str, dict[str, Tensor]] = {}
        for some in together(self.model, self.places, work.asked, self.config.memory_mib):
            found |= self.of_places(some, work)
        bare = self.stages.get("unpatched", functools.partial(self.unpatched, work))
        bootstrap = ClusterBootstrap(work.clusters.numpy(), self.config.bootstrap, self.seed)
        there, last = all(target.read_there for target in work.into), stream_sites(self.model)[-1]
        trivial = sorted({last} & {site for place in self.places for site in place.into}) if there else []
        rows = results.readings(bootstrap, self.places, found, trivial)
        self.tensors = {f"{name} {site}": value for site, stage in found.items() for name, value in stage.items()}
        self.tensors["unpatched"] = bare
        best = results.best_of(rows)
        metrics = {
            "prompts_used": exact(len(work.ids)),
            "accuracy": bootstrap.share(work.right.numpy()),
            "unpatched": bootstrap.share(bare[:, 0].numpy()),
            "unpatched_surprisal": results.number_of(bootstrap, "surprisal", bare[:, 1].numpy()),
        }
        few = few_notes(work.clusters.numpy(), "read")
        self.results = {
            "report": self.name,
            "metric": f"the likeliest token is the one that {self.looked_for()}",
            "ablation": "the representation of a source prompt stands in the place of the placeholder",
            "metrics": metrics if best is None else {**metrics, "best": best["right"]},
            "target": self.target_words(work, val_loader.task),
            "target_of": self.config.target,
            "read_there": there,
            "source": self.source_words(),
            "scored": self.looked_for(),
            "readings": rows,
            "best": best,
            "interval": bootstrap.kind,
            "few": few,
            "notes": [*few, *self.notes(work, trivial)],
        }
        asked = None if bootstrap.too_few else control(self, train_loader, val_loader, results.quantities)
        self.results["control"] = asked
        if bootstrap.too_few and self.config.controls:
            self.results["notes"].append(
                "Nothing was read on shuffled weights: without intervals nothing is told apart"
            )
        self.examples = self.show(work, found, val_loader.task)
        return self.results

    def control_config(self) -> ScopeConfig:
        return dataclasses.replace(super().control_config(), examples=0, generate=0)

    def save_results(self) -> list[Path]:
        """Writes ``effects.pt`` and ``examples.json`` into the run directory."""
        return [*super().save_results(), files.write_json(self.directory / "examples.json", self.examples)]

    # ---- the work -----------------------------------------------------------------------------------------------

    def prepared(self, train: PromptLoader, val: PromptLoader) -> Work:
        """The source prompts with what is looked for, and the target prompt of each."""
        parts = sources(self.config, val)
        count = sum(len(part.rows) for part in parts)
        said, right = torch.empty(count, dtype=torch.long), torch.empty(count, dtype=torch.float64)
        tokens: list[Tensor] = [torch.empty(0)] * count
        for part in parts:
            logits = answers(self.model, part.prompts)
            said[part.rows] = logits[:, 0].argmax(-1).cpu()
            right[part.rows] = part.prompts.correct(logits).cpu()
            for k, row in enumerate(part.rows.tolist()):
                tokens[row] = part.prompts.tokens[k]
        ids = said[:, None]
        if self.config.scored == "answer":
            good = [part.prompts.good()[:, 0].cpu() for part in parts]
            ids = torch.full((count, max(one.shape[1] for one in good)), -1)
            for part, one in zip(parts, good, strict=True):
                ids[part.rows, : one.shape[1]] = one
        clusters = torch.from_numpy(val.templates())
        fixed = fixed_target(self.config, self.model, train, self.seed)
        hosts = None
        if fixed is None:
            lengths, at = torch.tensor([len(row) for row in tokens]), torch.empty(count, dtype=torch.long)
            for part in parts:
                at[part.rows] = part.at
            drawn = partners(clusters, ids, 1, self.seed, "patchscope target", lengths > at[:, None])
            if drawn is None:
                raise MechintError(
                    f"patchscope: a prompt has no other prompt of another template and with another token to look for; "
                    f"ask for more prompts, or set {named('patchscope', 'target')} to identity"
                )
            hosts = drawn[0]
        others = None
        if self.config.others:
            others = partners(clusters, ids, self.config.others, self.seed, "patchscope others")
        into = targets(parts, fixed, hosts, tokens)
        return Work(parts, into, ids, clusters, others, right, asked(parts, into, others, fixed is not None))

    def values(self, sites: Sequence[str], parts: Sequence[Source]) -> dict[str, Tensor]:
        """Sites of all source prompts where each is read, [n, 1, unit …] each."""
        found = [taken(self.model, part.prompts.tokens, sites, part.at) for part in parts]
        order = torch.cat([part.rows for part in parts]).argsort().to(self.model.device)
        return {site: torch.cat([one[site] for one in found])[order] for site in sites}

    def of_places(self, some: Sequence[Place], work: Work) -> dict[str, dict[str, Tensor]]:
        """The readings of some sites.

        Returns:
            By site: ``own`` [into, n, measure]; ``others`` [draw, into, n, measure] where there are any; ``lens``
            [n, measure] at the residual stream; ``generated`` [into, n, token] and ``mentions`` [into, n] where tokens
            are asked for.
        """
        model, memory, count = self.model, self.config.memory_mib, self.config.generate

        @functools.cache
        def values() -> dict[str, Tensor]:
            return self.values([place.site for place in some], work.parts)

        def read() -> dict[str, dict[str, Tensor]]:
            store = None if self.stages.directory is None else self.stages.directory / "sweep"
            key = f"{self.stages.key} {some[0].site}"
            each = readings(model, some, work.asked, values(), work.ids, memory, store=store, key=key)
            found = {site: {"own": scores[0], "others": scores[1:]} for site, scores in each.items()}
            for site, stage in found.items():
                if not len(stage["others"]):
                    del stage["others"]
                if in_stream(site):
                    stage["lens"] = lens_scores(model, values()[site], work.ids)
            return found

        found: dict[str, dict[str, Tensor]] = self.stages.get(f"readings {some[0].site}", read)
        if count:
            go_on = lambda: continued(model, some, work.asked, values(), count, memory)
            for site, longer in self.stages.get(f"continuations {some[0].site}", go_on).items():
                found[site] |= {"generated": longer, "mentions": mentions(longer, work.ids)}
        return found

    def unpatched(self, work: Work) -> Tensor:
        """The scores of the target prompts as they are, [n, measure]."""
        found = torch.empty(len(work.ids), 3, dtype=torch.float64)
        for one in work.asked:
            logits = said_at_end(self.model, one.target)
            found[one.rows] = scores(logits.expand(len(one.rows), -1), work.ids[one.rows].to(logits.device))
        return found

    # ---- what is shown ------------------------------------------------------------------------------------------

    def show(self, work: Work, found: dict[str, dict[str, Tensor]], task: Task) -> list[dict[str, Any]]:
        """The first source prompts, with every token up to the one that is read put into the target."""
        shown: list[dict[str, Any]] = []
        for part, target in zip(work.parts, work.into, strict=True):
            for k in range(min(len(part.rows), self.config.examples - len(shown))):
                shown.append(self.example(part, target, k, work, found, task))
        return shown

    def example(
        self, part: Source, target: Target, k: int, work: Work, found: dict[str, dict[str, Tensor]], task: Task
    ) -> dict[str, Any]:
        """One source prompt: what each of its tokens, put into the target, makes the model say."""
        word = functools.cache(task.decode)
        row, first = int(part.rows[k]), max(0, part.at + 1 - MOST_TOKENS)
        tokens = part.prompts.tokens[k : k + 1, : part.answer + 1]
        every = list(range(first, part.at + 1))
        ids = work.ids[row : row + 1].to(tokens.device).expand(len(every), -1)
        sites = [place.site for place in self.places]
        values = taken(self.model, tokens, sites, first, len(every))
        if self.config.target == OTHER:  # the host up to this token, then the source
            rows = torch.stack([torch.cat([target.tokens[k, : j + 1], tokens[0, j + 1 :]]) for j in every])
            behind = [part.answer] * len(every)
            cells = [placed_each(place.into[0], values[place.site][0], every) for place in self.places]
        else:  # the target's only row, and each token a cell
            rows, behind = target.tokens[k : k + 1], every
            cells = [
                placed({place.into[0]: value[None, None]}, target.position)
                for place in self.places
                for value in values[place.site][0]
            ]
        reads = read_at_end(self.model, rows, cells, self.config.memory_mib, title="tokens of an example")
        own = self.model(tokens)[0, behind].double().log_softmax(-1)
        entry: dict[str, Any] = {key: [] for key in ("top", "probability", "answer", "rank", "kl")}
        for read in reads.flatten(0, 1).split(len(every)):
            logits = logits_of(self.model, read.to(own.device))
            cells_seen = seen(logits, ids, self.config.top)
            entry["top"].append([[word(token) for token in cell.top] for cell in cells_seen])
            entry["probability"].append(rounded([cell.probability for cell in cells_seen]))
            entry["answer"].append(rounded([cell.answer for cell in cells_seen]))
            entry["rank"].append([cell.rank for cell in cells_seen])
            kl = divergence(own, logits.double().log_softmax(-1)).clamp(min=0)
            entry["kl"].append(rounded(kl.tolist()))
        between = " " if task.tokenizer is None else ""
        longer = {
            site: between.join(map(word, stage["generated"][0, row].tolist()))
            for site, stage in found.items()
            if "generated" in stage
        }
        texts = [word(token) for token in tokens[0, every].tolist()]
        answer = word(int(work.ids[row].max()))
        lenses = {"patchscope": {"sites": sites, **entry}}
        return {"tokens": texts, "answer": answer, "lenses": lenses, "generated": longer}

    # ---- words --------------------------------------------------------------------------------------------------

    def looked_for(self) -> str:
        return "the model says behind the source prompt" if self.config.scored == "model" else "the task asks for"

    def source_words(self) -> str:
        """The position that representations are taken from."""
        count = self.config.back
        back = f", {count} token{'s' if count > 1 else ''} before it" if count else ""
        return ("where the answer is predicted" if self.config.source == "answer" else "at the subject's end") + back

    def target_words(self, work: Work, task: Task) -> str:
        """The target prompt; of many the first one. The placeholder stands in brackets."""
        target = work.into[0]
        words = [task.decode(token) for token in target.tokens[0].tolist()]
        placeholder = words[target.position]
        word = placeholder.lstrip() or placeholder
        words[target.position] = f"{placeholder.removesuffix(word)}[{word}]"
        return (" " if task.tokenizer is None else "").join(words)

    def notes(self, work: Work, trivial: Sequence[str]) -> list[str]:
        found = left_out(self.model, [place.kind for place in self.places])
        if self.left:
            found.append(f"No layer that is put into has a site of the same shape as {', '.join(self.left)}")
        if self.config.others and work.others is None:
            found.append("All prompts look for one token, so no other prompt's representation stands beside")
        if not self.config.others:
            found.append("No other prompt's representation was read, so what any representation does is not known")
        if trivial:
            found.append(
                f"{', '.join(trivial)}: read where it is put, so nothing but the logit lens of the source; it counts "
                f"neither as the best reading nor in the p-values"
            )
        return found


def answers(model: Model, prompts: Prompts) -> Tensor:
    """The logits where the answers of prompts are predicted, [n, 1, V]."""
    with torch.no_grad():
        logits, _ = model.trace(prompts.tokens, Tap(), logits_at=prompts.positions)
    return logits


def mentions(generated: Tensor, ids: Tensor) -> Tensor:
    """1 where the token that is looked for, of ids [n, A], is among the generated [into, n, token]; [into, n]."""
    return accepted_by(generated.movedim(-1, 0), ids).any(0).double()


def work(config: ScopeConfig) -> str:
    return (
        f"one forward of {config.eval_prompts} source prompts; for each site and layer that it is put into as many "
        f"readings of target prompts, from that layer on, and {config.generate} tokens; the readings again on "
        f"{config.controls} models with shuffled weights"
    )


LEAD = Later("analyses.patchscope.report:lead")
"""The sentence that the page begins with."""


def summary(found: dict[str, Any]) -> list[str]:
    """Lines for the terminal: the result as the page begins with it, and the surest reading beside its controls."""
    best, metrics = found["best"], found["metrics"]
    lines = [f"  {LEAD(found)}", f"  accuracy        {said(metrics['accuracy'])}"]
    if best is not None:
        lines.append(f"  best reading    {said(best['right'])} at {best['name']}; {said_p(best['p'])}")
        if best["others_right"] is not None:
            lines.append(f"  other prompts   {said(best['others_right'])}")
    return [*lines, f"  unpatched       {said(metrics['unpatched'])}", *told_apart(found["control"])]


ANALYSIS = Analysis(
    name="patchscope",
    title="Patchscope",
    config=ScopeConfig,
    analyzer=Scope,
    refuse=refuse,
    work=work,
    summary=summary,
    lone=True,
    report=Later("analyses.patchscope.report:write_patchscope"),
    headline=Later("analyses.patchscope.report:headline"),
)
