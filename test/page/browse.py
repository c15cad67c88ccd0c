"""What a browser makes of a page: Debian's Chromium, driven by Playwright; accessibility by axe-core.

    browse.py inspect URL DIRECTORY      a screenshot for each width and scheme, and what was found, as JSON
    browse.py follow URL TEXT            prints "shown", and "changed" once the page shows TEXT without a reload
    browse.py sort URL                   clicks each header that sorts, and prints the first column after each, as JSON
"""
import json
import os
import shutil
import sys

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

WIDTHS = (390, 1280, 1600)
HANG = 180_000  # far longer than anything takes that works; milliseconds


def launch(playwright):
    # Chromium's own sandbox needs another user than root, and what this loads is the product's.
    return playwright.chromium.launch(
        executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"], timeout=HANG)


def opened(browser, url, complaints, **context):
    page = browser.new_context(**context).new_page()
    page.set_default_timeout(HANG)
    page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: complaints.append(str(e)))
    page.goto(url, wait_until="load")
    return page


def inspect(browser, url, directory):
    """Looks at the page at every width, in both schemes, with scripts and without."""
    for scheme in ("light", "dark"):
        for width in WIDTHS:
            complaints = []
            # axe is a script of its own, which the page's policy does not permit: it runs where policies are off.
            page = opened(browser, url, [], color_scheme=scheme, bypass_csp=True,
                          viewport={"width": width, "height": 900})
            page.eval_on_selector_all("details", "all => all.forEach(d => d.open = true)")
            violations = [
                {"rule": v["id"], "where": [n["target"] for n in v["nodes"]], "help": v["help"],
                 "why": [n.get("failureSummary") for n in v["nodes"]]}
                for v in Axe().run(page).response["violations"]
            ]
            page.context.close()
            page = opened(browser, url, complaints, color_scheme=scheme, viewport={"width": width, "height": 900})
            overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            page.screenshot(path=os.path.join(directory, f"{scheme}-{width}.png"), full_page=True)
            yield {"scheme": scheme, "width": width, "violations": violations, "complaints": complaints,
                   "overflow": overflow, "text": page.inner_text("body"), "title": page.title()}
            page.context.close()
    page = opened(browser, url, [], java_script_enabled=False)
    yield {"scheme": "no script", "width": page.viewport_size["width"], "violations": [], "complaints": [],
           "overflow": 0, "text": page.inner_text("body"), "title": page.title()}
    page.context.close()


def follow(browser, url, text):
    page = opened(browser, url, complaints := [])
    page.wait_for_function("document.getElementById('live').textContent === 'Live.'")
    print("shown", flush=True)
    page.wait_for_function("text => document.querySelector('main').textContent.includes(text)", arg=text)
    if complaints:
        sys.exit(f"the page complains: {complaints}")
    print("changed", flush=True)


def sort(browser, url):
    page = opened(browser, url, complaints := [])
    orders = []
    for button in page.query_selector_all("th button"):
        for _ in range(2):
            button.click()
            table = button.evaluate_handle("b => b.closest('table')")
            orders.append({
                "column": button.inner_text(),
                "order": button.evaluate("b => b.closest('th').getAttribute('aria-sort')"),
                "rows": table.evaluate("t => Array.from(t.tBodies[0].rows, r => r.cells[0].innerText.trim())"),
            })
    if complaints:
        sys.exit(f"the page complains: {complaints}")
    print(json.dumps(orders))


def main(command, url, *rest):
    with sync_playwright() as playwright:
        browser = launch(playwright)
        if command == "inspect":
            print(json.dumps(list(inspect(browser, url, *rest))))
        else:
            {"follow": follow, "sort": sort}[command](browser, url, *rest)
        browser.close()


main(*sys.argv[1:])
