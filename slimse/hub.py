"""Names of weights, and sharing them: bundled, a file, a folder, or a repository on the Hugging Face hub."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from . import __version__
from .atomic import written_whole

if TYPE_CHECKING:
    from .model import SlimModel

DEFAULT = "dynamic-v1"
"""Name of the bundled weights that `load` returns."""
WEIGHTS_FILE = "model.safetensors"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")


def find_weights(
    weights: str | os.PathLike[str] = DEFAULT,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Path:
    """The file of weights that a name stands for.

    Args:
        weights: a ``.safetensors`` file; a folder that holds one; the name of bundled weights; or ``OWNER/NAME`` of a
            repository on the hub, with or without ``@REVISION``. A file or folder that exists goes before the hub.
        revision: of a repository: branch, tag or, as a repository may change, best the hash of a commit.
        cache_dir: where files of the hub are kept; None for that of ``huggingface_hub``.
        local_files_only: take a repository from there, without a connection, as ``HF_HUB_OFFLINE=1`` does.

    Raises:
        FileNotFoundError: if there is no such file, bundled name or repository, or not one file in the folder.
        ModuleNotFoundError: if a repository is asked for and ``huggingface_hub`` is missing.
        ValueError: if the hub cannot be reached, or ``revision`` is given for what is no repository.
    """
    known, path, text = bundled(), Path(weights), os.fspath(weights)
    is_repository = text not in known and not path.exists() and _HUB_ID.fullmatch(text) is not None
    if is_repository and path.suffix != ".safetensors":
        name, _, pinned = text.partition("@")
        return _download(name, revision or pinned or None, cache_dir, local_files_only)
    if revision is not None:
        raise ValueError(f"revision = {revision!r}: {text!r} is no repository on the hub: expected OWNER/NAME")
    if isinstance(weights, str) and weights in known:
        return known[weights]
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if len(files) != 1:
            raise FileNotFoundError(f"{path} holds {len(files)} .safetensors files: expected one")
        return files[0]
    if not path.is_file():
        names = f"expected a .safetensors file, OWNER/NAME on the hub, or bundled weights, one of {list(known)}"
        raise FileNotFoundError(f"no weights {text!r}: {names}")
    return path


def bundled() -> dict[str, Path]:
    """Files of the weights that come with the package, by name."""
    folder = Path(str(resources.files("slimse") / "weights"))
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def _download(name: str, revision: str | None, cache_dir: str | os.PathLike[str] | None, local: bool) -> Path:
    check_hub(f"{name!r} is no file: as a repository on the hub it")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    what = name if revision is None else f"{name}@{revision}"
    try:
        found = hf_hub_download(name, WEIGHTS_FILE, revision=revision, cache_dir=cache_dir, local_files_only=local)
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise FileNotFoundError(
            f"{what}: no such file or folder, and no copy of a repository of that name in the cache of the hub, which "
            "cannot be reached or is not to be asked"
        ) from error
    except HfHubHTTPError as error:
        raise FileNotFoundError(f"{what}: not found on the hub: {str(error).strip().splitlines()[0]}") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{what}: the hub cannot be used: {str(error).strip().splitlines()[0]}") from error
    return Path(found)


def check_hub(what: str) -> None:
    """Make sure that ``huggingface_hub`` can be imported.

    Raises:
        ModuleNotFoundError: if not; the message says what to install.
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ModuleNotFoundError(f"{what} needs huggingface_hub: pip install 'slimse[hub]'", name="huggingface_hub")


# Sharing -----------------------------------------------------------------------------------------------------------


def save_pretrained(
    model: SlimModel,
    folder: str | os.PathLike[str],
    *,
    results: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    dataset: str = "",
    licence: str = "",
    repo_id: str = "OWNER/NAME",
) -> None:
    """Write what a repository on the hub holds: ``model.safetensors``, ``config.json`` and a card, ``README.md``.

    `load` takes the folder. A card that is there already is left as it is, unless ``results`` are given.

    Args:
        model: what to save.
        folder: made if it is missing.
        results: what ``slimse evaluate --json`` wrote, or its path: goes into the card, in the form that the hub reads.
        dataset: name of the data that ``results`` are of; empty for the folder of noisy files in them.
        licence: identifier that the hub knows, such as ``mit``; empty leaves it out.
        repo_id: for the card.

    Raises:
        ValueError: if the folder cannot be written, or ``results`` are no scores.
    """
    from .checkpoint import save

    folder = Path(folder)
    scores = None if results is None else _read_scores(results)
    folder.mkdir(parents=True, exist_ok=True)
    save(model, folder / WEIGHTS_FILE)
    _write(folder / "config.json", json.dumps({"model_type": "slimse", **model.config.to_dict()}, indent=2) + "\n")
    if scores is not None or not (folder / "README.md").exists():
        _write(folder / "README.md", model_card(model, scores, dataset, licence, repo_id))


def push_to_hub(model: SlimModel, repo_id: str, **options: Any) -> str:
    """Upload a model to the hub by the mixin of ``huggingface_hub``.

    Args:
        model: what to share.
        repo_id: ``OWNER/NAME``; made if it is missing.
        options: those of `save_pretrained`, and of ``huggingface_hub.ModelHubMixin.push_to_hub``, among them
            ``private``, ``token``, ``branch``, ``commit_message`` and ``create_pr``.

    Returns:
        The address of the commit. Its hash is what to give as ``revision`` to `load`.

    Raises:
        ModuleNotFoundError: if ``huggingface_hub`` is missing.
    """
    check_hub("sharing a model")
    from huggingface_hub import ModelHubMixin

    own = {name: options.pop(name) for name in ("results", "dataset", "licence") if name in options}

    class Shared(ModelHubMixin):  # type: ignore[misc, unused-ignore]
        """What the mixin asks of a model."""

        def _save_pretrained(self, save_directory: Path) -> None:
            save_pretrained(model, save_directory, repo_id=repo_id, **own)

    return str(Shared().push_to_hub(repo_id, **options))


def _write(path: Path, text: str) -> None:
    with written_whole(path) as part:
        part.write_text(text, encoding="utf-8")


def _read_scores(results: str | os.PathLike[str] | Mapping[str, Any]) -> Mapping[str, Any]:
    content = results
    if not isinstance(results, Mapping):
        content = json.loads(Path(results).read_text(encoding="utf-8"))
    if not isinstance(content, Mapping) or not {"metrics", "means"} <= content.keys():
        raise ValueError(f"results = {str(results)[:80]!r}: expected what `slimse evaluate --json` writes")
    return content


def model_card(
    model: SlimModel,
    scores: Mapping[str, Any] | None = None,
    dataset: str = "",
    licence: str = "",
    repo_id: str = "OWNER/NAME",
) -> str:
    """A card: metadata with evaluation results, as the hub reads them, and what the model is and how to use it.

    Args:
        model: that it is of.
        scores: content of what ``slimse evaluate --json`` wrote, or None.
        dataset: name of its data.
        licence: identifier that the hub knows.
        repo_id: for the example.
    """
    from .evaluation.metrics import METRICS

    config, name = model.config, repo_id.partition("/")[2]
    rows = [] if scores is None else [row for row in scores["means"] if row["uf"] is not None]
    metrics = [] if scores is None else [metric for metric in scores["metrics"] if metric in METRICS]
    data = dataset or (Path(str(scores.get("noisy", ""))).name if scores else "") or "noisy and clean pairs"
    head: dict[str, Any] = {"library_name": "slimse", "pipeline_tag": "audio-to-audio"}
    if licence:
        head["license"] = licence
    head["tags"] = ["speech-enhancement", "noise-suppression", "slimmable"]
    if rows:
        titles = {metric: METRICS[metric].title for metric in metrics}
        head["model-index"] = [{"name": name, "results": [_result(row, titles, data) for row in rows]}]
    router = "; a router can choose the UF of every frame for a budget" if model.router is not None else ""
    lines = [
        f"# {name}\n",
        f"Speech enhancement at {config.sample_rate // 1000} kHz that runs at the utilization factors (UFs) "
        f"{', '.join(f'{uf:g}' for uf in config.ufs)}{router}. Saved by SlimSE {__version__}.\n",
        f"```python\nimport slimse\n\nmodel = slimse.from_pretrained({repo_id!r})",
        f"slimse.enhance_file('noisy.wav', 'enhanced.wav', model, {config.ufs[0]:g})\n```",
    ]
    if rows:
        lines.append(f"\n## Evaluation\n\nMeans over {data}; more is better. Scored by `slimse evaluate`.\n")
        titles_row = " | ".join(METRICS[metric].title for metric in metrics)
        lines.append(f"|  | average UF | MACs per sample | {titles_row} |")
        lines.append("| --- " + "| ---: " * (2 + len(metrics)) + "|")
    for row in rows:
        values = ["" if row[m] is None else f"{row[m]:.{METRICS[m].digits}f}" for m in metrics]
        cells = [_label(row), f"{row['uf']:.3f}", f"{row['macs_per_sample']:,.0f}", *values]
        lines.append(f"| {' | '.join(cells)} |")
    # JSON is YAML, and quotes what needs it.
    front = "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items())
    return f"---\n{front}\n---\n\n" + "\n".join(lines) + "\n"


def _result(row: Mapping[str, Any], titles: Mapping[str, str], data: str) -> dict[str, Any]:
    """One width's scores as a ``model-index`` holds them."""
    return {
        "task": {"type": "audio-to-audio", "name": "Speech enhancement"},
        "dataset": {"type": re.sub(r"[^\w.-]+", "-", data.lower()), "name": f"{data} ({_label(row)})"},
        "metrics": [
            {"type": metric, "value": round(row[metric], 4), "name": title}
            for metric, title in titles.items()
            if row[metric] is not None
        ],
    }


def _label(row: Mapping[str, Any]) -> str:
    return f"UF {row['uf']:g}" if row["budget"] is None else f"router, budget {row['budget']:g}"


class Pretrained:
    """Methods of a model that has weights to load and share."""

    @staticmethod
    def from_pretrained(weights: str | os.PathLike[str] = DEFAULT, **options: Any) -> SlimModel:
        """Load a model: `slimse.load`."""
        from .checkpoint import load

        return load(weights, **options)

    def save_pretrained(self, folder: str | os.PathLike[str], **options: Any) -> None:
        """Write a folder that `from_pretrained` takes: `slimse.save_pretrained`."""
        save_pretrained(cast("SlimModel", self), folder, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload to the Hugging Face hub: `slimse.push_to_hub`."""
        return push_to_hub(cast("SlimModel", self), repo_id, **options)
