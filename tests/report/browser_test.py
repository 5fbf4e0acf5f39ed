# SPDX-License-Identifier: MIT
"""The page in a real browser: no error, nothing fetched, all drawn, sorted by a click, light and dark."""
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

from made import make

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


def browse(page, *options):
    """Standard output, and what the page said on its console: everything that is forbidden or fails is said there."""
    with tempfile.TemporaryDirectory(prefix="lesskv browser ") as profile:
        done = subprocess.run([BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage",
                               "--disable-background-networking", f"--user-data-dir={profile}", "--enable-logging=stderr",
                               *options, page.as_uri()], capture_output=True, text=True, timeout=200)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, console


class InABrowser(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.directory, cls.folder = make()
        cls.page = cls.directory / "report.html"

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def test_it_loads_without_a_word_on_the_console(self):
        page, console = browse(self.page, "--dump-dom")
        self.assertEqual(console, [])
        self.assertEqual(page.count("<section"), 8)
        self.assertGreaterEqual(page.count("<figure"), 9)
        self.assertEqual(page.count("<svg"), page.count("</svg>"))

    def test_errors_would_be_seen(self):
        page = self.directory / "broken.html"
        bad = "</main><img src='http://lesskv.invalid/a.png'><script>nonesuch()</script>"
        page.write_text(self.page.read_text().replace("</main>", bad))
        _, console = browse(page, "--dump-dom")
        self.assertTrue(any("Content Security Policy" in line for line in console), console)
        self.assertTrue(any("nonesuch" in line for line in console), console)

    def test_a_click_sorts(self):
        page = self.directory / "clicked.html"
        click = ("<script>const table = document.querySelector('#table-all_rows');"
                 "const heads = [...table.tHead.rows[0].cells];"
                 "const at = heads.findIndex(head => head.textContent === 'KLD');"
                 "const seen = () => [...table.tBodies[0].rows].map(row => row.cells[at]?.dataset.value ?? '-').join(' ');"
                 "heads[at].firstChild.click(); document.body.dataset.up = seen();"
                 "heads[at].firstChild.click(); document.body.dataset.down = seen();"
                 "document.body.dataset.sort = heads[at].getAttribute('aria-sort');</script></body>")
        page.write_text(self.page.read_text().replace("</body>", click))
        dom, console = browse(page, "--dump-dom")
        self.assertEqual(console, [])
        up, down = (re.search(f'data-{name}="([^"]*)"', dom)[1].split() for name in ("up", "down"))
        numbers = [float(x) for x in up if x != "-"]
        self.assertGreater(len(numbers), 8)
        self.assertEqual(numbers, sorted(numbers))
        self.assertEqual([float(x) for x in down if x != "-"], numbers[::-1])
        self.assertIn('data-sort="descending"', dom)

    def test_light_and_dark_wide_and_narrow(self):
        from matplotlib.image import imread
        for dark, paper, width in ((False, 0xffffff, 1280), (True, 0x17181c, 1280), (False, 0xffffff, 500)):
            picture = self.directory / f"{dark}{width}.png"
            browse(self.page, f"--screenshot={picture}", f"--window-size={width},3000",
                   *(["--blink-settings=preferredColorScheme=0"] if dark else []))
            seen = (imread(picture)[..., :3] * 255).round().astype(int)
            self.assertEqual(seen.shape, (3000, width, 3))
            corner = seen[5, 5]
            self.assertEqual(corner[0] << 16 | corner[1] << 8 | corner[2], paper)
            # Text and curves are drawn, in the ink of the scheme and in many colours.
            self.assertGreater(abs(seen - corner).max(), 150)
            self.assertGreater(len({tuple(pixel) for pixel in seen[::3, ::3].reshape(-1, 3)}), 200)


if __name__ == "__main__":
    if not BROWSER:
        print("skipped: no chromium (examples/install_packages.sh browser)")
        sys.exit(77)
    unittest.main()
