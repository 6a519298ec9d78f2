"""Files of the hub that a model or a dictionary needs, through the hub's client and cache; broken downloads go on."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...utils.checkpoint_step import SUFFIXES
from ...utils.errors import MechintError, did_you_mean, short
from ...utils.files import sha256
from ...utils.options import named
from ...utils.progress import Progress
from .checkpoints import WEIGHTS, index_files, is_model_directory, weight_files
from .old_names import OLD_NAMES
from .tokenizer import BESIDE, FILE, VOCABULARIES

CONNECT_SECONDS = 5.0
MEGABYTE = 1_000_000


def todays_name(name: str) -> str:
    """'; the hub's gpt2 is openai-community/gpt2' for a name of old times, else ''."""
    return f"; the hub's {name} is {OLD_NAMES[name]}" if name in OLD_NAMES else ""


class Unreachable(Exception):
    """The hub did not answer; its text says why."""


def is_hub_id(name: str) -> bool:
    """True if a name is shaped like ``owner/name`` (and not like a checkpoint's file)."""
    shaped = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name)
    return shaped is not None and not name.endswith(SUFFIXES)


def refuse_missing_path(name: str) -> None:
    """Raises :class:`MechintError` for a name of nothing on this machine that means a path and no hub model.

    ``output/modle`` is shaped like a hub id; but where a directory ``output`` is, a file in it was meant.
    """
    path = Path(name)
    refuse_dangling(at_home(name))
    local = name.startswith(("~", "./", "../", "/")) or name.endswith("/")
    first = Path(path.parts[0]) if len(path.parts) > 1 else None
    if not local and first is not None and path_exists(first) and first.is_dir():
        local = True
    if local:
        raise MechintError(f"{short(name)}: no such file or directory{_close(path)}")


def path_exists(path: str | Path) -> bool:
    """True if this name exists on this machine; False too for names that no file can have."""
    try:
        return Path(path).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL in it, or no home directory
        return False


def at_home(path: str | Path) -> Path:
    """The path with ``~`` as the home directory; as it stands where there is no such home."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def refuse_dangling(path: Path) -> None:
    """Raises where a link stands that leads to nothing, or to itself."""
    try:
        if not path.is_symlink() or path.exists():
            return
    except (OSError, ValueError):  # too long, or a NUL in it
        return
    raise MechintError(f"{short(path)} is a link to {short(os.readlink(path))}, which is not there; mend or delete it")


def _close(path: Path) -> str:
    """' (did you mean …?)' of what lies where the path leads, as far as it exists."""
    try:
        folder = path.expanduser().parent
        return did_you_mean(path.name, [item.name for item in folder.iterdir()]) if folder.is_dir() else ""
    except (OSError, ValueError, RuntimeError):
        return ""


def fetch(repo: str) -> Path:
    """The local directory of a hub model: configuration, weights, tokenizer; downloaded unless it is in the cache.

    The client's environment holds: HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE, HF_TOKEN.

    Raises:
        MechintError: no such model, or the hub can't be reached and the cache does not have all of it.
    """
    from huggingface_hub import hf_hub_download

    try:
        if _head(repo, "config.json", "main") is None:
            raise MechintError(f"the hub's {repo} has no config.json; it is not a model that can be loaded")
        with _translated(repo):
            config = Path(hf_hub_download(repo, "config.json", etag_timeout=CONNECT_SECONDS))
        folder, commit = config.parent, config.parent.name
        weights = next((name for name in WEIGHTS if _get(repo, name, commit) is not None), None)
        if weights is None:
            raise MechintError(f"the hub's {repo} has no weights; looked for {', '.join(WEIGHTS)}")
        shards = index_files(folder / weights) if weights.endswith(".json") else []
        for name in shards:
            if _get(repo, name, commit) is None:
                raise MechintError(f"the hub's {repo} lacks {name}, which its index names; its upload is incomplete")
        fetch_tokenizer(repo, commit)
        return folder
    except Unreachable as error:
        return _cached(repo, str(error))


def fetch_folder(repo: str, folder: str, choices: Sequence[Sequence[str]], revision: str = "main") -> Path:
    """The local directory of a folder of a hub repository; of the files there only one choice is downloaded.

    The client's environment holds, as for :func:`fetch`.

    Args:
        folder: Its path in the repository; empty for the top.
        choices: Names of files that go together; the first choice of which the folder has all is taken.
        revision: Branch, tag or commit.

    Raises:
        MechintError: no such repository, none of the choices in the folder, or the hub can't be reached and the cache
            has none of them whole.
    """
    from huggingface_hub import hf_hub_download

    inside = [[f"{folder}/{name}" if folder else name for name in names] for names in choices]
    try:
        for names in inside:
            about = [_head(repo, name, revision) for name in names]
            if None in about:
                continue
            commit = about[0].commit_hash
            for name in names:
                _get(repo, name, commit)
            with _translated(repo):  # all are there: this says in the cache which commit is the newest
                return Path(hf_hub_download(repo, names[0], revision=revision, etag_timeout=CONNECT_SECONDS)).parent
    except Unreachable as error:
        return _cached_folder(repo, inside, str(error), revision)
    where = f"the folder {folder} of the hub's {repo}" if folder else f"the top of the hub's {repo}"
    raise MechintError(
        f"{where} has none of {'; '.join(' and '.join(names) for names in choices)}; name the folder as {repo}:FOLDER"
    )


def _cached_folder(repo: str, choices: Sequence[Sequence[str]], reason: str, revision: str) -> Path:
    """The folder in the cache that has all files of a choice: nothing can be fetched now."""
    from huggingface_hub import try_to_load_from_cache

    for names in choices:
        found = [try_to_load_from_cache(repo, name, revision=revision) for name in names]
        if all(isinstance(path, str) for path in found):
            return Path(str(found[0])).parent
    raise MechintError(f"can't fetch {repo}: {reason}, and it is not in the cache; name a directory of a local copy")


def fetch_tokenizer(repo: str, commit: str) -> None:
    """The files of a model's tokenizer: tokenizer.json, or without one what :func:`read_tokenizer` makes one of."""
    if _get(repo, FILE, commit) is None and any([_get(repo, name, commit) is not None for name in VOCABULARIES]):
        for name in BESIDE:
            _get(repo, name, commit)


def _blobs(repo: str) -> Path:
    """The directory in the cache that holds the contents of a model's files, whole and begun."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model") / "blobs"


def _cached(repo: str, reason: str) -> Path:
    """The directory in the cache, which must be complete: nothing can be fetched now."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, "config.json")
    advice = f"name the directory of a local copy with {named('', 'checkpoint')}"
    begun = _blobs(repo)
    if not isinstance(found, str) and not any(begun.glob("*")):
        raise MechintError(f"can't fetch {repo}: {reason}, and it is not in the cache; {advice}")
    folder = Path(found).parent if isinstance(found, str) else begun
    try:
        complete = is_model_directory(folder) and bool(weight_files(folder))
    except MechintError:
        complete = False
    if not complete:
        raise MechintError(
            f"can't fetch {repo}: {reason}, and only a part of it is in the cache; run again to go on, or {advice}"
        )
    return folder


def cached(repo: str) -> Path | None:
    """The directory of a hub model that is wholly in the cache, else None; nothing is fetched."""
    try:
        return _cached(repo, "it is not asked for") if is_hub_id(repo) else None
    except MechintError:
        return None


def _get(repo: str, name: str, commit: str) -> Path | None:
    """One file of a commit, in the cache; None where the model has no such file."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    found = try_to_load_from_cache(repo, name, revision=commit)
    if isinstance(found, str):
        return Path(found)
    about = _head(repo, name, commit)
    if about is None:
        return None
    blobs = _blobs(repo)
    _download(repo, name, commit, about, blobs / about.etag)
    with _translated(repo):
        return Path(hf_hub_download(repo, name, revision=commit, etag_timeout=CONNECT_SECONDS))  # links the blob


def _head(repo: str, name: str, revision: str) -> Any:
    """The client's metadata of a file (etag, size), None where the model has no such file.

    Asked before the client's own download, which would wait for minutes on a hub that does not answer.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    try:
        with _translated(repo):
            about = get_hf_file_metadata(hf_hub_url(repo, name, revision=revision), timeout=CONNECT_SECONDS)
    except EntryNotFoundError:
        return None
    if not about.etag or not about.commit_hash:
        raise Unreachable("what answers at HF_ENDPOINT is no model hub")
    return about


def _download(repo: str, name: str, commit: str, about: Any, blob: Path) -> None:
    """Fetches a blob of the cache, going on from what an earlier, killed download has left.

    The client throws its partial files away; so it is asked for the rest of ours, which is checked and then renamed.
    """
    from filelock import FileLock
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    blob.parent.mkdir(parents=True, exist_ok=True)
    partial = blob.with_name(blob.name + ".incomplete")
    # another process may be fetching the same file: wait for it
    with FileLock(f"{partial}.lock"), open(partial, "ab") as file:
        if blob.exists():
            partial.unlink(missing_ok=True)
            return
        with _translated(repo), Progress(f"{name} of {repo}", (about.size or 0) // MEGABYTE) as progress:
            http_get(
                hf_hub_url(repo, name, revision=commit),
                file,
                resume_size=file.tell(),
                headers=build_hf_headers(),
                expected_size=about.size,
                displayed_filename=name,
                tqdm_class=_bar(progress),
            )
        file.flush()
        if re.fullmatch(r"[0-9a-f]{64}", about.etag) and sha256(partial) != about.etag:
            partial.unlink()
            raise MechintError(
                f"{name} of {repo} arrived damaged (its SHA-256 is not the hub's); run again to fetch it anew"
            )
        partial.rename(blob)


def _bar(progress: Progress) -> Any:
    """Our progress in the shape of the bar that the client draws on."""

    class Bar:
        def __init__(self, *_: Any, initial: int = 0, **__: Any) -> None:
            self.bytes = initial
            progress.skip_to(initial // MEGABYTE)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *exception: object) -> None: ...

        def update(self, count: int = 1) -> None:
            self.bytes += count
            progress.step("(MB)", self.bytes // MEGABYTE - progress.done)

    return Bar


@contextlib.contextmanager
def _translated(repo: str) -> Iterator[None]:
    """The client's many errors in our words: no such model, no access, or a hub that does not answer."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError:
        raise MechintError(f"the hub gives {repo} only to those who accepted its terms; set HF_TOKEN") from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise MechintError(
            f"{repo}: no such file or directory here, and no such model on the hub (or a private one)"
        ) from None
    except HFValidationError:
        raise MechintError(f"{repo}: no such file or directory, and not a name the hub can have") from None
    except OfflineModeIsEnabled:
        raise Unreachable("HF_HUB_OFFLINE is set") from None
    except LocalEntryNotFoundError as error:
        raise Unreachable(f"the hub does not answer ({error.__cause__ or 'no connection'})") from None
    except EntryNotFoundError:
        raise
    except HfHubHTTPError as error:
        raise Unreachable(f"the hub answers {error.response.status_code}") from None
    except Exception as error:  # the installed HTTP client has its own types; others are raised again
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "httpcore", "requests"):
            raise
        raise Unreachable(f"the hub does not answer ({type(error).__name__}: {error})") from None
