"""Features of many images as one file: numpy's .npz and .npy, or parquet; written row by row."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pri3d.errors import ConfigError, DataError, first_line
from pri3d.files.atomic import replacing
from pri3d.runs import read_json, write_json

_GROUP = 1 << 25  # bytes of features in a row group of parquet

#: what reading a damaged .npz or parquet file raises; RuntimeError for one that seems to be encrypted or of a new zip
DAMAGED = (OSError, ValueError, LookupError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


class Table(NamedTuple):
    """What is to be written, one row a picture."""

    names: Sequence[str]  #: N, unique
    cells: NDArray[np.int64]  #: (N, 2) height and width of each picture's map
    channels: int  #: C
    dense: bool  #: rows are maps (h, w, C), else vectors (C,)
    dtype: str  #: float32 or float16
    record: dict[str, Any]  #: how the rows were made; "stride" is pixels per cell, "weights" the network's hash
    rows: Callable[[], Iterator[NDArray[Any]]]  #: in the order of ``names``


def write_features(out: Path, table: Table) -> None:
    """Write the file, whole or not at all. Raises DataError where .npy is to hold maps of several sizes."""
    if out.suffix == ".npy":
        _beside(out).unlink(missing_ok=True)  # that of the file before, which it must not seem to describe
    with replacing(out) as part:
        FORMATS[out.suffix](part, table)
    if out.suffix == ".npy":
        content = {"names": list(table.names), **_sizes(table), "crc32": _checksum(out)}
        write_json(_beside(out), {**table.record, **content})


def read_record(out: Path) -> dict[str, Any] | None:
    """Read how the features of a file were made; None where there is no file, or it does not say or is damaged."""
    if not out.is_file():
        return None  # what lies beside a .npy may outlive it
    try:
        if out.suffix == ".npz":
            with np.load(out, allow_pickle=False) as file:
                record = json.loads(str(file["record"]))
        elif out.suffix == ".npy":
            beside = ("names", "height", "width", "crc32")
            record = {k: v for k, v in read_json(_beside(out)).items() if k not in beside}
        else:
            record = json.loads(import_arrow("pyarrow.parquet").read_schema(out).metadata[b"pri3d"])
    except (*DAMAGED, TypeError, AttributeError, DataError):
        return None
    return record if isinstance(record, dict) else None


def check_features(out: Path) -> None:
    """Compare a whole file with its checksums, which the formats themselves hold, of .npy the JSON beside it.

    Raises DataError where one is wrong.
    """
    wrong: Any = None
    try:
        if out.suffix == ".npz":
            with zipfile.ZipFile(out) as archive:
                wrong = archive.testzip()
        elif out.suffix == ".npy":
            stated = read_json(_beside(out)).get("crc32")  # earlier versions wrote none
            wrong = out.name if stated not in (None, _checksum(out)) else None
        else:
            parquet = import_arrow("pyarrow.parquet")
            for _ in parquet.ParquetFile(out, page_checksum_verification=True).iter_batches():
                pass
    except DAMAGED as error:
        wrong = first_line(error)
    if wrong is not None:
        raise DataError(f"{out}: is damaged ({wrong}). Make it again with --overwrite.")


def write_entry(archive: zipfile.ZipFile, name: str, array: NDArray[Any]) -> None:
    """Add one array to a .npz that is being written; its date is that of all entries, so equal arrays, equal bytes."""
    _write_rows(archive, name, array.shape, array.dtype, [array])


def _write_rows(
    archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: Any, rows: Iterable[NDArray[Any]]
) -> None:
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
        _write_array(file, shape, dtype, rows)


def _write_array(file: IO[bytes], shape: tuple[int, ...], dtype: Any, rows: Iterable[NDArray[Any]]) -> None:
    """An array in numpy's format from its rows, of which one at a time is in memory."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    for row in rows:
        file.write(row.tobytes())


def _write_npz(path: Path, table: Table) -> None:
    """Pooled: ``features`` (N, C). Dense: a map (h, w, C) each, as ``maps/NAME``: they may differ in size."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in (("names", table.names), *_sizes(table).items(), ("stride", table.record["stride"])):
            write_entry(archive, name, np.array(value))
        write_entry(archive, "model", np.array(table.record["weights"]))
        write_entry(archive, "record", np.array(json.dumps(table.record)))
        if table.dense:
            for name, row in zip(table.names, table.rows(), strict=True):
                write_entry(archive, f"maps/{name}", row)
        else:
            _write_rows(archive, "features", (len(table.names), table.channels), table.dtype, table.rows())


def _write_npy(path: Path, table: Table) -> None:
    """Pooled (N, C), dense (N, h, w, C); what else there is to know lies in NAME.npy.json."""
    shape: tuple[int, ...] = (len(table.names), table.channels)
    if table.dense:
        if len(np.unique(table.cells, axis=0)) > 1:
            raise DataError("maps of several sizes do not fit into one .npy. Write .npz, or give one --size.")
        shape = (len(table.names), *table.cells[0].tolist(), table.channels)
    with path.open("wb") as file:
        _write_array(file, shape, table.dtype, table.rows())


def _write_parquet(path: Path, table: Table) -> None:
    """Columns name, features, height, width, stride. A dense map is the list of its h * w * C values, C fastest."""
    pa, parquet = import_arrow("pyarrow"), import_arrow("pyarrow.parquet")
    number = pa.float16() if table.dtype == "float16" else pa.float32()
    fields = [("name", pa.string()), ("features", pa.list_(number, *([] if table.dense else [table.channels])))]
    fields += [(name, pa.int32()) for name in ("height", "width", "stride")]
    schema = pa.schema(fields, metadata={"pri3d": json.dumps(table.record)})
    # Floats of a network hardly repeat: a dictionary or compression of theirs costs time and saves nothing.
    with parquet.ParquetWriter(
        path, schema, compression="none", use_dictionary=False, write_page_checksum=True
    ) as writer:
        first = 0
        for group in _groups(table.rows()):
            some = slice(first, first + len(group))
            sizes = [part.astype(np.int32) for part in table.cells[some].T]
            strides = np.full(len(group), table.record["stride"], np.int32)
            features = _lists(pa, group, table.dense)
            columns = [pa.array(table.names[some]), features, *map(pa.array, (*sizes, strides))]
            writer.write_batch(pa.record_batch(columns, schema=schema))
            first += len(group)


def _lists(pa: Any, group: Sequence[NDArray[Any]], dense: bool) -> Any:
    """Rows as a column of lists, of one length where they are vectors."""
    values = pa.array(np.concatenate([row.ravel() for row in group]))
    if not dense:
        return pa.FixedSizeListArray.from_arrays(values, group[0].size)
    ends = np.cumsum([0, *(row.size for row in group)], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), values)


def _groups(rows: Iterable[NDArray[Any]]) -> Iterator[list[NDArray[Any]]]:
    """Rows by row groups, as many as have ``_GROUP`` bytes together."""
    group: list[NDArray[Any]] = []
    held = 0
    for row in rows:
        group.append(row)
        held += row.nbytes
        if held >= _GROUP:
            yield group
            group, held = [], 0
    if group:
        yield group


def _sizes(table: Table) -> dict[str, list[int]]:
    return {"height": table.cells[:, 0].tolist(), "width": table.cells[:, 1].tolist()}


def _checksum(path: Path) -> int:
    found = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            found = zlib.crc32(block, found)
    return found


def _beside(out: Path) -> Path:
    """What a .npy cannot say itself."""
    return out.with_name(f"{out.name}.json")


def import_arrow(module: str) -> Any:
    """A module of pyarrow. Raises ConfigError where that is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigError(
            '--out: .parquet needs one more package: pip install "pri3d[parquet]". Or write .npz.'
        ) from error


#: suffix -> what writes it
FORMATS: dict[str, Callable[[Path, Table], None]] = {
    ".npz": _write_npz,
    ".npy": _write_npy,
    ".parquet": _write_parquet,
}
