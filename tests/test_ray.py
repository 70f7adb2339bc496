"""A corpus by Ray Data, in two processes of this machine."""

import numpy as np
import pytest
import soundfile

import slimse
from slimse.corpus import Settings


def start(ray):
    """Two workers. Ray gives its node 30 s to start, a constant in its code, which a busy machine may exceed."""
    try:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    except Exception as error:  # ray raises no other class
        if "timed out during startup" not in str(error):
            raise
        pytest.skip("ray's own node did not start within its 30 s: try again on an idle machine")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_two_workers_enhance_a_corpus(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="needs the extra slimse[ray]")
    pytest.importorskip("ray.data", reason="needs the extra slimse[ray]")
    from slimse.integrations.ray import enhance_files

    monkeypatch.chdir(tmp_path)
    noisy = {name: np.random.default_rng(seed).standard_normal(4_000) / 10 for seed, name in enumerate("abc")}
    for name, samples in noisy.items():
        soundfile.write(f"{name}.wav", samples, 16_000, subtype="FLOAT")
    (tmp_path / "d.wav").write_text("no sound")
    try:
        start(ray)
        settings = Settings("dynamic-v1", uf=0.125)
        rows = enhance_files(["a.wav", "b.wav", "c.wav", "d.wav"], "clean", settings, workers=2).take_all()
    finally:
        ray.shutdown()
    found = {row["source"][-5]: row for row in rows}
    assert {name: row["status"] for name, row in found.items()} == {**dict.fromkeys("abc", "enhanced"), "d": "failed"}
    assert "cannot be read" in found["d"]["error"] and found["a"]["seconds"] == 0.25
    for name in noisy:
        samples, rate = soundfile.read(f"{name}.wav", dtype="float32")
        enhanced = soundfile.read(f"clean/{name}.wav", dtype="float32")[0]
        assert np.abs(enhanced - slimse.enhance(samples, rate, 0.125)).max() < 1e-6
