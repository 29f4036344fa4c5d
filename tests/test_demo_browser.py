"""The page of the demo in a real browser: headless Chromium, a picture is dropped and the mask moved."""

import threading

import cv2
import numpy as np
import pytest
from test_files import a_model
from test_userstudy_browser import DESKTOP, browser

from prle.core import rng
from prle.lab.demo import demo_server

INK = """
const canvas = document.querySelectorAll("canvas")[2], {width, height} = canvas;
const data = canvas.getContext("2d").getImageData(0, 0, width, height).data;
let black = 0;
for (let k = 0; k < data.length; k += 4) black += data[k] + data[k + 1] + data[k + 2] === 0;
return black / (width * height)"""


@pytest.fixture
def address():
    server = demo_server(dict(small=a_model()), cropped=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_dropped_picture_is_scored_and_its_mask_moves(address, tmp_path):
    photo = tmp_path / "<b>photo.png"
    cv2.imwrite(str(photo), rng("photo").integers(20, 256, (64, 64, 3), np.uint8))
    with browser(DESKTOP) as participant:
        driver = participant.driver
        from selenium.webdriver.common.by import By
        from selenium.webdriver.support.wait import WebDriverWait

        driver.get(address)
        driver.find_element(By.ID, "file").send_keys(str(photo))
        state = driver.find_element(By.ID, "state")
        WebDriverWait(driver, 120).until(lambda d: state.text == "<b>photo.png")
        assert driver.find_element(By.CLASS_NAME, "score").text.startswith("score 0.")
        shares = []
        for alpha in (0, 0.5, 1):
            driver.execute_script(
                "const a = document.getElementById('alpha'); a.value = arguments[0];"
                "a.dispatchEvent(new Event('input'))",
                alpha,
            )
            shares.append(driver.execute_script(INK))
        assert shares == pytest.approx([0, 0.1, 0.2], abs=0.01)
        wrong = tmp_path / "no.png"
        wrong.write_bytes(b"no picture")
        driver.find_element(By.ID, "file").send_keys(str(wrong))
        WebDriverWait(driver, 120).until(lambda d: state.text == "no.png")
        assert "cannot be read" in driver.find_element(By.ID, "rows").text
        loud = [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
        assert not loud, loud
