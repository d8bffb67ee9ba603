"""Performance targets of LION, and whether they are met."""

from dataclasses import dataclass

from .measures import Row, ratio


@dataclass(frozen=True)
class Target:
    """A bound on a ratio.

    Attributes:
        row: Name of the row.
        against: Side to compare LION with, or "floor".
        least: Lower bound on how many times as fast LION is, or
        most: Upper bound on LION's time (or memory) as a multiple.
    """

    row: str
    against: str
    least: float | None = None
    most: float | None = None

    def measured(self, row: Row) -> tuple[float, float, float] | None:
        """Return the ratio with its minimum and maximum, or `None` if a side is missing."""
        ours, theirs = row.values.get("lion"), row.values.get(self.against)
        if not ours or not theirs:
            return None
        theirs = theirs * len(ours) if len(theirs) == 1 else theirs
        return ratio(theirs, ours) if self.least is not None else ratio(ours, theirs)

    def is_met(self, value: float) -> bool:
        """Whether the median ratio is within the bound."""
        return value >= self.least if self.least is not None else value <= self.most  # type: ignore[operator]

    @property
    def bound(self) -> str:
        """In words."""
        return f"at least {self.least}x as fast" if self.least is not None else f"at most {self.most}x"


TARGETS = (
    Target("answer, 5 beams, batch 1", "composed", least=2.5),
    Target("answer, 5 beams, batch 4", "composed", least=4),
    Target("answer, greedy, batch 1", "composed", least=1.5),
    Target("answer, greedy, batch 4", "composed", least=1.5),
    Target("8 questions on one image, 5 beams", "composed", least=4),
    Target("training step, batch 4", "composed", least=1.4),
    Target("peak memory, training step, batch 4", "composed", most=0.75),
    Target("tagging, batch 1", "composed", least=1.25),
    Target("tagging, batch 4", "composed", least=1.25),
    Target("answer, 5 beams, batch 1", "instructblip", most=1.35),
    Target("answer, 5 beams, batch 4", "instructblip", most=1.35),
    Target("encode, batch 1", "instructblip", most=1.2),
    Target("encode, batch 4", "instructblip", most=1.2),
    Target("vision tower, batch 1: matrix products", "floor", most=1.25),
    Target("a further token, one beam, compiled: bandwidth", "floor", most=2),
    Target("a further token, one beam: bandwidth", "floor", most=4),
)


def check(rows: list[Row]) -> list[tuple[Target, tuple[float, float, float] | None]]:
    """Each target whose row was measured, and its ratio."""
    found = {row.name: row for row in rows}
    return [(target, target.measured(found[target.row])) for target in TARGETS if target.row in found]


__all__ = ["TARGETS", "Target", "check"]
