"""Make examples of rows: looks columns up, and checks texts, labels and scores."""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from typing import Any

from bnb_ds.common.tables import Row, RowFault
from bnb_ds.errors import ConfigError, nearest
from bnb_ds.tasks.data_section import TaskDataSection
from bnb_ds.tasks.task import Task

_WHOLE_NUMBER = re.compile(r"[0-9]+(\.0+)?")


@dataclass(frozen=True)
class Example:
    """One example of a task.

    Attributes:
        id: the row's own id, or a hash of its text.
        sources: the text of each source column.
        target: a text, the number of a class, or the score of a regression.
    """

    id: str
    sources: tuple[str, ...]
    target: str | int | float


class RowReader:
    """Makes an example of a row.

    Args:
        task: names the columns.
        data: ``columns`` gives their names in the files.
        with_targets: whether rows must have a target; otherwise every target is an empty text.

    Raises:
        ConfigError: ``data.columns`` names a column that the task does not have.
    """

    def __init__(self, task: Task, data: TaskDataSection, *, with_targets: bool = True) -> None:
        self._task = task
        self._with_targets = with_targets
        self._names: dict[str, list[str | int]] = {}
        known = [*task.sources, task.target, *filter(None, (task.id_column, task.document_column))]
        for column in data.columns:
            if column not in known:
                raise ConfigError(f"data.columns: task {task.name} has no column {column!r}; {nearest(column, known)}")
        for column in known:
            names = data.columns.get(column, column)
            self._names[column] = [*names] if isinstance(names, list) else [names]
        self._class_of = {name: number for number, name in enumerate(task.labels)}
        #: whether the first numbered label had a decimal point; all others must have the same form
        self._decimal_point: bool | None = None

    def __call__(self, place: str, row: Row) -> Example:
        """Make the example.

        Args:
            place: file and line of the row, for messages.
            row: column -> value.

        Raises:
            RowFault: a column is missing, a text is empty or no text, or a label or score is wrong.
        """
        sources = tuple(self._text(place, row, column, "source") for column in self._task.sources)
        target = self._target(place, row) if self._with_targets else ""
        return Example(self._id(place, row, sources, target), sources, target)

    def _text(self, place: str, row: Row, column: str, role: str) -> str:
        value = self._value(place, row, column)
        values = value if isinstance(value, list) else [value]
        for part in values:
            if isinstance(part, (dict, list, bytes, bool)):
                raise RowFault(
                    f"{role} is no text",
                    f"{place}: the {role} ({column}) is a {type(part).__name__}, not a text; give its name with"
                    f" data.columns.{column}=NAME",
                )
        text = " ".join(str(part) for part in values if not _is_missing(part))
        if not text.strip():
            raise RowFault(f"empty {role}", f"{place}: the {role} ({column}) is empty; remove the row")
        return _whole(place, text, column)

    def _value(self, place: str, row: Row, column: str) -> Any:
        for name in self._names[column]:
            found, value = _look_up(row, name)
            if found:
                return value
        names = " or ".join(repr(name) for name in self._names[column])
        raise RowFault(
            f"no column {names}",
            f"{place}: has no column {names}, only {', '.join(map(str, row))}; give its name with"
            f" data.columns.{column}=NAME",
        )

    def _target(self, place: str, row: Row) -> str | int | float:
        task = self._task
        if task.is_generation:
            return self._text(place, row, task.target, "target")
        value = self._value(place, row, task.target)
        if isinstance(value, str):
            value = value.strip()
        if task.kind == "regression":
            return _score(place, value)
        if _is_missing(value):
            raise RowFault("no label", f"{place}: the label ({task.target}) is empty; remove the row")
        return self._class(place, value)

    def class_name(self, place: str, row: Row) -> str:
        """The name of a row's class, for a task whose classes are the data's.

        Raises:
            RowFault: there is none.
        """
        value = self._value(place, row, self._task.target)
        return self._name_of_class(place, value.strip() if isinstance(value, str) else value)

    def _name_of_class(self, place: str, value: Any) -> str:
        if _is_missing(value):
            raise RowFault("no label", f"{place}: the label ({self._task.target}) is empty; remove the row")
        if isinstance(value, (dict, list, bytes)):
            raise RowFault(
                "label is no name",
                f"{place}: the label ({self._task.target}) is a {type(value).__name__}, not a name; give its column"
                f" with data.columns.{self._task.target}=NAME",
            )
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)

    def _own_class(self, place: str, value: Any) -> int:
        name = self._name_of_class(place, value)
        if name not in self._class_of:
            raise RowFault(
                "unknown label",
                f"{place}: the label {name!r} is not one of the classes ({nearest(name, self._class_of)}); correct it,"
                " or list all classes in data.labels",
            )
        return self._class_of[name]

    def _class(self, place: str, value: Any) -> int:
        if self._task.is_own:
            return self._own_class(place, value)
        if isinstance(value, str) and value in self._class_of:
            return self._class_of[value]
        number, decimal_point = _class_number(value)
        if number is None or number >= len(self._class_of):
            numbered = ", ".join(f"{number} {name}" for name, number in self._class_of.items())
            raise RowFault(
                "unknown label",
                f"{place}: the label {value!r} is not one of {self._task.name}'s ({numbered}); correct it",
            )
        if self._decimal_point is None:
            self._decimal_point = decimal_point
        if self._decimal_point != decimal_point:
            raise RowFault(
                "label in another form",
                f"{place}: the label {value!r} has {'a' if decimal_point else 'no'} decimal point, unlike the first;"
                " write all labels alike",
            )
        return number

    def _id(self, place: str, row: Row, sources: tuple[str, ...], target: object) -> str:
        if self._task.id_column is not None:
            for name in self._names[self._task.id_column]:
                found, value = _look_up(row, name)
                if found and not _is_missing(value):
                    return _whole(place, str(value), self._task.id_column)
        text = "\x1f".join((*sources, str(target)))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _class_number(value: Any) -> tuple[int | None, bool]:
    """The number that a label is, or None; and whether it is written with a decimal point."""
    if isinstance(value, str) and _WHOLE_NUMBER.fullmatch(value):
        return int(value.partition(".")[0]), "." in value
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value, False
    if isinstance(value, float) and value.is_integer() and value >= 0:
        return int(value), True
    return None, False


def _score(place: str, value: Any) -> float:
    if value is None or value == "":
        raise RowFault("no score", f"{place}: the score is empty; remove the row")
    try:
        # float() also takes True, and digits with underscores.
        score = math.nan if isinstance(value, bool) or "_" in str(value) else float(value)
    except (TypeError, ValueError, OverflowError):
        score = math.nan
    if not math.isfinite(score):
        raise RowFault("score is no number", f"{place}: the score {value!r} is not a number; correct it")
    return score


def _look_up(row: Row, name: str | int) -> tuple[bool, Any]:
    if name in row:
        return True, row[name]
    value: Any = row
    for part in str(name).split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return False, None
    return True, value


def _is_missing(value: Any) -> bool:
    """Whether a value stands for none: null, an empty text, or the NaN that tables hold in gaps."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _whole(place: str, text: str, column: str) -> str:
    """The text, if it is Unicode. JSON can spell halves of characters (``\\ud83d`` alone), which no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise RowFault(
            "text with half a character",
            f"{place}: the text of {column} holds {half}, which is half a character (a lone surrogate); correct it",
        ) from None
    return text
