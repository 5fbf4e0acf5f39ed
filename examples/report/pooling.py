# SPDX-License-Identifier: MIT
"""Means of several texts, and how sure they are."""
import math


class Figure:
    """A mean with two standard errors: over all tokens, and over the texts they are from. The second is the one to compare
    policies by: it counts that texts differ."""

    def __init__(self, parts):
        """parts: {"mean", "se", "n"} of every text; none may be missing."""
        parts = [p for p in parts if p]
        self.texts = len(parts)
        self.n = sum(p["n"] for p in parts)
        if not parts:
            self.mean = self.se_tokens = self.se = math.nan
            return
        self.mean = sum(p["n"] * p["mean"] for p in parts) / self.n
        # The sums of squares of the parts, and those between them.
        squares = sum(p["se"] ** 2 * p["n"] * (p["n"] - 1) + p["n"] * (p["mean"] - self.mean) ** 2 for p in parts)
        self.se_tokens = math.sqrt(squares / (self.n - 1) / self.n) if self.n > 1 else 0.0
        self.se = self.se_tokens
        if len(parts) > 1:
            middle = sum(p["mean"] for p in parts) / len(parts)
            spread = sum((p["mean"] - middle) ** 2 for p in parts) / (len(parts) - 1)
            self.se = math.sqrt(spread / len(parts))


class Share:
    """Successes of trials, with Wilson's interval of one standard error: it has a width at 0 and at 100 %, too."""

    def __init__(self, found, of):
        self.found, self.of = found, of
        self.share = found / of if of else math.nan
        self.low = self.high = self.share
        if of:
            middle = (self.share + 0.5 / of) / (1 + 1 / of)
            half = math.sqrt(self.share * (1 - self.share) / of + 0.25 / of**2) / (1 + 1 / of)
            # At the ends rounding would put the share outside by a last digit.
            self.low, self.high = min(self.share, max(0.0, middle - half)), max(self.share, min(1.0, middle + half))
