"""A running server, queried by programs: sessions, invalid files, limits, and files that it does not serve."""

import asyncio
import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from transformers_lion import Lion
from transformers_lion.demo import server
from transformers_lion.demo.server import start

gradio = pytest.importorskip("gradio", reason="the extra [demo] is not installed")
gradio_client = pytest.importorskip("gradio_client", reason="the extra [demo] is not installed")

SETTINGS = (True, [], 1, 64)
"""Use tags, selected tags, beams, length."""


def connect(address: str) -> Any:
    return gradio_client.Client(address, verbose=False)


def send(client: Any, file: Path) -> str:
    """Upload a file as an image, and return the status."""
    return client.predict(gradio_client.handle_file(str(file)), api_name="/see")[1]


def ask(client: Any, task: str, *about: str) -> tuple[str, str]:
    """Return the status and the answer."""
    _, status, found, *_ = client.predict(*SETTINGS, *about, api_name=f"/{task}")
    return status, found


def fetch(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=20) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_an_image_is_encoded_once_for_all_questions_of_a_user(address: str, sketch_file: Path) -> None:
    client = connect(address)
    assert "640 x 480" in send(client, sketch_file)
    assert "1 question" in ask(client, "caption")[0]
    status, found = ask(client, "locate", "the red circle")
    assert "once" in status
    assert "2 questions" in status
    assert found.startswith("the red circle: ")


def test_two_users_at_once_get_the_answers_to_their_own_questions(address: str, sketch_file: Path) -> None:
    jobs = [("caption",), ("locate", "the blue triangle")]

    def run(job: tuple[str, ...]) -> tuple[str, str]:
        client = connect(address)
        send(client, sketch_file)
        return ask(client, *job)

    with ThreadPoolExecutor(2) as pool:
        captioned, located = pool.map(run, jobs)
    assert "1 question" in captioned[0]
    assert "1 question" in located[0]
    assert located[1].startswith("the blue triangle: ")
    assert ":" not in captioned[1]


def test_a_file_that_is_not_an_image_is_refused_in_a_sentence(address: str, no_image: Path, sketch_file: Path) -> None:
    client = connect(address)
    assert "not an image" in send(client, no_image)
    assert "640 x 480" in send(client, sketch_file)


def test_a_question_without_an_image_is_refused_in_a_sentence(address: str) -> None:
    with pytest.raises(gradio_client.exceptions.AppError, match="Choose an image first"):
        ask(connect(address), "caption")


def test_typed_tags_can_be_selected(address: str, sketch_file: Path) -> None:
    client = connect(address)
    send(client, sketch_file)
    offered, emptied = client.predict("sky, red", [], api_name="/add_tags")
    assert {"sky", "red"} <= set(offered["value"])
    assert emptied == ""


def test_a_file_above_the_limit_is_refused(address: str, tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(4_000_000))
    with pytest.raises(Exception, match=r"413|size"):
        send(connect(address), tmp_path / "large.png")


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "/gradio_api/file=../../../../etc/passwd",
        "..%2f..%2f..%2fetc%2fpasswd",
        "/tmp/../etc/passwd",
        "pyproject.toml",
        str(Path(__file__)),
        "//etc/passwd",
        "/proc/self/environ",
    ],
)
def test_no_file_of_the_server_is_served(address: str, path: str) -> None:
    for prefix in ("gradio_api/file=", "file=", "gradio_api/file/", "static/", "assets/", "theme.css/", ""):
        code, content = fetch(f"{address}{prefix}{path}")
        assert code != 200 or b"<!doctype html>" in content[:200].lower(), prefix
        assert b"root:" not in content
        assert b"[project]" not in content


def test_uploaded_files_are_served(address: str, sketch_file: Path) -> None:
    """Show that the test above fails because of the path, not because of a wrong URL."""
    client = connect(address)
    image = client.predict(gradio_client.handle_file(str(sketch_file)), api_name="/see")[0]
    assert Path(image["path"] if isinstance(image, dict) else image).stat().st_size > 1000


def post_image(address: str, path: str) -> str:
    """Request an image by a path that was not uploaded, and return the response."""
    functions = json.loads(fetch(f"{address}config")[1])["dependencies"]
    index = next(function["id"] for function in functions if function["api_name"] == "see")
    body = {"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}], "fn_index": index, "session_hash": "x"}
    request = urllib.request.Request(
        f"{address}gradio_api/queue/join", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=20).read()
    with urllib.request.urlopen(f"{address}gradio_api/queue/data?session_hash=x", timeout=20) as events:
        return events.read().decode()


@pytest.mark.parametrize("path", ["/etc/passwd", __file__, "https://example.com/photo.png"])
def test_paths_and_urls_are_refused_instead_of_an_upload(address: str, path: str) -> None:
    answer = post_image(address, path)
    assert '"success":false' in answer
    assert "Traceback" not in answer
    assert "root:" not in answer


def test_the_server_downloads_nothing(address: str) -> None:
    from gradio import processing_utils

    with pytest.raises(ValueError, match="is not downloaded"):
        asyncio.run(processing_utils.async_ssrf_protected_download("https://example.com/photo.png"))


def test_the_page_refers_to_no_other_server(address: str) -> None:
    page = fetch(address)[1].decode() + fetch(f"{address}theme.css")[1].decode()
    assert "fonts.googleapis.com/css" not in page
    assert '"analytics_enabled":false' in page.replace(" ", "")


def test_nothing_is_opened_unless_asked(lion: Lion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: dict[str, Any] = {}
    monkeypatch.setattr(gradio.Blocks, "launch", lambda page, **options: launched.update(options))
    start(lion, tmp_path)
    expected = {"server_name": "127.0.0.1", "share": False, "allowed_paths": [], "mcp_server": False}
    assert {name: launched[name] for name in expected} == expected
    assert launched["max_file_size"] == "20mb"


def post_file(address: str, size: int, headers: dict[str, str] | None = None) -> int:
    """Upload a file without a page, and return the status code."""
    body = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        + bytes(size)
        + b"\r\n--x--\r\n"
    )
    given = {"Content-Type": "multipart/form-data; boundary=x", **(headers or {})}
    content: Any = iter([body]) if "Transfer-Encoding" in given else body
    request = urllib.request.Request(f"{address}gradio_api/upload", content, given, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_uploads_never_fill_the_disk(
    lion: Lion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sketch_file: Path
) -> None:
    monkeypatch.setattr(server, "MAX_FOLDER_SIZE", 1_000_000)
    page = start(lion, tmp_path)
    try:
        for size in (300_001, 300_002, 300_003, 300_004, 300_005):
            assert post_file(page.local_url, size) == 200
            assert sum(path.stat().st_size for path in tmp_path.rglob("*.png")) < 1_000_000
        assert post_file(page.local_url, 1_000_001) == 413
        assert post_file(page.local_url, 10, {"Transfer-Encoding": "chunked"}) == 411
        assert "pixels" in send(connect(page.local_url), sketch_file)
    finally:
        page.close(verbose=False)
