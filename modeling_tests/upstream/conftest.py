"""Keeps the project's own test run out of here: `run.py` runs this folder, next to the unpacked upstream tests."""

collect_ignore_glob = ["*"]
