"""CSV in blocks of bytes that end where a row ends, parsed by Arrow, and where Arrow cannot, row by row.

A quote that opens in one block and closes in the next must not cut a row in two. Where quotes stand as RFC 4180 has
them, each is the start or end of a field or doubled, and counting them tells which line ends are rows' ends. From the
first block in which one stands elsewhere (`5" pipe`), the rest of the file is read row by row as `csv` reads it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from nhm_sched_plugin.errors import IngestError
from nhm_sched_plugin.store.ingest.chunks import Broken, Chunk, FrameChunk, Position

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = ["CsvFile", "Kinds"]

Kinds = Callable[[Sequence[str], Mapping[str, str]], Mapping[str, "pa.DataType"]]
"""From a source's columns and some of its values to the columns that are needed and the type of each."""

_BLOCK: Final = 16 * 2**20
_ROW_MAX: Final = 64 * 2**20
_CAREFUL_ROWS: Final = 50_000
_SAMPLE: Final = 4096
_BOM: Final = b"\xef\xbb\xbf"


class CsvFile:
    """One file, opened. Raises `IngestError` for a first line that names no columns, or one twice."""

    def __init__(self, path: Path, stream: IO[bytes], done: Callable[[], int]) -> None:
        self._path, self._stream, self._tell = path, stream, done
        self._total = path.stat().st_size
        head = stream.readline()
        self._ahead = b""
        if b"\r" in head.rstrip(b"\r\n"):  # lines that end as on an old Macintosh
            end = head.index(b"\r") + 1
            head, self._ahead = head[:end], head[end:]
        self._offset = len(head)
        text = head.removeprefix(_BOM).decode("utf-8", "backslashreplace")
        if not text.strip():
            raise IngestError(f"{path} is empty: expected a first line with the names of the columns")
        self.delimiter = max(",;\t|", key=text.count)
        self.names = [name.strip() for name in next(csv.reader([text], delimiter=self.delimiter))]
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if twice:
            raise IngestError(f"{path}: the first line names {', '.join(map(repr, twice))} more than once")

    def chunks(self, kinds: Kinds, start: Position) -> Iterator[Chunk]:
        """From `start` (a position of an earlier chunk, or a new one: from the first row)."""
        kept = self._ahead if start.offset <= self._offset else b""
        self._skip(start.offset)
        row, careful = start.row, start.careful
        types: Mapping[str, pa.DataType] | None = None
        while not careful:
            block = kept + self._stream.read(max(_BLOCK - len(kept), _BLOCK // 2))
            if types is None:
                types = kinds(self.names, self._sample(block))
            if not block:
                if row == start.row:
                    yield FrameChunk(self.frame([]), [], [], start, self._total, self._total)
                return
            last = len(block) == len(kept)
            end, regular = _rows_end(block, self.delimiter.encode(), last)
            if not regular:
                kept, careful = block, True
            elif end == 0:
                kept = block
                if len(kept) > _ROW_MAX:
                    raise IngestError(
                        f"{self._path}: row {row + 1} is longer than {_ROW_MAX // 2**20} MB: is a quote open?"
                    )
            else:
                kept, block = block[end:], block[:end]
                self._offset += end
                chunk = _Block(self, block, types, row, self._done(bool(kept)))
                row = chunk.position.row
                yield chunk
        kinds(self.names, {})
        yield from self._row_by_row(kept, row)

    def _sample(self, block: bytes) -> Mapping[str, str]:
        lines = (line.decode("utf-8", "backslashreplace") for line in block[:_SAMPLE].splitlines(keepends=True))
        row = next((row for row in csv.reader(lines, delimiter=self.delimiter) if row), [])
        return dict(zip(self.names, row, strict=False))

    def _skip(self, offset: int) -> None:
        if offset <= self._offset:
            return
        if self._stream.seekable() and isinstance(self._stream, io.BufferedReader):
            self._stream.seek(offset)
        else:
            while self._offset < offset:
                passed = len(self._stream.read(min(_BLOCK, offset - self._offset)))
                if not passed:
                    break
                self._offset += passed
        self._offset = offset

    def _done(self, more: bool) -> tuple[int, int]:
        packed = min(self._tell(), self._total)
        if isinstance(self._stream, io.BufferedReader):
            packed = min(self._offset, self._total)
        return (packed if more or packed < self._total else self._total), self._total

    def _row_by_row(self, kept: bytes, row: int) -> Iterator[Chunk]:
        rows: list[list[str]] = []
        numbers: list[int] = []
        broken: list[Broken] = []
        for fields in csv.reader(self._lines(kept), delimiter=self.delimiter):
            if not fields:
                continue
            row += 1
            if len(fields) == len(self.names):
                rows.append(fields)
                numbers.append(row)
            else:
                broken.append(self.broken(row, self.delimiter.join(fields), len(fields)))
            if len(rows) + len(broken) >= _CAREFUL_ROWS:
                where = Position(row=row, offset=self._offset, careful=True)
                yield FrameChunk(self.frame(rows), numbers, broken, where, *self._done(True))
                rows, numbers, broken = [], [], []
        where = Position(row=row, offset=self._offset, careful=True)
        yield FrameChunk(self.frame(rows), numbers, broken, where, self._total, self._total)

    def _lines(self, kept: bytes) -> Iterator[str]:
        # Lines are handed out when the parser needs them: with a row come exactly the bytes that it took.
        head: IO[bytes] = io.BytesIO(kept)
        for source in (head, self._stream):
            for line in source:
                if source is head and not line.endswith(b"\n"):
                    line += self._stream.readline()
                for part in line.splitlines(keepends=True):
                    self._offset += len(part)
                    yield part.decode("utf-8", "backslashreplace")

    def broken(self, number: int, text: str, fields: int) -> Broken:
        return Broken(number, text, f"{fields} fields where the first line names {len(self.names)}")

    def frame(self, rows: list[list[str]]) -> pd.DataFrame:
        import pandas as pd

        frame = pd.DataFrame(rows, columns=pd.Index(self.names), dtype="str")
        return frame.mask(frame == "")

    def parse(self, block: bytes, types: Mapping[str, pa.DataType], invalid: list[Any]) -> pa.Table:
        """Raises `ArrowInvalid` for a value that has not its type; rows of another width go to `invalid`."""
        import pyarrow as pa
        from pyarrow import csv as arrow

        def skip(row: Any) -> str:
            invalid.append(row)
            return "skip"

        quoted = b'"' in block  # without, there is less to look for

        return arrow.read_csv(
            pa.py_buffer(block),
            read_options=arrow.ReadOptions(use_threads=False, column_names=self.names, block_size=2 * len(block) + 64),
            parse_options=arrow.ParseOptions(
                delimiter=self.delimiter,
                quote_char='"' if quoted else False,
                newlines_in_values=quoted,
                invalid_row_handler=skip,
            ),
            convert_options=arrow.ConvertOptions(
                column_types=types,
                include_columns=list(types),
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=True,
            ),
        )


class _Block(Chunk):
    """A block of whole rows. Its rows are counted when it is made, which takes the first way of parsing that works."""

    def __init__(
        self, file: CsvFile, block: bytes, types: Mapping[str, pa.DataType], before: int, done: tuple[int, int]
    ) -> None:
        import pyarrow as pa

        self._file, self._block = file, block
        invalid: list[Any] = []
        self._quick: pa.Table | None = None
        self._full: pa.Table | pd.DataFrame | None = None
        rows: list[Any] | pa.Table
        try:
            rows = self._quick = file.parse(block, types, invalid)
        except pa.ArrowInvalid:
            rows = self._full = self._texts(invalid)
        position = Position(row=before + len(rows) + len(invalid), offset=file._offset)
        super().__init__(position, *done)
        self.broken = [file.broken(before + row.number, row.text, row.actual_columns) for row in invalid]
        self.numbers = range(before + 1, position.row + 1)
        if invalid:
            gone = {row.number for row in self.broken}
            self.numbers = [number for number in self.numbers if number not in gone]

    def _texts(self, invalid: list[Any]) -> pa.Table | pd.DataFrame:
        """Every column as text; by the slow parser where the bytes are no UTF-8."""
        import pyarrow as pa

        invalid.clear()
        try:
            return self._file.parse(self._block, dict.fromkeys(self._file.names, pa.string()), invalid)
        except pa.ArrowInvalid:
            invalid.clear()
            text = self._block.decode("utf-8", "backslashreplace").encode()
            return self._file.parse(text, dict.fromkeys(self._file.names, pa.string()), invalid)

    def quick(self) -> pa.Table | None:
        return self._quick

    def full(self) -> pa.Table | pd.DataFrame:
        if self._full is None:
            self._quick = None
            self._full = self._texts([])
        return self._full


def _rows_end(block: bytes, delimiter: bytes, last: bool) -> tuple[int, bool]:
    """Where the last whole row ends (0: there is none), and whether all quotes up to there stand as they should."""
    end = len(block) if last else block.rfind(b"\n") + 1
    if b'"' not in block:
        return end, True
    import numpy as np

    data = np.frombuffer(block, dtype=np.uint8)
    quotes = np.flatnonzero(data == ord('"'))
    inside = int(np.searchsorted(quotes, end))
    while inside % 2 and not last:
        end = block.rfind(b"\n", 0, int(quotes[inside - 1])) + 1
        inside = int(np.searchsorted(quotes, end))
    if inside % 2:
        return end, False
    edges = np.frombuffer(delimiter + b'\n\r"', dtype=np.uint8)
    opening, closing = quotes[:inside:2], quotes[1:inside:2]
    before = data[opening[opening > 0] - 1]
    after = data[closing[closing + 1 < len(data)] + 1]
    return end, bool(np.isin(before, edges).all() and np.isin(after, edges).all())
