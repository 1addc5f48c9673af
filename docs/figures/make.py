"""Draws the figures of README and documentation with the library itself.

    python docs/figures/make.py                # all of them, some three minutes on a CPU
    python docs/figures/make.py coupling       # one of: coupling, marginals, bound, digits

``digits`` trains ``configs/digits.yaml`` and draws its trajectories, its schedule and its latent.
"""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path

import torch
from lightning import Trainer, seed_everything
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import DataLoader

from fldd_lightning import (
    FLDD,
    MLP,
    AbsorbingProcess,
    LearnedMaskProcess,
    MaskProcess,
    Spec,
    StaggeredProcess,
    UniformProcess,
    load_model,
)
from fldd_lightning.callbacks.drawing import with_mask
from fldd_lightning.cli import main as command_line
from fldd_lightning.coupling import MaximumCoupling
from fldd_lightning.forward.masked import NEVER

HERE = Path(__file__).parent
D, T = 16, 4
BLUE, ORANGE, GREY = "#3b5bdb", "#e8590c", "#868e96"


def pairs(num: int, seed: int = 0) -> Tensor:
    """A source that is easy to read: eight fair coins, written down twice. Entropy 8 ln 2 nats."""
    half = torch.randint(2, (num, D // 2), generator=torch.Generator().manual_seed(seed))
    return torch.cat([half, half], 1)  # (N, 16)


class AllAt(MaskProcess):
    """A collapsed process: every coordinate is revealed in one and the same step t."""

    def __init__(self, spec: Spec, t: int) -> None:
        super().__init__(spec)
        steps = torch.arange(spec.num_steps + 1).reshape(-1, *[1] * len(spec.shape))
        odds = torch.where(steps > t, 8.0, -8.0).masked_fill(steps < 2, NEVER)
        self.register_buffer("odds", odds, persistent=False)

    def log_stay_odds(self) -> Tensor:
        return self.odds


def trained(process: object, max_steps: int = 1_000) -> FLDD:
    """A model of :func:`pairs` after a few seconds of training."""
    seed_everything(0)
    model = FLDD(2, (D,), process, partial(MLP, width=64), num_steps=T, lr=5e-3, freeze_steps=100)
    trainer = Trainer(
        max_steps=max_steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(pairs(256 * max_steps), batch_size=256))
    return model.eval()


def save(figure: Figure, name: str) -> None:
    """Write one picture, small."""
    figure.savefig(HERE / f"{name}.png", dpi=110, facecolor="white")
    print(f"wrote docs/figures/{name}.png")


def draw_coupling() -> None:
    """Two marginals of one coordinate, and how the maximum coupling moves the one into the other."""
    states = ["a", "b", "c", "d", "MASK"]
    u_s = torch.tensor([0.50, 0.15, 0.05, 0.05, 0.25])
    u_t = torch.tensor([0.30, 0.10, 0.05, 0.05, 0.50])
    coupled = MaximumCoupling.of(u_s.log(), u_t.log())
    posterior = torch.stack([coupled.posterior(torch.tensor(k)) for k in range(5)])  # rows: z_t, columns: z_s
    joint = u_t[:, None] * posterior
    figure = Figure(figsize=(9, 3.1), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.1, 1, 1])
    places = torch.arange(5)
    left.bar(places - 0.2, u_t, 0.4, label="$u_t$, noisier", color=GREY)
    left.bar(places + 0.2, u_s, 0.4, label="$u_s$, one step cleaner", color=BLUE)
    left.set_xticks(places, states)
    left.set_title("two marginals")
    left.set_ylim(0, 0.7)
    left.legend(frameon=False, loc="upper left")
    for axes, values, title in (
        (middle, joint, "how often both happen: $q(z_t, z_s\\,|\\,x)$"),
        (right, posterior, "what the step does: $q(z_s\\,|\\,z_t, x)$"),
    ):
        brightest = 1.0 if axes is right else 0.5
        axes.imshow(values, cmap="Blues", vmin=0, vmax=brightest)
        axes.set_xticks(places, states)
        axes.set_yticks(places, states)
        axes.set_xlabel("$z_s$")
        axes.set_ylabel("$z_t$")
        axes.set_title(title, fontsize=10)
        for i in range(5):
            for j in range(5):
                if values[i, j] > 0.005:
                    dark = values[i, j] > 0.6 * brightest
                    axes.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", color="w" if dark else "k")
    save(figure, "coupling")


def draw_marginals(learned: FLDD) -> None:
    """The probability that a coordinate still is x, for every coordinate and step."""
    spec = learned.spec
    processes = {
        "AbsorbingProcess": AbsorbingProcess(spec),
        "StaggeredProcess": StaggeredProcess(spec),
        "UniformProcess": UniformProcess(spec),
        "LearnedMaskProcess": learned.forward_process,
    }
    x = pairs(1, seed=1)
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    rows = figure.subplots(1, 4, sharey=True)
    for axes, (name, process) in zip(rows, processes.items(), strict=True):
        with torch.no_grad():
            kept = process.kept(x, torch.arange(T + 1)[None])[0]  # (T + 1, D)
        image = axes.imshow(kept, cmap="viridis", vmin=0, vmax=1, aspect="auto")
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("coordinate")
        axes.set_yticks(range(T + 1), ["$t=0$, data", "1", "2", "3", "$t=4$, noise"])
    figure.colorbar(image, ax=rows, label="$q(z_t=x\\,|\\,x)$", shrink=0.9)
    save(figure, "marginals")


def bars(axes: Axes, model: FLDD, title: str) -> None:
    """The terms of the bound of one model."""
    test = DataLoader([{"x": x, "index": torch.tensor(i)} for i, x in enumerate(pairs(4_000, seed=2))], batch_size=1000)
    values = model.evaluate(test)
    kl = [float(values[f"kl_t{t}"]) for t in range(T, 0, -1)]
    axes.bar(range(T), kl, color=BLUE if values["nelbo"] < 8 else ORANGE)
    axes.set_xticks(range(T), [f"$t={t}$" for t in range(T, 0, -1)])
    axes.set_title(f"{title}\nsum {float(values['nelbo']):.2f}", fontsize=10)


def draw_bound(learned: FLDD) -> None:
    """The bound as one bar a step: fixed, by hand, learned, and both ends of collapse."""
    models = {
        "masked at random": trained(AbsorbingProcess),
        "order by hand": trained(StaggeredProcess),
        "order learned": learned,
        "collapsed: all at first": trained(partial(AllAt, t=T)),
        "collapsed: all at last": trained(partial(AllAt, t=1)),
    }
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    rows = figure.subplots(1, len(models), sharey=True)
    for axes, (title, model) in zip(rows, models.items(), strict=True):
        bars(axes, model, title)
    rows[0].set_ylabel("KL, nats an example")
    save(figure, "bound")


def draw_trajectory(model: FLDD) -> None:
    """States z_4..z_0 of some samples, from top to bottom; MASK is blue."""
    num = 12
    states = model.sample(num, seed=3, trajectory=True)  # (T + 1, N, 8, 8)
    figure = Figure(figsize=(9, 3.85), layout="constrained")
    rows = figure.subplots(T + 1, num)
    for t, row in zip(range(T, -1, -1), rows, strict=True):
        for picture, axes in zip(with_mask(model, states[T - t]), row, strict=True):
            axes.imshow(picture.permute(1, 2, 0), vmin=0, vmax=1)
            axes.set_xticks([])
            axes.set_yticks([])
        row[0].set_ylabel(f"$z_{t}$", rotation=0, labelpad=12, va="center")
    save(figure, "digits_trajectory")


def draw_latent(model: FLDD) -> None:
    """What a latent says of every pixel by itself, and what the steps make of it."""
    latent, num = model.latents[0], 10
    seen: list[Tensor] = []
    drawn = latent.sample
    latent.sample = lambda n, generator: seen.append(c := drawn(n, generator)) or c  # type: ignore[method-assign]
    samples = model.sample(num, seed=3)
    says = latent.log_conditional_of(seen[0]).exp()[..., 1]  # (N, 8, 8), probability of white
    figure = Figure(figsize=(9, 2.0), layout="constrained")
    rows = figure.subplots(2, num)
    for i in range(num):
        for j, picture in enumerate((says[i].detach(), samples[i])):
            rows[j, i].imshow(picture, cmap="gray", vmin=0, vmax=1)
            rows[j, i].set_xticks([])
            rows[j, i].set_yticks([])
    rows[0, 0].set_ylabel("latent", fontsize=9)
    rows[1, 0].set_ylabel("sample", fontsize=9)
    save(figure, "latent")


def draw_digits() -> None:
    """Train the digits as a user would, and keep the run's own pictures."""
    with tempfile.TemporaryDirectory() as folder:
        args = ["fit", "--config", str(HERE.parents[1] / "configs" / "digits.yaml"), "--trainer.accelerator", "cpu"]
        assert command_line([*args, "--trainer.default_root_dir", folder]) == 0
        shutil.copy(next(Path(folder).rglob("schedule.png")), HERE / "digits_schedule.png")
        model = load_model(next(Path(folder).rglob("final.ckpt")))
        draw_trajectory(model)
        draw_latent(model)


def main(names: list[str]) -> None:
    """Draw the figures that are asked for, or all."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    names = names or ["coupling", "marginals", "bound", "digits"]
    if "coupling" in names:
        draw_coupling()
    if "marginals" in names or "bound" in names:
        learned = trained(partial(LearnedMaskProcess, network=partial(MLP, width=64), base=AbsorbingProcess))
        if "marginals" in names:
            draw_marginals(learned)
        if "bound" in names:
            draw_bound(learned)
    if "digits" in names:
        draw_digits()


if __name__ == "__main__":
    main(sys.argv[1:])
