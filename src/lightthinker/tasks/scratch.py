"""Written-out arithmetic that several families share."""

from collections.abc import Sequence


def add_up(values: Sequence[int]) -> tuple[str, int]:
    """Add numbers one after the other.

    Args:
        values: At least one number.

    Returns:
        The written work, like `24+82=106,106+7=113` (empty for one number), and the sum.
    """
    total, work = values[0], []
    for value in values[1:]:
        work.append(f"{total}+{value}={total + value}")
        total += value
    return ",".join(work), total
