"""One HTML file with every picture inside: what reports are made of."""

import base64
from collections.abc import Callable, Iterable, Sequence
from html import escape
import io

from matplotlib.figure import Figure

STYLE = """body{font-family:sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse}td,th{padding:.25em .8em;border-bottom:1px solid #ccc;
text-align:right}td:first-child{text-align:left}img{max-width:100%}pre{background:#f4f4f4;
padding:1em;overflow:auto}.met{color:#080}.missed{color:#b00}"""


def page(title: str, intro: str, sections: Iterable[tuple[str, str]]) -> str:
    """Return a page: a title, HTML below it, and sections of (heading, HTML)."""
    body = ''.join(f'<h2>{escape(heading)}</h2>{html}' for heading, html in sections)
    return (f'<!doctype html><meta charset="utf-8"><title>{escape(title)}</title>'
            f'<style>{STYLE}</style><h1>{escape(title)}</h1>{intro}{body}')


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of texts."""
    head = ''.join(f'<th>{escape(heading)}</th>' for heading in headings)
    body = ''.join('<tr>' + ''.join(f'<td>{escape(cell)}</td>' for cell in row) + '</tr>'
                   for row in rows)
    return f'<table><tr>{head}</tr>{body}</table>'


def listing(lines: Iterable[str]) -> str:
    """Return a list of lines."""
    return '<ul>' + ''.join(f'<li>{escape(line)}</li>' for line in lines) + '</ul>'


def picture(size: tuple[float, float], draw: Callable[[Figure], None]) -> str:
    """Return a picture of a size [inch] that a function draws."""
    figure = Figure(figsize=size, layout='constrained')
    draw(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=90)
    return embed('png', buffer.getvalue())


def embed(kind: str, data: bytes) -> str:
    """Return an image of a kind ('png', 'gif') with its bytes inside."""
    return f'<p><img src="data:image/{kind};base64,{base64.b64encode(data).decode()}"></p>'
