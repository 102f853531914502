"""Opens every page of the documentation in headless Chromium, wide and narrow, light and dark, and searches it.

Checks that there is no error in the console, no failed request, no request to another host and no sideways scroll, that
all maths is typeset, that search finds names, and that the 404 page works below a sub-path. Needs Chromium
(`apt-get install chromium`) and playwright (in the extra `[dev]`), which need not download a browser of its own.
Run: `python tests/browser.py`.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, TimeoutError, sync_playwright

ROOT = Path(__file__).parents[1]
BASE = "/lo_components/"  # the sub-path that the site is served below
WIDTHS = (1440, 390)
# What is searched for, and the page that one of the first three results must be on.
SEARCHES = {
    "TruncatedUnroll": "api/unroll/",
    "LearnedOptimizer": "api/optimizers/",
    "DepthMuP": "api/parametrization/",
    "PES": "api/estimators/",
    "as_optax": "api/optimizers/",
    "meta_train": "api/meta/",
    "residual_muon": "api/recipes/",
    "loc.pretrained": "pretrained/",
    "loc.weights.save": "api/weights/",
    "lo_components.features.Gradient": "api/features/",
}

# The button of the reader, whose choice also holds for the pages after it.
_TOGGLE = "document.querySelector('[data-md-component=palette] label:not([hidden])').click()"
_SCHEME = "document.body.dataset.mdColorScheme"
_TYPESET = "() => document.querySelector('.arithmatex') && MathJax.startup.promise.then(() => 0)"
# The text of each formula that is missing, wrong or invisible, else null. Formulas of closed details have no size.
_FORMULAS = """[...document.querySelectorAll(".arithmatex")].map((e) => {
    const svg = e.querySelector("mjx-container svg");
    const small = svg && svg.checkVisibility() && svg.getBoundingClientRect().width < 3;
    return !svg || small || e.querySelector("[data-mml-node=merror]") ? e.textContent : null;
})"""
_OVERFLOW = """(() => {
    const width = document.documentElement.clientWidth;
    if (document.documentElement.scrollWidth <= width) return null;
    const out = [...document.querySelectorAll(".md-content *")].filter(
        (e) => e.getBoundingClientRect().right > width && !e.closest("pre, mjx-container, .md-typeset__scrollwrap"));
    return out.length ? out.at(-1).outerHTML.slice(0, 100) : "outside of the content";
})()"""


class Site(SimpleHTTPRequestHandler):
    """Serves a folder below `BASE`, with its 404 page."""

    def translate_path(self, path: str) -> str:
        inside = path.startswith(BASE)
        return super().translate_path(path.removeprefix(BASE.rstrip("/"))) if inside else os.devnull + "/none"

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        body = (Path(self.directory) / "404.html").read_bytes()
        self.send_response(code, message)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Tab:
    """A tab of the browser at one width; `problems` are those since the last call of `open`."""

    def __init__(self, browser: Browser, origin: str, width: int):
        self.origin = origin
        self.problems: list[str] = []
        self.page: Page = browser.new_page(viewport={"width": width, "height": 900})
        self.page.set_default_timeout(120_000)
        self.page.on("console", lambda m: self._note(m.type == "error", f"console: {m.text}"))
        self.page.on("pageerror", lambda e: self._note(True, f"error: {e}"))
        self.page.on("requestfailed", lambda r: self._note(True, f"failed: {r.url}"))
        self.page.on("response", lambda r: self._note(r.status >= 400, f"{r.status}: {r.url}"))
        self.page.on("request", lambda r: self._note(self._leaves(r.url), f"another host: {r.url}"))

    def _note(self, wrong: bool, problem: str) -> None:
        if wrong:
            self.problems.append(problem)

    def _leaves(self, url: str) -> bool:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https", "ws", "wss") and f"http://{parts.netloc}" != self.origin

    def open(self, path: str) -> int:
        """Loads a page and checks it in the scheme that it has and in the other one; returns its number of formulas."""
        self.problems.clear()
        self.page.goto(self.origin + BASE + path, wait_until="load")
        self.page.evaluate(_TYPESET)
        formulas = self.page.evaluate(_FORMULAS)
        self.problems += [f"not typeset: {formula}" for formula in formulas if formula is not None]
        schemes = set()
        for _ in range(2):
            schemes.add(scheme := self.page.evaluate(_SCHEME))
            if overflow := self.page.evaluate(_OVERFLOW):
                self.problems.append(f"scrolls sideways ({scheme}): {overflow}")
            self.page.evaluate(_TOGGLE)
        if schemes != {"default", "slate"}:
            self.problems.append(f"no light and dark scheme: {schemes}")
        return len(formulas)

    def search(self, name: str) -> list[str]:
        """The pages of the first three results."""
        self.page.goto(f"{self.origin}{BASE}?q={name}", wait_until="load")
        results = self.page.locator(".md-search-result__item > a")
        try:
            results.first.wait_for(state="attached", timeout=20_000)
        except TimeoutError:
            return []
        links = results.evaluate_all("links => links.slice(0, 3).map((link) => link.href)")
        return [urlsplit(link).path.removeprefix(BASE) for link in links]


def build(folder: Path) -> None:
    environment = {**os.environ, "SITE_URL": f"http://127.0.0.1{BASE}", "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)


def check(site: Path, origin: str, browser: Browser) -> int:
    """Prints a table of pages and one of searches, and returns the number of problems."""
    tabs = [Tab(browser, origin, width) for width in WIDTHS]
    pages = sorted(p.parent.relative_to(site).as_posix() + "/" for p in site.rglob("index.html"))
    total = 0
    print(f"{'page':<32}{'formulas':>10}" + "".join(f"{width:>8}" for width in WIDTHS))
    for path in ["" if page == "./" else page for page in pages]:
        formulas = [tab.open(path) for tab in tabs]
        total += _row(path or "(first page)", formulas[0], tabs)
    for tab in tabs:
        tab.open("no/such/page/")
        # The address itself is missing, which the console repeats; all that the page loads must exist.
        tab.problems = [p for p in tab.problems if "no/such/page" not in p and "status of 404" not in p]
        if "Page not found" not in tab.page.inner_text("h1"):
            tab.problems.append("not the 404 page")
    total += _row("(404 page)", 0, tabs)

    print(f"\n{'search':<36}first results")
    for name, expected in SEARCHES.items():
        found = tabs[0].search(name)
        total += expected not in found
        print(f"{name:<36}{', '.join(found) or 'nothing'}" + f"  EXPECTED {expected}" * (expected not in found))
    return total


def _row(name: str, formulas: int, tabs: list[Tab]) -> int:
    print(f"{name:<32}{formulas:>10}" + "".join(f"{len(tab.problems) or 'ok':>8}" for tab in tabs))
    for tab in tabs:
        for problem in dict.fromkeys(tab.problems):
            print(f"    {problem}")
    return sum(len(tab.problems) for tab in tabs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--site", type=Path, help=f"a site built with a SITE_URL that ends in {BASE} (default: build it)"
    )
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="the browser (default: chromium of PATH)")
    args = parser.parse_args()
    if args.chromium is None:
        sys.exit("error: Chromium is missing; install it (`apt-get install chromium`) or name one with --chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        site = args.site
        if site is None:
            build(site := Path(folder))
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Site, directory=str(site)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = playwright.chromium.launch(executable_path=args.chromium)
        problems = check(site, f"http://127.0.0.1:{server.server_port}", browser)
        browser.close()
        server.shutdown()
    print(f"\n{problems} problems" if problems else "\nno problems")
    sys.exit(problems > 0)


if __name__ == "__main__":
    main()
