"""A job on two nodes, one of which is killed in the middle. The nodes are processes of this machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.workers import write_rows
from transformers_lion.jobs import read_results

TESTS = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent / "src")])}
CODE = """
import os, sys, threading, time
from pathlib import Path
from ray.cluster_utils import Cluster
from jobs.workers import SlowAnnotator
from transformers_lion.jobs import AnnotationTask, JobSettings, annotate

source, output = sys.argv[1:]
os.environ["SECONDS_PER_CHUNK"] = "0.5"
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
other = cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()

def kill_node():
    while len(list(Path(output).glob("_parts/*.parquet"))) < 4:
        time.sleep(0.1)
    cluster.remove_node(other, allow_graceful=False)
    print("node killed", flush=True)

threading.Thread(target=kill_node, daemon=True).start()
task = AnnotationTask(caption=True)
settings = JobSettings(source, output, task, key_column="image", num_actors=2, address=cluster.address)
annotate(settings, make_annotator=SlowAnnotator)
cluster.shutdown()
"""


@pytest.mark.long
def test_a_node_that_is_killed_costs_no_row(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", 640)
    ran = subprocess.run(
        [sys.executable, "-c", CODE, str(source), str(tmp_path / "out")],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "for 2 actors" in ran.stdout
    assert "node killed" in ran.stdout
    keys = read_results(tmp_path / "out").to_table()["key"].to_pylist()
    assert keys == [f"{number:05d}.png" for number in range(640)]
