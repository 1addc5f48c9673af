"""The figures of a report, in plotly: the bound and its terms over steps, and when coordinates are revealed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..module import FLDD
from .drawing import Schedule, as_picture, with_mask
from .history import History

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["bound_figure", "examples_figure", "moved_figure", "order_figure", "terms_figure"]

_BLUE, _ORANGE, _GREY = "#2b5c9e", "#d9762b", "#8a8f98"
_MOST_LINES = 12  # steps that have a line each; more are a heat map


def bound_figure(history: History, baseline: float | None) -> Figure:
    """The bound on training and validation examples over steps, and the bound of a product of marginals.

    Args:
        history: With ``train/nelbo`` and ``val/nelbo``, as far as they are there.
        baseline: Nats per example of the product of marginals, or None.
    """
    figure = _figure("step", "nats an example")
    _line(figure, history.points("train/nelbo"), "training", _ORANGE, width=1, opacity=0.7)
    _line(figure, history.points("val/nelbo"), "validation", _BLUE, width=2.5, mode="lines+markers")
    if baseline is not None:
        steps = [step for name in ("train/nelbo", "val/nelbo") for step, _ in history.points(name)] or [0, 1]
        ends = [(min(steps), baseline), (max(steps), baseline)]
        _line(figure, ends, "product of marginals", _GREY, width=1.5, dash="dash")
    values = sorted(v for name in ("train/nelbo", "val/nelbo") for _, v in history.points(name) if v == v)
    if values:  # an untrained model is far away from anything: the first few values may leave the picture
        shown = [values[0], values[round(0.97 * (len(values) - 1))], *([] if baseline is None else [baseline])]
        margin = 0.06 * (max(shown) - min(shown)) or 1.0
        figure.update_yaxes(range=[min(shown) - margin, max(shown) + margin])
    return figure


def terms_figure(history: History, num_steps: int, others: Sequence[str]) -> Figure | None:
    """The terms of the validation bound over steps: the KL of every reverse step, of every latent, and any other.

    Args:
        history: With ``val/kl_t{t}`` and the others.
        num_steps: T.
        others: Names of terms beside those of steps, such as ``kl_mixture``.

    Returns:
        Lines, or for many steps a heat map; None where nothing was validated.
    """
    import plotly.graph_objects as go
    from plotly.colors import sample_colorscale

    of_steps = [f"val/kl_t{t}" for t in range(1, num_steps + 1)]
    if not history.points(of_steps[0]):
        return None
    if num_steps > _MOST_LINES:
        figure = _figure("step", "t")
        steps = [step for step, _ in history.points(of_steps[0])]
        values = [[value for _, value in history.points(name)] for name in of_steps]
        figure.add_trace(
            go.Heatmap(
                x=steps, y=list(range(1, num_steps + 1)), z=values, colorscale="Blues",
                colorbar={"title": "nats", "thickness": 12},
                hovertemplate="step %{x}, t = %{y}: %{z:.3f} nats<extra></extra>",
            )
        )  # fmt: skip
        return figure
    figure = _figure("step", "nats an example")
    for t, name in enumerate(of_steps, start=1):
        place = 0.0 if num_steps == 1 else (t - 1) / (num_steps - 1)
        colour = sample_colorscale("Viridis", 0.9 * place)[0]
        _line(figure, history.points(name), f"t = {t}", colour, width=2, mode="lines+markers")
    for name in others:
        _line(
            figure,
            history.points(f"val/{name}"),
            name.removeprefix("kl_"),
            _ORANGE,
            width=2,
            dash="dot",
            mode="lines+markers",
        )
    figure.update_yaxes(rangemode="tozero")
    return figure


def moved_figure(history: History) -> Figure | None:
    """How far the marginals of the forward process are from where it started, over steps; None if nobody measured."""
    points = history.points("collapse/moved")
    if not points:
        return None
    figure = _figure("step", "total variation")
    _line(figure, points, "distance from the start", _BLUE, width=2.5, mode="lines+markers")
    figure.update_yaxes(rangemode="tozero", exponentformat="none")
    figure.update_layout(showlegend=False)
    return figure


def order_figure(module: FLDD, learned: Schedule, base: Schedule | None) -> Figure:
    """The step of sampling that reveals each coordinate, in the mean over examples.

    Args:
        module: The model.
        learned: Its schedule.
        base: That of the process it started from, to show what has changed; None if it is fixed.
    """
    order = _revealed(module, learned).nanmean(0)  # (H, W)
    is_flat = order.shape[0] == 1
    count = 1 if base is None else 2
    titles = ["step", "change"][:count]
    figure = _subplots(*((count, 1) if is_flat else (1, count)), titles)
    _heat(figure, order, 1, 1)
    known = order[order.isfinite()]
    low, high = (float(known.min()), float(known.max())) if len(known) else (1.0, 1.0)
    widen = max(0.0, 0.5 - (high - low)) / 2  # a map of one colour is none of noise
    limits = [(low - widen, high + widen)]
    if base is not None:
        change = order - _revealed(module, base).nanmean(0)
        _heat(figure, change, *((2, 1) if is_flat else (1, 2)), axis="coloraxis2")
        most = max(0.1, float(change.abs().nan_to_num().max()))
        limits.append((-most, most))
    _with_scales(figure, limits, stacked=is_flat)
    return figure


def examples_figure(module: FLDD, schedule: Schedule) -> Figure:
    """A few examples, and below each the step of sampling that reveals each of its coordinates.

    Args:
        module: The model.
        schedule: Of the examples shown.
    """
    import plotly.graph_objects as go

    revealed = _revealed(module, schedule)  # (N, H, W)
    count, height, _ = revealed.shape
    limits = [(1.0, float(max(2, module.spec.num_steps)))]
    if height == 1:  # sequences: one heat map with a row for each
        figure = _subplots(1, 1, [])
        _heat(figure, revealed[:, 0], 1, 1, square=False)
        figure.update_yaxes(
            visible=True,
            showgrid=False,
            zeroline=False,
            tickvals=list(range(count)),
            ticktext=[str(i + 1) for i in range(count)],
        )
        _with_scales(figure, limits, stacked=False)
        return figure
    figure = _subplots(2, count, [])
    for i, picture in enumerate(with_mask(module, schedule.x)):
        shown = (255 * picture.permute(1, 2, 0)).round().byte().tolist()
        figure.add_trace(go.Image(z=shown, hoverinfo="skip"), row=1, col=i + 1)
        _heat(figure, revealed[i], 2, i + 1)
    _with_scales(figure, limits, stacked=False)
    return figure


# ---- pieces -------------------------------------------------------------------------------------


def _revealed(module: FLDD, schedule: Schedule) -> Tensor:
    """The step that reveals each coordinate, ``(N, H, W)``; not a number for PAD, which is not drawn."""
    steps, pad = schedule.revealed, module.spec.pad
    if pad is not None:
        steps = steps.masked_fill(schedule.x == pad, float("nan"))
    return as_picture(module, steps).nanmean(1)


def _figure(x: str, y: str) -> Figure:
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.update_layout(**_layout(), legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"})
    figure.update_xaxes(title=x, automargin=True, zeroline=False)
    figure.update_yaxes(title=y, automargin=True, zeroline=False)
    return figure


def _subplots(rows: int, columns: int, titles: list[str]) -> Figure:
    from plotly.subplots import make_subplots

    gaps = (0.06, 0.5) if titles else (0.03, 0.04)
    figure = make_subplots(
        rows, columns, subplot_titles=titles or None, horizontal_spacing=gaps[0], vertical_spacing=gaps[1]
    )
    figure.update_layout(**_layout())
    figure.update_layout(margin={"t": 28 if titles else 8, "b": 40})
    figure.update_annotations(font_size=13)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return figure


def _layout() -> dict[str, Any]:
    return {
        "template": "plotly_white",
        "margin": {"l": 8, "r": 8, "t": 10, "b": 8},
        "font": {"family": "system-ui, sans-serif", "size": 13},
    }


def _line(
    figure: Figure,
    points: list[tuple[float, float]],
    name: str,
    colour: str,
    width: float,
    mode: str = "lines",
    opacity: float = 1.0,
    dash: str = "solid",
) -> None:
    import plotly.graph_objects as go

    if points:
        line = {"color": colour, "width": width, "dash": dash}
        steps, values = [step for step, _ in points], [value for _, value in points]
        hover = "step %{x:.0f}: %{y:.3f}<extra>%{fullData.name}</extra>"
        figure.add_trace(
            go.Scatter(x=steps, y=values, name=name, mode=mode, line=line, opacity=opacity, hovertemplate=hover)
        )


def _heat(figure: Figure, values: Tensor, row: int, column: int, square: bool = True, axis: str = "coloraxis") -> None:
    """A heat map ``(H, W)`` in the colours of all steps, the first row on top."""
    import plotly.graph_objects as go

    hover = "row %{y}, column %{x}: %{z:.2f}<extra></extra>"
    figure.add_trace(go.Heatmap(z=values.tolist(), coloraxis=axis, hovertemplate=hover), row=row, col=column)
    figure.update_yaxes(autorange="reversed", row=row, col=column)
    if square and values.shape[0] > 1:
        anchor = figure.data[-1].xaxis
        figure.update_yaxes(scaleanchor=anchor, constrain="domain", row=row, col=column)
        figure.update_xaxes(constrain="domain", row=row, col=column)


def _with_scales(figure: Figure, limits: list[tuple[float, float]], stacked: bool) -> None:
    """Gives heat maps a scale each, below them: of steps of sampling, and of a change of them.

    Args:
        figure: The figure.
        limits: Of the steps and, if it is shown, of the change.
        stacked: Whether the second map stands below the first.
    """
    for i, (low, high) in enumerate(limits):
        x = 0.5 if stacked or len(limits) == 1 else (0.235, 0.765)[i]
        y = 0.73 if stacked and i == 0 and len(limits) == 2 else -0.02
        bar = {
            "orientation": "h",
            "thickness": 10,
            "x": x,
            "y": y,
            "yanchor": "top",
            "len": 0.4,
            "nticks": 4,
            "tickangle": 0,
        }
        colours = ("Viridis_r", "RdBu")[i]
        figure.update_layout(
            {f"coloraxis{i + 1 if i else ''}": {"colorscale": colours, "cmin": low, "cmax": high, "colorbar": bar}}
        )
