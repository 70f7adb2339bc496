"""Weights by name, folder and repository of the hub, without a connection."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import slimse
from slimse import PRESETS, SlimModel
from slimse.sharing import model_card

ROOT = Path(__file__).resolve().parents[1]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROW = {"uf": 0.125, "budget": None, "macs_per_sample": 8928.0, "pesq": 1.69, "si_sdr": None}
SCORES = {
    "noisy": "data/mine",
    "metrics": ["pesq", "si_sdr"],
    "means": [
        {**ROW, "uf": None, "macs_per_sample": None},
        ROW,
        {**ROW, "uf": 0.24, "budget": 0.25, "pesq": 1.7123456, "si_sdr": 9.25},
    ],
}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SlimModel(replace(PRESETS["small"])).eval().requires_grad_(False)


def same(one, other):
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_a_saved_folder_loads_by_every_name(model, tmp_path):
    model.save_pretrained(tmp_path / "mine")
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == [
        *("README.md", "config.json", "model.safetensors")
    ]
    assert slimse.from_pretrained is slimse.load
    for loaded in (slimse.load(tmp_path / "mine"), SlimModel.from_pretrained(tmp_path / "mine" / "model.safetensors")):
        assert same(model, loaded)
    assert (
        json.loads((tmp_path / "mine" / "config.json").read_text())["network"]["hidden"] == model.config.network.hidden
    )
    # A card that somebody wrote stays.
    (tmp_path / "mine" / "README.md").write_text("mine")
    slimse.save_pretrained(model, tmp_path / "mine")
    assert (tmp_path / "mine" / "README.md").read_text() == "mine"
    slimse.save_pretrained(model, tmp_path / "mine", results=SCORES)
    assert "1.69" in (tmp_path / "mine" / "README.md").read_text()


def test_a_repository_loads_from_the_cache_at_a_pinned_revision(model, tmp_path):
    pytest.importorskip("huggingface_hub", reason="needs slimse[hub]")
    repository = tmp_path / "models--me--mine"
    model.save_pretrained(repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    offline = {"cache_dir": tmp_path, "local_files_only": True}
    for name, revision in (("me/mine", None), ("me/mine", COMMIT), (f"me/mine@{COMMIT}", None)):
        assert same(model, slimse.from_pretrained(name, revision=revision, **offline))
    for name, revision in (("me/mine", "f" * 40), ("me/other", None)):
        with pytest.raises(FileNotFoundError, match="no copy of a repository of that name") as failed:
            slimse.from_pretrained(name, revision=revision, **offline)
        assert "\n" not in str(failed.value)
    with pytest.raises(ValueError, match="'dynamic-v1' is no repository"):
        slimse.from_pretrained("dynamic-v1", revision=COMMIT)


def test_without_the_extra_a_repository_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"slimse\[hub\]"):
        slimse.load("me/mine")


def test_the_card_holds_results_as_the_hub_reads_them(model):
    hub = pytest.importorskip("huggingface_hub", reason="needs slimse[hub]")
    card = hub.ModelCard(model_card(model, SCORES, licence="mit", repo_id="me/mine"))
    assert card.data.license == "mit"
    found = [(result.dataset_name, result.metric_type, result.metric_value) for result in card.data.eval_results]
    assert found == [
        ("mine (UF 0.125)", "pesq", 1.69),
        ("mine (router, budget 0.25)", "pesq", 1.7123),
        ("mine (router, budget 0.25)", "si_sdr", 9.25),
    ]
    assert "| router, budget 0.25 | 0.240 | 8,928 | 1.71 | 9.2 |" in card.text
    with pytest.raises(ValueError, match="expected what `slimse evaluate --json` writes"):
        slimse.save_pretrained(model, "nowhere", results={"means": []})
    assert not Path("nowhere").exists()


def test_push_uploads_weights_configuration_and_card(model, monkeypatch):
    mixin = pytest.importorskip("huggingface_hub.hub_mixin", reason="needs slimse[hub]")
    sent = {}

    class Api:
        def __init__(self, **options):
            pass

        def create_repo(self, **options):
            sent.update(options)
            return type("Url", (), {"repo_id": options["repo_id"]})

        def upload_folder(self, *, folder_path, **options):
            sent.update(options)
            sent["files"] = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
            return f"https://hub/me/mine/commit/{COMMIT}"

    monkeypatch.setattr(mixin, "HfApi", Api)
    assert COMMIT in str(model.push_to_hub("me/mine", results=SCORES, private=True, commit_message="first"))
    assert (sent["repo_id"], sent["private"], sent["commit_message"]) == ("me/mine", True, "first")
    assert {"README.md", "config.json", "model.safetensors"} <= sent["files"].keys()
    assert b"slimse.from_pretrained('me/mine')" in sent["files"]["README.md"]


def test_torch_hub_loads_a_clone():
    found = torch.hub.load(str(ROOT), "slimse", source="local", weights="dynamic-v1")
    assert same(found, slimse.load())


@pytest.mark.parametrize(
    ("arguments", "status"), [(["--help"], 0), (["--version"], 0), (["enhance", "--wrong"], 2), (["train"], 2)]
)
def test_help_and_usage_errors_do_not_wait_for_torch(arguments, status):
    code = (
        "import sys\nfrom slimse.cli import app\ntry:\n    app(sys.argv[1:])\nfinally:\n"
        "    print([name for name in ('torch', 'numpy', 'numba', 'soundfile') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"
