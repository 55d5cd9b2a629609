"""A study's page in MLflow's UI: a saved view of its trials, and its address.

MLflow's UI opens in its GenAI mode, with the trials folded under their parent and no column for
them. It saves a view as a tag of the experiment, and an address may name a view and the mode.
"""

from __future__ import annotations

import json
from urllib.parse import quote

import yaml

from sweep.objective import Objective
from sweep.tracking import keys
from sweep.trial import StudyInfo

VIEW = "sweep-trials"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
"""Where MLflow's UI looks for the view: on the experiment."""
EXPERIMENTS = "#/experiments?workflowType=machine_learning"
"""The list of experiments, in the mode for model training."""
MAX_COLUMNS = 8
"""Hyperparameters in the view: with the score they fill a screen."""


def page_of(experiment_id: str, *, has_view: bool = True) -> str:
    """The address of a study's trials, without host, in the mode for model training."""
    view = f"&viewStateShareKey={VIEW}" if has_view else ""
    return f"#/experiments/{quote(experiment_id)}/runs?workflowType=machine_learning{view}"


def view_of(study: StudyInfo) -> str:
    """The view of a study's trials, as MLflow's UI saves one: best first, with few columns."""
    score = f"metrics.`{keys.best_key(study.metric)}`"
    tags = ("rank", "state", "failure")
    state = {
        "searchFilter": "tags.`sweep.role` = 'trial'",
        "orderByKey": score,
        "orderByAsc": not Objective(study.metric, study.direction).better(1.0, 0.0),
        "selectedColumns": [
            score,
            *(f"params.`{name}`" for name in _varied(study)[:MAX_COLUMNS]),
            *(f"tags.`sweep.{tag}`" for tag in tags),
            "attributes.`Duration`",
        ],
    }
    times = {"createdAt": study.time_ms, "updatedAt": study.time_ms}
    return json.dumps({"name": "Trials, best first", **times, "state": json.dumps(state)})


def _varied(study: StudyInfo) -> list[str]:
    """The hyperparameters that the study's space varies, as MLflow's params are called."""
    space = yaml.safe_load(study.space_text)
    varied = space.get("parameters") if isinstance(space, dict) else None
    return [keys.plain_key(str(name)) for name in varied] if isinstance(varied, dict) else []
