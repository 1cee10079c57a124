"""Readers of plain corpora: .txt, .jsonl and .parquet files, and directories of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnb_ds.errors import DataError
from bnb_ds.files import sha256_file
from data_prep.documents import Document, content_id

EXTENSIONS = (".txt", ".jsonl", ".parquet")
TXT_DOCUMENTS = ("blank-line", "line", "file")
DEFAULT_ID_COLUMN = "id"

_PARQUET_BATCH_ROWS = 256  # bounds memory within a row group


@dataclass(frozen=True)
class TextFormat:
    """How documents lie in the files."""

    text_column: str = "text"  # of .jsonl and .parquet
    id_column: str | None = None  # likewise; None takes `id` where there is one, else a hash of the text
    txt_documents: str = "blank-line"  # what separates documents of a .txt file: one of TXT_DOCUMENTS


@dataclass(frozen=True)
class SourceFile:
    """One input file."""

    path: Path
    name: str  # relative to the directory the user named, or the file's own name: the same on every machine

    def manifest_entry(self) -> dict[str, Any]:
        """Name, size and SHA-256; reads the file once.

        Raises:
            DataError: it cannot be read.
        """
        try:
            return {"name": self.name, "bytes": self.path.stat().st_size, "sha256": sha256_file(self.path)}
        except OSError as error:
            raise _unreadable(self.path, error) from error


def find_files(inputs: Sequence[str | os.PathLike[str]]) -> list[SourceFile]:
    """The corpus files that ``inputs`` name: files as given, directories searched to the bottom in sorted order.

    Hidden files and files of other types inside directories are passed over.

    Raises:
        DataError: an input is missing, of another type, without corpus files, or named twice.
    """
    files: list[SourceFile] = []
    for given in map(Path, inputs):
        if given.is_dir():
            found = sorted(path for path in given.rglob("*") if _is_corpus_file(path.relative_to(given), path))
            if not found:
                raise DataError(f"{given}: no {', '.join(EXTENSIONS)} file in this directory; name one that has some")
            files.extend(SourceFile(path, path.relative_to(given).as_posix()) for path in found)
        elif not given.exists():
            raise DataError(f"{given}: no such file or directory; check --input")
        elif given.suffix not in EXTENSIONS:
            raise DataError(f"{given}: not a {', '.join(EXTENSIONS)} file; convert it or choose another --input")
        else:
            files.append(SourceFile(given, given.name))
    seen: set[Path] = set()
    for file in files:
        if (resolved := file.path.resolve()) in seen:
            raise DataError(f"{file.path}: named twice by --input; name it once")
        seen.add(resolved)
    return files


def read_documents(files: Sequence[SourceFile], text_format: TextFormat = TextFormat()) -> Iterator[Document]:
    """Every document of the files in order, streamed; a document may be empty.

    Raises:
        DataError: something is unreadable; the message names file and line or row.
    """
    readers = {".txt": _read_txt, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    for file in files:
        try:
            yield from readers[file.path.suffix](file, text_format)
        except OSError as error:
            raise _unreadable(file.path, error) from error


def _is_corpus_file(relative: Path, path: Path) -> bool:
    return path.suffix in EXTENSIONS and path.is_file() and not any(part.startswith(".") for part in relative.parts)


def _unreadable(path: Path, error: OSError) -> DataError:
    reason = " ".join((error.strerror or str(error)).split())
    return DataError(f"{path}: cannot read: {reason}; check the file and its permissions")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line number from 1 and line without its end; a byte order mark is dropped."""
    with open(path, "rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}: line {number}: not valid UTF-8 at byte {error.start + 1} of the line; convert the file"
                ) from None
            yield number, line.rstrip("\r\n")


def _read_txt(file: SourceFile, text_format: TextFormat) -> Iterator[Document]:
    if text_format.txt_documents == "file":
        yield _document(file, "\n".join(line for _, line in _lines(file.path)))
        return
    paragraph: list[str] = []
    for _, line in _lines(file.path):
        if line.strip():
            paragraph.append(line)
        if paragraph and (text_format.txt_documents == "line" or not line.strip()):
            yield _document(file, "\n".join(paragraph))
            paragraph = []
    if paragraph:
        yield _document(file, "\n".join(paragraph))


def _read_jsonl(file: SourceFile, text_format: TextFormat) -> Iterator[Document]:
    for number, line in _lines(file.path):
        if not line.strip():
            continue
        place = f"{file.path}: line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}: not valid JSON ({error}); mend or remove the line") from None
        if not isinstance(row, dict):
            raise DataError(f"{place}: a JSON {type(row).__name__}, not an object; write one object per line")
        _require_columns(row, place, text_format)
        yield _checked(file, place, row[text_format.text_column], row.get(text_format.id_column or DEFAULT_ID_COLUMN))


def _read_parquet(file: SourceFile, text_format: TextFormat) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file.path) as parquet:
            names = parquet.schema_arrow.names
            _require_columns(names, str(file.path), text_format)
            id_column = text_format.id_column or DEFAULT_ID_COLUMN
            # Not in one call with both names: a column may serve as text and id.
            columns = sorted({text_format.text_column, id_column} & set(names))
            row_number = 0
            for batch in parquet.iter_batches(batch_size=_PARQUET_BATCH_ROWS, columns=columns, use_threads=False):
                try:
                    texts = batch.column(text_format.text_column).to_pylist()
                    ids = batch.column(id_column).to_pylist() if id_column in columns else [None] * len(texts)
                except UnicodeDecodeError:
                    raise DataError(
                        f"{file.path}: rows {row_number + 1} to {row_number + len(batch)}: not valid UTF-8; "
                        "write the file again from valid text"
                    ) from None
                for text, document_id in zip(texts, ids, strict=True):
                    row_number += 1
                    yield _checked(file, f"{file.path}: row {row_number}", text, document_id)
    except pa.ArrowException as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{file.path}: not a readable parquet file ({reason}); restore or convert it") from error


def _require_columns(names: Any, place: str, text_format: TextFormat) -> None:
    flags = {"--text-column": text_format.text_column, "--id-column": text_format.id_column}
    for flag, column in flags.items():
        if column is not None and column not in names:
            raise DataError(f"{place}: no column {column!r}; choose {flag} from {', '.join(names) or 'none'}")


def _checked(file: SourceFile, place: str, text: Any, document_id: Any) -> Document:
    if text is None:
        text = ""
    if not isinstance(text, str):
        raise DataError(f"{place}: the text is of type {type(text).__name__}; choose a --text-column of strings")
    if document_id is not None and (isinstance(document_id, bool) or not isinstance(document_id, (str, int))):
        raise DataError(
            f"{place}: the id is of type {type(document_id).__name__}; choose an --id-column of strings or integers"
        )
    document_id = None if document_id is None else str(document_id)
    try:
        for value in (text, document_id or ""):
            value.encode("utf-8")
    except UnicodeEncodeError:
        # JSON can spell half of a surrogate pair, which is no character.
        raise DataError(f"{place}: holds half of a surrogate pair (\\ud800 to \\udfff); mend or remove it") from None
    return _document(file, text, document_id)


def _document(file: SourceFile, text: str, document_id: str | None = None) -> Document:
    return Document(content_id(text) if document_id is None else document_id, text, file.name)
