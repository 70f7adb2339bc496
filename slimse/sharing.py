"""Sharing of weights: a folder with a model card, as a repository on the Hugging Face hub holds it, and its upload."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import __version__
from .atomic import written_whole
from .checkpoint import save
from .evaluation.metrics import METRICS
from .hub import WEIGHTS_FILE, check_hub
from .model import SlimModel


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
    name = repo_id.partition("/")[2]
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
        f"Speech enhancement at {model.sample_rate // 1000} kHz that runs at the utilization factors (UFs) "
        f"{', '.join(f'{uf:g}' for uf in model.ufs)}{router}. Saved by SlimSE {__version__}.\n",
        f"```python\nimport slimse\n\nmodel = slimse.from_pretrained({repo_id!r})",
        f"slimse.enhance_file('noisy.wav', 'enhanced.wav', model, {model.ufs[0]:g})\n```",
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
