"""The sections of a report that show something: the bound, samples, what the forward process learned."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..module import FLDD
from . import report_figures, report_page
from .collapse import moved_from_base
from .drawing import Schedule, montage, schedule_of, shown_steps, with_mask
from .history import History

__all__ = ["curves", "forward_process", "metrics", "samples", "trajectory"]

_MOST_FRAMES = 65
_MOST_LINES = 20  # of text
_NUM_EXAMPLES = 4
_LINES, _MAPS = (380, 320), (400, 260)  # heights of figures in pixels, on a desk and on a phone
_STILL = 1e-3  # total variation up to which a process counts as unmoved; as in CollapseMonitor


def curves(module: FLDD, history: History, baseline: float | None) -> str:
    """The bound and its terms over steps."""
    parts = [
        report_page.note("An upper bound of -log p(x): the lower, the better. Validation uses the averaged weights."),
        report_page.figure(report_figures.bound_figure(history, baseline), "bound", *_LINES),
    ]
    bound, lowest = history.last("val/nelbo"), history.lowest("val/nelbo")
    of_latents = history.last("val/nll_latent")
    if bound is not None and lowest is not None and lowest[1] < bound:
        parts.append(
            report_page.note(
                f"It was lowest at step {lowest[0]}, with {lowest[1]:.2f} nats, and is {bound:.2f} at the end. Samples "
                "and pictures of this page are of the end; the commands below take the checkpoint of the lowest "
                "bound. If the difference is large the model overfits: dropout, fewer steps or more examples help."
            )
        )
        bound = lowest[1]
    if baseline is not None:
        said = (
            f"A product of the data's marginals, which knows nothing of how coordinates depend on each other, has "
            f"{baseline:.2f} nats."
        )
        if bound is not None and bound < baseline:
            said += f" This model is {baseline - bound:.2f} nats below it, where it is lowest."
        elif bound is not None:
            said += " This model is not below it: so far it has learned less than that."
        if of_latents is not None and bound is not None:
            than = "lower than" if of_latents > bound else "no lower than"
            said += f" The latents alone have {of_latents:.2f} nats: with the steps the bound is {than} that."
        parts.append(report_page.note(said))
    num_steps = module.spec.num_steps
    others = module.evaluations["val"].bound.term_names if "val" in module.evaluations else ()
    terms = report_figures.terms_figure(history, num_steps, others)
    if terms is not None:
        parts.append("<h3>What the bound is made of</h3>")
        parts.append(
            report_page.note(
                f"On validation examples: the KL of each reverse step, from t = {num_steps}, which is drawn first, to "
                "t = 1, and of the latents, if there are any. They add up to the bound."
            )
        )
        parts.append(report_page.figure(terms, "terms", *_LINES))
    return report_page.section("The bound", *parts)


def samples(module: FLDD, x: Tensor, speed: float) -> str:
    """Samples ``(N, *shape)`` as pictures, or as text where the model writes it."""
    text = f"{len(x)} samples of the averaged weights at the end, {speed:,.0f} a second."
    if module.to_text(x[:1]) is not None and len(x) > _MOST_LINES:
        text, x = f"{text} The first {_MOST_LINES}:", x[:_MOST_LINES]
    return report_page.section("Samples", report_page.note(text), _drawn(module, x, "samples"))


def trajectory(module: FLDD, states: Tensor) -> str:
    """States z_T..z_0 ``(T + 1, N, *shape)`` as an animation."""
    num_steps = len(states) - 1
    labels = [_state(t) for t in shown_steps(num_steps, _MOST_FRAMES)]
    frames = [_drawn(module, states[num_steps - t], _state(t)) for t in shown_steps(num_steps, _MOST_FRAMES)]
    text = f"<p>From noise, {_state(num_steps)}, to samples, {_state(0)}."
    if module.forward_process.has_mask:
        text += ' <span class="swatch"></span>MASK: not drawn yet.'
    return report_page.section("How samples come about", text + "</p>", report_page.player(frames, labels))


def forward_process(module: FLDD, batch: Any, history: History) -> str:
    """How far the forward process moved, and when it lets the coordinates of a batch be revealed.

    Args:
        module: The model.
        batch: Validation examples; None draws no maps.
        history: With ``collapse/moved``, where it was measured.
    """
    process, num_steps = module.forward_process, module.spec.num_steps
    parts = [report_page.note(_movement(module, batch))]
    if batch is not None and num_steps > 1:
        learned = schedule_of(module, batch)
        base = schedule_of(module, batch, use_base=True) if process.learned else None
        text = f"The step of sampling, 1 to {num_steps}, in which a coordinate takes its value; mean over "
        text += f"{len(learned.x)} validation examples."
        if base is not None:
            text += " The second map says how much later that is than before training."
        few = Schedule(*(each[:_NUM_EXAMPLES] for each in learned))
        lines = module.to_text(few.x)
        is_flat = len(module.spec.shape) == 1  # a row for each example
        of_order, of_examples = ((140 if base is None else 280,), (190, 190)) if is_flat else (_MAPS, _MAPS)
        parts += [
            "<h3>When each coordinate is revealed</h3>",
            report_page.note(text),
            report_page.figure(report_figures.order_figure(module, learned, base), "order", *of_order),
            "<h3>The same for a few examples</h3>",
            "" if lines is None else report_page.text_frame(lines),
            report_page.figure(report_figures.examples_figure(module, few), "examples", *of_examples),
        ]
    distance = report_figures.moved_figure(history) if process.learned else None
    if distance is not None:
        parts += ["<h3>How far it moved</h3>", report_page.figure(distance, "moved", 260, 220)]
    return report_page.section("The forward process", *parts)


def metrics(history: History) -> str:
    """The last value of everything that was logged in validation."""
    last = {name: history.points(name)[-1] for name in history.names() if not name.startswith("train/")}
    rows = {name: f"{value:.4g} (step {step:.0f})" for name, (step, value) in last.items()}
    folded = f"<details><summary>{len(rows)} values</summary>{report_page.table(rows)}</details>"
    return report_page.section("Last values", folded) if rows else ""


# ---- internals ---------------------------------------------------------------------------------


def _movement(module: FLDD, batch: Any) -> str:
    """A sentence about how far the forward process is from where it started."""
    process = module.forward_process
    name = type(process).__name__
    if not process.learned:
        return f"The forward process is fixed: {process.configuration()}."
    moved = None if batch is None else moved_from_base(module, module.transfer_batch_to_device(batch, module.device, 0))
    if moved is None:
        return f"The forward process is learned: {process.configuration()}."
    if moved < _STILL:
        return (
            f"The forward process ({name}) has not moved: the total variation between its marginals and those it "
            f"started from is {moved:.2g}. Try a longer run, a shorter freeze_steps or a larger forward_lr_ratio."
        )
    return (
        f"The forward process ({name}) has moved: the total variation between its marginals and those it started "
        f"from is {moved:.3f} in the mean. 0 would be no change, 1 the largest there is."
    )


def _state(t: int) -> str:
    return "z" + str(t).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


def _drawn(module: FLDD, z: Tensor, name: str) -> str:
    """Examples or states ``(N, *shape)`` as a picture, as text, or as both where the model has both."""
    lines = module.to_text(z)
    parts = [] if lines is None else [report_page.text_frame(lines)]
    if lines is None or type(module).render is not FLDD.render:
        parts.insert(0, report_page.picture(montage(with_mask(module, z)), name))
    return "".join(parts)
