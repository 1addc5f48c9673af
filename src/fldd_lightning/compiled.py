"""A step of training, and one of sampling, as one graph of torch.compile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .bound import DrawnNoise, SharedGenerator
from .errors import FLDDError
from .latents.base import Latent

if TYPE_CHECKING:
    from .module import FLDD

__all__ = ["Compiled", "CompiledLoss", "TrainingLoss"]


_GRAPHS = 64  # of all models in a process


class Compiled:
    """A function that torch.compile makes one graph of.

    Args:
        function: What is compiled.
        option: The option that is to be set to false where it cannot be compiled.
    """

    def __init__(self, function: Callable[..., Any], option: str) -> None:
        self._compiled, self._option = torch.compile(function, fullgraph=True), option

    def __call__(self, *args: Any) -> Any:
        """What the function gives.

        Raises:
            FLDDError: If a part of it cannot be compiled, or too many sizes of batches would have to be.
        """
        try:
            with torch._dynamo.config.patch(recompile_limit=_GRAPHS):
                return self._compiled(*args)
        except torch._dynamo.exc.FailOnRecompileLimitHit as error:
            raise FLDDError(
                f"more than {_GRAPHS} graphs would have to be compiled: other sizes of batches need their own. Set "
                f"{self._option} to false, or make batches of one size."
            ) from error
        except torch._dynamo.exc.TorchDynamoException as error:
            said = " ".join(str(error).split("\n\n")[0].split())
            raise FLDDError(
                f"this model cannot be compiled: {said[:300]}. Set {self._option} to false, or leave out what torch "
                "cannot compile; on a CPU it needs a C++ compiler."
            ) from error


class TrainingLoss(NamedTuple):
    """The loss of a training step, and what there is to log.

    Attributes:
        loss: Per dimension.
        kl: KL of the step in nats, ``(B,)``, detached; None if the estimator has none.
        auxiliary: The auxiliary loss, ``(B,)``; None if there is none.
        t: The step of each example, ``(B,)``.
        of_latents: Mean KL of the latents, and NLL under them, by name.
    """

    loss: Tensor
    kl: Tensor | None
    auxiliary: Tensor | None
    t: Tensor
    of_latents: dict[str, Tensor]


class CompiledLoss:
    """The training loss of a model, compiled whole: forward process, coupling, estimator, latents and both networks.

    A graph cannot draw from a generator of one's own. So the first batch of a shape is computed as always, which notes
    what noise it takes, and everything it changed is put back. From then on the same noise is drawn by the same
    generator before each step, and handed to the graph. Numbers that change along the run are arguments of the graph.
    It is compiled two or three times at first, and may be again for other sizes of batches.

    Args:
        model: Whose loss it is.
    """

    def __init__(self, model: FLDD) -> None:
        self._model = model
        self._requests: dict[Any, list[Callable[[torch.Generator], Tensor]]] = {}
        self._compiled = Compiled(self._traced, "model.compile")
        latents = [each for latent in model.latents for each in latent.modules() if isinstance(each, Latent)]
        self._annealed = [each for each in latents if type(each).anneal is not Latent.anneal]

    def __call__(self, batch: Any, generator: SharedGenerator, global_step: int, progress: float) -> TrainingLoss:
        """The loss of a batch; see :meth:`FLDD.loss_of`.

        Raises:
            FLDDError: If a part of the model cannot be compiled, or too many sizes of batches would have to be.
        """
        shapes = [leaf.shape for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]
        key = (*shapes, self._model.estimator.phase(global_step))
        if key not in self._requests:
            self._requests[key] = self._noted(batch, generator, global_step, progress)
        drawn = [request(generator) for request in self._requests[key]]
        with self._weights_as_tensors(generator.device):
            loss: TrainingLoss = self._compiled(batch, drawn, generator.world, global_step, progress)
        return loss

    @contextmanager
    def _weights_as_tensors(self, device: torch.device) -> Iterator[None]:
        """Weights of latents that change along the run as tensors: numbers would need a graph for each value.

        A weight of the latent alone that is 0 and one of the KL that is 1 stay numbers, which spare work.
        """
        kept = [
            (each, name, number)
            for each in self._annealed
            for name, number, neutral in (("weight", each.weight, 1.0), ("weight_alone", each.weight_alone, 0.0))
            if number != neutral
        ]
        for each, name, number in kept:
            setattr(each, name, torch.full((), number, device=device))
        try:
            yield
        finally:
            for each, name, number in kept:
                setattr(each, name, number)

    def _noted(self, batch: Any, generator: SharedGenerator, global_step: int, progress: float) -> list[Any]:
        """What noise a batch takes; the generator, and the model's running means, are as they were before."""
        state, device = generator.get_state(), generator.device
        kept = {name: buffer.clone() for name, buffer in self._model.named_buffers()}
        requests: list[Callable[[torch.Generator], Tensor]] = []
        generator.requests = requests
        with torch.random.fork_rng([device] if device.type == "cuda" else []):  # which dropout draws from
            self._model.loss_of(batch, generator, global_step, progress)  # with gradients, which noise may depend on
        with torch.no_grad():
            for name, buffer in self._model.named_buffers():
                buffer.copy_(kept[name])
        generator.requests = None
        generator.set_state(state)
        return requests

    def _traced(self, batch: Any, drawn: list[Tensor], world: int, global_step: int, progress: float) -> TrainingLoss:
        return self._model.loss_of(batch, DrawnNoise(drawn, world), global_step, progress)
