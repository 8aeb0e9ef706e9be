"""What the terminal shows while the system starts, runs and stops."""

from __future__ import annotations

from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from mini_visa.supervisor.system import State, System

STYLES = {
    State.WAITING: "dim",
    State.STARTING: "yellow",
    State.READY: "green",
    State.RESTARTING: "bold yellow",
    State.STOPPING: "yellow",
    State.STOPPED: "dim",
    State.FAILED: "bold red",
}


class Display:
    """On a terminal a table that changes in place; elsewhere (a log, a pipe) a line for each change."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._system: System | None = None
        self._said: dict[str, str] = {}

    def watch(self, system: System) -> None:
        self._system = system

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(self._table(), console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def changed(self) -> None:
        """Show the system as it is now."""
        if self._system is None:
            return
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
            return
        for name, state, note in self._rows():
            if self._said.get(name) != state:
                self._said[name] = state
                self._console.print(f"{name}: {state}{f' ({note})' if note else ''}", highlight=False)

    def _rows(self) -> list[tuple[str, State, str]]:
        """Of every part: its name, its state and what else there is to say."""
        if self._system is None:
            return []
        system = self._system
        rows = [("broker", system.broker_state, system.backbone.address)]
        for part in system.parts:
            notes = []
            if part.state is State.READY:
                notes.append(f"in {part.ready_after_s:.1f} s")
                if part.child is not None:
                    notes.append(f"process {part.child.pid}")
            if part.starts > 1:
                notes.append(f"restarted {part.starts - 1} times")
            rows.append((part.service.name, part.state, ", ".join(notes)))
        return rows

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, show_header=False)
        for name, state, note in self._rows():
            table.add_row(name, f"[{STYLES[state]}]{state}[/]", note)
        return table
