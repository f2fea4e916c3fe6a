"""Uses the page of a server without a key in headless Chromium: sends, sees the answer grow, stops one, and takes pictures.

    pip install playwright; page.py ADDRESS FOLDER [CHROMIUM]
"""

import sys
import time

from playwright.sync_api import sync_playwright

ADDRESS, FOLDER = sys.argv[1:3]
CHROMIUM = sys.argv[3] if len(sys.argv) > 3 else "/usr/bin/chromium"
IS_DONE = "document.getElementById('send').textContent == 'Send' && !!document.querySelector('.meta')?.textContent"


def wait(page, condition, seconds=60):
    """Waits in here: the page's policy lets nobody evaluate texts over and over inside."""
    end = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(20)


def say(page, text):
    page.fill("#input", text)
    page.keyboard.press("Enter")


def main():
    problems = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for scheme, width in [("light", 1280), ("dark", 1280), ("light", 390)]:
            context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800})
            page = context.new_page()
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
            page.goto(ADDRESS)
            wait(page, "document.getElementById('model').textContent != ''")
            say(page, "Tell me a short story about a brave mouse.")
            grown = "document.querySelector('.assistant').textContent.length"
            wait(page, f"!!document.querySelector('.assistant') && {grown} > 40")
            early = page.evaluate(grown)
            wait(page, f"{grown} > {early}")
            wait(page, IS_DONE)
            page.wait_for_timeout(500)
            page.screenshot(path=f"{FOLDER}/{scheme}-{width}.png")

            say(page, "Tell me a very long story about a dragon and many knights.")
            second = "document.querySelectorAll('.assistant')[1]"
            wait(page, f"{second}?.textContent.length > 40")
            page.keyboard.press("Escape")
            wait(page, IS_DONE, 5)
            assert "stopped" in page.evaluate(f"{second}.querySelector('.meta').textContent")
            context.close()
        browser.close()
    assert not problems, problems
    print("the page is as it should be; look at the pictures, too")


main()
