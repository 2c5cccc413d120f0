"""The description of the service in OpenAPI 3.1. A test compares it with what the service does."""

from __future__ import annotations

from typing import Any

from captcha_cnn import VERSION
from captcha_cnn.web.uploads import FIELDS, FORM, JSON, MAX_IMAGES

ERRORS = {
    400: "A damaged request, an unknown parameter or model, or an address in place of an image",
    401: "No API key, or a wrong one",
    408: "The body took too long",
    413: "Too many bytes, pixels, images or fields",
    415: "Neither an image nor a form",
    422: "An image that cannot be read: damaged, or of another size",
    503: "Too many requests at a time: try again after the seconds of Retry-After",
}
PROBABILITY = {"type": "number", "minimum": 0, "maximum": 1}
BYTES = {"type": "string", "format": "binary"}
BASE64 = {"type": "string", "description": "the image in base64, or a data URL"}
TEXT = {"type": "string"}
KEY: list[dict[str, list[str]]] = [{"key": []}, {}]  # where the server has one


def describe(models: list[str]) -> dict[str, Any]:
    """The description of all routes.

    Args:
        models: the names of those that are served.
    """
    model = parameter("model", "the model; may be left out where there is one", {"enum": models})
    read_parameters = [
        parameter("min_confidence", "the text is empty where the confidence is less", PROBABILITY),
        parameter("characters", "the only characters that texts may have", TEXT),
        model,
    ]
    prediction = {"$ref": "#/components/schemas/Prediction"}
    answer = {"oneOf": [prediction, {"type": "array", "items": prediction, "maxItems": MAX_IMAGES}]}
    files = fields({"file": {"type": "array", "items": BYTES, "maxItems": MAX_IMAGES}}, ["file"])
    read_bodies = {"image/*": BYTES, FORM: files, JSON: fields({"image": BASE64}, ["image"])}
    ocr_bodies = {
        FORM: fields({"file": BYTES, "image": BASE64}),
        FIELDS: fields({"image": BASE64}, ["image"]),
    }
    paths = {
        "/": get("The page", "text/html"),
        "/style.css": get("Its style", "text/css"),
        "/read.js": get("Its program", "text/javascript"),
        "/read": {"post": post("Read images", read_parameters, read_bodies, answer)},
        "/ocr": {"post": post("Read an image, as ddddocr-fastapi does", [model], ocr_bodies, OCR, OCR)},
        "/health": get("Whether the process lives", JSON, TEXT_STATUS),
        "/ready": get("Whether it reads, and with which models", JSON, READY, 503),
        "/metrics": get("Metrics for Prometheus", "text/plain", TEXT, 401),
        "/openapi.json": get("This description", JSON, {"type": "object"}),
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Captcha CNN", "version": VERSION, "description": DESCRIPTION},
        "paths": paths,
        "components": {
            "schemas": {"Prediction": PREDICTION, "Error": ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


DESCRIPTION = (
    "Reads captchas that one makes or has been asked to test. An image is sent itself: nothing is fetched "
    "from an address. Where the server has an API key, requests that read and /metrics need it."
)


def fields(properties: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    """The schema of an object."""
    return {"type": "object", "properties": properties} | ({"required": required} if required else {})


PREDICTION = fields(
    {
        "path": {**TEXT, "description": "the name of the file; - without one"},
        "text": {**TEXT, "description": "empty where the confidence is less than min_confidence"},
        "confidence": {**PROBABILITY, "description": "of the text among all texts of its lengths"},
        "char_probs": {"type": "array", "items": PROBABILITY, "description": "of each character"},
        "symbols": {"type": "array", "items": PROBABILITY, "description": "the earlier name of char_probs"},
        "runner_up": fields({"text": TEXT, "confidence": PROBABILITY}, ["text", "confidence"]),
    },
    ["path", "text", "confidence", "char_probs", "symbols", "runner_up"],
)
ERROR = fields({"error": {**TEXT, "description": "one sentence"}}, ["error"])
OCR = fields(
    {"code": {"type": "integer"}, "message": TEXT, "data": {"type": ["string", "null"]}},
    ["code", "message", "data"],
)
TEXT_STATUS = fields({"status": {"const": "ok"}}, ["status"])
READY = fields(
    {"ready": {"type": "boolean"}, "models": {"type": "array", "items": TEXT}}, ["ready", "models"]
)


def parameter(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter of the query, which may be left out."""
    return {"name": name, "in": "query", "description": description, "required": False, "schema": schema}


def content(kind: str, schema: dict[str, Any]) -> dict[str, Any]:
    """What a body holds."""
    return {kind: {"schema": schema}}


def get(summary: str, kind: str, schema: dict[str, Any] = TEXT, error: int = 0) -> dict[str, Any]:
    """A route that answers with something of that media type."""
    responses = {"200": {"description": summary, "content": content(kind, schema)}}
    if error:
        shape = schema if kind == JSON else {"$ref": "#/components/schemas/Error"}
        responses[str(error)] = {"description": ERRORS[error], "content": content(JSON, shape)}
    security = {"security": KEY} if error == 401 else {}
    return {"get": {"summary": summary, "responses": responses, **security}}


def post(
    summary: str,
    parameters: list[dict[str, Any]],
    bodies: dict[str, dict[str, Any]],
    answer: dict[str, Any],
    error: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A route that takes images."""
    refused = {"$ref": "#/components/schemas/Error"}
    responses = {"200": {"description": "What the images say", "content": content(JSON, answer)}}
    for status, description in ERRORS.items():
        shape = refused if status == 401 else error or refused
        responses[str(status)] = {"description": description, "content": content(JSON, shape)}
    body = {"required": True, "content": {kind: {"schema": schema} for kind, schema in bodies.items()}}
    rest = {"parameters": parameters, "requestBody": body, "responses": responses, "security": KEY}
    return {"summary": summary, **rest}
