"""The page of the user study in a real browser: headless Chromium, driven as a participant would."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import studies

from prle.study.analysis import exclude, read_responses
from prle.study.server import LONGEST

ROOT = Path(__file__).parents[1]
PHONE, DESKTOP = (360, 740), (1280, 860)
WAIT = 20  # s


def missing():
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "the Python package selenium (`make setup`)"
    lacking = [f"`{name}`" for name in ("chromium", "chromedriver") if not shutil.which(name)]
    return (
        f"{' and '.join(lacking)} (Debian: apt install chromium chromium-driver)"
        if lacking
        else None
    )


if missing() and os.environ.get("CI") != "true":
    pytest.skip(
        f"the user study's page was NOT tested in a browser; to have it tested install {missing()}.",
        allow_module_level=True,
    )


@contextmanager
def browser(size, downloads=None):
    assert not missing(), f"with CI=true a missing browser is a failure: install {missing()}"
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    flags = [
        "--headless=new",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        f"--window-size={size[0]},{size[1]}",
        *["--no-sandbox"] * (os.geteuid() == 0),
    ]
    for flag in flags:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    if size == PHONE:
        options.add_experimental_option(
            "mobileEmulation",
            {
                "deviceMetrics": {
                    "width": size[0],
                    "height": size[1],
                    "pixelRatio": 2.0,
                    "touch": True,
                }
            },
        )
    if downloads:
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    driver = webdriver.Chrome(
        options=options, service=webdriver.ChromeService(shutil.which("chromedriver"))
    )
    try:
        yield Participant(driver)
    finally:
        driver.quit()


class Participant:
    "What somebody sees and does; `script` runs in the page."

    def __init__(self, driver):
        self.driver, self.script = driver, driver.execute_script

    def until(self, condition, what):
        end = time.monotonic() + WAIT
        while time.monotonic() < end:
            if found := condition():
                return found
            time.sleep(0.02)
        raise AssertionError(
            f"waited {WAIT} s for {what}; the page says: {self.text()!r} {self.status()!r}"
        )

    def text(self):
        return self.script("return document.querySelector('#study').innerText")

    def status(self):
        return self.script("return document.querySelector('#status').innerText")

    def heading(self):
        return self.script("const h = document.querySelector('#study h1'); return h && h.innerText")

    def sees(self, words):
        return self.until(lambda: words in self.text(), f"{words!r}")

    def press(self, label):
        "Click a visible button once it is there."
        find = """const buttons = [...document.querySelectorAll('#study button, #study input[type=submit]')];
            return buttons.find(b => !b.disabled && (b.innerText || b.value).startsWith(arguments[0]))"""
        element = self.until(lambda: self.script(find, label), f"the button {label!r}")
        self.settled()
        before = self.screen()
        element.click()
        return before

    def settled(self):
        "The page takes no click within 250 ms of a new screen."
        self.until(
            lambda: self.script("return performance.now() - changed > 250"),
            "a screen that takes clicks",
        )

    def answers(self):
        "What the browser keeps."
        return self.script("return memory.state.answers.map(a => a && a.answer)")

    def keys(self, *keys):
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def screen(self):
        return self.text(), self.item()  # not its HTML, which changes while a screen still stands

    def changed(self, before):
        self.until(lambda: self.screen() != before, "the next screen")

    def item(self):
        "File name of the picture once it is displayed, 'check: real' or 'check: fake'; None elsewhere."
        return self.script("""const image = document.querySelector('#study img.picture');
            if (image) return image.complete && image.naturalWidth > 0 && image.src.split('/').pop();
            const check = document.querySelector('#study .check');
            if (!check) return null;
            return 'check: ' + (check.innerText.includes('real') ? 'real' : 'fake');""")

    def requests(self):
        "Every address that was asked for, of whatever kind."
        events = [
            json.loads(line["message"])["message"] for line in self.driver.get_log("performance")
        ]
        return [
            e["params"]["request"]["url"]
            for e in events
            if e["method"] == "Network.requestWillBeSent"
        ]

    def errors(self):
        return [
            line["message"]
            for line in self.driver.get_log("browser")
            if line["level"] == "SEVERE" and "net::ERR_CONNECTION" not in line["message"]
        ]


@contextmanager
def server(study, port=0):
    "`prle userstudy serve`; yields its address and process."
    code = "import sys; from prle.cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "userstudy", "serve", str(study.path), "--port", str(port)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        yield process.stdout.readline().split("/?code=")[0], process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()


def truth(study):
    right = study.pictures.set_index("picture").label.map({0: "real", 1: "fake"}).to_dict()
    return lambda item: item.split(": ")[1] if item.startswith("check") else right[item]


def begin(who, practice=2):
    "From the consent to the first picture that counts."
    who.sees("Taking part is voluntary")
    who.changed(who.press("I agree"))
    who.sees("What to do")
    who.changed(who.press("Next"))
    who.sees("Black areas")
    who.changed(who.press("Next"))
    for _ in range(practice):
        who.sees("Practice")
        who.changed(who.press("Real"))
        who.sees("this one is")
        who.changed(who.press("Go on"))
    who.changed(who.press("Start"))


def answer(who, right, sure=None):
    "Answer the picture or check on the screen rightly; returns what it was."
    item = who.until(who.item, "a picture")
    who.changed(who.press(right(item).capitalize()))
    if sure and not item.startswith("check"):
        who.changed(who.press(sure))
    return item


def fits(who):
    "Nothing to scroll sideways, and every button large enough for a finger."
    assert who.script("return document.documentElement.scrollWidth <= window.innerWidth"), (
        who.text()
    )
    sizes = who.script("""const buttons = [...document.querySelectorAll('#study button, #study input')];
        return buttons.map(b => b.getBoundingClientRect()).map(r => [r.width, r.height])""")
    assert all(w >= 44 and h >= 44 for w, h in sizes), sizes


def labelled(who):
    """What a screen reader needs: a heading that has the focus, names of all controls.

    Returns the alternative texts of the pictures, which have to be the same for all."""
    who.until(
        lambda: who.script("return document.activeElement.tagName") == "H1",
        "the focus on the heading",
    )
    assert who.script(
        "return [...document.querySelectorAll('#study button')].every(b => b.innerText.trim())"
    )
    assert who.script("""const named = [...document.querySelectorAll('#study input[type=text], #study progress')];
        return named.every(e => e.labels.length == 1)""")
    return who.script("return [...document.querySelectorAll('#study img')].map(i => i.alt)")


def test_a_session_on_a_desktop_with_a_reload(tmp_path):
    study = studies.study(tmp_path, images=10, subsets=studies.FIVE, n=24)
    right, seen, alts = truth(study), [], []
    with server(study) as (address, _), browser(DESKTOP) as who:
        who.driver.get(f"{address}/?code=nosuchcode")
        who.sees("There is no code")
        assert who.script("return document.querySelector('#code').labels.length") == 1
        assert who.errors() == [], "what cannot be a code is not asked for"
        who.driver.find_element("id", "code").send_keys("z" * 16)
        who.press("Start")
        who.sees("There is no code")
        assert all("plans/" in e for e in who.errors())
        code = study.codes[0].upper()
        who.driver.find_element("id", "code").send_keys(
            " ".join((code[:4], code[4:8])) + "-" + code[8:]
        )
        who.press("Start")
        begin(who)
        for k in range(12):
            if k == 5:
                who.driver.refresh()
                who.sees("You have answered 5 of 12")
                who.changed(who.press("Go on"))
            if k == 8:  # a day and more in front of one picture
                who.sees("9 of 12")
                who.script(
                    "const now = performance.now.bind(performance);"
                    "performance.now = () => now() + 1e8"
                )
            who.sees(f"{k + 1} of 12")
            who.until(who.item, "a picture")
            alts += labelled(who)
            seen.append(answer(who, right))
        who.sees("All your answers are saved.")
        assert {u.split("/")[2] for u in who.requests() if u.startswith("http")} == {
            address.split("/")[2]
        }, "nothing goes anywhere else"
        assert who.errors() == []
        assert study.codes[0] not in who.driver.current_url, (
            "a code that is typed does not get into the browser's history"
        )
        who.driver.get(address)
        who.sees("Your code")
    plan = study.plan[study.plan.code == study.codes[0]]
    assert [s for s in seen if not s.startswith("check")] == [p for p in plan.picture if p] and sum(
        s.startswith("check") for s in seen
    ) == 2
    assert len(alts) == 10 and len(set(alts)) == 1, "alternative texts tell nothing apart"
    responses = read_responses(study)
    assert (
        len(responses) == 12
        and responses["right"].all()
        and set(responses.source) == {"button"}
        and not responses.simulated.any()
    )
    assert (responses.rt == LONGEST).sum() == 1 and (responses.rt > 0).all()
    assert len(exclude(responses, median=0, fastest=0)[0]) == 10


def test_a_session_on_a_phone_with_confidence(tmp_path):
    study = studies.study(tmp_path, confidence=True)
    with server(study) as (address, _), browser(PHONE) as who:
        who.driver.get(f"{address}/?code={study.codes[1]}")
        who.sees("Taking part")
        fits(who)
        begin(who)
        for sure in ("Guessed", "Rather sure", "Sure", "Skip", None, None):
            who.until(who.item, "a picture")
            fits(who)

            def box(what):
                return who.script(
                    "const r = document.querySelector(arguments[0]).getBoundingClientRect(); return [r.top, r.bottom]",
                    what,
                )

            assert (
                0 <= box("#study .picture, #study .check")[0]
                and box("#study button")[1] <= PHONE[1]
            ), "picture and buttons on one screen"
            item = who.item()
            who.changed(
                who.press(
                    "Fake" if not item.startswith("check") else item.split(": ")[1].capitalize()
                )
            )
            if not item.startswith("check"):
                fits(who)
                who.changed(who.press("Skip" if sure is None else sure))
        who.sees("All your answers are saved.")
        fits(who)
    pictures = read_responses(study).query("picture != ''")
    assert (
        len(pictures) == 4
        and set(pictures.answer) == {"fake"}
        and pictures.confidence.dropna().isin([1, 2, 3]).all()
        and pictures.confidence.notna().any()
    )


def test_by_keyboard_alone_offline_and_the_file_read_back(tmp_path):
    "From a folder without any server: Tab, Enter, letters; the saved file is the response."
    from selenium.webdriver.common.keys import Keys

    study = studies.study(tmp_path, post=None, n=12)
    right = truth(study)
    with browser(DESKTOP, downloads=study.path / "responses") as who:

        def go(*keys):
            before = who.screen()
            who.keys(*keys)
            who.changed(before)

        who.driver.get((study.path / "page" / "index.html").as_uri())
        who.sees("Your code")
        go(*study.codes[0], Keys.ENTER)
        who.sees("Taking part")
        who.driver.refresh()
        who.sees("Taking part")
        go(Keys.TAB, Keys.ENTER)
        who.sees("What to do")
        go(Keys.ARROW_RIGHT)
        go(Keys.ARROW_RIGHT)
        for _ in range(2):
            who.sees("Practice")
            go("r")
            go(Keys.ENTER)
        go(Keys.ENTER)
        for k in range(6):
            item = who.until(who.item, "a picture")
            if k == 0:  # by Tab to the button and the space bar, once; the focus is to be seen
                who.keys(*[Keys.TAB] * (1 if right(item) == "real" else 2))
                assert who.script(
                    "return getComputedStyle(document.activeElement).outlineStyle + document.activeElement.innerText"
                ).startswith(f"solid{right(item).capitalize()}")
                go(Keys.SPACE)
            else:
                go(right(item)[0])
        who.sees("save your answers with the button")
        who.keys(Keys.TAB, Keys.ENTER)
        file = study.path / "responses" / f"{study.codes[0]}.json"
        who.until(file.exists, "the download")
        assert study.codes[0] not in who.script("return JSON.stringify({...localStorage})"), (
            "the next person at this machine does not find it"
        )
        assert (
            not [u for u in who.requests() if u.startswith(("http", "ws"))] and who.errors() == []
        )
    saved = json.loads(file.read_text())
    assert saved["complete"] and set(saved) == {"study", "code", "complete", "answers"}
    responses = read_responses(study)
    assert len(responses) == 6 and responses["right"].all() and responses.attrs["dropped"] == []
    assert sorted(responses.source) == ["button"] + ["keyboard"] * 5


def test_what_is_no_answer(tmp_path):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    study = studies.study(tmp_path, post=None, practice=0)
    with browser(DESKTOP) as who:
        who.driver.get((study.path / "page" / "index.html").as_uri() + f"?code={study.codes[0]}")
        begin(who, practice=0)
        first = who.until(who.item, "a picture")
        for modifier in (Keys.CONTROL, Keys.META, Keys.ALT):
            ActionChains(who.driver).key_down(modifier).send_keys("r").key_up(modifier).perform()
        free = """const event = {key: 'f', ctrlKey: true, bubbles: true, cancelable: true};
            return document.querySelector('#study').dispatchEvent(new KeyboardEvent('keydown', event))"""
        assert who.script(free) and who.item() == first and who.answers() == [], (
            "Ctrl+R and Ctrl+F are the browser's"
        )
        who.settled()
        real = who.script(
            "return [...document.querySelectorAll('#study button')].find(b => b.innerText.startsWith('Real'))"
        )
        ActionChains(who.driver).double_click(real).perform()
        who.until(lambda: who.item() not in (None, first), "the next picture")
        who.settled()
        assert who.answers() == ["real"], "a double click is one answer"
        beside = ActionChains(who.driver)
        beside.w3c_actions.pointer_action.move_to_location(5, 500).click()
        beside.perform()
        before = who.screen()
        who.keys("f")
        who.changed(before)
        assert who.answers() == ["real", "fake"], "the keys work after a click beside the page"


def test_the_session_goes_on_where_the_server_says(tmp_path):
    study = studies.study(tmp_path, images=2, subsets=("F2F",), practice=0)
    file, right = study.path / "responses" / f"{study.codes[0]}.jsonl", truth(study)
    with server(study) as (address, _), browser(DESKTOP) as who:
        who.driver.get(f"{address}/?code={study.codes[0]}")
        begin(who, practice=0)
        for _ in range(2):
            answer(who, right)
        who.until(
            lambda: who.script("return memory.state.sent") == 2,
            "two answers kept, and the page told so",
        )  # later it would write down that it was told
        assert len(file.read_text().splitlines()) == 2
        who.script("localStorage.clear()")  # as on another machine
        who.driver.refresh()
        who.sees("You have answered 2 of 4. If that was not you, please tell the researcher.")
        who.changed(who.press("Go on"))
        for _ in range(2):
            answer(who, right)
        who.sees("All your answers are saved. You may close this page now.")
        assert (
            who.script("return results().answers.length + ' ' + results().complete") == "2 false"
        ), "the file holds what was answered here"
        assert (
            len(responses := read_responses(study)) == 4
            and responses["right"].all()
            and who.errors() == []
        )

        file.unlink()  # a pilot's answers, removed
        who.driver.refresh()
        begin(who, practice=0)
        item = study.plan[study.plan.code == study.codes[0]].picture.iloc[0]
        other = dict(
            study=study.settings["study"],
            code=study.codes[0],
            index=0,
            item=item or "check",
            answer="real",
            rt=1,
            source="button",
            confidence=None,
        )
        file.write_text(
            json.dumps(studies.signed(other)) + "\n"
        )  # of somebody else with the same code
        for _ in range(4):
            answer(who, right)
        who.sees(
            "Please save your answers with the button and hand the file in. Then you may close this page."
        )
        assert (
            "in use somewhere else" in who.status()
            and "All your answers are saved" not in who.text()
        )


@contextmanager
def foreign():
    """A server of the researcher's own on another port. Yields its address and what it took.

    It is busy at first, and forgets that it has stored the second answer."""
    took, replies = [], iter([429, 201, 408, 409])

    class Handler(BaseHTTPRequestHandler):
        def do_OPTIONS(self):
            self.reply(204)

        def do_POST(self):
            took.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.reply(status := next(replies, 201), b'{"same": true}' if status == 409 else b"{}")

        def reply(self, status, body=b""):
            self.send_response(status)
            for name, value in (
                ("Access-Control-Allow-Origin", "*"),
                ("Access-Control-Allow-Headers", "content-type"),
                ("Content-Length", str(len(body))),
            ):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listener.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.server_port}/save?lab=1", took
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()


def test_answers_go_to_the_researchers_own_server(tmp_path):
    with foreign() as (post, took):
        study = studies.study(tmp_path, images=2, subsets=("F2F",), post=post, practice=0)
        right = truth(study)
        with server(study) as (address, _), browser(PHONE) as who:
            who.driver.get(f"{address}/?code={study.codes[0]}")
            begin(who, practice=0)
            for _ in range(4):
                answer(who, right)
            who.sees("All your answers are saved.")
            assert {u.split("/")[2] for u in who.requests() if u.startswith("http")} == {
                address.split("/")[2],
                post.split("/")[2],
            }
    assert [a["index"] for a in took] == [0, 0, 1, 1, 2, 3] and not list(
        (study.path / "responses").iterdir()
    )


def test_two_at_once_and_a_server_killed_in_mid_session(tmp_path):
    study = studies.study(tmp_path, practice=0)
    right = truth(study)
    with browser(DESKTOP) as one, browser(PHONE) as two:
        with server(study) as (address, _):
            for who, code in zip((one, two), study.codes):
                who.driver.get(f"{address}/?code={code}")
            for who in (one, two):
                begin(who, practice=0)
            for _ in range(2):
                for who in (one, two):
                    answer(who, right)

            def stored():
                return [
                    len((study.path / "responses" / f"{c}.jsonl").read_text().splitlines())
                    for c in study.codes
                ]

            one.until(lambda: stored() == [2, 2], "both answers of both")
        for _ in range(2):  # the server is dead now
            for who in (one, two):
                answer(who, right)
        one.until(lambda: "Not saved yet" in one.status(), "the warning")
        assert stored() == [2, 2]
        with server(study, port=int(address.rsplit(":", 1)[1])) as (again, _):
            assert again == address
            for _ in range(2):
                for who in (one, two):
                    answer(who, right)
            for who in (one, two):
                who.sees("All your answers are saved.")
            two.driver.refresh()  # a reload at the end shows the end
            two.sees("All your answers are saved.")
            page = urllib.request.urlopen(f"{address}/").read()
        assert one.status() == "" and page
    responses = read_responses(study)
    assert (
        len(responses) == 12
        and responses["right"].all()
        and responses.groupby("code").size().tolist() == [6, 6]
    )
