"""Files that several tests of encoders read."""

import pytest

from sercli.encoders.loading import encoder_metadata, write_encoder
from sercli.runs.run_dir import RunDir
from tests.support.encoder_files import MODEL, small


@pytest.fixture
def written(tmp_path):
    """A file with a student and a teacher, and both."""
    student, teacher = small(0), small(1)
    path = tmp_path / "encoder.safetensors"
    write_encoder(path, encoder_metadata(MODEL, student, step=7), student=student, teacher=teacher)
    return path, student, teacher


@pytest.fixture
def run(tmp_path):
    """A run directory without weights."""
    return RunDir.create(tmp_path / "run", recipe=None, run={"status": "running"})
