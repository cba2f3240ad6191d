"""Resuming a training."""

import json

import pytest

from voxelwave.runs.checks import check_same_training


def test_a_training_is_resumed_with_what_it_was_begun_with_only(tmp_path):
    record = tmp_path / "training.json"
    now = {"batch": 32, "subjects": ("a", "b"), "recordings": "0" * 64}
    check_same_training(record, now)  # a run of 0.1.0 has no record
    record.write_text(json.dumps(now))
    check_same_training(record, now)
    with pytest.raises(ValueError, match=r"with other data or options \(batch was 32, now 64; other recordings\)"):
        check_same_training(record, {**now, "batch": 64, "recordings": "1" * 64})
