"""The page of serve.py in a real browser."""

import contextlib
import shutil

import pytest
from server import Server, noise

webdriver = pytest.importorskip("selenium.webdriver", reason="pip install -r requirements-dev.txt")
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER),
    reason="Chromium and its driver are not installed: apt-get install chromium-driver",
)
PASTE = """
const file = new File([Uint8Array.from(arguments[0])], "pasted.png", {type: "image/png"});
const data = new DataTransfer();
data.items.add(file);
document.dispatchEvent(new ClipboardEvent("paste", {clipboardData: data}));
document.dispatchEvent(new DragEvent("drop", {dataTransfer: data, cancelable: true}));
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "window-size=900,800"):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    with contextlib.closing(Server(tmp_path_factory.mktemp("server"), "--model", model)) as running:
        yield running


def open_page(browser, server):
    browser.get(f"http://127.0.0.1:{server.port}/")


def wait_for(browser, condition):
    return WebDriverWait(browser, 60).until(lambda _: condition())


def items(browser):
    return browser.find_elements(By.CSS_SELECTOR, "#results li")


def details(browser):
    """What is said below each image, once nothing is being read any more."""
    wait_for(browser, lambda: "Reading…" not in browser.find_element(By.ID, "results").text)
    return [item.find_element(By.CLASS_NAME, "details").text for item in items(browser)]


def test_chosen_images_are_read_the_newest_first(browser, server, tmp_path):
    open_page(browser, server)
    names = [f"{i}.png" for i in range(2)] + ["bad.png"]
    for i, name in enumerate(names):
        (tmp_path / name).write_bytes(noise(i) if i < 2 else b"text")
    browser.find_element(By.ID, "files").send_keys("\n".join(str(tmp_path / name) for name in names))
    wait_for(browser, lambda: len(items(browser)) == 3)
    bad, second, first = details(browser)
    assert bad == "bad.png: not an image: no PNG, JPEG, BMP, GIF or WEBP"
    for i, said in ((0, first), (1, second)):
        answer = server.post("/read", noise(i))[1]
        assert f"Runner-up: {answer['runner_up']['text']} (" in said
        assert "Read in " in said
        boxes = items(browser)[2 - i].find_elements(By.CSS_SELECTOR, ".text span")
        assert "".join(box.text.split()[0] for box in boxes) == answer["text"]
        for box, prob in zip(boxes, answer["char_probs"], strict=True):
            assert float(box.text.split()[1].rstrip("%")) == pytest.approx(100 * prob, abs=0.51)
            assert ("unsure" in box.get_attribute("class")) == (prob < 0.95)


def test_images_can_be_pasted_and_dropped(browser, server):
    open_page(browser, server)
    browser.execute_script(PASTE, list(noise(0)))
    wait_for(browser, lambda: len(items(browser)) == 2)
    assert all("Confidence" in each for each in details(browser))


def test_it_is_usable_by_keyboard_and_with_a_screen_reader(browser, server, tmp_path):
    open_page(browser, server)
    reached = []
    for _ in range(6):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        reached.append(browser.switch_to.active_element)
    assert {"files"} <= {element.get_attribute("id") for element in reached}
    assert {"openapi.json", "metrics"} <= {element.get_dom_attribute("href") for element in reached}
    field = browser.find_element(By.ID, "files")
    assert field.accessible_name.startswith("Drop images here, paste one, or choose files")
    (tmp_path / "a.png").write_bytes(noise(0))
    field.send_keys(str(tmp_path / "a.png"))
    wait_for(browser, lambda: items(browser))
    details(browser)
    assert browser.find_element(By.CSS_SELECTOR, "#results img").accessible_name == "a.png"
    text = " ".join(server.post("/read", noise(0))[1]["text"])
    status = browser.find_element(By.CSS_SELECTOR, "[role=status]")
    assert status.get_property("textContent").startswith(f"{text}, confidence ")


def test_it_fits_a_phone_and_asks_nobody_else(browser, server, tmp_path):
    device = {"width": 360, "height": 640, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
    browser.get_log("browser")  # of the pages before
    open_page(browser, server)
    (tmp_path / f"{'long name ' * 20}.png").write_bytes(noise(0))
    browser.find_element(By.ID, "files").send_keys(str(tmp_path / f"{'long name ' * 20}.png"))
    wait_for(browser, lambda: items(browser))
    details(browser)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    addresses = browser.execute_script("return performance.getEntries().map((each) => each.name)")
    asked = [each for each in addresses if "://" in each]
    assert len(asked) >= 4
    assert all(each.startswith((f"http://127.0.0.1:{server.port}/", "blob:")) for each in asked)
    assert browser.get_log("browser") == []


def test_dark_mode_has_light_text(browser, server):
    colours = []
    for scheme in ("light", "dark"):
        feature = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)
        open_page(browser, server)
        body = browser.find_element(By.TAG_NAME, "body")
        colours.append((body.value_of_css_property("color"), body.value_of_css_property("background-color")))
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    luminance = [[sum(map(int, each[5:-1].split(",")[:3])) for each in pair] for pair in colours]
    assert luminance[0][0] < luminance[0][1]
    assert luminance[1][0] > luminance[1][1]


def test_a_key_is_asked_for_and_the_image_read_again(browser, model, tmp_path):
    with contextlib.closing(Server(tmp_path, "--model", model, "--api-key", "secret")) as running:
        open_page(browser, running)
        (tmp_path / "a.png").write_bytes(noise(0))
        assert not browser.find_element(By.ID, "key").is_displayed()
        browser.find_element(By.ID, "files").send_keys(str(tmp_path / "a.png"))
        key = browser.find_element(By.ID, "key")
        wait_for(browser, key.is_displayed)
        assert "Authorization" in details(browser)[0]
        key.send_keys("secret", Keys.ENTER)
        wait_for(browser, lambda: "Confidence" in details(browser)[0])
        assert not key.is_displayed()
