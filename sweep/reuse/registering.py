"""A trial's model in MLflow's registry, with a card that says what it is and is not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from sweep.errors import ConfigError, NotFoundError
from sweep.ledger.confirmation import confirmation_in
from sweep.ledger.study import Ledger
from sweep.redact import redacted
from sweep.reuse.best import Best, opened
from sweep.reuse.scores import MEANING, Score, score_of
from sweep.trial import DatasetInfo

if TYPE_CHECKING:
    from sweep.tracking.registry import Registered

MOST_OF_THE_SPACE = 1500
"""Characters of the search space in a card: MLflow keeps 5,000 in all."""


def register_trial(best: Best, name: str) -> Registered:
    """See `Best.register`."""
    if not name.strip() or re.search(r"[/:%'\"]", name):
        raise ConfigError(
            f"NAME of a registered model must have none of / : % and no quotes, but got {name!r}"
        )
    model_uri, run_id, score = best.log_model(), best.run_id, score_of(best)
    if run_id is None:
        raise NotFoundError(f"MLflow has no run of trial {best.trial}: `sweep doctor --fix`")
    from sweep.tracking import registry  # loads MLflow

    with opened(best.study, best.where) as (ledger, config):
        dataset = ledger.dataset
        tags = {
            registry.METRIC: config.metric, registry.DIRECTION: ledger.direction,
            registry.SCORE: repr(score.value), registry.KIND: score.kind,
            registry.DATA: dataset.digest if dataset is not None else registry.UNKNOWN,
            "sweep.data": best.recipe.data, "sweep.study": best.study,
            "sweep.trial": str(best.trial),
        }  # fmt: skip
        card = _card(best, name, ledger, config.metric, score)
        where = config.tracking_uri
    return registry.register(where, name, model_uri, run_id, tags, card)


def _card(best: Best, name: str, ledger: Ledger, metric: str, score: Score) -> str:
    """The model card, in Markdown."""
    dataset, tags = ledger.dataset, ledger.tags
    commit = tags.get("mlflow.source.git.commit", "")
    dirty = " with changes" if tags.get("sweep.git.dirty") == "true" else ""
    versions = ", ".join(
        f"{part} {tags[key]}"
        for part in ("torch", "lightning", "sweep")
        if (key := f"sweep.version.{part}") in tags
    )
    values = ", ".join(f"{key}={value}" for key, value in best.config.items())
    others = ", ".join(
        f"{key} {value:.6g}" for key, value in best.recipe.score.items() if key != metric
    )
    as_trained = "" if score.kind == "best" else f" As trained: {best.score:.6g}."
    space = redacted(ledger.space_text.strip())[:MOST_OF_THE_SPACE]
    lines = [
        f"**{metric} {score}**, {MEANING[score.kind]}.{as_trained}", "",
        f"- Model: `{best.recipe.module}`, trial {best.trial} of study `{best.study}`: {values}",
        f"- Other metrics of its best epoch: {others or 'none'}",
        f"- Data: {_data(best.recipe.data, dataset)}",
        f"- Made with: {versions}{f', git {commit[:12]}{dirty}' if commit else ''}", "",
        f"**Limits.** It was chosen on validation data; {_test(tags)}. "
        "It knows samples like those of its data alone, and nothing was measured for "
        "groups within them.", "",
        "**Use.** In the folder of the search, or with MLFLOW_TRACKING_URI set:", "",
        "```python", "import mlflow", "",
        f'model = mlflow.pytorch.load_model("models:/{name}@champion")', "```", "",
        f"`mlflow models serve -m models:/{name}@champion --env-manager local` answers JSON "
        '`{"inputs": [row, row, ...]}` with `{"predictions": [...]}`.', "",
        f"**Searched**: {ledger.n_trials} trials in", "", "```yaml", space, "```",
    ]  # fmt: skip
    return "\n".join(lines)


def _test(tags: Mapping[str, str]) -> str:
    found = confirmation_in(tags)
    if found is None or not found.test:
        return "no test data were opened"
    scores = ", ".join(f"{name} {one.value:.6g}" for name, one in found.test.items())
    return f"the winner's models over {found.n_seeds} seeds were tested once: {scores}"


def _data(name: str, dataset: DatasetInfo | None) -> str:
    if dataset is None:
        return f"{name}, the module's own loaders"
    sizes = f", {dataset.n_train} samples to train and {dataset.n_val} to validate"
    known = sizes if dataset.n_train else ""
    return f"{name}{known}, digest `{dataset.digest}`"
