"""An export on its way to the hub."""

import os
from pathlib import Path

from harness.errors import ExportError

LOGIN = "run `hf auth login`, or set HF_TOKEN to a token that may write"


def push(folder: Path, repo_id: str, *, private: bool) -> str:
    """Upload an export as a model repository, made where there is none. Returns its address.

    `private` is for a repository that is made now; one that is there keeps what it is. Raises ExportError
    where the hub cannot be reached, does not know who asks, or refuses.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # What the library beneath raises without a connection; hub versions differ in which library that is.
    from huggingface_hub.errors import HTTPError as Unreachable  # type: ignore[attr-defined, unused-ignore]

    if not (folder / "README.md").is_file():
        raise ExportError(f"{folder} holds no export; make one with `harness export` first")
    if get_token() is None:
        raise ExportError(f"not logged in to the hub, so {repo_id} cannot be pushed; {LOGIN}")
    api = HfApi()
    try:
        made = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id, folder_path=folder, commit_message=f"Export of {os.fspath(folder.name)}"
        )
    except HFValidationError as error:
        raise ExportError(f"{repo_id!r} is no repository of the hub; give OWNER/NAME ({error})") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        advice = LOGIN if status in (401, 403) else "look at the hub's answer and try again"
        raise ExportError(
            f"the hub refused to take {repo_id} (HTTP {status}: {_line(error)}); {advice}"
        ) from error
    except (Unreachable, OSError) as error:
        raise ExportError(
            f"the hub cannot be reached, so {repo_id} was not pushed ({_line(error)}); the export in "
            f"{folder} "
            "is complete: push it again when there is a network (and HF_HUB_OFFLINE is not set)"
        ) from error
    return str(made)


def _line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
