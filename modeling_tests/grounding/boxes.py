"""Boxes and grounded texts for property tests."""

from hypothesis import strategies as st

from transformers_lion.grounding import FoundBox, GroundedText, Region

unit = st.integers(0, 1000).map(lambda thousandths: thousandths / 1000)
boxes = st.tuples(unit, unit, unit, unit).map(
    lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3]))
)

cell = st.integers(0, 31)
cells = st.tuples(cell, cell, cell, cell).map(
    lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3]))
)
"""Columns and rows of the upper-left and the lower-right cell of Kosmos-2's grid."""


def grid_box(corners: tuple[int, int, int, int]) -> tuple[float, ...]:
    """The box that Kosmos-2 reads from two cells."""
    x1, y1, x2, y2 = corners
    first, last = (0.0, 1.0) if x1 == x2 or y1 == y2 else (0.5, 0.5)
    return (x1 + first) / 32, (y1 + first) / 32, (x2 + last) / 32, (y2 + last) / 32


phrases = st.text("abc dé犬Ω-'1", min_size=1, max_size=12).map(str.strip).filter(bool)
betweens = st.text("ab .,:;!?(0.1) \n/&é犬", max_size=8)


def grounded(parts: list[tuple[str, str, list]], tail: str) -> GroundedText:
    """Build a text from (text before, phrase, boxes) parts and the text after them."""
    text, regions = "", []
    for before, phrase, found in parts:
        text += before if text else before.lstrip()
        regions.append(Region(phrase, (len(text), len(text) + len(phrase)), tuple(map(FoundBox, found))))
        text += phrase
    return GroundedText(text + tail.rstrip() if parts else tail.strip(), tuple(regions))


def grounded_texts(box: st.SearchStrategy, between: st.SearchStrategy = betweens) -> st.SearchStrategy:
    """Grounded texts with one to three boxes per phrase."""
    part = st.tuples(between, phrases, st.lists(box, min_size=1, max_size=3))
    return st.builds(grounded, st.lists(part, max_size=4), between)
