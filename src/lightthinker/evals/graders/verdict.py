"""Grade: what a grader says about one answer. Knows nothing of how answers are read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Grade:
    """Verdicts on one answer, by two ways of reading it.

    Attributes:
        strict: The answer was given in the form asked for, and is right.
        flexible: The answer found by reading generously is right. This is what tables report.
        extracted_strict: The answer given in the form asked for, as written; None if there is none.
        extracted_flexible: The answer found by reading generously, as written, or None.
    """

    strict: bool
    flexible: bool
    extracted_strict: str | None
    extracted_flexible: str | None

    @property
    def extracted(self) -> str | None:
        """The answer to show people: the one in the form asked for, else any."""
        return self.extracted_strict or self.extracted_flexible


MAX_SHOWN = 200
"""Characters of an extracted answer that a grade keeps."""


def shown(text: str | None) -> str | None:
    """Return an extracted answer, cut to `MAX_SHOWN` characters."""
    return None if text is None else text[:MAX_SHOWN]
