"""Figures of matplotlib as small inline SVG that the page's style sheet colours."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
_CLASS = "c-"
_NUMBER = re.compile(r"-?\d+\.\d+")
_COMMAND = re.compile(r"\s*([MLHVCQz])\s*")
_ANCHOR = re.compile(r"text-anchor:\s*(\w+)")

# Text stays text; images go in as they are, a pixel a value.
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "amct",
    "image.composite_image": False,
    "font.size": 11,
    "axes.unicode_minus": True,
    "path.simplify": False,
}


class Sheet:
    """A figure with axes placed by hand, in units of the page's pixels.

    Artists are drawn in no colour: `mark` gives them a class, and the style sheet does the rest.
    """

    def __init__(self, width: float, height: float) -> None:
        from matplotlib.figure import Figure

        self.width, self.height = width, height
        self.figure: Figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        self.figure.patch.set_visible(False)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes in this place, without spines, ticks or background."""
        axes = self.figure.add_axes(
            (
                left / self.width,
                1 - (top + height) / self.height,
                width / self.width,
                height / self.height,
            )
        )
        axes.patch.set_visible(False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.tick_params(which="both", bottom=False, left=False, pad=4)
        axes.minorticks_off()
        axes.set_axisbelow(True)
        return axes

    def svg(self, label: str) -> str:
        """The figure as an SVG element."""
        buffer = io.StringIO()
        self.figure.savefig(buffer, format="svg", metadata={"Date": None})
        return clean(buffer.getvalue(), label)


def mark(artist: Any, name: str) -> None:
    """Give an artist a class of the style sheet."""
    artist.set_gid(_CLASS + name)
    artist.set_clip_on(False)


def grid(axes: Axes, axis: Any = "y") -> None:
    """Grid lines at the ticks."""
    axes.grid(visible=True, axis=axis)
    for lines in (axes.get_xgridlines(), axes.get_ygridlines()):
        for line in lines:
            mark(line, "grid")


def clean(svg: str, label: str) -> str:
    """The SVG of matplotlib without what the page does not need.

    Parameters
    ----------
    svg : str
        What matplotlib wrote.
    label : str
        What the picture shows, in words.

    Returns
    -------
    str
        An `svg` element without ids, inline styles, sizes and namespaces; its size is the page's to give.
    """
    root = ET.fromstring(svg)
    for unwanted in ("metadata", "defs"):
        for child in root.findall(_SVG + unwanted):
            root.remove(child)
    _clean_children(root)
    _, _, width, height = root.attrib["viewBox"].split()
    root.attrib.clear()
    root.attrib.update({"viewBox": f"0 0 {width} {height}", "role": "img", "aria-label": label})
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        element.tail = None
        if element.tag != "text":
            element.text = None
    return ET.tostring(root, encoding="unicode")


def _clean_children(parent: ET.Element) -> None:
    for place, child in reversed(list(enumerate(list(parent)))):
        if child.tag == _SVG + "defs":
            parent.remove(child)
            continue
        _clean_children(child)
        _clean_element(child)
        if child.tag == _SVG + "g" and (not child.attrib or len(child) == 0):
            parent.remove(child)
            for offset, grandchild in enumerate(list(child)):
                parent.insert(place + offset, grandchild)


def _clean_element(element: ET.Element) -> None:
    old = dict(element.attrib)
    element.attrib.clear()
    if (name := old.get("id", "")).startswith(_CLASS):
        element.set("class", name.removeprefix(_CLASS))
    match element.tag.removeprefix(_SVG):
        case "path":
            element.set("d", _COMMAND.sub(r"\1", _rounded(old["d"])).strip())
        case "text":
            if anchor := _ANCHOR.search(old.get("style", "")):
                element.set("text-anchor", anchor[1])
            transform = old.get("transform", "")
            if transform.startswith("translate"):  # several lines, or nothing that is drawn here
                element.set("transform", _rounded(transform))
            elif transform.startswith(("rotate(-0 ", "rotate(0 ")):
                element.attrib.update({"x": _rounded(old["x"]), "y": _rounded(old["y"])})
            else:
                element.attrib.update({"x": old["x"], "y": old["y"], "transform": _rounded(transform)})
        case "use":  # of a marker: all of them are circles
            element.tag = _SVG + "circle"
            element.attrib.update({"cx": _rounded(old["x"]), "cy": _rounded(old["y"]), "r": "2.5"})
        case "image":
            element.attrib.update({key: old[key] for key in ("x", "y", "width", "height") if key in old})
            element.attrib.update({"href": re.sub(r"\s", "", old[_HREF]), "preserveAspectRatio": "none"})
            if "transform" in old:
                element.set("transform", old["transform"])


def _rounded(text: str) -> str:
    """The text with a decimal of its numbers: a tenth of a pixel."""
    return _NUMBER.sub(lambda match: f"{float(match[0]):.1f}".removesuffix(".0"), text)
