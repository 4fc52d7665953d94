# SPDX-License-Identifier: BSD-3-Clause
"""The page of a report: one HTML file with its figures and pictures inside, read without network.

It has no script. It follows the reader's choice of light or dark, and fits a telephone.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from ssd_fast.engine.report import Report
from ssd_fast.engine.report_figures import MATRIX_CLASSES

__all__ = ["Exhibit", "render_page"]

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #181c22; --faint: #5c6570; --line: #e1e4e8;
  --card: #f5f6f8; --strong: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --paper: #16191e; --ink: #e8eaed; --faint: #9aa3ad;
  --line: #333940; --card: #20242a; --strong: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.25rem; max-width: 68rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.25rem 0 .5rem; }
p { margin: .35rem 0 .8rem; max-width: 44rem; }
.faint { color: var(--faint); overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); gap: .6rem;
  margin: 1.25rem 0; }
.card { background: var(--card); border-radius: .6rem; padding: .6rem .8rem; }
.card b { display: block; font-size: 1.5rem; line-height: 1.2;
  font-variant-numeric: tabular-nums; }
.card span { color: var(--faint); font-size: .85rem; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
  gap: 0 2rem; }
.wide { overflow-x: auto; }
img { display: block; max-width: 100%; height: auto; border-radius: .4rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .75rem .3rem 0; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { color: var(--faint); font-weight: 600; font-size: .85rem; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 6.5rem;
  overflow-wrap: anywhere; position: sticky; left: 0; background: var(--paper); }
tfoot td { font-weight: 700; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr));
  gap: 1rem; }
figure { margin: 0; }
figcaption { font-size: .9rem; overflow-wrap: anywhere; }
"""


@dataclass(frozen=True)
class Exhibit:
    """A picture of an image with its detections.

    Attributes:
        picture: a JPEG file.
        title: the image's name.
        text: what went wrong in it.
    """

    picture: bytes
    title: str
    text: str


def render_page(
    report: Report,
    light: Mapping[str, bytes],
    dark: Mapping[str, bytes],
    exhibits: Sequence[Exhibit],
) -> str:
    """Writes the page.

    Args:
        report: its numbers.
        light: figures by name, from `draw_figures`.
        dark: the same for dark pages.
        exhibits: the images with most errors.

    Returns:
        HTML, complete in itself.
    """

    def figure(name: str, alt: str) -> str:
        return (
            '<picture><source media="(prefers-color-scheme: dark)" srcset="'
            f'{_data(dark[name], "png")}"><img alt="{escape(alt)}" src="'
            f'{_data(light[name], "png")}"></picture>'
        )

    title = f"Evaluation of {report.source.get('weights', 'a detector')}"
    threshold = report.score_threshold
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="faint">{escape(_about(report))}</p>',
        _cards(report),
        '<div class="two"><section><h2>Precision and recall</h2>'
        "<p>At IoU 0.5, a line a class; the area below it is the class's average precision.</p>",
        figure("precision_recall", "Precision over recall of each class"),
        "</section><section><h2>Which score threshold</h2>"
        f"<p>F1, the harmonic mean of precision and recall, is best at {threshold:.3f} for all"
        " classes together; <code>ssd-fast predict</code> takes it from report.json.</p>",
        figure("f1", "F1 over the score threshold"),
        "</section></div><h2>Classes</h2>"
        "<p>Threshold, F1, precision and recall are those of the class's own best threshold.</p>",
        _class_table(report),
        '<div class="two"><section><h2>What is taken for what</h2>'
        f"<p>At IoU 0.5 and scores of {threshold:.3f} and more. First row: detections of nothing;"
        f" first column: objects missed. Colours are shares of a row.{_left_out(report)}</p>",
        f'<div class="wide">{figure("confusion_matrix", "Confusion matrix")}</div>',
        "</section><section><h2>By size of the objects</h2>"
        "<p>Small is up to 32 x 32 pixels, large from 96 x 96. Recall is at the threshold"
        " above.</p>",
        figure("sizes", "Average precision and recall by size"),
        "</section></div>",
        _exhibition(exhibits),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _about(report: Report) -> str:
    source, evaluation = report.source, report.evaluation
    rules = {
        "voc": "VOC's (area under the curve)",
        "voc07": "VOC 2007's (eleven points)",
        "coco": "COCO's",
    }[evaluation.metric]
    images = f"{evaluation.images} images"
    where = f"{images} of {source['image_set']}" if source.get("image_set") else images
    return f"{where}, {source.get('data', '')}; average precision by {rules} rules"


def _left_out(report: Report) -> str:
    """What the matrix does not show."""
    if len(report.evaluation.class_names) <= MATRIX_CLASSES:
        return ""
    return f" Of the classes, the {MATRIX_CLASSES} with most errors; report.json has all."


def _cards(report: Report) -> str:
    evaluation, coco = report.evaluation, report.evaluation.coco
    chosen = report.thresholds
    cards = [
        (evaluation.at_50.mean, "mAP@0.5"),
        (evaluation.at_75.mean, "mAP@0.75"),
        (evaluation.mean, "mAP@0.5:0.95"),
        (report.score_threshold, "score threshold"),
        (float(chosen.mean_f1[chosen.overall]), "F1 there"),
    ]
    if coco is not None:
        cards += [
            (coco.ap_small, "AP small"),
            (coco.ap_medium, "AP medium"),
            (coco.ap_large, "AP large"),
            (coco.ar_1, "AR of 1 detection"),
            (coco.ar_10, "AR of 10"),
            (coco.ar_100, "AR of 100"),
        ]
    inside = "".join(
        f'<div class="card"><b>{_fraction(value)}</b><span>{name}</span></div>'
        for value, name in cards
    )
    return f'<div class="cards">{inside}</div>'


def _class_table(report: Report) -> str:
    rows = report.class_rows()
    columns = [("objects", "objects"), ("ap_50", "AP@0.5"), ("ap_75", "AP@0.75")]
    columns += [("ap", "AP@0.5:0.95")] * (report.evaluation.coco is not None)
    columns += [("score_threshold", "threshold"), ("f1", "F1")]
    columns += [("precision", "precision"), ("recall", "recall")]
    head = "".join(f"<th>{name}</th>" for _, name in columns)
    body = "".join(
        f"<tr><td>{escape(row['name'])}</td>"
        + "".join(f"<td>{_cell(row[key])}</td>" for key, _ in columns)
        + "</tr>\n"
        for row in rows
    )
    means = {
        "objects": sum(row["objects"] for row in rows),
        "ap_50": report.evaluation.at_50.mean,
        "ap_75": report.evaluation.at_75.mean,
        "ap": report.evaluation.mean,
    }
    foot = "".join(f"<td>{_cell(means[k]) if k in means else ''}</td>" for k, _ in columns)
    return (
        f'<div class="wide"><table><thead><tr><th>class</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody><tfoot><tr><td>mean</td>{foot}</tr></tfoot></table></div>"
    )


def _exhibition(exhibits: Sequence[Exhibit]) -> str:
    if not exhibits:
        return "<h2>Images with most errors</h2><p>No image has one.</p>"
    figures = "".join(
        f'<figure><img loading="lazy" alt="{escape(exhibit.title)}" src="'
        f'{_data(exhibit.picture, "jpeg")}"><figcaption>{escape(exhibit.title)}<br>'
        f'<span class="faint">{escape(exhibit.text)}</span></figcaption></figure>'
        for exhibit in exhibits
    )
    return (
        "<h2>Images with most errors</h2><p>Coloured: detections. Dashed: the truth.</p>"
        f'<div class="pictures">{figures}</div>'
    )


def _data(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{b64encode(content).decode('ascii')}"


def _cell(value: float | None) -> str:
    return str(value) if isinstance(value, int) else _fraction(value)


def _fraction(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.3f}"
