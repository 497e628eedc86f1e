"""What the model hub and its cache know of a name, and what the hub's refusals mean for the user."""

import logging
import os
import time

from huggingface_hub import HfApi, ResolvedRevision, constants, get_session, resolve_revision
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.utils import httpx
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import is_sentence_transformer_model
from sentence_transformers.util.misc import ORIGINAL_TRANSFORMER_MODELS

from kf_deberta.cli import HUB_TIMEOUT_SECONDS, InputError, one_line

BUSY_SECONDS = 60
logging.getLogger("huggingface_hub").propagate = False  # it has a handler of its own, and would print twice
NO_HUB = (httpx.TransportError, OfflineModeIsEnabled)


def hub_name(name: str) -> str:
    """The name as the hub knows it: the library looks for most names without an owner in its own organization."""
    own = "/" not in name and name.lower() not in ORIGINAL_TRANSFORMER_MODELS
    return f"{SentenceTransformer.default_huggingface_organization}/{name}" if own else name


def _cache() -> str | None:
    """The directory that the library caches models in; None for the hub's own."""
    return os.environ.get("SENTENCE_TRANSFORMERS_HOME")


def find_model(name: str, revision: str | None = None, patient: bool = True) -> tuple[ResolvedRevision, bool]:
    """Find the commit that a branch, tag or commit (None: main) of a hub model names, within seconds.

    A busy hub is asked once more where it is `patient` and nothing is cached, after at most BUSY_SECONDS.

    Returns the commit, and whether the hub does not answer, so that the cache must do.

    Raises:
        InputError: the hub has no such model or revision or keeps it from this user, or neither hub nor cache answers.
    """
    where = {"repo_id": hub_name(name), "revision": revision}
    try:
        HfApi().model_info(**where, timeout=HUB_TIMEOUT_SECONDS)
        return resolve_revision(**where, cache_dir=_cache()), False
    except (HfHubHTTPError, *NO_HUB) as error:
        if isinstance(error, RevisionNotFoundError):
            raise InputError(
                f"{name}: no revision {revision}; give a branch, a tag or the 40 digits of a commit"
            ) from error
        try:
            return resolve_revision(**where, cache_dir=_cache(), local_files_only=True), True
        except RevisionResolutionError:
            busy = isinstance(error, HfHubHTTPError) and error.response.status_code in (429, 500, 502, 503, 504)
            if not (busy and patient):
                raise InputError(hub_error(name, error)) from error
        wait = error.response.headers.get("Retry-After", "")
        time.sleep(min(int(wait) if wait.isdigit() else 1, BUSY_SECONDS))
    return find_model(name, revision, patient=False)


def has_modules(name: str, revision: str | None) -> bool:
    """Whether a local directory or a cached model has a modules.json, that is, a pooling of its own."""
    if revision is not None:
        name = hub_name(name)
    return is_sentence_transformer_model(name, cache_folder=_cache(), revision=revision, local_files_only=True)


def hub_error(name: str, error: BaseException) -> str | None:
    """What an error of the hub means for the user, or None where the hub is not the cause."""
    while error is not None:
        if isinstance(error, GatedRepoError):
            return f"{name}: gated; accept its terms at {constants.ENDPOINT}/{name} and log in with hf auth login"
        if isinstance(error, RepositoryNotFoundError):
            return f"{name}: no such model at {constants.ENDPOINT}; check the name (a private one needs hf auth login)"
        if isinstance(error, (HfHubHTTPError, LocalEntryNotFoundError, *NO_HUB)):
            reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else one_line(error, 100)
            return (
                f"{name}: not cached, and the hub cannot be reached ({reason}); "
                "give a local directory with --model_name_or_path, or run ./bin/demo.sh, which needs no hub"
            )
        error = error.__cause__ or error.__context__
    return None


def hub_unreachable() -> str | None:
    """Return why the model hub cannot be reached, or None; answers within HUB_TIMEOUT_SECONDS."""
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT_SECONDS)
    except NO_HUB as error:
        return "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else one_line(error, 100)
    return None
