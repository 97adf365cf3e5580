"""The page in a browser: it sorts, it opens an image, it asks nothing of a network. Without a browser: left out."""

from __future__ import annotations

import json
import shutil

import pytest

from resdet.inspection.page import write_report

pytest.importorskip("selenium", reason="selenium is not installed")
from selenium import webdriver
from selenium.webdriver.common.by import By

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="no Chromium with chromedriver on the PATH")


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1000,800"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    yield driver
    driver.quit()


def test_the_page_works(browser, tiny, made_results, tmp_path):
    out = tmp_path / "report.html"
    numbers = write_report(tiny.val, made_results, out=out, images=tiny.images, worst=2, bootstrap=(20, 0))
    browser.get(out.as_uri())

    def column(number):
        script = "return [...document.querySelectorAll('#d1-classes tbody tr')].map(row => row.cells[arguments[0]])"
        return [cell.get_attribute("data-value") or cell.text for cell in browser.execute_script(script, number)]

    rows = numbers["detectors"][0]["classes"]
    assert column(2) == [str(row["AP"]) for row in rows]
    heads = browser.find_elements(By.CSS_SELECTOR, "#d1-classes th")
    for name, number in (("class", 0), ("AP", 2)):
        button = heads[number].find_element(By.TAG_NAME, "button")
        ordered = sorted(row[name] for row in rows)
        for order in ("ascending", "descending") if name == "class" else ("descending", "ascending"):
            button.click()
            assert heads[number].get_attribute("aria-sort") == order
            assert column(number) == list(map(str, ordered if order == "ascending" else ordered[::-1]))

    shown = browser.find_element(By.CSS_SELECTOR, "#d1 [data-figure=AP]")
    assert shown.text == f"AP\n{100 * numbers['detectors'][0]['figures']['AP']:.1f}"
    gap = browser.find_elements(By.CSS_SELECTOR, "#comparison-figures tbody td")[2]
    assert gap.text == f"{100 * numbers['comparison']['AP']['difference']:+.2f}"

    dialog, picture = (browser.find_element(By.CSS_SELECTOR, name) for name in ("dialog", "#d1 .open"))
    assert not dialog.is_displayed()
    picture.click()
    assert dialog.is_displayed()
    large = dialog.find_element(By.TAG_NAME, "img")
    assert large.get_attribute("src") == picture.find_element(By.TAG_NAME, "img").get_attribute("src")
    assert browser.execute_script("return arguments[0].naturalWidth", large) > 300
    large.click()
    assert not dialog.is_displayed()

    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert out.as_uri() in asked
    assert [url for url in asked if not url.startswith(("data:", out.as_uri()))] == []


@pytest.mark.parametrize("width", [400, 1400])
def test_nothing_is_wider_than_the_window(browser, tiny, made_results, tmp_path, width):
    write_report(tiny.val, made_results, out=tmp_path / "r.html", images=tiny.images, worst=1, bootstrap=(5, 0))
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get((tmp_path / "r.html").as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
