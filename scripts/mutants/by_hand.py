"""Mutants chosen by hand: one changed line each of the code that turns measured arrays into printed numbers and verdicts.

Each names the test file that must notice it. A line that is no longer there (or there twice) is an error: whoever
rewrites it says here what the mutant is now.
"""

# ruff: noqa: E501 (lines of other files, changed, may be longer than those are)

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from scripts.mutants.trees import LIBRARY

PRINTED = "tests/report/test_printed_numbers.py"


class Mutant(NamedTuple):
    """One change: in ``file`` of lib/mechint, text that is there once, what it becomes, and the tests that notice."""

    file: str
    original: str
    mutated: str
    tests: str = PRINTED

    def apply(self, text: str) -> str:
        return text.replace(self.original, self.mutated)


def stale(mutant: Mutant) -> Iterator[str]:
    """Why a mutant can't be applied, where it can't."""
    path = LIBRARY / mutant.file
    text = path.read_text() if path.exists() else ""
    if (count := text.count(mutant.original)) != 1:
        yield f"{mutant.file}: {count} times {mutant.original!r}; say in scripts/mutants/by_hand.py what the mutant is now"
    else:
        compile(mutant.apply(text), mutant.file, "exec")  # a test must notice, not Python


MUTANTS = [
    # numbers and sets
    Mutant(
        "utils/statistics.py",
        'return float(found["value"] if found["low"] is None else found["low"]) > 0',
        'return float(found["value"] if found["low"] is None else found["low"]) >= 0',
    ),
    Mutant(
        "utils/statistics.py",
        "return len(a & b) / len(a | b) if a | b else 1.0",
        "return len(a & b) / max(len(a), len(b)) if a | b else 1.0",
    ),
    Mutant(
        "utils/statistics.py",
        "return len(a & b) / len(a | b) if a | b else 1.0",
        "return len(a & b) / len(a | b) if a | b else 0.0",
    ),
    Mutant(
        "utils/statistics.py",
        'min(pairs), max(pairs), len(pairs), "least and most alike',
        'max(pairs), max(pairs), len(pairs), "least and most alike',
    ),
    Mutant("utils/statistics.py", "middle = (values[:, 1:] + values[:, :-1]) / 2", "middle = values[:, 1:]"),
    Mutant("utils/statistics.py", "/ (x[-1] - x[0]))", "/ x[-1])"),
    Mutant(
        "utils/multiple_tests.py",
        "largest = max(largest, min(1.0, (len(p) - rank) * p[i]))",
        "largest = max(largest, min(1.0, len(p) * p[i]))",
    ),
    Mutant(
        "utils/multiple_tests.py",
        "largest = max(largest, min(1.0, (len(p) - rank) * p[i]))",
        "largest = min(1.0, (len(p) - rank) * p[i])",
    ),
    Mutant("utils/statistics.py", "stats.spearmanr(a, b)", "stats.pearsonr(a, b)"),
    Mutant(
        "utils/statistics.py",
        "return max(0, math.ceil(round(tests / alpha, 9)) - 1)",
        "return max(0, math.ceil(round(1 / alpha, 9)) - 1)",
    ),
    Mutant(
        "utils/statistics.py",
        "low = scipy.special.betaincinv(right, wrong + 1, (1 - LEVEL) / 2)",
        "low = scipy.special.betaincinv(right, wrong + 1, 1 - LEVEL)",
    ),
    Mutant(
        "utils/statistics.py",
        "self.n, max(self.effective - 1, 1), len(self.sizes))",
        "self.n, max(self.effective - 1, 1), self.n)",
    ),
    # sparsity
    Mutant(
        "analyses/sparsity/measures.py",
        "weight = 2 * torch.arange(1, n + 1, dtype=x.dtype, device=x.device) - n - 1",
        "weight = 2 * torch.arange(1, n + 1, dtype=x.dtype, device=x.device) - n",
    ),
    Mutant(
        "analyses/sparsity/measures.py", "return (root - ratio) / max(root - 1,", "return (root - ratio) / max(root,"
    ),
    Mutant(
        "analyses/sparsity/measures.py",
        "/ max(float(np.log(a.shape[-1])), 1e-300)",
        "/ max(float(np.log2(a.shape[-1])), 1e-300)",
    ),
    Mutant(
        "analyses/sparsity/measures.py",
        "fourth = square.square().sum(-1) * a.shape[-1]",
        "fourth = square.square().sum(-1)",
    ),
    Mutant("analyses/sparsity/measures.py", "a.abs() < scale.epsilon * scale.rms", "a.abs() < scale.epsilon"),
    Mutant("analyses/sparsity/results.py", "return -values if measure in FALLING else values", "return values"),
    Mutant("analyses/sparsity/results.py", "variance = np.maximum(second - first**2, 0.0)", "variance = second"),
    Mutant(
        "analyses/sparsity/results.py",
        "apart = low[0] > high[1] or low[1] > high[0]",
        "apart = True",
        "tests/analyses/sparsity/test_sparsity.py",
    ),
    # candidates of a study
    Mutant(
        "analyses/study/ablation_tests.py",
        "return move * (size(like) / size(move).clamp(min=1e-300))[:, None, None]",
        "return move",
    ),
    Mutant(
        "analyses/study/ablation_tests.py", "yield same_norm(moved(delta, basis), own)", "yield moved(delta, basis)"
    ),
    Mutant(
        "analyses/study/ablation_tests.py",
        'return (-change if test == "necessity" else change) / self.effect.mean()',
        "return change / self.effect.mean()",
        "tests/analyses/study/test_study.py -k known_circuit",
    ),
    Mutant(
        "analyses/study/ablation_tests.py",
        "return (twin if mean is None else mean) - clean",
        "return clean - (twin if mean is None else mean)",
    ),
    Mutant("analyses/study/steps_discovery.py", "deviation > 6 * float(", "deviation > 3 * float("),
    Mutant(
        "analyses/spectra.py",
        "squares = float(eigenvalues.square().sum())",
        "squares = float(eigenvalues.square().max())",
        "tests/analyses/test_spectra.py",
    ),
    # verdicts of a study
    Mutant(
        "analyses/study/claims.py",
        'return float(accuracy["low"]) > float(chance["high"])',
        'return float(accuracy["value"]) > float(chance["high"])',
    ),
    Mutant(
        "analyses/study/claims.py",
        'if found["low"] is None or value <= least:',
        'if found["low"] is None or value <= 0:',
    ),
    Mutant(
        "analyses/study/claims.py",
        "return math.erfc(1.959964 * (value - least) / half",
        "return math.erfc(1.959964 * value / half",
    ),
    Mutant(
        "analyses/study/claims.py",
        'strict=True):\n        claim["p_holm"] = p\n',
        'strict=True):\n        claim["p_holm"] = claim["p"]\n',
    ),
    Mutant(
        "analyses/study/claims.py",
        '"p": max(condition.p for condition in conditions)',
        '"p": min(condition.p for condition in conditions)',
    ),
    Mutant(
        "analyses/study/claims.py",
        'if effect["high"] is not None and effect["high"] < random["value"]:',
        'if effect["high"] is not None and effect["high"] < random["low"]:',
    ),
    Mutant(
        "analyses/study/claims.py",
        'if difference["high"] is not None and difference["high"] < 0:',
        'if difference["high"] is not None and difference["low"] < 0:',
    ),
    Mutant(
        "analyses/study/claims.py", 'above = float(difference["value"]) - least', 'above = float(difference["value"])'
    ),
    Mutant(
        "analyses/study/claims.py",
        'key=lambda row: float(row["across_folds"])',
        'key=lambda row: -float(row["across_folds"])',
    ),
    Mutant("analyses/study/claims.py", "(half / distance) ** 2", "(half / distance)"),
    Mutant(
        "analyses/study/steps_controls.py",
        'return float(total["low"]) > 0 and float(share["low"]) >= least',
        'return float(share["low"]) >= least',
    ),
    Mutant(
        "analyses/study/steps_controls.py",
        'return float(total["low"]) > 0 and float(share["low"]) >= least',
        'return float(total["low"]) > 0 and float(share["value"]) >= least',
    ),
    Mutant(
        "analyses/study/steps_controls.py",
        'if not does_task(accuracy, chance) or total["low"] is None',
        'if total["low"] is None',
    ),
    Mutant(
        "analyses/study/steps_controls.py",
        'first = str(rows[there[0]]["checkpoint"])',
        'first = str(rows[there[-1]]["checkpoint"])',
    ),
    Mutant("utils/statistics.py", "return shared / (2 * sum(counts) - shared)", "return shared / sum(counts)"),
    Mutant(
        "analyses/random_weights.py",
        "float(scores.var(ddof=1)) * (1 + 1 / len(scores)) + within",
        "float(scores.var(ddof=1)) / len(scores) + within",
    ),
    Mutant("analyses/random_weights.py", "within = count / max(count - 1, 1) * float", "within = float"),
    Mutant(
        "utils/statistics.py", "return float((1 + (drawn", "return float((0 + (drawn", "tests/utils/test_statistics.py"
    ),
    # traces
    Mutant("analyses/tracing/results.py", "size[-1] = -np.inf  # the last residual", "pass  # the last residual"),
    Mutant(
        "analyses/tracing/results.py",
        'total = ends["clean"] - ends["corrupted"]',
        'total = ends["corrupted"] - ends["clean"]',
    ),
    Mutant("analyses/tracing/results.py", "np.abs(point[k]))", "point[k])"),
    Mutant(
        "analyses/tracing/results.py",
        "return np.asarray(sums / np.where(tokens == 0, np.nan, tokens)[:, None, None, :])",
        "return np.asarray(sums)",
    ),
    # comparisons
    Mutant(
        "analyses/comparison/differences.py",
        "return over_seeds([x - y for x, y in",
        "return over_seeds([y - x for x, y in",
    ),
    Mutant(
        "analyses/comparison/differences.py", "(len(v) - 1) / len(v) for v in (a, b)", "(len(v) - 1) for v in (a, b)"
    ),
    Mutant("analyses/comparison/differences.py", "freedom = min(len(a), len(b)) - 1", "freedom = len(a) + len(b) - 2"),
    Mutant(
        "analyses/map_comparison.py",
        "lambda a, b, c, d: c / d - a / b",
        "lambda a, b, c, d: a / b - c / d",
        "tests/analyses/test_map_comparison.py",
    ),
    Mutant(
        "analyses/comparison/analyzer.py",
        '"low": min(ends[1:]), "high": max(ends[1:])',
        '"low": ends[1], "high": ends[2]',
    ),
    Mutant(
        "analyses/comparison/analyzer.py",
        "ends = [(float(value[key]) - add) * factor",
        "ends = [(float(value[key]) + add) * factor",
    ),
    Mutant(
        "analyses/comparison/cost.py",
        "active += int((wide.abs() >= share * wide.square().mean().sqrt())",
        "active += int((wide.abs() >= share * wide.abs().mean())",
    ),
    # circuits
    Mutant(
        "analyses/circuits/evidence.py",
        'entry["p"] <= SIGNIFICANT and entry["drop"]["value"] > 0',
        'entry["p"] <= SIGNIFICANT',
    ),
    Mutant("analyses/circuits/evidence.py", "SIGNIFICANT = 0.05", "SIGNIFICANT = 0.06"),
    Mutant(
        "analyses/neurons/results.py",
        "lambda c, f, e: 1 - faithfulness(c, f, e), without, full, empty",
        "lambda c, f, e: faithfulness(c, f, e), without, full, empty",
    ),
    Mutant(
        "analyses/unit_effects.py",
        "slope.double() * (value - torch.as_tensor(fill, device=value.device)).double()",
        "slope.double() * value.double()",
    ),
    # answers
    Mutant(
        "interventions/prefix.py",
        "return (chances * (reference - scores)).sum(-1)",
        "return (scores.exp() * (scores - reference)).sum(-1)",
    ),
    # labels and the scorecard
    Mutant("utils/statistics.py", "parts = [c / (c - 1) * float((part**2)", "parts = [float((part**2)"),
    Mutant("utils/statistics.py", "freedom, min(*there, count // 2))", "freedom, min(*there))"),
    Mutant("utils/statistics.py", "donor = rng.permutation(len(sizes))[place]", "donor = place"),
    Mutant(
        "analyses/dictionaries/answer_auroc.py",
        "torch.searchsorted(others, ours, right=True).double()",
        "torch.searchsorted(others, ours).double()",
    ),
    Mutant("analyses/dictionaries/answer_auroc.py", "axis=0, use_continuity=False", "axis=0, use_continuity=True"),
    Mutant("scorecard/summary.py", 'return over_seeds(means, "seeds")[0]', "return least_and_most(means)"),
    Mutant(
        "scorecard/summary.py",
        "means = [fmean(values) for values in seeds.values() if values]",
        "means = [value for values in seeds.values() for value in values]",
    ),
    Mutant(
        "scorecard/summary.py",
        "middle = (share + z * z / (2 * n)) / (1 + z * z / n)",
        "middle = share",
        "tests/scorecard/test_scorecard.py -k wilson",
    ),
    Mutant(
        "scorecard/summary.py",
        "math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))",
        "math.sqrt(share * (1 - share) / n)",
    ),
    Mutant("scorecard/dictionaries.py", "f1 = 2 * (there & said).sum(0)", "f1 = (there & said).sum(0)"),
    Mutant("scorecard/dictionaries.py", "(x - x.mean(0)).square().sum()", "x.square().sum()"),
    Mutant("ground_truth/score.py", "(below + misses / 2)", "below"),
    Mutant(
        "ground_truth/score.py",
        "precision = at_least(hits) / at_least(size.double())",
        "precision = hits / size.double()",
    ),
]
