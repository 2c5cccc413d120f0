"""The page of label.py as a person uses it, in headless Chromium."""

import shutil

import pytest
from label_server import FAILED_TRAINING, label_server, make_images

from captcha_cnn.labels import labelled_files

webdriver = pytest.importorskip("selenium.webdriver", reason="Selenium is not installed")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="Chromium or its driver is not installed")
FLAGS = ("--characters", "0123456789", "--char-num", "3")


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


class Page:
    """The open page, and what a person sees and does there."""

    def __init__(self, browser, server):
        self.browser, self.server = browser, server
        browser.get(server.address)
        self.wait(lambda: self.shown("form") and self.text("name"))

    def wait(self, condition):
        WebDriverWait(self.browser, 60, 0.05).until(lambda _: condition())

    def element(self, name):
        return self.browser.find_element(By.ID, name)

    def text(self, name):
        return self.element(name).text

    def shown(self, name):
        return self.element(name).is_displayed()

    @property
    def file(self):
        return self.text("name").partition(" ")[0]

    @property
    def typed(self):
        return self.element("text").get_property("value")

    def press(self, *keys):
        """Press keys one by one where the focus is, as a person does who never touches the mouse."""
        for key in keys:
            webdriver.ActionChains(self.browser).send_keys(key).perform()

    def press_with_control(self, key):
        actions = webdriver.ActionChains(self.browser)
        actions.key_down(Keys.CONTROL).send_keys(key).key_up(Keys.CONTROL).perform()

    def loaded(self):
        """The addresses of all that the page has loaded."""
        entries = "return performance.getEntriesByType('resource').map((entry) => entry.name)"
        return self.browser.execute_script(entries)

    def labels(self):
        return labelled_files(self.server.folder).labels


@pytest.fixture
def folder(tmp_path):
    return make_images(tmp_path / "mine", 23)


@pytest.fixture
def page(browser, folder):
    browser.get_log("browser")  # of the test before
    with label_server(folder, *FLAGS) as server:
        server.folder = str(folder)
        yield Page(browser, server)
        errors = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
        browser.get("about:blank")  # it asks for nothing any more
    assert not [error for error in errors if "422" not in error]


def test_a_folder_is_labelled_with_the_keyboard_alone(page, folder):
    first, guess = page.file, page.typed
    assert len(guess) == 3
    page.press(Keys.ENTER)  # confirms the guess
    page.wait(lambda: page.file != first)
    second = page.file
    page.press_with_control("a")
    page.press("0", "7", "8", Keys.ENTER)  # corrects it
    page.wait(lambda: page.file != second)
    third = page.file
    page.press(Keys.ESCAPE)  # nobody can read it
    page.wait(lambda: page.file != third)
    page.wait(lambda: "2, 1 unreadable" in page.text("labelled"))
    assert page.labels() == {first: guess, second: "078"}
    page.press(Keys.ARROW_UP, Keys.ARROW_UP)
    assert page.file == second
    assert page.typed == "078"
    assert "labelled 078" in page.text("name")
    page.press("9", "9", "9", Keys.ENTER)  # all of it is selected
    assert page.file == third
    assert "unreadable" in page.text("name")
    page.wait(lambda: page.labels() == {first: guess, second: "999"})
    page.press(Keys.ARROW_DOWN)
    assert page.file not in (first, second, third)
    assert "3 of 23 images done" in page.text("progress")


def test_the_image_is_there_and_the_next_one_is_fetched_before_it_is_needed(page):
    loaded = (
        "return document.getElementById('image').complete && document.getElementById('image').naturalWidth"
    )
    page.wait(lambda: page.browser.execute_script(loaded) == 40)
    page.wait(lambda: page.browser.execute_script("return items.length - at") == 3)
    for item in page.browser.execute_script("return items"):
        page.wait(lambda: any(name.endswith(f"/image?file={item['file']}") for name in page.loaded()))  # noqa: B023


def test_nothing_is_loaded_from_elsewhere(page):
    page.wait(lambda: len(page.loaded()) > 4)
    entries = page.loaded()
    assert all(name.startswith((page.server.address, "data:")) for name in entries)


def test_unsure_characters_are_marked_and_selected_for_typing(page):
    probs = page.browser.execute_script("return items[at].char_probs")
    marks = page.browser.find_elements(By.CSS_SELECTOR, "#guess mark")
    assert [mark.text for mark in marks] == [c for c, p in zip(page.typed, probs, strict=True) if p < 0.95]
    assert "Guess" in page.element("unsure").get_property("textContent")
    page.browser.execute_script(
        "Object.assign(items[at], {guess: '123', text: '123', char_probs: [1, 0.5, 1]}); shown = null; show()"
    )
    page.press("7")
    assert page.typed == "173"


def test_a_label_that_cannot_be_is_shown_again_with_the_reason(page):
    first = page.file
    page.press("1", "2", "3", "4", Keys.ENTER)
    page.wait(lambda: page.shown("error"))
    assert "is not 3 characters" in page.text("error")
    assert (page.file, page.typed) == (first, "1234")
    page.press_with_control("a")
    page.press("1", "2", "3", Keys.ENTER)
    page.wait(lambda: page.labels().get(first) == "123")
    assert not page.shown("error")
    page.press(Keys.DELETE, Keys.ENTER)
    assert "Escape" in page.text("error"), "an empty text is no label"


def test_every_control_has_a_name_and_can_be_reached_with_the_keyboard(page):
    names = set()
    for _ in range(8):
        focused = page.browser.switch_to.active_element
        if focused.tag_name in ("input", "button"):
            names.add(focused.accessible_name)
        page.press(Keys.TAB)
    assert "Text in the image" in names
    assert {name.split()[0] for name in names} >= {"Text", "Confirm", "Unreadable", "Forward"}
    assert page.file in page.element("image").accessible_name
    assert page.browser.find_element(By.TAG_NAME, "html").get_attribute("lang") == "en"


@pytest.mark.parametrize("width", [320, 360, 1200])
def test_nothing_is_cut_off_at_any_width(page, width):
    metrics = {"width": width, "height": 740, "deviceScaleFactor": 1, "mobile": width < 500}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        assert page.browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert page.element("confirm").rect["width"] >= 100
        bottom = page.element("confirm").rect["y"] + page.element("confirm").rect["height"]
        assert bottom < 740, "an image, its text and the button are seen without scrolling"
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


CONTRAST = """
const parse = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const light = (rgb) => rgb.reduce((sum, v, i) => sum + linear(v / 255) * [0.2126, 0.7152, 0.0722][i], 0);
const paint = (e) => getComputedStyle(e).backgroundColor;
const ground = (e) => /, 0\\)/.test(paint(e)) ? ground(e.parentElement) : parse(paint(e));
const texts = document.querySelectorAll("h1, p, label, input, button, dt, dd, mark");
return [...texts].filter((e) => e.offsetParent)
  .map((e) => [light(parse(getComputedStyle(e).color)), light(ground(e))].sort((a, b) => a - b))
  .map(([dark, bright]) => (bright + 0.05) / (dark + 0.05));
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_in_dark(page, scheme):
    features = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", features)
    try:
        background = page.browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(24, 24, 24)"}[scheme]
        contrasts = page.browser.execute_script(CONTRAST)
        assert len(contrasts) > 10
        assert min(contrasts) >= 4.5, "WCAG 2, level AA"
    finally:
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_two_pages_lose_no_label(page):
    other = page.browser.current_window_handle
    first = page.file
    page.browser.switch_to.new_window("tab")
    second = Page(page.browser, page.server)
    assert second.file != first
    second.press("1", "1", "1", Keys.ENTER)
    page.wait(lambda: len(page.labels()) == 1)
    page.browser.close()
    page.browser.switch_to.window(other)
    page.press("2", "2", "2", Keys.ENTER)
    page.wait(lambda: len(page.labels()) == 2)
    assert page.labels()[first] == "222"


def test_a_failed_training_is_one_sentence_and_the_last_image_says_that_all_is_done(browser, folder):
    with label_server(folder, *FLAGS, training=FAILED_TRAINING) as server:
        for number in range(21):
            server.label(f"{number:02d}.png", "123")
        page = Page(browser, server)
        page.wait(lambda: "failed" in page.text("training"))
        assert page.text("training").endswith("the guesses stay as they were: the images are of paper")
        page.press(Keys.ENTER)
        page.wait(lambda: "22 of 23 images done" in page.text("progress"))
        page.press(Keys.ENTER)
        page.wait(lambda: page.shown("empty"))
        assert page.text("empty") == "No image is left to label."
        assert "random images" in page.text("accuracy")
        page.press(Keys.ARROW_UP)
        page.wait(lambda: page.shown("form"))


def test_the_target_is_announced_with_the_next_command(browser, tmp_path):
    folder = make_images(tmp_path / "mine", 101)
    with label_server(folder, *FLAGS, "--until", "0.01") as server:
        for _ in range(101):
            item = server.post("/next", held=[])["item"]
            server.label(item["file"], item["guess"])
        browser.get(server.address)
        WebDriverWait(browser, 60, 0.05).until(
            lambda _: browser.find_element(By.ID, "reached").is_displayed()
        )
        text = browser.find_element(By.ID, "reached").text
        assert text.startswith("The target of 1% is reached.")
        assert text.endswith(f"python driver.py --images {folder} --unlabelled {folder}")


def test_where_label_py_has_ended_the_page_says_so_and_keeps_what_was_typed(browser, folder):
    with label_server(folder, *FLAGS) as server:
        page = Page(browser, server)
        first = page.file
    page.press("1", "2", "3", Keys.ENTER)
    page.wait(lambda: page.shown("error"))
    assert page.text("error") == "label.py does not answer: start it again."
    page.wait(lambda: page.file == first)
    assert page.typed == "123"
    browser.get("about:blank")


def test_review_shows_the_label_and_what_the_model_reads(browser, folder):
    (folder / "labels.csv").write_text("00.png,000\n01.png,0000000x\n")
    with label_server(folder, "--review") as server:
        server.folder = str(folder)
        page = Page(browser, server)
        assert (page.file, page.typed) == ("01.png", "0000000x"), "no text of the model is less probable"
        assert page.text("guess").startswith("read as")
        guess = page.browser.execute_script("return items[at].guess")
        marks = page.browser.find_elements(By.CSS_SELECTOR, "#guess mark")
        others = [c for c, other in zip(guess, "0000000x", strict=False) if c != other]
        assert [mark.text for mark in marks] == others, "what is not as in the label"
        page.press_with_control(Keys.ENTER)
        page.wait(lambda: page.labels().get("01.png") == guess)
        page.wait(lambda: page.file == "00.png")
        page.press(Keys.ENTER)
        page.wait(lambda: page.shown("empty"))
        assert page.text("empty") == "No other label looks wrong."
        assert page.labels()["00.png"] == "000"
