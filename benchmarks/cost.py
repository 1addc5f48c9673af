"""What a step of large models costs, counted on paper: operations, and bytes that GPUs send each other.

    python benchmarks/cost.py

Operations are counted at one example (:mod:`work` says what counts), and grow with their number. From them and from
four constants, which are the arguments, follow the milliseconds of a step on several GPUs: a forecast, not a
measurement. GPUs average gradients in a ring, in which each sends and receives 2 (W - 1) / W times the bytes of all
parameters, of 4 bytes each. It is assumed to begin after the backward pass, though DDP begins earlier.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from work import counted, trained_numbers

from fldd_lightning import FLDD, Backbone, DiT, LearnedMaskProcess, Spec, Transformer, UNet

__all__ = ["MODELS", "forecast", "main"]


Network = Callable[[Spec, int, int], Backbone]


def model_of(num_classes: int, shape: Sequence[int], schedule: Network, denoiser: Network) -> FLDD:
    """A model with a learned schedule of four steps, and no latent."""
    process = partial(LearnedMaskProcess, network=schedule)
    return FLDD(num_classes, shape, forward_process=process, denoiser=denoiser, num_steps=4)


MODELS: dict[str, tuple[Callable[[], FLDD], int]] = {  # and examples of a GPU in a step
    "U-Net, 28x28, K = 2": (
        lambda: model_of(2, (28, 28), partial(UNet, widths=(16, 32, 64)), partial(UNet, widths=(32, 64, 128))), 512
    ),
    "DiT, 3x32x32, K = 32": (lambda: model_of(32, (3, 32, 32), DiT, DiT), 128),
    "Transformer, 32 tokens, K = 30": (
        lambda: model_of(
            30, (32,), partial(Transformer, width=128, depth=2, heads=4), partial(Transformer, width=256, depth=6)
        ), 1_024,
    ),
    "Transformer, 256 tokens, K = 27": (
        lambda: model_of(
            27, (256,), partial(Transformer, width=384, depth=4, heads=6),
            partial(Transformer, width=512, depth=8, heads=8),
        ), 128,
    ),
    "Transformer, 1,024 tokens, K = 50,257": (
        lambda: model_of(
            50_257, (1_024,), partial(Transformer, width=384, depth=4, heads=6),
            partial(Transformer, width=768, depth=12, heads=12),
        ), 16,
    ),
}  # fmt: skip


def forecast(
    operations: float, parameters: float, gpus: int, tflops: float, inside: float, between: float, node: int
) -> tuple[float, float]:
    """Milliseconds of a step, and gigabytes that each GPU sends in it.

    Args:
        operations: Of a step of one GPU.
        parameters: That are trained.
        gpus: W, which average their gradients.
        tflops: 10^12 operations a second that a GPU does.
        inside: Gigabytes a second that a GPU sends within a machine.
        between: The same between machines.
        node: GPUs of a machine.
    """
    gigabytes = 2 * (gpus - 1) / gpus * 4 * parameters / 1e9
    rate = inside if gpus <= node else between
    return 1e3 * (operations / (tflops * 1e12) + gigabytes / rate), gigabytes


def count(make: Callable[[], FLDD], batch: int) -> tuple[int, int]:
    """Operations of a step, and parameters."""
    model = make().train()
    x = torch.zeros(1, *model.spec.shape, dtype=torch.long)
    return batch * counted(partial(step, model, x)), trained_numbers(model)


def step(model: FLDD, x: Tensor) -> None:
    """One step of training, without its optimiser."""
    loss = model.training_step(x, 0)
    loss.backward()  # type: ignore[no-untyped-call]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tflops", type=float, default=150.0, help="10^12 operations a second of one GPU")
    parser.add_argument("--inside", type=float, default=200.0, help="GB a second of one GPU within a machine")
    parser.add_argument("--between", type=float, default=20.0, help="GB a second of one GPU between machines")
    parser.add_argument("--node", type=int, default=8, help="GPUs of a machine")
    arguments = parser.parse_args()
    print("| model | parameters | examples | TFLOP | 1 GPU | 8 GPUs | 64 GPUs |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, (make, batch) in MODELS.items():
        operations, parameters = count(make, batch)
        at = partial(forecast, operations, parameters, **vars(arguments))
        times = " | ".join(f"{at(gpus=gpus)[0]:.3g} ms" for gpus in (1, 8, 64))
        print(f"| {name} | {parameters / 1e6:.3g} M | {batch} | {operations / 1e12:.3g} | {times} |", flush=True)


if __name__ == "__main__":
    main()
