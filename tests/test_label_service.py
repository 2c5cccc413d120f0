"""label.py as a user starts it: what it answers, refuses, and keeps."""

import os
import signal
import socket

import pytest
from conftest import assert_refused, script
from label_server import ENDLESS_TRAINING, FAILED_TRAINING, GOOD_TRAINING, label_server, make_images
from own_folder import snapshot

from captcha_cnn.labels import labelled_files


@pytest.fixture
def folder(tmp_path):
    return make_images(tmp_path / "mine", 23)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with label_server(make_images(tmp_path_factory.mktemp("label") / "mine", 23)) as server:
        yield server


# ---------------------------------------------------------------------- the routes


def test_a_page_gets_images_and_their_guesses_and_confirms_labels(folder):
    images = snapshot(folder)
    with label_server(folder, "--characters", "0123456789", "--char-num", "3") as server:
        first = server.post("/next", held=[])["item"]
        second = server.post("/next", held=[first["file"]])["item"]
        assert first["file"] != second["file"]
        assert len(first["guess"]) == len(first["char_probs"]) == 3
        assert set(first["guess"]) <= set("0123456789")
        status = server.label(first["file"], "123")
        assert (status["images"], status["labelled"], status["unreadable"]) == (23, 1, 0)
        assert server.label(second["file"], "")["unreadable"] == 1
        assert server.ask("POST", "/label", {"file": first["file"], "label": "abc"})[0] == 422
    after = snapshot(folder)
    assert all(after[path] == images[path] for path in images if path != folder)
    assert labelled_files(str(folder)).labels == {first["file"]: "123"}


def test_it_goes_on_where_it_was_killed(folder):
    with label_server(folder) as server:
        for _ in range(3):
            server.label(server.post("/next", held=[])["item"]["file"], "abc")
        server.process.send_signal(signal.SIGKILL)
    with label_server(folder) as server:
        answer = server.post("/start")
        done = [item["file"] for item in answer["items"]]
        assert (len(done), answer["status"]["labelled"]) == (3, 3)
        assert "of the last" in answer["status"]["accuracy"]
        assert server.post("/next", held=[])["item"]["file"] not in done


def test_two_programs_on_one_folder_lose_no_label(folder):
    with label_server(folder) as one, label_server(folder, "--work", f"{folder}.other") as other:
        files = [server.post("/next", held=[])["item"]["file"] for server in (one, other)]
        one.label(files[0], "abc")
        other.label(files[1], "def")
        assert one.label("22.png", "xyz")["labelled"] >= 2
        files.append("22.png")
    assert set(labelled_files(str(folder)).labels) == set(files)


def test_an_image_is_answered_as_it_is(server):
    folder = server.ask("GET", "/state")[1]["status"]["folder"]
    with open(os.path.join(folder, "07.png"), "rb") as file:
        assert server.ask("GET", "/image?file=07.png") == (200, file.read())


@pytest.mark.parametrize("name", ["../mine/07.png", "/etc/passwd", "labels.csv", "99.png", "", "07.png%00"])
def test_no_other_file_is_answered(server, name):
    status, answer = server.ask("GET", f"/image?file={name}")
    assert (status, answer) == (404, {"error": "There is no such image in the folder."})


def test_a_file_that_is_no_image_is_refused(tmp_path):
    folder = make_images(tmp_path / "mine", 2)
    (folder / "notes.txt").write_text("nothing")
    with label_server(folder) as server:
        assert server.ask("GET", "/image?file=notes.txt")[0] == 422
        assert server.ask("POST", "/label", {"file": "notes.txt", "label": "abc"})[0] == 422


def test_the_page_may_load_nothing_from_elsewhere(server):
    for path in ("/", "/label.js", "/label.css", "/style.css"):
        status, content = server.ask("GET", path)
        assert status == 200
        assert b"http" not in content.replace(b"http://127.0.0.1", b"")
        assert b"//" not in content.replace(b"// ", b"")


# ---------------------------------------------------------------------- what is refused

JSON = {"Content_Type": "application/json"}


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("GET", "/state", None, {"Host": "example.com"}, 421),
        ("GET", "/", None, {"Host": "127.0.0.1"}, 421),
        ("POST", "/label", {"file": "07.png", "label": "abc"}, {"Origin": "http://example.com"}, 403),
        ("POST", "/label", {"file": "07.png", "label": "abc"}, {"Origin": "null"}, 403),
        ("POST", "/label", {"file": "07.png", "label": "abc"}, {"Origin": "https://127.0.0.1"}, 403),
        ("POST", "/label", '{"file": "07.png", "label": "abc"}', {"Content_Type": "text/plain"}, 415),
        ("POST", "/label", '{"file": "07.png", "label": "abc"}', {}, 415),
        ("POST", "/label", "x" * 20_000, JSON, 413),
        ("POST", "/label", "[]", JSON, 400),
        ("POST", "/label", "{", JSON, 400),
        ("POST", "/label", "[" * 16_000, JSON, 400),
        ("POST", "/label", b"\xff", JSON, 400),
        ("POST", "/label", {"file": "07.png"}, {}, 400),
        ("POST", "/label", {"file": "07.png", "label": 7}, {}, 400),
        ("POST", "/label", {"file": "99.png", "label": "abc"}, {}, 404),
        ("POST", "/label", {"file": ["07.png"], "label": "abc"}, {}, 404),
        ("POST", "/label", {"file": "07.png", "label": "a b"}, {}, 422),
        ("POST", "/label", {"file": "07.png", "label": "a\n07.png,b"}, {}, 422),
        ("POST", "/next", {"held": "07.png"}, {}, 400),
        ("POST", "/next", {"held": [1]}, {}, 400),
        ("POST", "/state", {}, {}, 405),
        ("GET", "/label", None, {}, 405),
        ("GET", "/missing", None, {}, 404),
    ],
)
def test_what_is_refused_is_one_sentence_and_changes_nothing(server, method, path, body, headers, status):
    found, answer = server.ask(method, path, body, **headers)
    assert found == status
    assert list(answer) == ["error"]
    assert answer["error"].endswith(".")
    assert "\n" not in answer["error"]
    assert server.ask("GET", "/state")[1]["status"]["labelled"] == 0


def test_its_own_page_is_answered_by_both_names_of_the_machine(server):
    port = server.host.partition(":")[2]
    for name in ("127.0.0.1", "localhost"):
        headers = {"Host": f"{name}:{port}", "Origin": f"http://{name}:{port}"}
        assert server.ask("POST", "/next", {"held": []}, **headers)[0] == 200


def test_it_listens_on_the_loopback_alone(server):
    port = int(server.host.partition(":")[2])
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as other:
        other.settimeout(5)
        assert other.connect_ex(("127.0.0.2", port)) != 0, "it answers 127.0.0.1 and no other address"


# ---------------------------------------------------------------------- training


def label_some(server, count):
    for number in range(count):
        server.label(f"{number:02d}.png", f"{number:03d}")


def test_the_model_of_a_training_takes_over(folder):
    with label_server(folder, training=GOOD_TRAINING) as server:
        assert server.label("22.png", "123")["next_training"] == 20
        label_some(server, 19)
        status = server.wait_for(lambda status: status["model_labels"] and not status["training"])
        assert (status["model_labels"], status["training_failed"]) == (20, "")
        assert status["next_training"] == 30
        item = server.post("/next", held=[])["item"]
        assert len(item["guess"]) == 3, "the stand-in reads three digits"


def test_a_failing_training_disturbs_no_label(folder):
    with label_server(folder, training=FAILED_TRAINING) as server:
        label_some(server, 20)
        status = server.wait_for(lambda status: status["training_failed"])
        assert status["training_failed"] == "the images are of paper"
        assert (status["model_labels"], status["next_training"]) == (0, 30)
        item = server.post("/next", held=[])["item"]
        assert server.label(item["file"], "xyz")["labelled"] == 21
    assert len(labelled_files(str(folder)).labels) == 21


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_labels_are_typed_while_it_trains_and_the_training_ends_with_it(folder, tmp_path, end):
    with label_server(folder, training=ENDLESS_TRAINING) as server:
        label_some(server, 20)
        status = server.wait_for(lambda status: (tmp_path / "mine.labelling" / "begun").exists())
        assert status["training"] == 20
        assert server.label("21.png", "xyz")["labelled"] == 21
        server.process.send_signal(end)
        out, err = server.process.communicate(timeout=60)
        if end == signal.SIGINT:
            assert server.process.returncode == 0
            assert f"21 labels are in {folder / 'labels.csv'}" in out
        assert err == ""
        end = (tmp_path / "mine.labelling" / "ended").exists
        for _ in range(600):
            if end():
                break
            signal.sigtimedwait([], 0.05)
        assert end()


# ---------------------------------------------------------------------- review


def test_review_shows_labels_that_the_model_disagrees_with(folder):
    with label_server(folder, "--characters", "0123456789", "--char-num", "3") as server:
        guesses = [server.post("/next", held=[])["item"] for _ in range(4)]
        for item in guesses[:3]:
            server.label(item["file"], item["guess"])
        wrong = guesses[3]
        typo = "".join("1" if c == "0" else "0" for c in wrong["guess"])
        server.label(wrong["file"], typo)
    with label_server(folder, "--characters", "0123456789", "--char-num", "3", "--review") as server:
        answer = server.post("/next", held=[])
        assert answer["status"]["review"]
        assert (answer["item"]["file"], answer["item"]["label"]) == (wrong["file"], typo)
        assert answer["item"]["guess"] == wrong["guess"]
        server.label(wrong["file"], wrong["guess"])
        assert server.post("/next", held=[])["item"] is None
    assert labelled_files(str(folder)).labels[wrong["file"]] == wrong["guess"]


# ---------------------------------------------------------------------- the command line


def test_what_cannot_be_used_is_one_sentence(folder, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert_refused(script("label.py", folder, "--port", port), 1, f"port {port}", "--port")
    assert_refused(script("label.py", tmp_path / "missing"), 1, "must be a folder of images")
    assert_refused(script("label.py", make_images(tmp_path / "none", 0)), 1, "holds none")
    assert_refused(script("label.py", folder, "--until", "99%"), 2, "--until")
    assert_refused(script("label.py", folder, "--characters", "aa"), 2, "characters")
    assert_refused(script("label.py"), 2, "FOLDER")
