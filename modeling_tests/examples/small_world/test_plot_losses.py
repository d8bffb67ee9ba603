import json
from pathlib import Path

from PIL import Image

from examples.small_world.plot_losses import draw


def test_curves_are_drawn_of_all_logs_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "tower").mkdir()
    lines = [
        {"step": 50, "loss": 2.0, "seconds": 30},
        {"step": 100, "loss": 0.5, "seconds": 61},
        {"step": 100, "box": 1},
    ]
    (tmp_path / "tower" / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "mixture-training").mkdir()
    history = [{"step": 20, "loss": 1.5}, {"step": 40, "loss": 0.75}, {"step": 40, "train_runtime": 12.4}]
    (tmp_path / "mixture-training" / "log.json").write_text(json.dumps({"log_history": history}))
    assert draw(tmp_path, tmp_path / "images" / "curves.png") == {
        "tower": {"steps": 100, "seconds": 61, "first loss": 2.0, "last loss": 0.5},
        "mixture": {"steps": 40, "seconds": 12, "first loss": 1.5, "last loss": 0.75},
    }
    image = Image.open(tmp_path / "images" / "curves.png").convert("L")
    assert image.width > image.height > 100
    assert image.getextrema()[0] < 50
