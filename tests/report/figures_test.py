# SPDX-License-Identifier: MIT
"""Pooled means, intervals and the Pareto front, against their definitions."""
import math
import random
import statistics
import types
import unittest

from report.pooling import Figure, Share
from report.rows import pareto


def part_of(numbers):
    n = len(numbers)
    return {"mean": statistics.fmean(numbers), "se": statistics.stdev(numbers) / math.sqrt(n), "n": n}


class PooledMeans(unittest.TestCase):
    def test_parts_give_what_all_numbers_give(self):
        random.seed(1)
        texts = [[random.gauss(mean, 1 + mean) for _ in range(n)] for mean, n in ((0, 20), (1, 35), (0.4, 50))]
        figure = Figure([part_of(text) for text in texts])
        everything = [x for text in texts for x in text]
        self.assertEqual(figure.n, 105)
        self.assertAlmostEqual(figure.mean, statistics.fmean(everything), 12)
        self.assertAlmostEqual(figure.se_tokens, statistics.stdev(everything) / math.sqrt(105), 12)
        means = [statistics.fmean(text) for text in texts]
        self.assertAlmostEqual(figure.se, statistics.stdev(means) / math.sqrt(3), 12)

    def test_one_text_has_the_error_of_its_tokens(self):
        figure = Figure([part_of([1, 2, 4])])
        self.assertAlmostEqual(figure.se, figure.se_tokens)

    def test_nothing_is_no_number(self):
        self.assertTrue(math.isnan(Figure([]).mean))
        self.assertTrue(math.isnan(Share(0, 0).share))

    def test_the_interval_of_a_share_solves_its_equation(self):
        # Wilson: the ends p are where (share - p)^2 = p (1 - p) / n.
        for found, of in ((3, 10), (0, 50), (50, 50), (99, 120)):
            share = Share(found, of)
            for end in (share.low, share.high):
                if 1e-9 < end < 1 - 1e-9:
                    self.assertAlmostEqual((share.share - end) ** 2, end * (1 - end) / of, 12)
            self.assertLessEqual(share.low, share.share)
            self.assertLessEqual(share.share, share.high)
            self.assertGreater(share.high - share.low, 0)


class ParetoFront(unittest.TestCase):
    def rows(self, *pairs):
        return [types.SimpleNamespace(compression=x, loss=y, compared=True) for x, y in pairs]

    def front(self, rows):
        return [(row.compression, row.loss) for row in pareto(rows, lambda row: row.loss)]

    def test_what_nothing_beats(self):
        rows = self.rows((4, 0.3), (8, 0.2), (2, 0.1), (16, 0.5), (15, 0.6))
        self.assertEqual(self.front(rows), [(2, 0.1), (8, 0.2), (16, 0.5)])

    def test_bytes_within_three_per_cent_are_equal(self):
        self.assertEqual(self.front(self.rows((8.0, 0.1), (8.2, 0.5))), [(8.0, 0.1)])
        self.assertEqual(len(self.front(self.rows((8.0, 0.1), (8.5, 0.5)))), 2)

    def test_what_is_not_compared_takes_no_part(self):
        rows = self.rows((1, 0), (4, 0.3), (5, 0.2))
        rows[0].compared = rows[2].compared = False
        self.assertEqual(self.front(rows), [(4, 0.3)])


if __name__ == "__main__":
    unittest.main()
