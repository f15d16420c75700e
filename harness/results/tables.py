"""The tables of a finished sweep: their schemas, and reading and writing them.

Everything is parquet with a fixed schema, except the sweep itself, `sweep.json`, which is written last: a
folder without it is not a finished sweep. Missing is null.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from harness.errors import ArtifactError, WorkspaceError
from harness.store.artifact import UMASK, read_json, sha256, write_json

ANEW = "run `harness run` again to write it anew (nothing is trained or generated twice)"
SCHEMA_VERSION = "7"  # bump when a column is added, removed, renamed or changes its meaning
AXIS_SECTIONS = (
    "model",
    "recipe",
    "adapter",
    "training",
)  # an axis column is named by one of these, or below it


def _schema(name: str, **columns: pa.DataType) -> pa.Schema:
    metadata = {"harness_table": name, "harness_schema": SCHEMA_VERSION}
    return pa.schema([pa.field(column, kind) for column, kind in columns.items()], metadata=metadata)


TRIALS = _schema(  # one row per trial; before `config` one column per axis, null where it is not applied
    "trials",
    trial_id=pa.string(),
    index=pa.int64(),
    status=pa.string(),  # completed, stopped (by the scheduler), failed or missing
    reason=pa.string(),  # why it is not completed
    run_id=pa.string(),
    dataset_id=pa.string(),
    config=pa.string(),  # JSON of the TrialConfig
    adapter_path=pa.string(),  # folder, relative to the workspace
    final_loss=pa.float64(),  # mean of the last tenth of the steps
    validation_loss=pa.float64(),  # at fixed noise on held-out images; null where training.holdout is 0
    train_seconds=pa.float64(),
    selected=pa.bool_(),  # best on the dev prompts
)
ARMS = _schema(  # one row per trial × arm; a shared control's arm_id recurs
    "arms",
    trial_id=pa.string(),
    arm=pa.string(),
    arm_id=pa.string(),  # null where no guidance matches
    is_control=pa.bool_(),
    guidance=pa.float64(),  # its scale: the arm's own, the sampler's, or the one that matches; null as above
    reason=pa.string(),  # why it is not in the running, as for images of one colour; its trial's others are
)
IMAGES = _schema(  # one row per image
    "images",
    image_id=pa.string(),
    arm_id=pa.string(),
    arm=pa.string(),
    trial_id=pa.string(),  # null where the image is a control's
    prompt_id=pa.string(),
    prompt=pa.string(),
    tags=pa.list_(pa.string()),
    split=pa.string(),  # dev or test
    seed=pa.int64(),
    negative=pa.string(),
    guidance=pa.float64(),
    effective_guidance=pa.float64(),  # mean over steps; null: not measured (one in eight dev images is)
    orthogonal_share=pa.float64(),  # of the guidance's direction, 0 to 1; null as above
    steps=pa.int64(),
    refiner_start=pa.float64(),  # null: base alone
    latent_hash=pa.string(),  # the same in all arms of a (prompt, seed)
    sha256=pa.string(),
    path=pa.string(),  # relative to the workspace
    width=pa.int64(),
    height=pa.int64(),
    generation_seconds=pa.float64(),
)
SCORES = _schema(  # one row per image × metric
    "scores",
    image_id=pa.string(),
    metric=pa.string(),
    value=pa.float64(),
    reason=pa.string(),  # why the value is null
    metric_version=pa.string(),
    weights_hash=pa.string(),  # null for metrics without weights
    prompt_truncated=pa.bool_(),  # null for metrics that do not read the prompt
)
EMBEDDINGS = _schema(  # in the store, in place of scores: what distances between images are taken from
    "embeddings",
    image_id=pa.string(),
    embedding=pa.list_(pa.float32()),
    reason=pa.string(),  # why there is none
    metric_version=pa.string(),
    weights_hash=pa.string(),
)
SUMMARY = _schema(  # one row per trial × arm × control × metric × split
    "summary",
    trial_id=pa.string(),
    arm=pa.string(),
    control=pa.string(),
    metric=pa.string(),
    split=pa.string(),
    n_prompts=pa.int64(),  # with at least one complete pair
    n_pairs=pa.int64(),
    n_missing=pa.int64(),  # pairs without a difference
    mean_arm=pa.float64(),
    mean_control=pa.float64(),
    mean_difference=pa.float64(),  # arm − control, whatever the metric's direction
    ci_low=pa.float64(),
    ci_high=pa.float64(),
    confidence=pa.float64(),
    p_value=pa.float64(),
    p_adjusted=pa.float64(),  # for all trials × arms of (control, metric, split)
    family=pa.int64(),  # how many those are
    verdict=pa.string(),  # better, worse, equivalent, undecided; higher or lower without a better direction
    verdict_reason=pa.string(),  # why it is what it is, where the numbers alone do not say so
    margin=pa.float64(),  # within which equivalent was asked for: `analysis.margin`, of the primary metric
    detectable=pa.float64(),  # the true difference that this design finds in 80 %
    prompts_to_decide=pa.int64(),  # that would decide what is undecided; null: no number up to 100,000
    skewness=pa.float64(),  # of prompts' mean differences
    win_rate=pa.float64(),
    higher_is_better=pa.bool_(),  # null: the metric has no better direction
    reason=pa.string(),  # why a number is null
)
SCHEMAS = {"trials": TRIALS, "arms": ARMS, "images": IMAGES, "scores": SCORES, "summary": SUMMARY}


def to_arrow(frame: pd.DataFrame, schema: pa.Schema) -> pa.Table:
    """The frame under a schema. Other columns, or values of another type, are an invariant broken.

    Columns that the schema does not have are allowed in `trials` alone, and only as axes.
    """
    name = schema.metadata[b"harness_table"].decode()
    if len(frame) == 0:  # pandas knows no type of what is not there
        return schema.empty_table()
    absent = [column for column in schema.names if column not in frame.columns]
    assert not absent, f"table {name} lacks {absent}"
    extra = [str(column) for column in frame.columns if column not in schema.names]
    axes = extra if name == "trials" else []
    strange = [
        column for column in extra if column.partition(".")[0] not in AXIS_SECTIONS or column not in axes
    ]
    assert not strange, f"table {name} has columns that are not in its schema: {strange}"
    at = schema.names.index("config") if axes else len(schema.names)
    order = [*schema.names[:at], *axes, *schema.names[at:]]
    arrays = {
        column: _axis_array(frame[column])
        if column in axes
        else pa.array(frame[column], type=schema.field(column).type, from_pandas=True)
        for column in order
    }
    return pa.table(arrays).replace_schema_metadata(schema.metadata)


def write_table(path: Path, frame: pd.DataFrame, schema: pa.Schema) -> None:
    """Write one table so that the path holds the whole of it or what it held before."""
    table = to_arrow(frame, schema)
    _replace(path, partial(pq.write_table, table))


def read_table(path: Path, schema: pa.Schema) -> pd.DataFrame:
    """Read one table. Raises ArtifactError where it is missing, damaged or of another schema version."""
    try:
        table = pq.ParquetFile(path).read()
    except (OSError, pa.ArrowInvalid) as error:
        raise ArtifactError(f"{path} is missing or damaged; {ANEW}") from error
    version = (table.schema.metadata or {}).get(b"harness_schema", b"none").decode()
    absent = [column for column in schema.names if column not in table.column_names]
    if version != SCHEMA_VERSION or absent:
        raise ArtifactError(
            f"{path} has schema version {version}, this harness reads {SCHEMA_VERSION}; {ANEW}"
        )
    return _to_pandas(table, schema)


def table_file(name: str) -> str:
    """The file of one of the tables in a sweep's folder."""
    return f"{name}.parquet"


# in sweep.json beside the sweep; looks: at any of its test prompts in this store, its own last
FACTS = ("versions", "host", "finished_at", "seconds", "failures", "events", "looks")
SWEEP = "sweep.json"
HASHES = "hashes.json"  # sha256 of each of the others
FILES = (*map(table_file, SCHEMAS), HASHES, SWEEP)  # in the order in which they are written


def typed(frame: pd.DataFrame, schema: pa.Schema) -> pd.DataFrame:
    """The frame with the schema's columns and types, exactly as `read_table` would give it."""
    return _to_pandas(to_arrow(frame, schema), schema)


def empty(name: str) -> pd.DataFrame:
    """A table of this name without rows."""
    return typed(pd.DataFrame(), SCHEMAS[name])


def write(
    folder: Path,
    *,
    trials: pd.DataFrame,
    arms: pd.DataFrame,
    images: pd.DataFrame,
    scores: pd.DataFrame,
    summary: pd.DataFrame,
    sweep: dict[str, Any],
) -> None:
    """Write a finished sweep.

    The old `sweep.json` goes first and the new one comes last, so that a folder never mixes two sweeps and
    still looks finished.
    """
    frames = {"trials": trials, "arms": arms, "images": images, "scores": scores, "summary": summary}
    text = json.dumps(sweep, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    tables = {name: to_arrow(frames[name], schema) for name, schema in SCHEMAS.items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SWEEP).unlink(missing_ok=True)
    for name, table in tables.items():
        _replace(folder / table_file(name), partial(pq.write_table, table))
    hashes = {file: sha256(folder / file) for file in map(table_file, SCHEMAS)}
    write_json(folder / HASHES, {**hashes, SWEEP: hashlib.sha256(text.encode()).hexdigest()})
    _replace(folder / SWEEP, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def check(folder: Path) -> None:
    """Raise ArtifactError where a file of a finished sweep is not what was written."""
    file = folder / HASHES
    try:
        for name, digest in read_json(file).items():
            file = folder / name
            if name not in FILES or sha256(file) != digest:
                raise ValueError("it does not match its hash")
    except (OSError, ValueError):
        raise ArtifactError(f"{file} is missing or damaged; {ANEW}") from None


def read_sweep(folder: Path) -> dict[str, Any]:
    """The sweep's own description. Raises WorkspaceError where the folder holds no finished sweep."""
    if not folder.is_dir():
        raise WorkspaceError(
            f"no such folder: {folder}; give WORKSPACE/sweeps/NAME, which `harness run` prints"
        )
    try:
        sweep: dict[str, Any] = json.loads((folder / SWEEP).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WorkspaceError(
            f"{folder} is not a finished sweep: it has no sweep.json; give WORKSPACE/sweeps/NAME, "
            "or finish the sweep with `harness run`"
        ) from None
    except ValueError as error:
        raise ArtifactError(f"{folder / SWEEP} is damaged; {ANEW}") from error
    if absent := [fact for fact in FACTS if not isinstance(sweep, dict) or fact not in sweep]:
        raise ArtifactError(
            f"{folder / SWEEP} lacks {', '.join(absent)}, so another version of the harness wrote it; {ANEW}"
        )
    return sweep


def _to_pandas(table: pa.Table, schema: pa.Schema) -> pd.DataFrame:
    frame: pd.DataFrame = table.to_pandas()
    for field in schema:
        if pa.types.is_boolean(field.type):
            frame[field.name] = frame[field.name].astype("boolean")  # keeps null apart from False
        elif field.name == "prompts_to_decide":
            frame[field.name] = frame[field.name].astype("Int64")
        elif pa.types.is_list(field.type):
            frame[field.name] = [list(value) for value in frame[field.name]]
    return frame


def _axis_array(values: pd.Series) -> pa.Array:
    """An axis column: of one type where its values have one, else text (`adapter.alpha: [4, sqrt_rank]`)."""
    kinds = {type(value) for value in values.tolist() if value is not None}
    if len(kinds) > 1 and not kinds <= {int, float}:
        return pa.array([None if value is None else str(value) for value in values], type=pa.string())
    return pa.array(values.tolist(), from_pandas=True)


def _replace(path: Path, write_to: Callable[[Path], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        write_to(temporary)
        temporary.chmod(0o666 & ~UMASK)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
