"""What a training step and a sample cost beyond their networks, as ratios measured in one run.

    python benchmarks/speed.py --quick
    python benchmarks/speed.py --output benchmarks/results/speed.json

Data are random integers of the shapes of four configs. On a CPU time is the processor's, of one thread; on a GPU it is
that of events. The two sides of a ratio take turns, and the ratio is the median of those of the turns. So the numbers
hold on a busy machine, too. `--quick` measures less of each.

- `step_over_networks`: `training_step` and its backward pass, over the networks of forward and reverse process alone,
  with the same inputs, forward and backward.
- `fit_over_step`: a step of `Trainer.fit` with the callbacks of the command line, over `training_step`, its backward
  pass, clipping and the optimiser. Validation is not in it.
- `sampling_over_passes`: a batch of samples, over T passes of the denoiser.
- `growth`: a step of a small model, and its ratio, as one number grows.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from math import log
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import machine, one_thread
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from measuring import compared, kernels, operations, peak_mib
from torch import Tensor

from fldd_lightning import (
    FLDD,
    MLP,
    RLOO,
    Ancestral,
    ArrayDataModule,
    LearnedMaskProcess,
    MixtureLatent,
    Reinforce,
    Transformer,
    UNet,
)
from fldd_lightning.cli.defaults import default_callbacks
from fldd_lightning.coupling import MaximumCoupling
from fldd_lightning.loop import OwnLoop

FORWARD_TEXT = partial(Transformer, width=64, depth=1, heads=2, time_width=64)
DENOISER_TEXT = partial(Transformer, width=64, depth=3, heads=2, time_width=64)


def learned(num_classes: int, shape: tuple[int, ...], network: Any, denoiser: Any = None, **options: Any) -> FLDD:
    """A model whose process masks and learns."""
    process = partial(LearnedMaskProcess, network=network)
    return FLDD(num_classes, shape, process, denoiser or network, **options)


# The models of four configs (mnist28 without its latent, text with longer blocks), and examples at once.
CONFIGS: dict[str, tuple[Callable[[], FLDD], int]] = {
    "digits": (partial(learned, 2, (8, 8), partial(MLP, width=256, dropout=0.2), latents=MixtureLatent), 128),
    "mnist28": (partial(learned, 2, (28, 28), UNet), 16),
    "qm9": (
        partial(learned, 20, (32,), partial(MLP, width=512), latents=MixtureLatent, padded=True, num_steps=10),
        128,
    ),
    "text": (partial(learned, 27, (128,), FORWARD_TEXT, DENOISER_TEXT), 32),
}
SMALL: dict[str, Any] = {"dims": 64, "classes": 8, "T": 4, "batch": 64, "draws": 1}
GROWTH = {
    "dims": (16, 64, 256),
    "classes": (2, 32, 512),
    "T": (4, 16, 64),
    "batch": (16, 64, 256),
    "draws": (2, 4, 8),
}

_COMPILED = ("digits", "qm9", "text")  # whose samples are; those of images take minutes
_VARIANTS = (
    ("bf16", False, torch.bfloat16),
    ("compiled", True, torch.float32),
    ("compiled_bf16", True, torch.bfloat16),
)


def made(name: str, device: str) -> tuple[FLDD, Tensor]:
    """A model of CONFIGS, its latent with a random table, and a random batch."""
    torch.manual_seed(0)
    make, batch = CONFIGS[name]
    model = make().to(device)
    for latent in model.latents:
        if isinstance(latent, MixtureLatent):
            latent.log_prior.fill_(-log(latent.size))
            latent.log_conditional.copy_(torch.randn_like(latent.log_conditional).log_softmax(-2))
            latent.is_fitted.fill_(True)
    return model, integers(model, batch, device)


def integers(model: FLDD, batch: int, device: str) -> Tensor:
    """Random examples ``(B, *shape)``, without PAD."""
    values = model.spec.num_classes - int(model.spec.padded)
    return torch.randint(values, (batch, *model.spec.shape), device=device)


# ---- a step ------------------------------------------------------------------------------------


def step_and_networks(model: FLDD, x: Tensor) -> tuple[Callable[[], None], Callable[[], None]]:
    """A training step with its backward pass, and the same of its networks alone, given their inputs."""
    model.train()
    calls: list[tuple[Any, Any]] = []
    networks = [model.reverse.network, model.forward_process.network]
    hooks = [each.register_forward_hook(lambda net, inputs, _: calls.append((net, inputs))) for each in networks]
    model.training_step(x, 0).backward()
    for hook in hooks:
        hook.remove()

    def alone() -> None:
        outputs = [network(*inputs) for network, inputs in calls]
        torch.autograd.backward(outputs, [torch.full_like(out, 1e-3) for out in outputs])

    def step() -> None:
        model.training_step(x, 1).backward()

    return step, alone


def measured_step(name: str, device: str, turns: int) -> dict[str, Any]:
    """All about a training step of one config."""
    model, x = made(name, device)
    step, alone = step_and_networks(model, x)
    found: dict[str, Any] = {"batch": len(x), **named(compared(step, alone, turns, device), "step_over_networks")}
    found |= {"operations": operations(step), "operations_of_networks": operations(alone)}
    found |= {"mib": round(peak_mib(step, device), 1), "mib_of_networks": round(peak_mib(alone, device), 1)}
    if device == "cuda":
        found |= {"kernels": kernels(step), "kernels_of_networks": kernels(alone)}
        never_waits(model, x)
    return found


def named(values: dict[str, float], name: str) -> dict[str, float]:
    """What :func:`compared` gave, under other names."""
    return {name: values["ratio"], "milliseconds": round(1e3 * values["seconds"], 2)}


def never_waits(model: FLDD, x: Tensor) -> None:
    """Raise if a whole training step waits for the GPU."""
    loop = OwnLoop(model, [x], 1_000)

    def step() -> None:
        loop.model.training_step(x, loop.model.own_steps).backward()
        loop.step()

    step()  # with the checks that are made once
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Turns(Callback):
    """Blocks of steps of ``fit`` and of a plain loop take turns.

    Args:
        loop: One step of the plain loop.
        block: Steps of each.
        first: Steps before the first block.
    """

    def __init__(self, loop: Callable[[], None], block: int, first: int) -> None:
        self.loop, self.block, self.first = loop, block, first
        self.pairs: list[tuple[float, float]] = []
        self._begun = 0.0

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        done = trainer.global_step - self.first
        if done < 0 or done % self.block:
            return
        ended = time.process_time()
        if done > 0:
            for _ in range(self.block):
                self.loop()
            self.pairs.append((ended - self._begun, time.process_time() - ended))
        self._begun = time.process_time()


def measured_fit(name: str, turns: int, block: int) -> dict[str, Any]:
    """A step of ``fit`` over one of a plain loop, on a CPU."""
    model, x = made(name, "cpu")
    plain, _ = made(name, "cpu")
    optimizer = plain.train().make_optimizer(10_000, lambda step: step / 10_000)["optimizer"]

    def loop() -> None:
        plain.training_step(x, plain.own_steps).backward()
        plain.configure_gradient_clipping(optimizer)
        optimizer.step()
        optimizer.zero_grad()
        plain.own_steps += 1

    watch = Turns(loop, block, first=5)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "x.pt"
        torch.save(integers(model, 50 * len(x), "cpu"), file)
        data = ArrayDataModule(str(file), model.spec.num_classes, batch_size=len(x))
        options: dict[str, Any] = {"enable_progress_bar": False, "enable_checkpointing": False}
        steps = {"max_steps": 6 + turns * block, "limit_val_batches": 0, "accelerator": "cpu"}
        quiet = {"enable_model_summary": False, "default_root_dir": folder}
        callbacks = [*default_callbacks("fit", options, model), watch]
        trainer = Trainer(callbacks=callbacks, **options, **steps, **quiet)  # type: ignore[arg-type]
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.fit(model, data)
    return {
        "fit_over_step": round(median(a / b for a, b in watch.pairs), 3),
        "fit_milliseconds": round(1e3 * median(a for a, _ in watch.pairs) / block, 2),
    }


# ---- the coupling, samples, growth ----------------------------------------------------------------


def by_matrix(log_u_s: Tensor, log_u_t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """The maximum coupling by the matrix of all pairs of states: q(z_s|z_t = z), and its entropy at every state."""
    u_s, u_t = log_u_s.exp(), log_u_t.exp()
    grows = (u_s - u_t).clamp_min(0)
    move = grows / grows.sum(-1, keepdim=True)
    stay = (u_s / u_t).clamp_max(1)
    q = torch.diag_embed(stay) + (1 - stay).unsqueeze(-1) * move.unsqueeze(-2)  # (N, S, S)
    return q[torch.arange(len(z)), z], -torch.xlogy(q, q).sum(-1)


def by_loop(log_u_s: Tensor, log_u_t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """The same, one state z_t at a time."""
    u_s, u_t = log_u_s.exp(), log_u_t.exp()
    grows = (u_s - u_t).clamp_min(0)
    move = grows / grows.sum(-1, keepdim=True)
    stay = (u_s / u_t).clamp_max(1)
    at_z, entropies = torch.zeros_like(u_s), []
    for k in range(u_s.shape[-1]):
        q = (1 - stay[:, k, None]) * move
        q[:, k] += stay[:, k]
        entropies.append(-torch.xlogy(q, q).sum(-1))
        at_z = torch.where((z == k)[:, None], q, at_z)
    return at_z, torch.stack(entropies, -1)


def by_closed_form(log_u_s: Tensor, log_u_t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """The same, as the library has it."""
    coupled = MaximumCoupling.of(log_u_s, log_u_t)
    return coupled.posterior(z), coupled.entropy()


def measured_coupling(device: str, turns: int) -> dict[str, Any]:
    """How much longer the two other forms take, with their gradients, by the number of states."""
    found = {}
    for num_states in (16, 64, 256):
        logits = torch.randn(2, 256, num_states, device=device, requires_grad=True)
        z = torch.randint(num_states, (256,), device=device)

        def run(form: Any, logits: Tensor = logits, z: Tensor = z) -> None:
            q, entropy = form(*logits.log_softmax(-1), z)
            (q[:, 0].sum() + entropy.sum()).backward()

        closed = partial(run, by_closed_form)
        for name, form in (("matrix", by_matrix), ("loop", by_loop)):
            found[f"{name}_at_{num_states}_states"] = compared(partial(run, form), closed, turns, device)["ratio"]
    return found


def measured_samples(device: str, turns: int, batches: tuple[int, ...]) -> dict[str, Any]:
    """Sampling over T passes of the denoiser at the configs, and samples a second of the digits by T and batch."""
    found: dict[str, Any] = {"over_passes": {}, "a_second": {}}
    for name in CONFIGS:
        model, x = made(name, device)
        found["over_passes"][name] = sampling(model.eval(), len(x), turns, device)["ratio"]
    for num_steps in (4, 64):
        model = learned(2, (8, 8), partial(MLP, width=256), num_steps=num_steps).to(device).eval()
        for batch in batches:
            once = sampling(model, batch, turns, device)["seconds"]
            found["a_second"][f"T={num_steps}, batch={batch}"] = round(batch / once)
    return found


@torch.no_grad()
def sampling(model: FLDD, batch: int, turns: int, device: str) -> dict[str, float]:
    """A batch of samples, over passes of the denoiser with the same inputs."""
    calls: list[Any] = []
    hook = model.reverse.network.register_forward_hook(lambda _, inputs, __: calls.append(inputs))
    model.sample(batch, batch_size=batch)
    hook.remove()

    @torch.no_grad()
    def passes() -> None:
        for inputs in calls:
            model.reverse.network(*inputs)

    return compared(lambda: model.sample(batch, batch_size=batch), passes, turns, device)


def measured_growth(device: str, turns: int) -> list[dict[str, Any]]:
    """A step of a small model as one number grows, the others being those of SMALL."""
    rows = []
    for name, values in GROWTH.items():
        for value in values:
            sizes = {**SMALL, name: value}
            estimator = partial(RLOO, samples=sizes["draws"]) if sizes["draws"] > 1 else Reinforce
            network = partial(MLP, width=128)
            torch.manual_seed(0)
            model = learned(sizes["classes"], (sizes["dims"],), network, estimator=estimator, num_steps=sizes["T"]).to(
                device
            )
            x = integers(model, sizes["batch"], device)
            rows.append(
                {name: value, **named(compared(*step_and_networks(model, x), turns, device), "step_over_networks")}
            )
    return rows


# ---- the rest ------------------------------------------------------------------------------------


def measured_start() -> dict[str, float]:
    """Processor seconds of a new process until it has imported, shown its help, taken a first step."""
    first = (
        "import torch; from speed import made, step_and_networks; torch.set_num_threads(1); "
        "step_and_networks(*made('digits', 'cpu'))"
    )
    commands = {
        "import": [sys.executable, "-c", "import fldd_lightning"],
        "help": [sys.executable, "-c", "from fldd_lightning.cli import main; main(['--help'])"],
        "import_and_first_step": [sys.executable, "-c", first],
    }
    found = {}
    for name, command in commands.items():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=Path(__file__).parent)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found[name] = round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1)
    return found


def measured_variants(device: str, turns: int) -> dict[str, Any]:
    """Steps in bfloat16, steps that are compiled whole, and both, over plain ones; samples that are compiled."""
    found: dict[str, Any] = {}
    for name in CONFIGS:
        for label, is_compiled, dtype in _VARIANTS:
            found[f"{label}_over_plain_{name}"] = changed_over_plain(name, device, turns, is_compiled, dtype)
    return found | {f"compiled_samples_over_plain_{name}": compiled_samples(name, device, turns) for name in _COMPILED}


def changed_over_plain(name: str, device: str, turns: int, is_compiled: bool, dtype: torch.dtype) -> float:
    """A step of a config with ``compile`` or networks in another precision, over one without."""
    (model, x), (other, _) = made(name, device), made(name, device)
    step, _ = step_and_networks(model, x)
    other.train().compiled = is_compiled

    def changed() -> None:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            loss = other.training_step(x, 1)
        loss.backward()

    ratio: float = compared(changed, step, turns, device)["ratio"]
    return ratio


def compiled_samples(name: str, device: str, turns: int) -> float:
    """A batch of samples of a config with ``compile``, over one without."""
    model, x = made(name, device)
    plain, compiled = Ancestral(), Ancestral(compile=True)
    draw = partial(model.eval().sample, len(x), batch_size=len(x))
    ratio: float = compared(partial(draw, decoding=compiled), partial(draw, decoding=plain), turns, device)["ratio"]
    return ratio


def measured(device: str, quick: bool) -> Iterator[dict[str, Any]]:
    """Everything, part after part, each time with what was found before."""
    turns, begun = 5 if quick else 7, time.monotonic()
    where = machine() if device == "cuda" else "cpu, 1 thread"
    found: dict[str, Any] = {"machine": where, "torch": torch.__version__, "quick": quick}
    found["steps"] = {name: measured_step(name, device, turns) for name in CONFIGS}
    yield found
    found["sampling"] = measured_samples(device, turns, (64,) if quick else (1, 64, 256))
    found["coupling"] = measured_coupling(device, turns)
    yield found
    if device == "cpu":
        for name in ["digits"] if quick else list(CONFIGS):
            found["steps"][name] |= measured_fit(name, turns, 10 if name in ("digits", "qm9") else 2)
            yield found
    if not quick:
        found["growth"] = measured_growth(device, turns)
        yield found
        found["processor_seconds"] = measured_start()
        yield found
        found["variants"] = measured_variants(device, turns)
    yield {**found, "wall_seconds": round(time.monotonic() - begun)}


def table(found: dict[str, Any]) -> str:
    """The rows of the page, in Markdown."""
    rows = ["| config | step over networks | fit over step | sampling over passes |", "| --- | --- | --- | --- |"]
    for name, step in found["steps"].items():
        ratios = (step["step_over_networks"], step["fit_over_step"], found["sampling"]["over_passes"][name])
        rows.append(f"| {name} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |")
    return "\n".join(rows) + "\n"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="in under a minute on a free core")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--output", type=Path, help="write the JSON here, too")
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    one_thread()
    for found in measured(arguments.device, arguments.quick):
        text = json.dumps(found, indent=2)
        if arguments.output:  # what a later part breaks does not take away what is there
            arguments.output.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
