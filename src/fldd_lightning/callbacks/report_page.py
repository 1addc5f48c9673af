"""The page of a report: HTML from figures, tables, pictures and frames. Everything is in one file."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["figure", "note", "page", "picture", "player", "preformatted", "section", "table", "text_frame"]


def page(title: str, lead: str, facts: Mapping[str, str], sections: Sequence[str]) -> str:
    """The whole page.

    Args:
        title: Plain text.
        lead: Plain text, below the title.
        facts: Numbers at the top, by what they are; plain text.
        sections: HTML, each from :func:`section`.
    """
    from plotly.offline import get_plotlyjs

    template = Template(files(__package__).joinpath("report.html").read_text(encoding="utf-8"))
    cards = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return template.substitute(
        title=escape(title), lead=escape(lead), facts=cards, sections="\n".join(sections), plotly=get_plotlyjs()
    )


def section(title: str, *parts: str) -> str:
    """A section with a heading (plain text) and parts (HTML)."""
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def note(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def figure(drawn: Figure, name: str, height: int = 380, height_on_phone: int | None = None) -> str:
    """A plotly figure that is as wide as the page.

    Args:
        drawn: The figure.
        name: Its id on the page.
        height: In pixels.
        height_on_phone: On a narrow page; None for the same.
    """
    config = {"responsive": True, "displaylogo": False, "displayModeBar": False}
    html: str = drawn.to_html(
        config=config, include_plotlyjs=False, full_html=False, div_id=name, default_height="100%"
    )
    return f'<div class="figure" style="--wide: {height}px; --narrow: {height_on_phone or height}px">{html}</div>'


def table(rows: Mapping[str, str]) -> str:
    """Two columns of plain text."""
    cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows.items())
    return f"<table>{cells}</table>"


def preformatted(text: str, summary: str | None = None) -> str:
    """Plain text as it is; with a summary it is folded up."""
    block = f"<pre>{escape(text)}</pre>"
    return block if summary is None else f"<details><summary>{escape(summary)}</summary>{block}</details>"


def picture(pixels: Tensor, description: str) -> str:
    """A picture ``(3, H, W)`` in [0, 1], drawn with square pixels."""
    from torchvision.transforms.functional import to_pil_image

    buffer = io.BytesIO()
    to_pil_image(pixels).save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    height, width = pixels.shape[-2:]
    return (
        f'<img class="pixels" width="{width}" height="{height}" alt="{escape(description)}" '
        f'src="data:image/png;base64,{data}">'
    )


def text_frame(lines: Sequence[str], mask: str = "·") -> str:
    """Lines of plain text, in which MASK has its colour."""
    marked = (escape(line).replace(mask, f'<span class="mask">{mask}</span>') for line in lines)
    return "<ol>" + "".join(f"<li>{line}</li>" for line in marked) + "</ol>"


def player(frames: Sequence[str], labels: Sequence[str]) -> str:
    """An animation with a play button and a slider.

    Args:
        frames: HTML, of which one is seen at a time.
        labels: Plain text, one for each.
    """
    shown = "".join(
        f'<div class="frame{" off" if i else ""}" data-label="{escape(label)}">{frame}</div>'
        for i, (frame, label) in enumerate(zip(frames, labels, strict=True))
    )
    return (
        f'<div class="player"><div class="frames">{shown}</div><div class="controls">'
        f'<button type="button">Play</button>'
        f'<input type="range" min="0" max="{len(frames) - 1}" value="0" aria-label="state">'
        f"<output>{escape(labels[0])}</output></div></div>"
    )
