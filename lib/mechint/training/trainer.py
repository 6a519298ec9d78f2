"""The trainer of small language models: one task, one model, checkpoints that are the same bytes every time.

Everything random is a function of (seed, step), so a killed run resumes to the same bytes, and the files of a
finished run say exactly how to make them again. Training sees the ``train`` split only; ``discovery`` chooses the
best checkpoint and the moment to stop; ``evaluation`` is used once, at the end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..interventions.taps import Tap
from ..models.base import LanguageModel
from ..models.loading.load import find_device, hf_config, to_hf_state_dict
from ..tasks import Prompts, Task, TaskConfig, make_task, mix
from ..utils import files, wandb_run
from ..utils.errors import MechintError
from ..utils.options import check, named
from ..utils.program import suited
from ..utils.progress import Progress, listening, point
from ..utils.rundir import fingerprint
from . import Alignment, ImposedCircuit, imposed_circuit
from .files import Paths, inspect, plain, write_checkpoint
from .models import ModelConfig, decays, make_model, model_config
from .options import Architecture, TrainConfig

NOT_THE_MODEL = ("output_dir", "device", "save_every", "keep_every", "variants", "baseline", "wandb", "wandb_project")
"""Training options that do not change the trained weights: checkpoints made with other values are the same."""

NOT_TRAINED = ("stored", "occurrence", "space")
"""Options of a task that training does not know."""


@dataclass(frozen=True)
class Job:
    """A training to be done."""

    task: Task
    config: TrainConfig
    architecture: Architecture
    model: ModelConfig
    recipe: dict[str, Any]
    """All that decides the trained weights, as plain JSON values; two runs with one recipe make the same bytes."""
    paths: Paths
    imposed: ImposedCircuit | None = None
    """The circuit that is imposed on the model, if any."""
    variant: str = ""
    """The name that a study of variants gives it."""


@dataclass
class State:
    """A training run between two steps: all that a killed one needs to resume."""

    model: LanguageModel
    optimizer: torch.optim.AdamW
    step: int = 0
    losses: list[float] = field(default_factory=list)
    """Training losses since the last evaluation."""
    history: list[dict[str, float]] = field(default_factory=list)
    best_val_loss: float = math.inf
    good: int = 0
    """Evaluations in a row that reached ``stop_accuracy``."""
    seconds: float = 0.0
    """Time spent in earlier, killed runs."""
    circuit: Alignment | None = None
    """The units that the imposed circuit has by now."""

    @property
    def carriers(self) -> list[list[int]]:
        """The units of each variable of the imposed circuit."""
        return [list(variable.units) for variable in self.circuit.variables] if self.circuit else []


def train(task_config: TaskConfig, train_config: TrainConfig, architecture: Architecture, variant: str = "") -> Path:
    """Trains a model, resumes where a killed run was, or finds it trained already.

    Returns:
        The path of the final checkpoint.

    Raises:
        MechintError: an option is out of range, the sizes leave no prompts to hold out, the files there are of
            another recipe, another run is writing there, or the loss is NaN.
    """
    job = dataclasses.replace(make_job(task_config, train_config, architecture), variant=variant)
    device = find_device(train_config.device)
    if train_config.wandb:
        wandb_run.check()
    with files.lock(train_config.output_dir):
        finished, resume = inspect(job.paths, job.recipe)
        if finished is not None:
            job.paths.resume.unlink(missing_ok=True)  # left by a run that was killed at its very end
            print(f"already trained: {job.paths.final} ({score(finished)}); delete it to train again", flush=True)
            return job.paths.final
        state = new_state(job, device)
        if resume is not None:
            restore(state, resume)
            print(f"resuming from step {state.step} of {train_config.steps} ({job.paths.resume})", flush=True)
        with logging(job):
            run_steps(job, state, device)
            checkpoint = finish(job, state, device)
    print(f"trained: {job.paths.final} ({score(checkpoint)})", flush=True)
    return job.paths.final


def plan(task_config: TaskConfig, train_config: TrainConfig, architecture: Architecture) -> str:
    """Says in a few lines what :func:`train` would do; writes nothing. Raises what it would before step 1."""
    job = make_job(task_config, train_config, architecture)
    find_device(train_config.device)
    if train_config.wandb:
        wandb_run.check()
    finished, resume = inspect(job.paths, job.recipe)
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in make_model(job.model).parameters())
    c = train_config
    status = "new"
    if finished is not None:
        status = f"already trained ({score(finished)}), nothing to do"
    elif resume is not None:
        status = f"resumes from step {resume['step']}"
    return "\n".join(
        [
            f"train    {job.model.family}, {job.model.n_layer} layers of width {job.model.d_model}, "
            f"{parameters} parameters",
            f"task     {job.task.description}",
            f"steps    {c.steps} of {c.batch_size * c.grad_accumulation} prompts of {job.task.length} tokens "
            f"({c.steps * c.batch_size * c.grad_accumulation * job.task.length} tokens in all)",
            f"files    {job.paths.final} {job.paths.best} {job.paths.metrics}",
            f"status   {status}",
        ]
    )


def make_job(task_config: TaskConfig, train_config: TrainConfig, architecture: Architecture) -> Job:
    """Checks every option and builds the task; no file is touched."""
    family = architecture.family
    check(task_config, where="task")
    check(train_config, where="train")
    check(architecture, where=family)
    task = make_task(task_config)
    options = {k: v for k, v in dataclasses.asdict(train_config).items() if k not in NOT_THE_MODEL}
    recipe = {
        "family": family,
        "task": trained_on(task_config, task),
        "train": options,
        family: dataclasses.asdict(architecture),
        "data": task.fingerprint,
    }
    model = model_config(architecture, task)
    imposed = imposed_circuit(task, train_config, architecture)
    if imposed:
        recipe["imposed"] = fingerprint(imposed.recipe)
    paths = Paths.of(train_config, architecture.suffix)
    return Job(task, train_config, architecture, model, plain(recipe), paths, imposed)


def trained_on(config: TaskConfig, task: Task) -> dict[str, Any]:
    """The options of a task that decide what is trained; without a tokenizer there is nothing to put in front."""
    unknown = NOT_TRAINED if task.tokenizer is not None else (*NOT_TRAINED, "bos")
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in unknown}


def score(checkpoint: dict[str, Any]) -> str:
    return f"step {checkpoint['iter_num']}, {checkpoint['held_out_accuracy']:.2%} of held-out answers right"


# --- files -----------------------------------------------------------------------------------------------------------


def checkpoint_of(job: Job, state: State) -> dict[str, Any]:
    """The trainer's checkpoint, in Hugging Face's names. No times: the same recipe makes the same bytes."""
    return {
        "model": to_hf_state_dict(state.model),
        "config": plain({**hf_config(state.model), **job.recipe}),
        "iter_num": state.step,
        "best_val_loss": state.best_val_loss,
        **({"variant": job.variant} if job.variant else {}),
        **({"circuit": state.circuit.described()} if state.circuit else {}),
    }


def write(job: Job, state: State, path: Path, **more: Any) -> dict[str, Any]:
    """Writes a checkpoint, and gives what is in it."""
    checkpoint = {**checkpoint_of(job, state), **more}
    write_checkpoint(job.paths, path, checkpoint, hf_config(state.model))
    return checkpoint


def save_resume(job: Job, state: State, seconds: float) -> None:
    files.write_torch(
        job.paths.resume,
        {
            "recipe": job.recipe,
            "model": state.model.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "seconds": seconds,
            "carriers": state.carriers,
            **{name: getattr(state, name) for name in ("step", "losses", "history", "best_val_loss", "good")},
        },
    )


def restore(state: State, saved: dict[str, Any]) -> None:
    state.model.load_state_dict(saved["model"])
    state.optimizer.load_state_dict(saved["optimizer"])
    for name in ("step", "losses", "history", "best_val_loss", "good", "seconds"):
        setattr(state, name, saved[name])
    if state.circuit:
        state.circuit = state.circuit.with_units(saved["carriers"])


def write_metrics(job: Job, state: State, seconds: float, **more: Any) -> None:
    files.write_json(
        job.paths.metrics,
        {
            **job.recipe,
            "step": state.step,
            "parameters": sum(parameter.numel() for parameter in state.model.parameters()),
            "best_val_loss": state.best_val_loss if state.history else None,
            "history": state.history,
            "seconds": round(seconds, 3),
            **more,
        },
    )


@contextlib.contextmanager
def logging(job: Job) -> Iterator[None]:
    """Logs every evaluation to Weights & Biases as it is made, where that is asked for."""
    if not job.config.wandb:
        yield
        return
    start = functools.partial(
        wandb_run.started, job.config.wandb_project, wandb_run.run_name(str(job.paths.final), "training"), "training",
        job.paths.final.parent.name, {**job.recipe, "variant": job.variant},
    )  # fmt: skip
    with wandb_run.Logged(start, "train") as logged, listening(logged):
        yield


# --- the work --------------------------------------------------------------------------------------------------------


def new_state(job: Job, device: torch.device) -> State:
    """The model as it is born, and its optimiser."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix(job.config.seed, "weights"))
        model = make_model(job.model, job.config.init)
    model.to(device)
    circuit = None
    if job.imposed:
        job.imposed.begin(model)
        job.imposed.constrain(model)
        circuit = job.imposed.align(model)
    decay = [parameter for name, parameter in model.named_parameters() if decays(name, parameter)]
    keep = [parameter for name, parameter in model.named_parameters() if not decays(name, parameter)]
    groups = [{"params": decay, "weight_decay": job.config.weight_decay}, {"params": keep, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=job.config.lr, betas=(0.9, job.config.beta2), fused=True)
    return State(model, optimizer, circuit=circuit)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of the step after ``step`` steps."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    factor = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}
    return config.lr * factor[config.schedule]


def answer_logits(model: LanguageModel, prompts: Prompts) -> Tensor:
    """Logits where an answer is due, [n, Q, V]."""
    return model.trace(prompts.tokens, Tap(), logits_at=prompts.positions)[0]


def run_steps(job: Job, state: State, device: torch.device) -> None:
    """Trains to the end, evaluating and saving on the way."""
    c, started = job.config, time.monotonic() - state.seconds
    validation = job.task.sample(c.eval_prompts, "discovery", mix(c.seed, "validation")).to(device)
    if state.step == 0:
        keep(job, state)
    with Progress("training", c.steps) as progress:
        progress.skip_to(state.step)
        while state.step < c.steps and state.good < 2:
            with suited(state.model.work(c.batch_size * job.task.length)):
                state.losses.append(one_step(job, state, device))
            state.step += 1
            if state.step % c.eval_every == 0 or state.step == c.steps:
                judge(job, state, validation)
            progress.step(note(state))
            keep(job, state)
            if state.step % c.save_every == 0 and state.step < c.steps:
                seconds = time.monotonic() - started
                write_metrics(job, state, seconds)
                save_resume(job, state, seconds)
    state.seconds = time.monotonic() - started


def keep(job: Job, state: State) -> None:
    """A checkpoint that stays, where this step is to leave one."""
    if job.config.keep_every and state.step % job.config.keep_every == 0:
        write(job, state, job.paths.on_the_way(state.step))


def one_step(job: Job, state: State, device: torch.device) -> float:
    """One step of the optimiser; returns the loss before it."""
    c = job.config
    count = c.batch_size * c.grad_accumulation
    prompts = job.task.sample(count, "train", mix(c.seed, "step", state.step)).to(device)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(c, state.step)
    state.optimizer.zero_grad()
    if job.imposed and state.circuit:
        state.circuit = job.imposed.next(state.model, state.circuit, state.step)
    loss = torch.zeros((), device=device)
    for start in range(0, count, c.batch_size):
        batch = prompts[start : start + c.batch_size]
        with torch.autocast(device.type, torch.bfloat16, enabled=c.precision == "bfloat16"):
            part = objective(job, state, batch) / c.grad_accumulation
        part.backward()
        loss += part.detach()
    norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), c.grad_clip)
    if not math.isfinite(loss.item()) or not math.isfinite(norm.item()):
        raise MechintError(
            f"training: the loss is {loss.item():g} with a gradient of norm {norm.item():g} at step {state.step + 1}; "
            f"lower {named('train', 'lr')} (now {c.lr:g}), or raise {named('train', 'warmup')} (now {c.warmup})"
        )
    state.optimizer.step()
    if job.imposed:
        job.imposed.constrain(state.model)
    return loss.item()


def objective(job: Job, state: State, batch: Prompts) -> Tensor:
    """The loss of a batch, in nats."""
    if job.imposed and state.circuit:
        return job.imposed.loss(state.model, state.circuit, batch, state.step)
    logits = answer_logits(state.model, batch)
    return F.cross_entropy(logits.float().flatten(0, 1), batch.answers.flatten())


@torch.no_grad()
def evaluate(model: LanguageModel, prompts: Prompts, batch_size: int) -> tuple[float, float]:
    """Mean loss in nats, and the share of answers that are right, over all answers of the prompts."""
    loss = right = 0.0
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        logits = answer_logits(model, batch)
        loss += F.cross_entropy(logits.flatten(0, 1), batch.answers.flatten(), reduction="sum").item()
        right += batch.correct(logits).sum().item()
    return loss / prompts.answers.numel(), right / len(prompts)


def bits_per_byte(prefix: str, task: Task, prompts: Prompts, loss: float) -> dict[str, float]:
    """The loss in bits for each byte of text, independent of the tokenizer; nothing if answers are not text."""
    size = task.bytes_of(prompts.answers)
    return {} if size is None else {f"{prefix}bits_per_byte": loss * size.numel() / math.log(2) / float(size.sum())}


def judge(job: Job, state: State, validation: Prompts) -> None:
    """Evaluates, and keeps the best model so far."""
    c = job.config
    val_loss, accuracy = evaluate(state.model, validation, c.batch_size)
    state.history.append(
        {
            "step": state.step,
            "loss": sum(state.losses) / len(state.losses),
            "val_loss": val_loss,
            "val_accuracy": accuracy,
            "lr": learning_rate(c, state.step - 1),
            **bits_per_byte("val_", job.task, validation, val_loss),
        }
    )
    point("", state.history[-1])
    state.losses = []
    good = accuracy >= c.stop_accuracy and job.imposed is None  # a model learns the answers before the imposed circuit
    state.good = state.good + 1 if good else 0
    if val_loss < state.best_val_loss:
        state.best_val_loss = val_loss
        write(job, state, job.paths.best, val_accuracy=accuracy)


def note(state: State) -> str:
    """Loss and accuracy for the progress line."""
    loss = state.losses[-1] if state.losses else state.history[-1]["loss"]
    accuracy = f", validation accuracy {state.history[-1]['val_accuracy']:.1%}" if state.history else ""
    return f"loss {loss:.3f}{accuracy}"


def finish(job: Job, state: State, device: torch.device) -> dict[str, Any]:
    """Measures the final model on the evaluation split and writes it; the checkpoint is what marks the run finished.

    Raises:
        NotImposed: interventions do not find the circuit that was to be imposed.
    """
    c = job.config
    if job.imposed and state.circuit:
        job.imposed.check(state.model, state.circuit, str(job.paths.final))
    held_out = job.task.sample(c.eval_prompts, "evaluation", mix(c.seed, "held out")).to(device)
    loss, accuracy = evaluate(state.model, held_out, c.batch_size)
    measured = {
        "held_out_loss": loss,
        "held_out_accuracy": accuracy,
        **bits_per_byte("held_out_", job.task, held_out, loss),
    }
    point("final", {"step": state.step, **measured})
    write_metrics(job, state, state.seconds, **measured, variant=job.variant, finished=True)
    checkpoint = write(job, state, job.paths.final, **measured)
    job.paths.resume.unlink(missing_ok=True)
    return checkpoint
