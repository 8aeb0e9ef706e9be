"""A log record is one line, whatever it holds."""

from __future__ import annotations

import logging
import re

from mini_visa.log_format import OneLine, configuration


def _record(message: str, error: BaseException | None = None) -> logging.LogRecord:
    info = None if error is None else (type(error), error, error.__traceback__)
    record = logging.LogRecord("mini_visa.x", logging.INFO, __file__, 1, message, (), info)
    record.created, record.msecs = 1_795_404_142.802, 802
    return record


def test_a_record_has_its_time_in_utc_its_level_and_where_it_comes_from():
    assert OneLine().format(_record("ready")) == "2026-11-23T03:22:22.802Z INFO    mini_visa.x: ready"


def test_a_text_of_several_lines_becomes_one():
    assert OneLine().format(_record("a\n  b\r\nc")).endswith("mini_visa.x: a | b | c")


def test_a_traceback_becomes_a_part_of_its_line():
    try:
        raise ValueError("first\nsecond")
    except ValueError as error:
        text = OneLine().format(_record("failed", error))
    assert "\n" not in text
    assert re.search(r"failed \| Traceback .* \| ValueError: first \| second$", text)


def test_libraries_are_quiet_unless_the_level_is_debug():
    assert configuration("info")["loggers"]["aiokafka"] == {"level": "WARNING"}
    assert configuration("debug")["loggers"]["aiokafka"] == {"level": "DEBUG"}
