"""The figure of the factorial table, quality against network passes, and the steps that are saved."""

from __future__ import annotations

from pathlib import Path

from common import read_rows
from kinds import KINDS

__all__ = ["draw", "steps_saved"]

_COLOURS = {
    "masked": "#777777", "order by hand": "#c77b30", "learned": "#2a6fb0", "uniform": "#4f9d69", "D3PM": "#9467bd",
}  # fmt: skip


def steps_saved(rows: list[dict[str, str]], kind: str, column: str, less_is_better: bool) -> str:
    """The T at which the best fixed process without order first is as good as the best with T = 4, in words.

    Args:
        rows: Of the CSV.
        kind: Of the data.
        column: ``nelbo`` or ``quality``.
        less_is_better: Of this column.
    """
    sign = 1 if less_is_better else -1
    mine = [row for row in rows if row["kind"] == kind and row["seed"] == "0"]
    ours = [sign * float(row[column]) for row in mine if row["process"] == "learned" and row["num_steps"] == "4"]
    fixed = [row for row in mine if row["process"] in ("masked", "uniform", "D3PM") and int(row["num_steps"]) > 1]
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

    rows = read_rows(csv_path)
    kinds = [kind for kind in KINDS if any(row["kind"] == kind for row in rows)]
    figure = Figure(figsize=(4.2 * len(kinds), 6.4), layout="constrained")
    axes = figure.subplots(2, len(kinds), squeeze=False, sharex=True)
    for column, kind in enumerate(kinds):
        quality, less = KINDS[kind].quality
        for line, (name, title) in enumerate((("nelbo", "bound, nats"), ("quality", quality))):
            axis = axes[line][column]
            for process, colour in _COLOURS.items():
                for latent, style in (("no", "--"), ("yes", "-")):
                    points = _points(rows, kind, process, latent, name)
                    if points:
                        label = process + (", latent" if latent == "yes" else "")
                        axis.plot(*zip(*points, strict=True), style, color=colour, marker="o", ms=4, label=label)
            axis.set_xscale("log", base=2)
            axis.set_ylabel(title + (" (less is better)" if line == 0 or less else " (more is better)"))
            if line == 1 and less:
                axis.set_yscale("log")
        axes[0][column].set_title(kind)
        axes[1][column].set_xlabel("network passes a sample")
        saved = {name: steps_saved(rows, kind, name, name == "nelbo" or less) for name in ("nelbo", "quality")}
        print(f"{kind}: the best fixed process is as good as learned with T = 4 in {saved}")
    axes[0][0].legend(fontsize=7)
    figure.savefig(csv_path.with_suffix(".png"), dpi=130)


def _points(rows: list[dict[str, str]], kind: str, process: str, latent: str, column: str) -> list[tuple[int, float]]:
    """Mean over seeds by T; of several decodings the best."""
    chosen: dict[int, dict[str, list[float]]] = {}
    less = column == "nelbo" or KINDS[kind].quality[1]
    for row in rows:
        if (row["kind"], row["process"], row["latent"]) == (kind, process, latent):
            by_decoding = chosen.setdefault(int(row["num_steps"]), {})
            by_decoding.setdefault(row["decoding"], []).append(float(row[column]))
    means = {t: [sum(values) / len(values) for values in each.values()] for t, each in chosen.items()}
    return [(t, min(means[t]) if less else max(means[t])) for t in sorted(means)]
