"""The page in a browser: an image goes up, boxes and numbers come back. Without gradio or a browser: left out."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import threading
import time

import pytest
from PIL import Image

import resdet
from resdet.deploy.serving import Service
from resdet.errors import InputError

pytest.importorskip("gradio", reason='the web page needs pip install "resdet[web]"')
pytest.importorskip("selenium", reason="selenium is not installed")
import uvicorn
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from resdet.deploy import page, web

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
DRIVER = shutil.which("chromedriver")
in_browser = pytest.mark.skipif(not (BROWSER and DRIVER), reason="no Chromium with chromedriver on the PATH")
THRESHOLD = 0.01
PLAIN = page._Controls(None, [], 0.5, 0, 0, False, "", "", "nms", "hard", 0, 0)


def test_controls_are_settings():
    plain = {"refine": 0, "flip": False, "nms": "hard", "score_threshold": 0.5, "vote": None, "merge": "nms"}
    assert page.asked(PLAIN) == {**plain, "scales": (), "sizes": ()}
    more = PLAIN._replace(sizes="480, 640 800", merge="wbf", vote=0.5, nms_iou=0.3, max_per_image=9.0)
    assert page.asked(more) == {
        **plain, "scales": (), "sizes": (480, 640, 800), "merge": "wbf", "vote": 0.5, "nms_iou": 0.3, "max_per_image": 9
    }  # fmt: skip
    assert page.asked(PLAIN._replace(merge="wbf"))["merge"] == "nms"  # of one look there is nothing to merge
    with pytest.raises(InputError, match=r"sizes\n.*'4 large'\n.*400 600 800"):
        page.asked(PLAIN._replace(sizes="4 large"))


@pytest.fixture(scope="module")
def address(trained, tmp_path_factory):
    """Of a server of two detectors in this process."""
    folder = tmp_path_factory.mktemp("uploads")
    with pytest.MonkeyPatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as listening:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        files = [trained / "last.pth", trained / "best.pth"]
        service = Service(files, device="cpu", options=[f"test.score_threshold={THRESHOLD}"])
        servers: list[uvicorn.Server] = []

        async def answer() -> None:
            config = uvicorn.Config(web.build_app(service), log_level="error", timeout_graceful_shutdown=1)
            servers.append(uvicorn.Server(config))
            await servers[0].serve(sockets=[listening])

        thread = threading.Thread(target=lambda: asyncio.run(answer()))
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        servers[0].should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    downloads = tmp_path_factory.mktemp("downloads")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,1000"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    driver.downloads = downloads
    yield driver
    driver.quit()


def upload(browser, address, path) -> None:
    browser.get(address)
    WebDriverWait(browser, 60).until(lambda b: b.find_elements(By.CSS_SELECTOR, "#image input[type=file]"))
    browser.find_element(By.CSS_SELECTOR, "#image input[type=file]").send_keys(str(path))


@in_browser
def test_an_image_goes_up_and_numbers_come_back(browser, address, trained, tiny):
    image = sorted(tiny.images.iterdir())[0]
    upload(browser, address, image)
    WebDriverWait(browser, 60).until(lambda b: b.find_element(By.ID, "json").is_enabled())
    browser.find_element(By.ID, "json").click()
    file = browser.downloads / "detections.json"
    WebDriverWait(browser, 30).until(lambda _: file.exists() and file.stat().st_size)
    answers = {answer["model"]: answer for answer in json.loads(file.read_text())}
    assert list(answers) == ["last", "best"]
    first_cells = []
    for name, answer in answers.items():
        wanted = resdet.Detector(trained / f"{name}.pth", device="cpu", score_threshold=THRESHOLD)(image)
        assert len(wanted.boxes) > 3
        assert answer["boxes"] == wanted.boxes.tolist() and answer["scores"] == wanted.scores.tolist()
        first_cells += [name, answer["names"][0], f"{round(float(wanted.scores[0]), 4):g}"]

    cells = [cell.text for cell in browser.find_elements(By.CSS_SELECTOR, "#table [role=gridcell]")]
    if not cells:  # gradio's markup changes; its text does not
        cells = browser.find_element(By.ID, "table").text.split("\n")
    assert [word for word in first_cells[:3] if word not in cells] == []

    with Image.open(image) as picture:
        enlarged = picture.width * -(-480 // max(picture.size))  # drawn pictures are enlarged
    shown = browser.find_elements(By.CSS_SELECTOR, ".seen img")
    assert [browser.execute_script("return arguments[0].naturalWidth", each) for each in shown] == [enlarged] * 2

    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert address in asked
    assert [url for url in asked if not url.startswith(("data:", "blob:", address))] == []


@in_browser
def test_a_file_that_is_no_image(browser, address, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"not an image")
    upload(browser, address, tmp_path / "bad.png")
    find = "return document.querySelector('.toast-body')?.innerText"
    WebDriverWait(browser, 60).until(lambda b: b.execute_script(find))
    assert "does not decode (12 bytes" in browser.execute_script(find)


@in_browser
@pytest.mark.parametrize("width", [400, 1400])
def test_nothing_is_wider_than_the_window(browser, address, tiny, width):
    size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    upload(browser, address, sorted(tiny.images.iterdir())[0])
    WebDriverWait(browser, 60).until(lambda b: b.find_element(By.ID, "json").is_enabled())
    for fold in browser.find_elements(By.CSS_SELECTOR, ".label-wrap"):
        fold.click()
    time.sleep(0.5)  # they unfold
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
