"""The command line: what newcomers and programs see of it. Commands that need Kafka are tested with one."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from audit.evidence import Unreadable
from audit.rules import Holds
from mini_visa import cli
from mini_visa.demo.cards import TEST_CARDS
from mini_visa.settings import settings
from mini_visa.supervisor.lock import Running

ROOT = Path(__file__).parents[2]
PAN = "4111111111111111"
PROBLEM = {
    "title": "Bad Request",
    "detail": "amount must have exactly 2 decimals",
    "errors": [{"field": "amount", "message": "must have exactly 2 decimals, has 1"}],
}
PAYMENT = {"payment_id": "pay_1", "status": "authorized", "amount": "10.00", "card": {"last4": "1111"}}


class Ran:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(capsys, monkeypatch):
    """Runs `mini-visa ARGUMENTS` in this process."""

    def call(*arguments: str, stdin: str = "", **environment: str) -> Ran:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        settings.cache_clear()
        handlers = list(logging.root.handlers)
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        settings.cache_clear()
        logging.root.handlers[:] = handlers  # a service configures the whole process
        captured = capsys.readouterr()
        return Ran(int(ended.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture
def gateway() -> Iterator[tuple[str, list[dict]]]:
    """An HTTP server that keeps what it was sent; /payments/pay_1 is there, amount "1.5" is refused."""
    calls: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer({})

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, body: dict) -> None:
            authorization = self.headers.get("Authorization", "")
            calls.append({"path": self.path, "body": body, "authorization": authorization})
            refused = body.get("amount") == "1.5"
            answer = json.dumps(PROBLEM if refused else PAYMENT).encode()
            self.send_response(400 if refused else 200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", calls
    finally:
        server.shutdown()
        server.server_close()


def _all_commands(group=None, path=()):
    import typer.main

    group = group or typer.main.get_command(cli.app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _all_commands(command, (*path, name))
        else:
            yield (*path, name), command


class TestHelp:
    def test_without_arguments_it_says_where_to_start(self, run):
        ran = run()
        assert "mini-visa demo" in ran.out + ran.err
        assert "mini-visa doctor" in ran.out + ran.err

    def test_every_command_says_in_a_sentence_what_it_does(self):
        commands = list(_all_commands())
        assert len(commands) >= 15
        for path, command in commands:
            assert command.help and command.help[0].isupper(), path
            for parameter in command.params:
                if parameter.name != "help" and getattr(parameter, "help", "") is None:
                    assert parameter.param_type_name == "argument", (path, parameter.name)

    def test_every_command_that_shows_something_can_show_json(self):
        services = {("up",), ("worker",), ("gateway",), ("clearing-house",)}
        for path, command in _all_commands():
            if path not in services:
                assert any("--json" in parameter.opts for parameter in command.params), path


class TestTestCards:
    def test_every_test_card_gets_an_account_and_one_that_is_there_is_as_good(self, run, gateway):
        url, calls = gateway
        ran = run("accounts", "open-test-cards", "--url", url)
        assert (ran.code, ran.out) == (0, f"{len(TEST_CARDS)} accounts opened, 0 were there.\n")
        assert [call["body"]["pan"] for call in calls] == list(TEST_CARDS)
        assert len({call["body"]["request_id"] for call in calls}) == len(TEST_CARDS)


class TestErrors:
    def test_a_wrong_setting_is_one_line_with_its_name_and_without_its_value(self, run):
        ran = run("topics", "list", MINI_VISA_PARTITIONS="many-secrets")
        assert ran.code == 2
        assert ran.err.startswith("mini-visa: MINI_VISA_PARTITIONS: ")
        assert ran.err.count("\n") == 1
        assert "many-secrets" not in ran.err

    def test_a_broker_that_does_not_run_is_one_line_with_the_command_that_starts_it(self, run, tmp_path):
        for command in (("topics", "list"), ("topics", "apply"), ("events", "tail")):
            ran = run(*command, MINI_VISA_HOME=str(tmp_path))
            assert ran.code == 1
            assert "`mini-visa broker start`" in ran.err
            assert ran.err.count("\n") == 1
            assert ran.out == ""

    @pytest.mark.parametrize("home", ["/proc/nope", "/dev/null/x"])
    @pytest.mark.parametrize("command", ["broker start", "up", "demo --once", "gateway"])
    def test_a_home_that_cannot_be_used_is_one_line_with_the_setting(self, run, home, command):
        ran = run(*command.split(), MINI_VISA_HOME=home)
        assert ran.code == 1
        last = ran.err.splitlines()[-1]
        assert last.startswith(f"mini-visa: {home}") and "MINI_VISA_HOME" in last
        assert "Traceback" not in ran.err

    def test_a_malformed_broker_address_is_one_line(self, run):
        for address in ("localhost:9092", "kafka://", "kafka://host", "kafka://host:0", "http://host:1"):
            ran = run("topics", "list", MINI_VISA_BROKER=address)
            assert ran.code == 1
            assert "kafka://HOST:PORT" in ran.err

    def test_an_unknown_service_is_one_line(self, run):
        ran = run("worker", "settlements")
        assert ran.code == 2
        assert "no service 'settlements'" in ran.err

    def test_a_mistake_of_the_program_itself_keeps_its_traceback(self, monkeypatch):
        def broken() -> None:
            raise ZeroDivisionError

        monkeypatch.setattr("mini_visa.cli.topics.settings", broken)
        with pytest.raises(ZeroDivisionError):
            cli.main(["topics", "list"])


class TestBrokerCommands:
    def test_status_of_none_says_so_and_fails(self, run, tmp_path):
        ran = run("broker", "status", MINI_VISA_HOME=str(tmp_path))
        assert (ran.code, ran.out) == (1, "Kafka is not running. Start it: mini-visa broker start\n")
        ran = run("broker", "status", "--json", MINI_VISA_HOME=str(tmp_path))
        assert json.loads(ran.out)["running"] is False

    def test_stop_of_none_is_no_error(self, run, tmp_path):
        assert run("broker", "stop", MINI_VISA_HOME=str(tmp_path)).code == 0

    def test_a_cluster_elsewhere_is_not_stopped(self, run):
        ran = run("broker", "stop", MINI_VISA_BROKER="kafka://elsewhere:9092")
        assert ran.code == 1
        assert "cluster elsewhere" in ran.err


class TestKeys:
    def test_a_key_is_shown_once_listed_without_its_secret_and_revoked(self, run, tmp_path):
        home = {"MINI_VISA_HOME": str(tmp_path)}
        key = run("keys", "create", "shop", "--scope", "payments:write", **home).out.strip()
        assert key.startswith("mvk_")
        (listed,) = json.loads(run("keys", "list", "--json", **home).out)
        assert (listed["name"], listed["scopes"], listed["revoked_at"]) == ("shop", ["payments:write"], None)
        assert key not in run("keys", "list", **home).out
        assert json.loads(run("keys", "revoke", listed["key_id"], "--json", **home).out)["revoked_at"]

    def test_an_unknown_scope_is_one_line_with_the_known_ones(self, run, tmp_path):
        ran = run("keys", "create", "shop", "--scope", "money", MINI_VISA_HOME=str(tmp_path))
        assert ran.code == 1
        assert "payments:write" in ran.err and ran.err.count("\n") == 1


class TestGateway:
    def test_it_says_how_to_start_the_broker_that_it_needs(self, run, tmp_path):
        ran = run("gateway", MINI_VISA_HOME=str(tmp_path))
        assert ran.code == 1
        assert "`mini-visa broker start`" in ran.err and ran.err.count("\n") == 1

    def test_it_says_which_tokenization_key_it_cannot_use(self, run, tmp_path):
        (tmp_path / "token-keys").write_text("1:short\n")
        ran = run("gateway", MINI_VISA_HOME=str(tmp_path), MINI_VISA_BROKER="kafka://127.0.0.1:1")
        assert ran.code == 1
        assert "token-keys" in ran.err and "short" not in ran.err and ran.err.count("\n") == 1


class TestReadModel:
    def test_its_tables_are_made_and_a_second_time_changes_nothing(self, run, tmp_path):
        home = {"MINI_VISA_HOME": str(tmp_path)}
        first = json.loads(run("readmodel", "migrate", "--json", **home).out)
        assert (tmp_path / "readmodel.sqlite").exists()
        assert json.loads(run("readmodel", "migrate", "--json", **home).out) == first

    def test_a_rebuild_needs_the_log_and_says_so_in_one_line(self, run, tmp_path):
        elsewhere = {"MINI_VISA_HOME": str(tmp_path), "MINI_VISA_BROKER": "kafka://127.0.0.1:1"}
        ran = run("readmodel", "rebuild", "--json", **elsewhere)
        assert ran.code == 1
        assert "127.0.0.1:1" in ran.err and ran.err.count("\n") == 1


def test_every_command_that_a_text_of_the_program_names_exists():
    """An error that sends its reader to a command that is not there is worse than none."""
    known = {path for path, _ in _all_commands()}
    groups = {path[0] for path in known}
    for source in (ROOT / "mini_visa").rglob("*.py"):
        for first, second in re.findall(r"[`:] ?mini-visa ([a-z-]+)(?: ([a-z-]+))?", source.read_text()):
            assert first in groups, (source, first)
            assert (first,) in known or not second or (first, second) in known, (source, first, second)


class TestGatewayCommands:
    def test_authorize_sends_what_was_given_and_shows_the_payment(self, run, gateway):
        url, calls = gateway
        ran = run(
            "authorize", "10.00", "--pan", PAN, "--currency", "USD", "--mcc", "5411", "--request-id", "r-1",
            "--url", url, "--api-key", "secret",
        )  # fmt: skip
        assert ran.code == 0
        assert calls == [
            {
                "path": "/payments/authorize",
                "body": {
                    "request_id": "r-1",
                    "pan": PAN,
                    "amount": "10.00",
                    "currency": "USD",
                    "mcc": "5411",
                },
                "authorization": "Bearer secret",
            }
        ]
        assert "pay_1" in ran.out and "authorized" in ran.out
        assert PAN not in ran.out + ran.err

    def test_the_card_number_is_read_from_standard_input(self, run, gateway):
        url, calls = gateway
        assert run("authorize", "10.00", "--url", url, "--json", stdin=f"{PAN}\n").code == 0
        assert calls[0]["body"]["pan"] == PAN
        assert calls[0]["body"]["request_id"].startswith("cli-")

    def test_json_is_the_gateways_answer(self, run, gateway):
        ran = run("payments", "show", "pay_1", "--json", "--url", gateway[0])
        assert json.loads(ran.out) == PAYMENT
        assert gateway[1][0]["path"] == "/payments/pay_1"

    def test_a_problem_is_shown_with_its_field_and_without_the_card_number(self, run, gateway):
        ran = run("authorize", "1.5", "--pan", PAN, "--url", gateway[0])
        assert ran.code == 1
        assert "400 Bad Request: amount must have exactly 2 decimals" in ran.err
        assert "amount: must have exactly 2 decimals, has 1" in ran.err
        assert PAN not in ran.out + ran.err

    def test_no_gateway_is_one_line_that_says_how_to_start_one(self, run):
        ran = run("accounts", "show", "tok_1", "--url", "http://127.0.0.1:1")
        assert ran.code == 1
        assert "`mini-visa up`" in ran.err and ran.err.count("\n") == 1

    @pytest.mark.parametrize("url", ["http://localhost:abc", "http://[::1", "http://127.0.0.1:1/ x"])
    def test_an_address_that_is_none_is_one_line_too(self, run, url):
        ran = run("accounts", "show", "tok_1", "--url", url)
        assert ran.code == 1 and ran.err.count("\n") == 1 and "--url" in ran.err

    def test_what_answers_may_speak_no_http(self, run):
        with socket.create_server(("127.0.0.1", 0)) as server:

            def answer() -> None:
                connection, _ = server.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"220 ready\r\n")

            threading.Thread(target=answer, daemon=True).start()
            ran = run("accounts", "show", "tok_1", "--url", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert ran.code == 1 and ran.err.count("\n") == 1

    def test_a_key_is_taken_without_its_line_end_and_never_shown(self, run, gateway):
        url, calls = gateway
        assert run("payments", "show", "pay_1", "--url", url, MINI_VISA_API_KEY="mvk_secret\n").code == 0
        assert calls[-1]["authorization"] == "Bearer mvk_secret"
        ran = run("payments", "show", "pay_1", "--url", url, MINI_VISA_API_KEY="mvk_sec\nret")
        assert ran.code == 1 and "ret" not in ran.out + ran.err.replace("secret", "")
        assert "mini-visa keys create" in ran.err and len(calls) == 1

    def test_an_audit_goes_by_the_holds_and_cycles_of_the_system_that_runs_here(
        self, run, tmp_path, monkeypatch
    ):
        given = []

        class NoCluster:
            def __init__(self, *arguments: object) -> None:
                given.extend(arguments)

            def open(self) -> None:
                raise Unreadable("there is none")

            def close(self) -> None:
                pass

        monkeypatch.setattr("audit.evidence.Cluster", NoCluster)
        monkeypatch.setattr("mini_visa.kafka.client_options", lambda _: {})
        durations = {"hold_fuel_s": 2.0, "clearing_cycle_s": 5.0}
        running = Running(os.getpid(), "", "kafka://127.0.0.1:1", "", durations=durations)
        (tmp_path / "running.json").write_text(json.dumps(asdict(running)))
        assert "there is none" in run("audit", MINI_VISA_HOME=str(tmp_path)).err
        assert given[-2:] == [Holds.lasting(7, 31, 2.0), 5_000]

    @pytest.mark.parametrize("letter", ["0/²", "0/" + "9" * 5000, "1", "/", "0/-1"])
    def test_a_letter_has_a_partition_and_an_offset(self, run, letter):
        ran = run("dead-letters", "send-back", "risk", letter)
        assert ran.code == 2 and "0/17" in ran.err

    def test_the_gateway_of_this_home_needs_no_address(self, run, gateway, tmp_path):
        url, calls = gateway
        port = url.rpartition(":")[2]
        assert run("payments", "show", "pay_1", MINI_VISA_GATEWAY_PORT=port).code == 0
        running = Running(supervisor=os.getpid(), gateway_url=url, broker="", started_at="")
        (tmp_path / "running.json").write_text(json.dumps(asdict(running)))
        elsewhere = {"MINI_VISA_HOME": str(tmp_path), "MINI_VISA_GATEWAY_PORT": "1"}
        assert run("payments", "show", "pay_1", **elsewhere).code == 0
        assert len(calls) == 2
        assert run("load", "--seconds", "0.2", "--cards", "1", **elsewhere).code == 0
        assert {"/accounts", "/payments/authorize"} <= {call["path"] for call in calls}
        refused = run("payments", "show", "pay_1", "--url", "http://127.0.0.1:1", **elsewhere)
        assert refused.code == 1 and "MINI_VISA_URL" in refused.err

    @pytest.mark.parametrize("wrong", ["../secrets", "a b", "a?b", ""])
    def test_an_id_that_cannot_be_one_is_not_sent(self, run, gateway, wrong):
        assert run("payments", "show", wrong, "--url", gateway[0]).code == 2
        assert gateway[1] == []


def test_the_installed_command_is_this_one():
    done = subprocess.run([sys.executable, "-m", "mini_visa.cli", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "doctor" in done.stdout


def test_help_is_quick_because_nothing_heavy_is_imported():
    code = (
        "import sys, mini_visa.cli\n"
        "print([n for n in ('faust', 'aiokafka', 'rocksdict', 'aiohttp', 'sqlalchemy') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
