"""What LION is meant to reach, and whether it does."""

from dataclasses import dataclass

from .measures import Row, ratio


@dataclass(frozen=True)
class Target:
    """A bound on a ratio.

    Attributes:
        row: name of the row.
        against: the side that LION is set beside, or "floor".
        least: "how many times as fast as" at least; else
        most: "how many times the time (or memory) of" at most.
    """

    row: str
    against: str
    least: float | None = None
    most: float | None = None

    def measured(self, row: Row) -> tuple[float, float, float] | None:
        """The ratio, its lowest and its highest; `None` if a side is missing."""
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
