"""MLflow's model registry: versions of a model, and which of them is the champion.

Loads mlflow, as it is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from sweep.objective import Objective
from sweep.tracking import keys
from sweep.tracking.store import every, opened

CHAMPION, CHALLENGER = "champion", "challenger"
SCORE, KIND, METRIC = "sweep.score", "sweep.score_kind", "sweep.metric"
DIRECTION, DATA = "sweep.direction", "sweep.data_digest"
UNKNOWN = "unknown"
"""In place of a digest: such data may be any."""
MUST_AGREE = {
    METRIC: "another metric", DIRECTION: "another direction", DATA: "other data",
    KIND: "another kind of score",
}  # fmt: skip
"""Tags that two versions must share for their scores to be compared."""


@dataclass(frozen=True)
class Registered:
    """A version of a registered model."""

    name: str
    version: int
    alias: str
    """champion or challenger."""
    why: str
    """Why it has that alias, in a sentence."""

    @property
    def uri(self) -> str:
        """For MLflow: `models:/NAME/VERSION`."""
        return f"models:/{self.name}/{self.version}"


def alias_for(
    new: Mapping[str, str], champion: Mapping[str, str] | None, version: str = ""
) -> tuple[str, str]:
    """The alias of a version with the tags `new`, and why.

    `champion`: the tags of the present champion, version `version`; None: there is none. Scores
    of another metric, kind or data are not compared.

    >>> tags = {"sweep.metric": "val_acc", "sweep.direction": "maximize", "sweep.score": "0.9"}
    >>> alias_for(tags, tags | {"sweep.score": "0.8"}, "3")
    ('champion', '0.9 beats the 0.8 of version 3')
    """
    if champion is None:
        return CHAMPION, "there was no champion yet"
    if SCORE not in champion:
        return CHALLENGER, f"the champion, version {version}, has no score to compare with"
    for tag, what in MUST_AGREE.items():
        if new.get(tag) != champion.get(tag) or new.get(tag) == UNKNOWN:
            shown = "" if tag == DATA else f" ({new.get(tag)}, not {champion.get(tag)})"
            return CHALLENGER, (
                f"{what}{shown} than of the champion, version {version}: such scores "
                "are not compared"
            )
    objective = Objective(new[METRIC], "minimize" if new[DIRECTION] == "minimize" else "maximize")
    ours, theirs = float(new[SCORE]), float(champion[SCORE])
    if objective.better(ours, theirs):
        return CHAMPION, f"{ours:.6g} beats the {theirs:.6g} of version {version}"
    return CHALLENGER, f"{ours:.6g} does not beat the {theirs:.6g} of version {version}"


def register(
    tracking_uri: str, name: str, model_uri: str, run_id: str, tags: Mapping[str, str], card: str
) -> Registered:
    """A version of the model `name` from a logged model, with tags, a description and an alias.

    A logged model that is a version already gets its new tags and description. Raises StoreError.
    """
    with opened(tracking_uri) as client:
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        version = _version_of(client, name, model_uri)
        if version is None:
            model_id = model_uri.rpartition("/")[2]
            version = client.create_model_version(name, model_uri, run_id, model_id=model_id)
        number = str(version.version)
        for key, value in tags.items():
            client.set_model_version_tag(name, number, key, keys.clean(value)[: keys.MAX_TAG])
        client.update_model_version(name, number, keys.clean(card)[: keys.MAX_TAG])
        champion = _champion(client, name)
        if champion is not None and str(champion.version) == number:
            return Registered(name, int(number), CHAMPION, "it is the champion already")
        before = str(champion.version) if champion is not None else ""
        alias, why = alias_for(tags, None if champion is None else champion.tags, before)
        client.set_registered_model_alias(name, alias, number)
        is_promoted = alias == CHAMPION and CHALLENGER in version.aliases
        if is_promoted:
            client.delete_registered_model_alias(name, CHALLENGER)
        return Registered(name, int(number), alias, why)


def _version_of(client: MlflowClient, name: str, model_uri: str) -> ModelVersion | None:
    """The version made from a logged model; None: there is none yet."""
    wanted = f"name = '{name}'"
    versions = every(lambda token: client.search_model_versions(wanted, page_token=token))
    found = next((version for version in versions if version.source == model_uri), None)
    # Asked for by its number, it comes with its aliases.
    return found and client.get_model_version(name, str(found.version))


def _champion(client: MlflowClient, name: str) -> ModelVersion | None:
    number = client.get_registered_model(name).aliases.get(CHAMPION)
    return None if number is None else client.get_model_version(name, str(number))
