"""MCP servers as tools: two real ones (stdio, HTTP), and ones that crash, hang, shout, change tools or stay behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from fakes import FakeEngine

import localgemma
from localgemma import settings
from localgemma.chat.conversation import Conversation
from localgemma.chat.functions import Tool
from localgemma.chat.mcp.config import Address, Command, read_config
from localgemma.chat.mcp.servers import Servers
from localgemma.chat.results import ToolFailed
from localgemma.chat.tool_loop import Toolbox
from localgemma.chat.turn import collect
from localgemma.engine import CancelToken
from localgemma.errors import AccessError, LocalgemmaError, NotFound, OfflineError, ToolServerError, UsageError
from localgemma.messages import ImagePart, Notice, ToolCall, ToolResult, ToolStarted
from localgemma.options import ServerLimits, ToolLimits

TESTS = Path(__file__).parent
QUICK = ServerLimits(start_seconds=60, stop_seconds=0.3)
posix = pytest.mark.skipif(sys.platform == "win32", reason="process groups and signals are those of POSIX")


def world(*arguments: str, **more: Any) -> dict[str, Any]:
    """The entry of the real server."""
    return {"command": sys.executable, "args": [str(TESTS / "mcp_world.py"), *arguments], **more}


def odd(kind: str) -> dict[str, Any]:
    """The entry of a server that behaves badly."""
    return {"command": sys.executable, "args": ["-I", "-S", str(TESTS / "mcp_odd.py"), kind]}


def opened(limits: ServerLimits = QUICK, **entries: Any) -> Servers:
    """Started servers."""
    return localgemma.mcp({"mcpServers": entries}, limits=limits)


def named(servers: Servers) -> dict[str, Tool]:
    """The tools by their names."""
    return {tool.name: tool for tool in servers.tools()}


def run(servers: Servers, name: str, **arguments: Any) -> Any:
    """Call a tool as the loop does, without its limits."""
    function = named(servers)[name].function
    assert function is not None
    return function(**arguments)


def call(name: str, **arguments: Any) -> str:
    """A call as the model writes it."""
    written = ",".join(
        f"{key}:" + (f'<|"|>{value}<|"|>' if isinstance(value, str) else json.dumps(value)) for key, value in arguments.items()
    )
    return f"<|tool_call>call:{name}{{{written}}}<tool_call|>"


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Http:
    """The real server on 127.0.0.1; it ends with its input."""

    def __init__(self, *flags: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self.entry = {"url": f"http://127.0.0.1:{self.port}/mcp", "headers": {"X-Test": "1"}}
        command = [sys.executable, str(TESTS / "mcp_world.py"), "--http", str(self.port), *flags]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 120
        while time.monotonic() < end and self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.05)
        raise AssertionError("the server did not come up")

    def end(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def stdio() -> Iterator[Servers]:
    """The real server over its input and output."""
    with opened(world=world()) as servers:
        yield servers


@pytest.fixture(scope="module")
def http() -> Iterator[Servers]:
    """The real server over HTTP."""
    server = Http()
    try:
        with opened(world=server.entry) as servers:
            yield servers
    finally:
        server.end()


@pytest.fixture(params=["stdio", "http"])
def either(request: pytest.FixtureRequest) -> Servers:
    """Both in turn."""
    servers: Servers = request.getfixturevalue(request.param)
    return servers


# ---- the configuration -----------------------------------------------------------------------------------------------


def test_the_usual_form_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "secret")
    monkeypatch.delenv("NOWHERE", raising=False)
    file = tmp_path / "mcp.json"
    servers = {
        "files": {"command": "npx", "args": ["-y", "x", "${NOWHERE:-/tmp}"], "env": {"KEY": "${TOKEN}"}, "cwd": str(tmp_path)},
        "web": {"type": "http", "url": "https://a:pw@example.org/mcp?key=1", "headers": {"X-Auth": "Bearer ${env:TOKEN}"}},
        "off": {"command": "x", "disabled": True},
        "other": {"type": "stdio", "command": "y", "alwaysAllow": ["z"]},
    }  # fmt: skip
    file.write_text(json.dumps({"mcpServers": servers, "globalShortcut": "x"}), encoding="utf-8-sig")
    found, notes = read_config(file)
    assert found == (
        Command("files", "npx", ("-y", "x", "/tmp"), {"KEY": "secret"}, str(tmp_path)),
        Address("web", "https://a:pw@example.org/mcp?key=1", {"X-Auth": "Bearer secret"}),
        Command("other", "y"),
    )
    assert notes == (f"{file}: other.alwaysAllow has no effect here.",)
    assert str(found[1]) == "https://example.org/mcp"  # nothing that may be a secret is shown


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "line 1, is not JSON"),
        ("[]", "holds no JSON object"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("{}", '"mcpServers" is missing'),
        ('{"mcpservers": {}}', "Did you write 'mcpservers'"),
        ('{"mcpServers": []}', '"mcpServers" is no object'),
        ('{"mcpServers": {}}', "no MCP server that is switched on"),
        ('{"mcpServers": {"": {"command": "x"}}}', "mcpServers has a name that is empty"),
        ('{"mcpServers": {"a\\nb": {}}}', "mcpServers.'a\\nb' has a name that is empty"),
        ('{"mcpServers": {"a": 1}}', "mcpServers.a is no object"),
        ('{"mcpServers": {"a": {}}}', "mcpServers.a.command is missing"),
        ('{"mcpServers": {"a": {"command": 1}}}', "mcpServers.a.command is no text"),
        ('{"mcpServers": {"a": {"command": "x", "arg": []}}}', "mcpServers.a.arg is not known. Did you mean 'args'?"),
        ('{"mcpServers": {"a": {"command": "x", "args": "y"}}}', "mcpServers.a.args is no list of strings"),
        ('{"mcpServers": {"a": {"command": "x", "env": {"A": 1}}}}', "mcpServers.a.env is no object of strings"),
        ('{"mcpServers": {"a": {"command": "x", "env": {"A=B": "1"}}}}', "mcpServers.a.env.'A=B' has characters"),
        ('{"mcpServers": {"a": {"command": "x", "cwd": "/no/such"}}}', "mcpServers.a.cwd names no folder: /no/such"),
        ('{"mcpServers": {"a": {"command": "${NOT_SET_1}"}}}', "mcpServers.a.command needs the variable NOT_SET_1"),
        ('{"mcpServers": {"a": {"url": "ftp://x"}}}', "mcpServers.a.url is no http address"),
        ('{"mcpServers": {"a": {"url": "http://x:99999/"}}}', "mcpServers.a.url is no http address"),
        ('{"mcpServers": {"a": {"url": "http://x", "headers": {"A": "b\\nc"}}}}', "mcpServers.a.headers.'A' has characters"),
        ('{"mcpServers": {"a": {"type": "sse", "url": "http://x"}}}', "mcpServers.a.type is sse"),
        ('{"mcpServers": {"a": {"type": "ws", "url": "http://x"}}}', "mcpServers.a.type cannot be 'ws'"),
        ('{"mcpServers": {"a": {"url": "http://x", "command": "y"}}}', "mcpServers.a.command is not known"),
        ('{"mcpServers": {"a": {"command": "x", "disabled": "no"}}}', "mcpServers.a.disabled is neither"),
    ],
)
def test_a_broken_configuration_names_file_and_field(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "mcp.json"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_config(file)
    assert said in str(caught.value) and str(file) in str(caught.value) and caught.value.hint
    assert "\n" not in str(caught.value)


def test_a_configuration_that_is_not_there() -> None:
    with pytest.raises(NotFound, match=r"There is no file nowhere\.json"):
        localgemma.mcp("nowhere.json")


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(NotFound, match="no program 'no-such-program', which the MCP server a needs"):
        opened(a={"command": "no-such-program"})


# ---- the two real servers --------------------------------------------------------------------------------------------


def test_tools_have_names_and_declarations_that_gemma_can_read(either: Servers) -> None:
    tools = named(either)
    assert {"world__get_weather", "world__take_order_", "world__say"} <= set(tools)
    city = {"type": "string", "description": "City name"}
    unit = {"type": "string", "enum": ["celsius", "fahrenheit"]}
    assert tools["world__get_weather"].declaration["function"] == {
        "name": "world__get_weather",
        "description": "Get the weather of a city.",
        "parameters": {"type": "object", "properties": {"city": city, "unit": unit}, "required": ["city"]},
    }
    place = tools["world__take_order_"].declaration["function"]["parameters"]["properties"]["place"]
    assert place["properties"]["number"] == {"type": "integer", "nullable": True}
    schema = tools["world__take_order_"].schema
    assert schema is not None and "$defs" in schema  # what the server said stays beside what is declared


def test_results_of_all_kinds(either: Servers) -> None:
    assert run(either, "world__get_weather", city="Oslo") == {"temperature": 21, "condition": "sunny"}
    assert run(either, "world__say", text="<|turn>héllo") == "<|turn>héllo"
    assert run(either, "world__take_order_", place={"street": "x", "number": 3}) == {"text": "x", "amount": 3}
    words, picture = run(either, "world__picture", color="red")
    assert words == "Here it is:" and picture.startswith(b"\x89PNG")
    mixed = run(either, "world__mixed")
    assert mixed == (
        "One.\n\nmemo://1:\nA page.\n\n[Report: https://example.org/report]\n\n[a sound, 2.93 KiB, which cannot be heard here]"
    )
    with pytest.raises(ToolFailed, match="fail: too bad"):
        run(either, "world__fail", text="too bad")
    with pytest.raises(ToolFailed, match=r"place\.street"):
        run(either, "world__take_order_", place={})


def test_a_conversation_calls_asks_and_goes_on(either: Servers) -> None:
    first = call("world__get_weather", city="Oslo") + call("world__picture", color="blue") + call("world__fail", text="no")
    asked: list[str] = []

    def approve(wanted: ToolCall) -> bool:
        asked.append(wanted.name)
        return True

    engine = FakeEngine([first, "It is sunny."])
    chat = Conversation(engine, tools=Toolbox.of([either], approve))
    events = list(chat.send("Weather?"))
    assert asked == ["world__get_weather", "world__picture", "world__fail"]
    assert sum(isinstance(event, ToolStarted) for event in events) == 3
    weather, picture, failed = [event for event in events if isinstance(event, ToolResult)]
    assert weather.message.result == {"temperature": 21, "condition": "sunny"}
    assert isinstance(picture.message.content[1], ImagePart) and picture.message.content[1].pixels is not None
    assert failed.error is not None and "no" in failed.error
    assert chat.history[-1].text == "It is sunny."
    denied = collect(Conversation(FakeEngine([first, "Well."]), tools=Toolbox.of([either], ["world__say"])).send("Again?"))
    assert [result.error for result in denied.tool_results] == ["The user does not allow this call."] * 3


def test_arguments_that_are_wrong_go_back_to_the_model(stdio: Servers) -> None:
    engine = FakeEngine([call("world__get_weather", town="Oslo"), "Sorry."])
    answer = collect(Conversation(engine, tools=[stdio]).send("Weather?"))
    assert "city" in str(answer.tool_results[0].error)


# ---- limits ----------------------------------------------------------------------------------------------------------


def test_fifty_megabytes_are_an_error_and_the_server_goes_on(either: Servers) -> None:
    with pytest.raises(ToolFailed, match=r"16 MiB|exceeds"):
        run(either, "world__large", megabytes=50)
    assert run(either, "world__say", text="still here") == "still here"
    engine = FakeEngine([call("world__large", megabytes=1), "Long."])
    list(Conversation(engine, tools=[either]).send("A lot?"))
    assert engine.count(engine.requests[-1].prompt) < 20_000 + 10_000


def test_fifty_megabytes_as_one_json_document() -> None:
    server = Http("--json")
    try:
        with opened(world=server.entry) as servers:
            with pytest.raises(ToolFailed, match="more than 16 MiB"):
                run(servers, "world__large", megabytes=50)
            assert run(servers, "world__say", text="still here") == "still here"
    finally:
        server.end()


@posix
def test_fifty_megabytes_take_no_memory() -> None:
    code = f"""
import resource, sys
sys.path[:0] = [{str(TESTS)!r}, {str(TESTS.parent)!r}]
from test_mcp import odd, opened, run
servers = opened(a=odd("endless"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    run(servers, "a__echo", text="x")
except Exception as error:
    print(error)
servers.close()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    said, grown = done.stdout.strip().splitlines()
    assert said == "The server sent 50 MiB at once, and 16 MiB are allowed.", done.stderr
    assert int(grown) < 40, "MiB more than before the message"


def test_a_call_that_hangs_is_limited_cancelled_and_stopped_at_the_server(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with opened(world=world(env={"SLEEP_LOG": str(log)})) as servers:
        engine = FakeEngine([call("world__sleep", seconds=100), "Never mind."])
        answer = collect(Conversation(engine, tools=Toolbox.of([servers], limits=ToolLimits(tool_seconds=1))).send("Sleep."))
        assert answer.tool_results[0].error == "The tool did not answer within 1 seconds."
        assert answer.content == "Never mind."
        _wait(lambda: log.read_text() == "began\nstopped\n")

        token = CancelToken()
        chat = Conversation(FakeEngine([call("world__sleep", seconds=100)]), tools=[servers])

        def stop_it() -> None:
            _wait(lambda: log.read_text().count("began") == 2)
            token.cancel()

        threading.Thread(target=stop_it).start()
        answer = collect(chat.send("Sleep.", cancel=token))
        assert [result.error for result in answer.tool_results] == ["The user stopped this call."]
        assert answer.finish_reason == "cancelled"
        _wait(lambda: log.read_text() == "began\nstopped\n" * 2)
        assert run(servers, "world__say", text="on") == "on"


def test_a_server_that_never_answers_does_not_hold_the_start() -> None:
    with pytest.raises(ToolServerError, match=r"a was not ready after 1 seconds \(hello from stderr\)"):
        opened(ServerLimits(start_seconds=1, stop_seconds=0.3), a=odd("mute"))


def test_a_start_that_hangs_can_be_stopped() -> None:
    servers = Servers(read_config({"mcpServers": {"a": odd("mute")}})[0], QUICK)
    errors: list[LocalgemmaError] = []
    starting = threading.Thread(target=lambda: errors.extend(servers.start()))
    starting.start()
    _wait(lambda: servers.servers[0].state == "starting")
    servers.close()
    starting.join(20)
    assert not starting.is_alive() and "was stopped" in str(errors[0])


def test_a_server_that_ends_at_once_says_why() -> None:
    with pytest.raises(ToolServerError, match=r"a ended \(exit code 3: Traceback: no such table\)"):
        opened(a=odd("dies"))


def test_of_several_servers_the_others_can_go_on() -> None:
    config = {"mcpServers": {"bad": odd("dies"), "good": odd("garbage")}}
    with localgemma.mcp(config, limits=QUICK, partial=True) as servers:
        states = {server.name: (server.state, str(server.error or "")) for server in servers.servers}
        assert states["good"] == ("running", "") and states["bad"][0] == "ended" and "exit code 3" in states["bad"][1]
        assert run(servers, "good__echo", text="x") == "echo: x"
        with pytest.raises(ToolServerError, match="exit code 3"):
            servers.restart("bad")
        with pytest.raises(NotFound, match="The names are: bad, good"):
            servers.restart("ugly")
    with pytest.raises(ToolServerError):
        localgemma.mcp({"mcpServers": {"bad": odd("dies")}}, limits=QUICK, partial=True)


# ---- servers that misbehave ------------------------------------------------------------------------------------------


def test_a_crash_is_a_result_and_the_next_call_starts_it_again() -> None:
    with opened(world=world()) as servers:
        replies = [call("world__crash", code=7), call("world__say", text="again"), "Fine."]
        answer = collect(Conversation(FakeEngine(replies), tools=[servers]).send("Crash."))
        crashed, again = answer.tool_results
        assert crashed.error == (
            "The MCP server world ended (exit code 7: I have had enough). It is started again for the next call."
        )
        assert again.message.text == "again"


def test_a_server_at_an_address_that_went_away_and_came_back() -> None:
    server = Http()
    try:
        with opened(world=server.entry) as servers:
            assert run(servers, "world__say", text="1") == "1"
            server.end()
            with pytest.raises(ToolFailed, match="The MCP server world"):
                run(servers, "world__say", text="2")
            with pytest.raises(ToolFailed, match="The MCP server world"):
                run(servers, "world__say", text="3")
            server = Http(port=server.port)
            assert run(servers, "world__say", text="4") == "4"
    finally:
        server.end()


def test_nobody_at_an_address() -> None:
    with pytest.raises(ToolServerError, match=r"a at http://127\.0\.0\.1:\d+/mcp cannot be used"):
        opened(a={"url": f"http://127.0.0.1:{free_port()}/mcp"})


@pytest.mark.parametrize(
    ("status", "kind", "said"), [(401, AccessError, "refuses this client"), (500, ToolServerError, "error")]
)
def test_an_address_that_refuses(status: int, kind: type[LocalgemmaError], said: str) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        with pytest.raises(kind, match=said):
            opened(a={"url": f"http://127.0.0.1:{web.server_port}/mcp"})
        web.shutdown()


def test_changed_tools_are_taken_up_between_turns(either: Servers) -> None:
    engine = FakeEngine([call("world__change"), "Changed.", call("world__now"), "Noon."])
    chat = Conversation(engine, tools=[either])
    list(chat.send("Change."))
    assert "world__now" not in str(engine.requests[1].prompt)  # a turn keeps the tools that it began with
    _wait(lambda: "world__now" in named(either))
    events = list(chat.send("What time is it?"))
    notices = [event.text for event in events if isinstance(event, Notice)]
    assert notices[:2] == ["New tools: world__now.", "Tools that are gone: world__fail."]
    assert notices[2].endswith(" tokens will be read again.") and len(notices) == 3
    assert [e.message.text for e in events if isinstance(e, ToolResult)] == ["12:00"]
    run(either, "world__say", text="x")


def test_changed_tools_of_the_earlier_protocol() -> None:
    with opened(a=odd("changes")) as servers:
        chat = Conversation(FakeEngine([call("a__echo", text="x"), "One.", "Two."]), tools=[servers])
        list(chat.send("Change."))
        _wait(lambda: "a__more" in named(servers))
        said = [event.text for event in chat.send("And?") if isinstance(event, Notice)]
        assert said[0] == "New tools: a__more." and said[1].endswith(" tokens will be read again.") and len(said) == 2


def test_words_on_stdout_and_answers_that_are_none() -> None:
    with opened(a=odd("garbage"), b=odd("odd"), c=odd("nested"), d=odd("pages")) as servers:
        assert run(servers, "a__echo", text="x") == "echo: x"
        with pytest.raises(ToolFailed, match="The MCP server b answered what is no result"):
            run(servers, "b__echo", text="x")
        assert [name for name in named(servers) if name.startswith("d__")] == [f"d__echo{number}" for number in range(5)]
        deep = named(servers)["c__deep"].declaration
        assert len(json.dumps(deep)) < 1000
        engine = FakeEngine([call("c__echo", text="x"), "Deep."])
        assert collect(Conversation(engine, tools=[servers]).send("Go.")).content == "Deep."


def test_names_are_made_unique_and_tools_that_cannot_be_declared_are_left_out() -> None:
    with opened(many=odd("many")) as servers:
        names = list(named(servers))
        assert names[:2] == ["many__echo_0", "many__echo_0_2"] and len(names) == 256 - 2
        said = "\n".join(servers.news())
        assert "many__huge of the MCP server many is left out. Its schema has 30," in said
        assert "many__lost of the MCP server many is left out. Its schema refers to '#/$defs/nowhere'" in said
        assert "offers 300 tools, and 256 of them are taken" in said
        assert servers.news() == []


# ---- nothing stays behind --------------------------------------------------------------------------------------------


def _children(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def _wait(done: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def _alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [each for each in processes if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


@posix
@pytest.mark.parametrize("kind", ["garbage", "stubborn", "child"])
def test_close_ends_servers_and_what_they_started(kind: str) -> None:
    before = {each.pid for each in _children(os.getpid())}
    servers = opened(a=odd(kind))
    mine = [each for each in _children(os.getpid()) if each.pid not in before]
    assert len(mine) == (3 if kind == "child" else 2)  # and the shell that guards them
    servers.close()
    servers.close()
    _wait(lambda: not _alive(mine))
    with pytest.raises(ToolFailed, match="was closed"):
        run(servers, "a__echo", text="x")


CLIENT = """
import os, psutil, sys, time
sys.path[:0] = [{tests!r}, {root!r}]
from test_mcp import odd, opened
servers = opened(a=odd("garbage"), b=odd("stubborn"), c=odd("child"))
print(*(each.pid for each in psutil.Process().children(recursive=True)), flush=True)
{then}
"""
WAIT = "time.sleep(600)"
ENDS: tuple[tuple[str, int | None], ...] = (
    (WAIT, signal.SIGKILL),
    (WAIT, signal.SIGINT),
    ("os._exit(1)", None),
    ("", None),
    (WAIT, signal.SIGTERM),
    (WAIT, 1),  # the terminal was closed
)


@posix
def test_no_orphans_however_this_process_ends(full: bool) -> None:
    for then, sent in ENDS if full else ENDS[:2]:
        code = CLIENT.format(tests=str(TESTS), root=str(TESTS.parent), then=then)
        client = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL)
        assert client.stdout is not None
        mine = [psutil.Process(int(pid)) for pid in client.stdout.readline().split()]
        assert len(mine) == 5  # three servers, what one of them started, and the shell that guards them
        if sent is not None:
            client.send_signal(sent)
        client.wait(60)
        _wait(lambda mine=mine: not _alive(mine))


# ---- offline ---------------------------------------------------------------------------------------------------------


def test_offline_refuses_servers_at_an_address_and_opens_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.settimeout(0.2)
        monkeypatch.setenv("LOCALGEMMA_OFFLINE", "1")
        with pytest.raises(OfflineError) as caught:
            opened(a={"url": f"http://127.0.0.1:{listening.getsockname()[1]}/mcp"})
        assert str(caught.value).startswith("The MCP server at 127.0.0.1 needs the network, and offline mode forbids it.")
        with pytest.raises(TimeoutError):
            listening.accept()


def test_going_offline_later_refuses_the_next_request(http: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(http, "world__say", text="x") == "x"
    monkeypatch.setenv("LOCALGEMMA_OFFLINE", "1")
    with pytest.raises(ToolFailed, match="offline mode forbids it"):
        run(http, "world__say", text="x")
    monkeypatch.delenv("LOCALGEMMA_OFFLINE")
    assert run(http, "world__say", text="x") == "x"


def test_a_server_of_this_machine_hears_that_all_is_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALGEMMA_OFFLINE", "1")
    assert settings.offline_variables() == {"LOCALGEMMA_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    with opened(a=odd("garbage")) as servers:
        assert run(servers, "a__echo", text="x") == "echo: x"


def test_every_error_is_one_sentence_with_a_next_step() -> None:
    for entry in (odd("dies"), {"command": "no-such-program"}, {"url": f"http://127.0.0.1:{free_port()}/"}):
        with pytest.raises(LocalgemmaError) as caught:
            opened(a=entry)
        assert caught.value.hint and "\n" not in str(caught.value)


# ---- the shipped model -----------------------------------------------------------------------------------------------


@pytest.mark.live
def test_the_demo_model_calls_a_server(stdio: Servers) -> None:
    with localgemma.open("demo") as model:
        theirs = [tool for tool in stdio.tools() if "__get_" in tool.name]  # those that the model was trained with
        chat = model.chat(tools=theirs, temperature=0, max_tokens=100)
        answer = chat.ask("What is the weather in Berlin and in Copenhagen?")
        assert [dict(result.call.arguments) for result in answer.tool_results] == [{"city": "Berlin"}, {"city": "Copenhagen"}]
        assert answer.content == "It is 21 degrees and sunny in Berlin. It is 21 degrees and sunny in Copenhagen."
        another = model.chat(tools=theirs, temperature=0, max_tokens=100)
        assert str(another.ask("What is the stock price of RMXK?")) == "The price of RMXK is 826."


@pytest.mark.live
def test_the_command_line_calls_a_server(tmp_path: Path) -> None:
    config = tmp_path / "mcp.json"
    config.write_text(json.dumps({"mcpServers": {"world": world()}}))
    line = [sys.executable, "-m", "localgemma", "chat", "Tell me the weather in Amman?", "--mcp", str(config), "--no-save"]

    def chat(*flags: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*line, *flags], input="", capture_output=True, text=True, timeout=120, check=False)

    done = chat("--temperature", "0", "--allow", "all")
    assert (done.returncode, done.stdout) == (0, "It is 21 degrees and sunny in Amman.\n"), done.stderr
    assert "Tool call: get_weather(city='Amman')" in done.stderr and "Tool result:" in done.stderr
    unasked = chat()
    assert unasked.returncode == 2 and "There is no terminal to ask on before world__" in unasked.stderr
    unknown = chat("--allow", "world__nothing")
    assert unknown.returncode == 2 and "--allow world__nothing is none of the tools" in unknown.stderr
