"""The page about a study: gathered from its records, written to a file, stored in MLflow."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.config.settings import RunConfig
from sweep.errors import NotFoundError
from sweep.redact import redacted
from sweep.reporting.report.contents import document_of
from sweep.reporting.report.document import Document
from sweep.reporting.report.facts import facts_of
from sweep.reporting.report.html import to_html
from sweep.reporting.report.writing import Written, form_of, write
from sweep.reuse.best import find_trial, opened
from sweep.reuse.samples import samples_of

if TYPE_CHECKING:
    from sweep.search.study import Outcome

ARTIFACT = "report.html"
"""Name of the page among the artifacts of a study's own run."""
LEAST_S = 30.0
"""Searches that took so long store their page at the end: it takes a third of a second."""

_log = logging.getLogger("sweep.report")


def write_page(
    study: str | None, where: RunConfig, *, output: Path | None, fmt: str | None,
    has_samples: bool, is_stored: bool,
) -> Written:  # fmt: skip
    """See `sweep.report`; a file `-` gives the text instead. `is_stored`: in MLflow, too."""
    form = form_of(fmt, output)
    document, config = _document(study, where, has_samples=has_samples)
    written = write(document, form, output)
    if is_stored and not _store(config, document):
        raise NotFoundError(
            f"the page is written, but MLflow has no run of study {config.study_name!r}: "
            "`sweep doctor --fix` makes one"
        )
    return written


def store_page_of(outcome: Outcome, config: RunConfig) -> None:
    """After a long search, store its study's page with the study's own run in MLflow.

    One that cannot be made is no error of a search that is done: a line says so.
    """
    if not outcome.n_new or outcome.end.time_ms - outcome.study.time_ms < 1000 * LEAST_S:
        return
    try:
        document, config = _document(config.study_name, config.anchored(), has_samples=False)
        if not _store(config, document):
            raise NotFoundError("it has no run of the study")
    except Exception as error:  # noqa: BLE001 - whatever it is
        why = redacted(str(error).strip() or type(error).__name__).splitlines()[0]
        _log.warning(
            "the study's page is not in MLflow (%s): `sweep report %s --log` stores it", why,
            config.study_name,
        )  # fmt: skip


def _document(
    study: str | None, where: RunConfig, *, has_samples: bool
) -> tuple[Document, RunConfig]:
    samples = None
    with opened(study, where) as (ledger, config):
        facts = facts_of(ledger, config)
    if has_samples and facts.best_first:
        winner = facts.best_first[0]
        samples = samples_of(config, winner, lambda n: find_trial(facts.name, n, where))
    return document_of(facts, samples), config


def _store(config: RunConfig, document: Document) -> bool:
    from sweep.tracking.mirror import store_texts  # loads MLflow: seconds

    return store_texts(config.tracking_uri, config.study_name, {ARTIFACT: to_html(document)})
