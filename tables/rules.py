"""Risk's rules, by partition: the set in force, and every set before it.

`CURRENT` -> the rules in force (absent: `DEFAULT_RULE_SET`); a set's number -> that set, so that a
verdict given under it can be given again.
"""

from __future__ import annotations

from typing import Final

from mini_visa.domain.risk import DEFAULT_RULE_SET, RuleSet
from mini_visa.streams import Table, versioned
from mini_visa.streams.table import TableView

RULES: Table[RuleSet] = versioned("rules", RuleSet)
CURRENT: Final = b"current"


def in_force(rules: TableView[RuleSet]) -> RuleSet:
    current: RuleSet = rules.get(CURRENT, DEFAULT_RULE_SET)
    return current


def put_in_force(rules: TableView[RuleSet], changed: RuleSet) -> None:
    rules[CURRENT] = changed
    rules[str(changed.number)] = changed


def of_number(rules: TableView[RuleSet], number: int) -> RuleSet:
    """The set with that number. There is one: nothing else is written into a request's row."""
    found: RuleSet | None = rules.get(str(number))
    if found is None:
        assert number == DEFAULT_RULE_SET.number, f"rule set {number} is gone"
        return DEFAULT_RULE_SET
    return found
