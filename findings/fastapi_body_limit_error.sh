#!/bin/sh
# FastAPI's limit on the size of a request answers in plain text, past the application's error handler.
#
# Expectation: `FastAPI(max_body_size=...)` refuses a larger body with status 413, and a handler for `HTTPException`
# formats this error as all others. Clients such as OpenAI's show only errors in JSON.
#
# Behavior: The handler is used only if the client sends the body in chunks, without its size. A body with the header
# `Content-Length`, which almost all clients send, is refused before the application, in plain text.
#
# Observed on 2026-11-28 with Python 3.11 and fastapi 0.165.0, starlette 1.10.0, httpx2 2.16.2:
#   with Content-Length: 413 text/plain Content Too Large
#   in chunks: 413 application/json {"error":{"message":"Content Too Large"}}
#   unknown path: 404 application/json {"error":{"message":"Not Found"}}
#
# The exit code is 0 as long as this holds, and non-zero once the behavior changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-compile fastapi==0.165.0 starlette==1.10.0 httpx2==2.16.2
cd "$folder"
venv/bin/python -I - <<'PYTHON'
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from starlette.exceptions import HTTPException

app = FastAPI(max_body_size=10)


@app.exception_handler(HTTPException)
async def handle(request: Request, error: HTTPException) -> JSONResponse:
    return JSONResponse({"error": {"message": error.detail}}, error.status_code)


@app.post("/")
async def read(request: Request) -> int:
    return len(await request.body())


client = TestClient(app, raise_server_exceptions=False)
sized = client.post("/", content=b"x" * 20)
chunked = client.post("/", content=iter([b"x" * 20]))
unknown = client.get("/unknown")  # a control
for name, answer in (("with Content-Length", sized), ("in chunks", chunked), ("unknown path", unknown)):
    print(f"{name}: {answer.status_code} {answer.headers['content-type'].split(';')[0]} {answer.text}")
assert sized.status_code == chunked.status_code == 413
assert unknown.json() == {"error": {"message": "Not Found"}}
assert "error" in chunked.json()
assert sized.headers["content-type"].startswith("text/plain")
PYTHON
