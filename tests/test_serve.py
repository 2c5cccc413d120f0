"""serve.py as a user starts it: what it answers, to good requests and to hostile ones."""

import asyncio
import base64
import contextlib
import functools
import json
import os
import random
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from bad_files import BAD_FILES, png_with_claimed_size
from conftest import PROJECT, TINY, assert_refused, flags, script
from server import Server, form, noise, write_model

from benchmarks import serving
from captcha_cnn.web import limits, uploads
from captcha_cnn.web.inference import MAX_BATCH, MAX_WAITING, Inference, Model
from captcha_cnn.web.server import bind
from captcha_cnn.web.service import create_app
from config import CaptchaError

GOOD = noise(0)
FILE = ("file", "a.png", GOOD)
JSON = {"Content-Type": "application/json"}
FIELDS = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    running = Server(tmp_path_factory.mktemp("server"), "--model", model)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def impatient(model, tmp_path_factory):
    running = Server(tmp_path_factory.mktemp("impatient"), "--model", model, "--timeout", "2")
    yield running
    running.stop()


def command_line(model, folder, images, *arguments):
    """What predict.py prints for those files, as JSON, and what it says on standard error."""
    for name, content in images.items():
        (folder / name).write_bytes(content)
    done = script("predict.py", "--model", model, "--json", *arguments, *images, cwd=folder)
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_answers_are_sent_at_once():
    """Head and body are two writes; without this option the second waits for a delayed ACK, up to 40 ms."""
    with bind("127.0.0.1", 0, "") as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# ---------------------------------------------------------------------- what it reads


def test_it_answers_what_predict_prints_field_for_field(server, model, tmp_path):
    images = {f"{i}.png": noise(i) for i in range(4)}
    expected, _ = command_line(model, tmp_path, images)
    assert server.post("/read", *form(("file", "0.png", GOOD))) == (200, expected[0])
    several = [("file", name, content) for name, content in images.items()]
    assert server.post("/read", *form(*several)) == (200, expected)
    nameless = {**expected[0], "path": "-"}
    text = base64.b64encode(GOOD).decode()
    assert server.post("/read", GOOD) == (200, nameless)
    assert server.post("/read", GOOD, {"Content-Type": "image/png"}) == (200, nameless)
    assert server.post("/read", GOOD, FIELDS) == (200, nameless), "as curl --data-binary sends it"
    for image in (text, f"data:image/png;base64,{text}"):
        assert server.post("/read", json.dumps({"image": image}), JSON) == (200, nameless)


@pytest.mark.parametrize("arguments", [["--min-confidence", "0.9"], ["--characters", "dac"]])
def test_parameters_do_what_the_flags_of_predict_do(arguments, server, model, tmp_path):
    expected, _ = command_line(model, tmp_path, {"a.png": GOOD}, *arguments)
    query = f"{arguments[0].strip('-').replace('-', '_')}={arguments[1]}"
    assert server.post(f"/read?{query}", *form(FILE)) == (200, expected[0])
    assert expected[0] != server.post("/read", *form(FILE))[1]


@pytest.mark.parametrize("kind", [kind for kind, (content, _) in BAD_FILES.items() if content is not None])
def test_a_file_that_is_no_captcha_gets_the_sentence_of_the_command_line(kind, server, model, tmp_path):
    content, begin = BAD_FILES[kind]
    _, said = command_line(model, tmp_path, {"a.png": content})
    sentence = said.strip().removeprefix("a.png: ")
    assert sentence.startswith(begin)
    status = {"text": 415, "bomb": 413}.get(kind, 422)
    assert server.post("/read", *form(("file", "a.png", content))) == (status, {"error": sentence})
    of_two = f"image 2 of 2: {sentence}"
    assert server.post("/read", *form(FILE, ("file", "b.png", content))) == (status, {"error": of_two})


def test_several_models_have_names_and_images_of_any_size_a_limit(tf, model, tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    shutil.copy(model, folder / "one.onnx")
    write_model(tf, folder, replace(TINY, images="any", char_num=2), "two")
    with contextlib.closing(Server(tmp_path, "--model", folder)) as running:
        assert json.loads(running.get("/ready")[1])["models"] == ["one", "two"]
        for name, length in (("one", 3), ("two", 2)):
            assert len(running.post(f"/read?model={name}", GOOD)[1]["text"]) == length
            assert len(running.post(f"/ocr?model={name}", *form(FILE))[1]["data"]) == length
        for query in ("", "?model=three"):
            status, answer = running.post(f"/read{query}", GOOD)
            assert status == 400
            assert "the parameter model must be one of one, two, but is" in answer["error"]
        assert running.post("/read?model=two", noise(3, (31, 59)))[0] == 200
        status, answer = running.post("/read?model=two", png_with_claimed_size(2000, 2000))
        assert (status, answer) == (413, {"error": "a huge size: 2000x2000 px, not at most 1,048,576 in all"})


def test_ocr_answers_as_ddddocr_fastapi_does(server):
    text = server.post("/read", GOOD)[1]["text"]
    encoded = base64.b64encode(GOOD)
    success = {"code": 200, "message": "Success", "data": text}
    assert server.post("/ocr", *form(FILE)) == (200, success)
    assert server.post("/ocr", *form(("image", None, encoded), ("probability", None, b"false"))) == (
        200,
        success,
    )
    urlencoded = b"image=" + encoded.replace(b"+", b"%2B").replace(b"=", b"%3D")
    assert server.post("/ocr", urlencoded, FIELDS) == (200, success)
    for body, status in (
        (form(("other", None, b"")), 400),
        (form(FILE, ("charsets", None, b"0")), 400),
        (form(("file", "a.png", b"text")), 415),
        (form(("image", None, b"http://127.0.0.1/a.png")), 400),
        (form(("file", "a.png", BAD_FILES["small"][0])), 422),
    ):
        found, answer = server.post("/ocr", *body)
        assert (found, answer["code"], answer["data"]) == (status, status, None)
        assert answer["message"]


# ---------------------------------------------------------------------- what it refuses


def chunks(size):
    yield from [b"x" * 65536] * (size // 65536 + 1)


@pytest.mark.parametrize(
    ("path", "request_of", "status", "words"),
    [
        ("/read", lambda: (b"",), 400, "must hold an image"),
        ("/read", lambda: form(("other", None, GOOD)), 400, "must hold an image"),
        ("/read", lambda: (b"http://127.0.0.1/a.png",), 400, "nothing is fetched"),
        ("/read", lambda: (b'{"image": "https://127.0.0.1/a"}', JSON), 400, "nothing is fetched"),
        ("/read", lambda: form(("file", None, b" ftp://127.0.0.1/a.png")), 400, "nothing is fetched"),
        ("/read", lambda: (b'{"image": 1}', JSON), 400, "with the image in base64"),
        ("/read", lambda: (b'["image"]', JSON), 400, "with the image in base64"),
        ("/read", lambda: (b'{"image": "aGVsbG8"}', JSON), 400, "must be base64"),
        ("/read", lambda: (b"{", JSON), 400, "must be JSON"),
        ("/read", lambda: (b"[" * 100000, JSON), 400, "must be JSON"),
        ("/read", lambda: (b"\xff", JSON), 400, "must be JSON"),
        ("/read", lambda: (form(FILE)[0][:-9], form(FILE)[1]), 400, "is cut off"),
        ("/read", lambda: (form(FILE)[0], form(boundary="other")[1]), 400, "is damaged"),
        ("/read", lambda: (form(FILE)[0], {"Content-Type": "multipart/form-data"}), 400, "is damaged"),
        ("/read", lambda: (GOOD, {"Content-Type": "text/html"}), 415, "Content-Type"),
        ("/read", lambda: (b"x" * (uploads.MAX_IMAGE + 1),), 413, "at most 1,048,576 bytes"),
        (
            "/read",
            lambda: (chunks(uploads.MAX_IMAGE),),
            413,
            "1,048,576 bytes",
        ),
        (
            "/read",
            lambda: form(("file", "a", b"x" * (uploads.MAX_IMAGE + 1))),
            413,
            "at most 1,048,576 bytes",
        ),
        (
            "/read",
            lambda: form(("file", "a", b"x" * (3 * uploads.MAX_IMAGE))),
            413,
            "at most 1,048,576 bytes",
        ),
        ("/read", lambda: form(*[FILE] * 65), 413, "at most 64 images"),
        ("/read", lambda: form(*[("a", None, b"")] * 17), 413, "at most 16 fields"),
        ("/read?min_confidence=2", lambda: (GOOD,), 400, "a number from 0 to 1, not '2'"),
        ("/read?min_confidence=nan", lambda: (GOOD,), 400, "a number from 0 to 1"),
        ("/read?min_confidnce=1", lambda: (GOOD,), 400, "'min_confidnce' is none"),
        ("/read?characters=xy", lambda: (GOOD,), 400, "some of those that the model reads, abcde, but 'x'"),
        ("/read?model=other", lambda: (GOOD,), 400, "one of captcha, but is other"),
        ("/nothing", lambda: (GOOD,), 404, "/openapi.json"),
        ("/health", lambda: (GOOD,), 405, "/openapi.json"),
    ],
)
def test_what_is_wrong_with_a_request_is_one_sentence(path, request_of, status, words, server):
    found, answer = server.post(path, *request_of())
    assert found == status, answer
    assert list(answer) == ["error"]
    assert words in answer["error"]


def test_as_many_images_as_are_allowed_are_read(server):
    status, answer = server.post("/read", *form(*[("file", f"{i}", noise(i)) for i in range(64)]))
    assert status == 200
    assert [each["path"] for each in answer] == [f"{i}" for i in range(64)]
    assert answer[5]["text"] == server.post("/read", noise(5))[1]["text"]


def test_a_key_is_asked_for_where_there_is_one(model, tmp_path):
    with contextlib.closing(Server(tmp_path, "--model", model, CAPTCHA_API_KEY="secret")) as running:
        for path in ("/", "/style.css", "/read.js", "/openapi.json", "/health", "/ready"):
            assert running.get(path)[0] == 200, path
        for headers in ({}, {"Authorization": "Bearer secre"}, {"Authorization": "Basic secret"}):
            status, answer = running.post("/read", GOOD, headers)
            assert status == 401
            assert "Authorization: Bearer KEY" in answer["error"]
            assert running.get("/metrics", headers)[0] == 401
        assert running.request("POST", "/read", GOOD)[1]["WWW-Authenticate"] == "Bearer"
        right = {"Authorization": "Bearer secret"}
        assert running.post("/read", GOOD, right)[0] == 200
        assert running.post("/ocr", *form(FILE))[0] == 401
        assert running.get("/metrics", right)[0] == 200
        assert "secret" not in running.said()


def test_keys_are_compared_in_constant_time(monkeypatch):
    compared = []
    monkeypatch.setattr(limits.hmac, "compare_digest", lambda *keys: compared.append(keys) or False)
    headers = [(b"authorization", b"Bearer guess")]
    assert call(create_app({}, api_key="secret"), "/metrics", headers=headers)[0] == 401
    assert compared == [(b"Bearer guess", b"Bearer secret")]


# ---------------------------------------------------------------------- in one process, without a server


def call(app, path, body=b"", headers=(), method="GET"):
    """(status, headers) of one request to an ASGI application."""
    return asyncio.run(call_async(app, path, body, headers, method))


async def call_async(app, path, body=b"", headers=(), method="GET"):
    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": list(headers)}
    answer = {}

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        if message["type"] == "http.response.start":
            answer.update(status=message["status"], headers=dict(message["headers"]))

    with contextlib.suppress(ZeroDivisionError):  # Starlette raises a bug again, for the log
        await app(scope | {"http_version": "1.1", "scheme": "http", "root_path": ""}, receive, send)
    return answer["status"], answer["headers"]


class Slow:
    """A model that reads when it is allowed to."""

    def __init__(self):
        self.allowed, self.sizes = threading.Event(), []
        self.model = Model(TINY, self.predict, lambda images: images)

    def predict(self, images):
        self.sizes.append(len(images))
        assert self.allowed.wait(60)
        count = len(images)
        texts = np.full([count, 3], ord("a"), np.int32)
        return texts, np.ones(count), np.ones([count, 3]), texts, np.zeros(count)


def test_too_many_images_at_a_time_are_refused_and_the_others_read_together():
    slow = Slow()

    async def check():
        app = create_app({"slow": slow.model})
        inference = find_service(app).inference
        starting = asyncio.create_task(inference.start())
        while not slow.sizes:
            await asyncio.sleep(0.01)
        waiting = [asyncio.create_task(inference.read([GOOD], "slow")) for _ in range(MAX_WAITING - 1)]
        await asyncio.sleep(0)
        status, headers = await call_async(app, "/read", GOOD, method="POST")
        assert (status, headers[b"retry-after"]) == (503, b"1")
        assert not inference.ready
        assert (await call_async(app, "/ready"))[0] == 503
        slow.allowed.set()
        await asyncio.gather(starting, *waiting)
        assert (await call_async(app, "/read", GOOD, method="POST"))[0] == 200
        assert inference.waiting == 0
        assert (await call_async(app, "/ready"))[0] == 200

    asyncio.run(check())
    assert slow.sizes[0] == 1
    assert max(slow.sizes) == MAX_BATCH > 1, "requests that wait together are read together"


def find_service(app):
    (route,) = [route for route in app.routes if route.path == "/read"]
    return route.endpoint.__self__


def test_one_bad_image_fails_alone_among_those_read_together():
    slow = Slow()

    async def check():
        inference = Inference({"slow": slow.model})
        starting = asyncio.create_task(inference.start())
        while not slow.sizes:
            await asyncio.sleep(0.01)
        reading = [asyncio.create_task(inference.read([each], "slow")) for each in (GOOD, b"text", GOOD)]
        await asyncio.sleep(0)
        slow.allowed.set()
        await starting
        return await asyncio.gather(*reading, return_exceptions=True)

    first, bad, last = asyncio.run(check())
    assert [each.text for each in first + last] == ["aaa", "aaa"]
    assert isinstance(bad, CaptchaError)
    assert slow.sizes == [1, 2]


def test_uploads_hold_a_bounded_memory():
    async def app(scope, receive, send):
        await receive()

    allowance = limits.Allowance({"": 100}, seconds=60, max_held=100)
    together = limits.Limits(app, allowance)
    headers = [(b"content-length", b"60")]

    async def check():
        together.held = 50
        assert (await call_async(together, "/", b"x" * 60, headers))[0] == 503
        assert together.held == 50, "what was held is given back"

    asyncio.run(check())


def test_a_bug_is_json_too(monkeypatch):
    app = create_app({})
    monkeypatch.setattr(find_service(app).metrics, "text", lambda: 1 / 0)
    status, headers = call(app, "/metrics")
    assert (status, headers[b"content-type"]) == (500, b"application/json")


# ---------------------------------------------------------------------- descriptions


def test_the_description_names_all_routes_and_no_other(server):
    description = json.loads(server.get("/openapi.json")[1])
    routes = {route.path: route.methods - {"HEAD"} for route in create_app({}).routes}
    assert {path: {each.upper() for each in found} for path, found in description["paths"].items()} == routes
    for path in routes.keys() - {"/read", "/ocr"}:
        status, headers, body = server.request("GET", path)
        kind = headers["Content-Type"].partition(";")[0]
        assert (status, [kind]) == (200, list(answers(description, path, "get")["200"]["content"])), path
        assert body


def answers(description, path, method):
    return description["paths"][path][method]["responses"]


def test_the_description_says_what_read_and_ocr_answer(server):
    description = json.loads(server.get("/openapi.json")[1])
    prediction = description["components"]["schemas"]["Prediction"]
    found = server.post("/read", GOOD)[1]
    assert list(found) == list(prediction["properties"]) == prediction["required"]
    ocr = answers(description, "/ocr", "post")["200"]["content"]["application/json"]["schema"]
    assert list(server.post("/ocr", *form(FILE))[1]) == list(ocr["properties"])
    assert list(answers(description, "/read", "post")) == [
        *("200", "400", "401", "408", "413", "415", "422", "503")
    ]
    names = [each["name"] for each in description["paths"]["/read"]["post"]["parameters"]]
    assert names == ["min_confidence", "characters", "model"]
    for name, value in {"min_confidence": "0.5", "characters": "ab", "model": "captcha"}.items():
        assert server.post(f"/read?{name}={value}", GOOD)[0] == 200
    assert "http://" not in json.dumps(description)


def samples(text):
    """The values of Prometheus' text by their names."""
    return {name: float(value) for name, value in re.findall(r"^([^#].*) (\S+)$", text, re.M)}


def test_metrics_count_what_was_read_and_refused(server):
    before = samples(server.get("/metrics")[1])
    confidences = [server.post("/read", noise(i))[1]["confidence"] for i in range(3)]
    server.post("/read", BAD_FILES["small"][0])
    server.get("/nothing")
    after = samples(server.get("/metrics")[1])
    grown = {name: value - before.get(name, 0) for name, value in after.items()}
    assert grown["captcha_images_read_total"] == grown["captcha_confidence_count"] == 3
    assert grown["captcha_confidence_sum"] == pytest.approx(sum(confidences), abs=1e-5)
    assert grown['captcha_requests_total{route="/read",status="200"}'] == 3
    assert grown['captcha_requests_total{route="other",status="404"}'] == 1
    assert grown['captcha_errors_total{kind="another size"}'] == 1
    assert grown['captcha_request_seconds_bucket{le="+Inf",route="/read"}'] == 4
    assert after["captcha_waiting_images"] == 0


def test_pages_ask_nobody_else(server):
    for path in ("/", "/style.css", "/read.js"):
        status, _, body = server.request("GET", path)
        assert status == 200
        assert not re.search(rb"https?:|//[a-z]+\.|@import|url\(", body), path
    assert "default-src 'self'" in server.request("GET", "/")[1]["Content-Security-Policy"]


# ---------------------------------------------------------------------- hostile clients


def raw_answer(running, data):
    """What comes back for bytes until the server hangs up."""
    answer = b""
    with running.connect() as client, contextlib.suppress(ConnectionError):
        client.sendall(data)
        while part := client.recv(65536):
            answer += part
    return answer


def head_of(body, headers, path="/read", length=None):
    length = len(body) if length is None else length
    lines = [f"POST {path} HTTP/1.1", "Host: a", f"Content-Length: {length}", "Connection: close"]
    return "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode()


def assert_polite(answer):
    """Nothing, or answers that say in JSON what is wrong."""
    for status, rest in re.findall(rb"HTTP/1.1 (\d+) (.*?)(?=HTTP/1.1 |\Z)", answer, re.S):
        assert int(status) < 500 or int(status) == 503, answer
        if int(status) >= 400:
            assert b"content-type: application/json" in rest, answer
            assert json.loads(rest.partition(b"\r\n\r\n")[2]).keys() & {"error", "message"}, answer


@contextlib.contextmanager
def good_requests(running):
    """Inside, another client reads images all the time, and every answer is right."""
    expected = {i: running.post("/read", noise(i)) for i in range(5)}
    stop, wrong, count = threading.Event(), [], 0

    def read_on():
        nonlocal count
        while not stop.is_set():
            found = running.post("/read", noise(count % 5))
            status, answer = expected[count % 5]
            close = pytest.approx(answer["confidence"], abs=1e-4)  # its last digits depend on the batch
            if (found[0], found[1].get("text"), found[1].get("confidence")) != (
                status,
                answer["text"],
                close,
            ):
                wrong.append(found)
            count += 1

    thread = threading.Thread(target=read_on)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert not wrong
    assert count > 0


def mutated(data, rng):
    """The bytes with some of them changed, removed, repeated or cut off."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.randint(0, 12))
        kind = rng.randrange(5)
        if kind == 0:
            data[start:end] = rng.randbytes(end - start)
        elif kind == 1:
            del data[start:end]
        elif kind == 2:
            data[start:start] = data[start:end]
        elif kind == 3:
            data[start:start] = rng.choice([b"\r\n", b"--limit", b"--limit--\r\n", b"\0", b'"', b"=", b"%"])
        else:
            del data[len(data) - rng.randint(0, 40) :]
        if not data:
            break
    return bytes(data)


def mutated_requests(seed, count):
    """Requests of all kinds whose body, or everything, is damaged."""
    rng = random.Random(seed)
    text = base64.b64encode(GOOD)
    kinds = [
        ("/read", GOOD, {}),
        ("/read", *form(FILE, FILE)),
        ("/read", json.dumps({"image": text.decode()}).encode(), JSON),
        ("/ocr", *form(FILE)),
        ("/ocr", *form(("image", None, text))),
        ("/ocr", b"image=" + text, FIELDS),
    ]
    for _ in range(count):
        path, body, headers = rng.choice(kinds)
        if rng.random() < 0.7:
            body = mutated(body, rng)
            yield head_of(body, headers, path) + body
        else:
            yield mutated(head_of(body, headers, path) + body, rng)


def test_mutated_requests_are_refused_politely(impatient):
    with good_requests(impatient), ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(functools.partial(raw_answer, impatient), mutated_requests(1, 300)))
    for answer in answers:
        assert_polite(answer)
    assert len(re.findall(rb"HTTP/1.1 \d", b"".join(answers))) > 250


@pytest.mark.parametrize(
    "data",
    [
        b"\0" * 100,
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 200_000 + b"\r\n\r\n",
        b"POST /read HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST /read HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST /read HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\nabc",
        b"POST /read HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /read HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"POST /read HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffffff\r\nab",
        b"GET /health HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        head_of(GOOD, {}, length=len(GOOD) + 5) + GOOD,
        head_of(GOOD, {}, length=5) + GOOD,
        head_of(GOOD, {"Expect": "100-continue"}) + GOOD,
    ],
)
def test_what_is_hardly_http_is_answered_politely(data, impatient):
    with good_requests(impatient):
        answer = raw_answer(impatient, data).replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")
    assert_polite(answer)


def test_requests_one_after_the_other_are_all_answered(server):
    head = head_of(GOOD, {})
    answer = raw_answer(server, head.replace(b"Connection: close\r\n", b"") + GOOD + head + GOOD)
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert raw_answer(server, head + GOOD + b"GET / HTTP/1.1").count(b"HTTP/1.1 200 OK") == 1


@pytest.mark.parametrize(
    ("begin", "words"),
    [
        (b"", b"the head of a request"),
        (b"POST /read HTTP/1.1\r\nHost: a\r\nX:", b"the head of a request"),
        (b"GET /health HTTP/1.1\r\nHost: a\r\n\r\nGET", b"the head of a request"),
        (head_of(GOOD, {}) + GOOD[:50], b"the body must arrive"),
        (head_of(b"", form()[1], length=5000) + b"--limit\r\n", b"the body must arrive"),
        (head_of(b"", {}, "/nothing", length=5000) + b"a", b"Not Found"),
    ],
)
def test_slow_clients_are_told_so_and_dropped(begin, words, impatient):
    """A byte now and then does not help them."""
    answer = b""
    # A byte that is sent just as the server hangs up makes the end of the answer a reset.
    with impatient.connect() as client, contextlib.suppress(ConnectionResetError):
        client.sendall(begin)
        while True:
            if not select.select([client], [], [], 0.2)[0]:
                client.sendall(b"a")
            elif data := client.recv(65536):
                answer += data
            else:
                break
    assert words in answer
    assert answer.lower().count(b"connection: close") == 1
    assert_polite(answer)


def test_many_connections_held_open_do_not_keep_others_out(impatient):
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(impatient.connect()) for _ in range(300)]
        for i, client in enumerate(clients):
            client.sendall([b"", b"POST /re", head_of(GOOD, {}) + GOOD[:40]][i % 3])
        with good_requests(impatient):
            for client in clients:  # all are dropped
                answer = b"".join(iter(functools.partial(client.recv, 65536), b""))
                assert answer.startswith(b"HTTP/1.1 408 ")


def test_nothing_is_written_and_the_log_has_no_request(server):
    text = server.post("/read", GOOD)[1]["text"]
    large = [
        ("file", f"{text}.png", b"x" * uploads.MAX_IMAGE)
    ] * 4  # more than Starlette's forms hold in memory
    assert server.post("/read", *form(*large))[0] == 415
    assert os.listdir(server.temporary) == []
    assert sorted(os.listdir(server.folder)) == ["log", "temporary"]
    lines = [line for line in server.said().splitlines() if "Invalid HTTP" not in line]
    assert re.fullmatch(
        r"Serving \S+captcha.onnx on http://127.0.0.1:\d+ \(Ctrl-C ends it\)", "\n".join(lines)
    )


# ---------------------------------------------------------------------- starting and stopping


def test_it_finishes_what_it_has_and_stops(model, tmp_path):
    running = Server(tmp_path, "--model", model)
    with running.connect() as client, running.connect():
        client.sendall(head_of(GOOD, {}) + GOOD[:50])
        time.sleep(0.3)
        running.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        with pytest.raises(ConnectionError):
            running.connect()
        client.sendall(GOOD[50:])
        answer = b"".join(iter(functools.partial(client.recv, 65536), b""))
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert running.stop() == -signal.SIGTERM
    assert len(running.said().splitlines()) == 1


def test_it_does_not_wait_for_ever_for_a_client(model, tmp_path):
    running = Server(tmp_path, "--model", model, "--timeout", "600")
    with running.connect() as client:
        client.sendall(head_of(GOOD, {}) + GOOD[:50])
        time.sleep(0.3)
        begin = time.monotonic()
        assert running.stop() == -signal.SIGTERM
        assert time.monotonic() - begin < 20
        assert client.recv(65536).startswith(b"HTTP/1.1 503 ")
    assert "Traceback" not in running.said()


def test_several_processes_add_up_their_metrics_and_stop_together(model, tmp_path):
    running = Server(tmp_path, "--model", model, "--workers", "2")
    expected = running.post("/read", GOOD)
    assert expected[0] == 200
    assert all(running.post("/read", GOOD) == expected for _ in range(30))
    found = samples(running.get("/metrics")[1])
    assert found["captcha_images_read_total"] == 31
    assert running.stop() == 0
    assert os.listdir(running.temporary) == []
    with pytest.raises(ConnectionError):
        running.connect()
    assert "Traceback" not in running.said()


def test_a_checkpoint_alone_is_exported_first_and_no_tensorflow_is_loaded(tmp_path):
    config = replace(TINY, generate_num=(20, 5, 5), Epoch=1)
    assert script("driver.py", *flags(config), cwd=tmp_path).returncode == 0
    with contextlib.closing(Server(tmp_path)) as running:
        assert running.said().startswith("Exporting the model in checkpoints, which is not exported yet\n")
        assert "Serving exported/captcha.onnx on http://127.0.0.1:" in running.said()
        assert running.post("/read", GOOD)[0] == 200
        with open(f"/proc/{running.process.pid}/maps", encoding="utf-8") as maps:
            loaded = maps.read()
        assert "onnxruntime" in loaded
        assert "tensorflow" not in loaded


def test_before_any_training_the_general_weights_are_served(tmp_path):
    with contextlib.closing(Server(tmp_path)) as running:
        assert "holds a model yet, so the general weights are served" in running.said()
        status, answer = running.post("/read?characters=0123456789", GOOD)
        assert status == 200
        assert set(answer["text"]) <= set("0123456789")


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--model", "missing.onnx"], 1, ["must be an exported model", "there is no such file"]),
        (["--model", "."], 1, ["must hold exported models, .onnx or .tflite, but has none"]),
        (["--port", "many"], 2, ["--port must be a number from 0 to 65535, not 'many'"]),
        (["--workers", "0"], 2, ["--workers must be a number from 1"]),
        (["--timeout", "nan"], 2, ["--timeout must be a number from"]),
        (["--host", "256.0.0.1"], 1, ["256.0.0.1:8000 must be free to listen on, but is not"]),
    ],
)
def test_what_cannot_be_served_is_one_sentence(arguments, status, words, model, tmp_path):
    done = script("serve.py", "--model", model, *arguments, cwd=tmp_path)
    assert_refused(done, status, *words)


def test_missing_packages_are_one_sentence(tmp_path):
    without = "import runpy, sys; sys.modules['starlette'] = None; "
    run = f"sys.argv = ['serve.py']; runpy.run_path({str(PROJECT / 'serve.py')!r}, run_name='__main__')"
    command = [sys.executable, "-c", without + run]
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert_refused(done, 1, "serve.py needs starlette", "pip install -r requirements-serve.txt")


def test_a_newer_checkpoint_than_the_exported_file_is_said(model, tmp_path):
    shutil.copytree(os.path.dirname(model), tmp_path / "exported")
    (tmp_path / "checkpoints").mkdir()
    for ending in ("index", "data-00000-of-00001"):
        (tmp_path / "checkpoints" / f"state-9.{ending}").touch()
    (path,) = (tmp_path / "exported").iterdir()
    path.rename(path.with_name("captcha.onnx"))
    for seconds, expected in ((10, True), (-10, False)):
        os.utime(tmp_path / "exported" / "captcha.onnx", (time.time() - seconds,) * 2)
        shutil.rmtree(tmp_path / "temporary", ignore_errors=True)
        with contextlib.closing(Server(tmp_path)) as running:
            assert running.get("/ready")[0] == 200
            assert ("newer than exported/captcha.onnx, which is served" in running.said()) == expected


def test_a_port_that_is_taken_is_one_sentence(server, model, tmp_path):
    done = script("serve.py", "--model", model, "--port", server.port, cwd=tmp_path)
    assert_refused(
        done, 1, f"127.0.0.1:{server.port} must be free to listen on", "name another --host or --port"
    )


def test_the_load_generator_counts_answers_and_keeps_its_rate(server):
    requests = [serving.request("/read", noise(i)) for i in range(3)]
    before = samples(server.get("/metrics")[1])["captcha_images_read_total"]
    taken = asyncio.run(serving.load(server.port, requests, 0.2))
    assert samples(server.get("/metrics")[1])["captcha_images_read_total"] - before == len(taken) > 0
    slowly = asyncio.run(serving.load(server.port, requests, 0.2, rate=40))
    assert serving.CONNECTIONS <= len(slowly) <= 2 * serving.CONNECTIONS + 10
    assert serving.resident(server.process.pid) > 20
    with pytest.raises(ValueError, match="404 Not Found"):
        asyncio.run(serving.load(server.port, [serving.request("/nothing")], 0.2))
