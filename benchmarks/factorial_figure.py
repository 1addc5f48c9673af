"""The figure of the factorial table, quality against network passes, and the steps that are saved."""

from __future__ import annotations

from pathlib import Path

from common import read_rows
from kinds import KINDS

__all__ = ["draw", "steps_saved"]

FIXED = ("masked", "uniform", "D3PM")
_COLOURS = {
    "masked": "#777777", "order by hand": "#c77b30", "learned": "#2a6fb0",
    "learned from masks": "#d62728", "uniform": "#4f9d69", "D3PM": "#9467bd",
}  # fmt: skip


_MARKS = {"ancestral": "o", "exactly n": "x", "confident first": "^"}


def steps_saved(
    rows: list[dict[str, str]], kind: str, column: str, less_is_better: bool, against: tuple[str, ...] = FIXED
) -> str:
    """The T at which the best of some fixed processes first is as good as learned with T = 4, in words.

    Of several decodings the fixed process has the best one, chosen on these same samples, in its favour.

    Args:
        rows: Of the CSV.
        kind: Of the data.
        column: ``nelbo`` or ``quality``.
        less_is_better: Of this column.
        against: The fixed processes.
    """
    sign = 1 if less_is_better else -1
    mine = [row for row in rows if row["kind"] == kind and row["seed"] == "0"]
    ours = [sign * float(row[column]) for row in mine if row["process"] == "learned" and row["num_steps"] == "4"]
    fixed = [row for row in mine if row["process"] in against and int(row["num_steps"]) > 1]
    if not ours or not fixed:
        return "not measured"
    reached = [int(row["num_steps"]) for row in fixed if sign * float(row[column]) <= min(ours)]
    most = max(int(row["num_steps"]) for row in fixed)
    return f"T = {min(reached)}" if reached else f"not reached at T = {most}"


def draw(csv_path: Path) -> None:
    """Write the figure beside the CSV, and print what is saved.

    Args:
        csv_path: The CSV of ``factorial.py``.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    rows = read_rows(csv_path)
    kinds = [kind for kind in KINDS if any(row["kind"] == kind for row in rows)]
    figure = Figure(figsize=(4.6 * len(kinds), 7.6), layout="constrained")
    axes = figure.subplots(2, len(kinds), squeeze=False, sharex=True)
    for column, kind in enumerate(kinds):
        quality, less = KINDS[kind].quality
        for line, (name, title) in enumerate((("nelbo", "bound, nats"), ("quality", quality))):
            axis = axes[line][column]
            for process, colour in _COLOURS.items():
                for latent, style in (("no", "--"), ("yes", "-"), ("joint", ":")):
                    for decoding, mark in _MARKS.items():
                        points = _points(rows, kind, process, latent, name, decoding)
                        if points and (name == "quality" or decoding == "ancestral"):
                            label = process + {"no": "", "yes": ", latent", "joint": ", latent trained with it"}[latent]
                            label += "" if decoding == "ancestral" else f", {decoding}"
                            axis.plot(*zip(*points, strict=True), style, color=colour, marker=mark, ms=4, label=label)
            axis.set_xscale("log", base=2)
            axis.set_xticks(sorted({int(row["num_steps"]) for row in rows}))
            axis.xaxis.set_major_formatter(ScalarFormatter())
            axis.set_ylabel(title + (" (less is better)" if line == 0 or less else " (more is better)"))
            if line == 1 and less:
                axis.set_yscale("log")
                axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.yaxis.set_major_formatter(ScalarFormatter())
                axis.yaxis.set_minor_formatter(NullFormatter())
        axes[0][column].set_title(kind)
        axes[1][column].set_xlabel("network passes a sample")
        for against, said in ((FIXED, "the best process without an order"), (("order by hand",), "the order by hand")):
            saved = {n: steps_saved(rows, kind, n, n == "nelbo" or less, against) for n in ("nelbo", "quality")}
            print(f"{kind}: {said} is as good as learned with T = 4 in the bound at {saved['nelbo']}, in ", end="")
            print(f"{quality} at {saved['quality']}")
    shown = {label: line for axis in axes.flat for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(shown.values(), shown, fontsize=8, loc="outside lower center", ncols=3)
    figure.savefig(csv_path.with_suffix(".png"), dpi=130)


def _points(
    rows: list[dict[str, str]], kind: str, process: str, latent: str, column: str, decoding: str
) -> list[tuple[int, float]]:
    """Mean over seeds by T."""
    wanted = (kind, process, latent, decoding)
    found: dict[int, list[float]] = {}
    for row in rows:
        if (row["kind"], row["process"], row["latent"], row["decoding"]) == wanted:
            found.setdefault(int(row["num_steps"]), []).append(float(row[column]))
    return [(t, sum(found[t]) / len(found[t])) for t in sorted(found)]
