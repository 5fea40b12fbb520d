"""The page around a report's sections, and the small pieces that they are made of. Everything here
returns HTML.
"""

import html
import json

from wmpo_lite.report import show

FPS = 5  # the control rate of the table-top: films play in real time

CSS = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 66rem; padding: 1.5rem 1.25rem 4rem; background: #fff;
  color: #23262b;
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial,
  sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0.5rem 0 0.25rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 0.5rem; padding-top: 1.1rem;
  border-top: 1px solid #e3e6ea; }
h3 { font-size: 1rem; margin: 1.5rem 0 0.4rem; }
p { margin: 0.5rem 0; max-width: 50rem; }
.sub, figcaption, .why { color: #626873; font-size: 0.88rem; }
.headline { font-size: 1.22rem; line-height: 1.5; max-width: 52rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: 0.8rem;
  margin: 1.2rem 0; }
.tile { border: 1px solid #e3e6ea; border-radius: 8px; padding: 0.7rem 0.9rem;
  background: #fafbfc; }
.tile b { display: block; font-size: 1.45rem; line-height: 1.3; }
.tile span { color: #626873; font-size: 0.85rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 0.8rem 0; font-size: 0.92rem;
  font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 0.34rem 1.2rem 0.34rem 0; border-bottom: 1px solid #eceef1;
  vertical-align: top; }
th { font-weight: 600; color: #4b515b; white-space: nowrap; }
td.n, th.n { text-align: right; white-space: nowrap; }
.yes { color: #1b7a46; font-weight: 600; } .no { color: #b3262f; font-weight: 600; }
.note { background: #fff7e0; border-left: 4px solid #e2a400; padding: 0.5rem 0.8rem;
  border-radius: 3px; }
.note ul { margin: 0.2rem 0; padding-left: 1.2rem; }
figure { margin: 0.8rem 0; } figure > img { max-width: 100%; height: auto; display: block; }
.films { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(24rem, 100%), 1fr));
  gap: 1rem 1.2rem;
         margin: 0.8rem 0; }
.films figure { margin: 0; } .films video { width: 100%; display: block; }
details { margin: 0.6rem 0; } summary { cursor: pointer; font-weight: 600; }
"""


def page(title: str, head: str, missing: list[str], parts: dict[str, str]) -> str:
    """The whole file: `head`, what is missing, then every part that is not empty under its heading.
    title is text, the rest HTML.
    """
    sections = [
        f"<section><h2>{heading}</h2>{content}</section>"
        for heading, content in parts.items()
        if content
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport"'
        ' content="width=device-width, initial-scale=1"><link rel="icon"'
        f' href="data:,"><title>{html.escape(title)}</title><style>{CSS}</style></head>\n<body>\n'
        + "\n".join([head, missing_note(missing), *sections])
        + "\n</body></html>\n"
    )


def note(what: str) -> str:
    return (
        f'<p class="note">{html.escape(what)} is missing from this run, so this part cannot be'
        " shown.</p>"
    )


def missing_note(missing: list[str]) -> str:
    if not missing:
        return ""
    items = "".join(f"<li>{html.escape(item)}</li>" for item in missing)
    return (
        '<div class="note"><b>This run is incomplete.</b> It was stopped, or skipped a stage;'
        f" start the same command again to complete it.<ul>{items}</ul></div>"
    )


def table(header: list[str], rows: list[list[str]], numbers: tuple[int, ...] = ()) -> str:
    """Cells are HTML already. numbers: columns set flush right."""
    mark = [' class="n"' if i in numbers else "" for i in range(max(map(len, rows)) if rows else 0)]
    head = (
        "<tr>" + "".join(f"<th{mark[i]}>{cell}</th>" for i, cell in enumerate(header)) + "</tr>"
        if header
        else ""
    )
    body = "".join(
        "<tr>" + "".join(f"<td{mark[i]}>{cell}</td>" for i, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table>{head}{body}</table></div>'


def pairs(values: dict) -> str:
    """A table of names and values."""
    return table([], [[html.escape(str(key)), text(value)] for key, value in values.items()])


def text(value) -> str:
    """A value of a JSON file."""
    if isinstance(value, dict):
        return "<br>".join(f"{html.escape(str(key))}: {text(item)}" for key, item in value.items())
    if isinstance(value, float):
        return f"{value:.6g}"
    return html.escape(value if isinstance(value, str) else json.dumps(value, default=str))


def folded(summary: str, content: str) -> str:
    """Content that a click on the summary, text, unfolds."""
    return f"<details><summary>{html.escape(summary)}</summary>{content}</details>"


def picture(figure, alt: str, caption: str = "") -> str:
    # Drawn at 150 dpi and shown at 96: sharp on dense screens, and text of the size of the page's
    # captions.
    width = round(96 * figure.get_figwidth())
    image = show.image_html(figure, alt).replace("<img ", f'<img style="width:{width}px" ', 1)
    return f"<figure>{image}{f'<figcaption>{caption}</figcaption>' if caption else ''}</figure>"


def film_figures(films, captions: list[str], budget: list[int]) -> str:
    """Films (an iterable) encoded until the report's budget of bytes is spent; what was left out is
    said.
    """
    figures = []
    for film, caption in zip(films, captions):
        data = show.to_mp4(film, FPS)
        if len(data) > budget[0]:
            figures.append(
                f'<p class="note">{len(captions) - len(figures)} more films were left out to keep'
                " this file small.</p>"
            )
            break
        budget[0] -= len(data)
        words = f"<figcaption>{html.escape(caption)}</figcaption>"
        figures.append(f"<figure>{show.mp4_html(data, caption)}{words}</figure>")
    return f'<div class="films">{"".join(figures)}</div>'
