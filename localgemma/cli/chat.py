"""`localgemma chat`: one question, a pipe, or a conversation."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from localgemma import settings
from localgemma.cli.attach import attachments
from localgemma.cli.output import Output, as_json, interruptible
from localgemma.cli.plan import plan_flags, wishes_of
from localgemma.cli.tools import tools_of
from localgemma.engine import CancelToken
from localgemma.errors import Cancelled, LocalgemmaError, NotFound, UsageError
from localgemma.messages import Done
from localgemma.options import ChatOptions, Sampling, updated
from localgemma.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from localgemma.chat.conversation import Conversation
    from localgemma.chat.sessions import Session
    from localgemma.fit.planner import Wishes
    from localgemma.messages import Event, Progress
    from localgemma.runtime import Model


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("prompt", required=False)
@click.option("-m", "--model", metavar="NAME|FILE", help="A model's name, or the path of its .gguf file [demo].")
@click.option("--mmproj", metavar="FILE", help="The projector for pictures; else mmproj*.gguf beside the model.")
@click.option(
    "-f", "--file", "files", multiple=True, metavar="FILE", help="A picture, video or document; a.png#1120 sets its budget."
)
@click.option("--image-tokens", metavar="N|auto", help=f"Tokens a picture may take [{ChatOptions().image_tokens}].")
@click.option("--fps", type=float, metavar="N", help=f"Frames of a video seen a second [{ChatOptions().video_fps:g}].")
@click.option("--frames", type=int, metavar="N", help=f"Frames of a video at most [{ChatOptions().video_frames}].")
@click.option("--system", metavar="TEXT|@FILE", help="The system message.")
@click.option("--think/--no-think", default=None, help="Think before answering [no].")
@click.option("--think-budget", type=int, metavar="N", help=f"Tokens of thought at most [{ChatOptions().think_budget}].")
@click.option("--show-thinking/--hide-thinking", default=True, show_default=True, help="Show the thoughts on stderr.")
@click.option("--max-tokens", type=int, metavar="N", help="Tokens of the answer at most.")
@click.option("--temperature", type=float, metavar="T", help=f"0 is greedy [{Sampling().temperature}].")
@click.option("--top-p", type=float, metavar="P", help=f"[{Sampling().top_p}]")
@click.option("--top-k", type=int, metavar="K", help=f"[{Sampling().top_k}]")
@click.option("--seed", type=int, metavar="N", help="The same seed gives the same answer.")
@click.option("--template", metavar="file|FILE", help="Another chat template: the model file's own, or a Jinja file.")
@click.option("-c", "--continue", "again", is_flag=True, help="Continue the last chat.")
@click.option("--session", metavar="NAME", help="Continue the chat of this name, or begin it.")
@click.option("--no-save", is_flag=True, help="Keep nothing of this chat.")
@click.option("--save-state", is_flag=True, help="Keep what the model has read and seen too, so that continuing is quick.")
@click.option("--tool", "tools", multiple=True, metavar="MODULE:FUNCTION", help="A Python function that the model may call.")
@click.option("--mcp", metavar="CONFIG", help="The tools of MCP servers; CONFIG is JSON as other clients read it.")
@click.option("--allow", multiple=True, metavar="TOOL|all", help="Run this tool's calls without asking.")
@click.option("--schema", metavar="FILE", help="A JSON schema that the answer must fit.")
@click.option("--json", "as_object", is_flag=True, help="Print one JSON object instead of text.")
@click.option("--quiet", is_flag=True, help="Only the answer and errors.")
@plan_flags
def command(
    prompt: str | None, model: str | None, mmproj: str | None, files: tuple[str, ...], image_tokens: str | None,
    fps: float | None, frames: int | None,
    system: str | None, think: bool | None, think_budget: int | None, show_thinking: bool, max_tokens: int | None,
    temperature: float | None, top_p: float | None, top_k: int | None, seed: int | None, template: str | None,
    again: bool, session: str | None, no_save: bool, save_state: bool, tools: tuple[str, ...], mcp: str | None,
    allow: tuple[str, ...], schema: str | None, as_object: bool, quiet: bool,
    **flags: Any,
) -> None:  # fmt: skip
    """Talk with a model.

    With PROMPT it answers once; a pipe is the prompt, or goes before PROMPT; without either you talk in turns.
    The answer goes to stdout, thoughts and statistics to stderr.
    """
    sampling = _given(max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
    chat_options = _given(think_budget=think_budget, thinking=think, video_fps=fps, video_frames=frames)
    if image_tokens is not None:
        chat_options["image_tokens"] = _budget(image_tokens)
    Sampling(**sampling), ChatOptions(**chat_options)  # wrong values are refused before the model is loaded
    wishes = _remembering(wishes_of(**flags)) if save_state and not no_save else wishes_of(**flags)
    if template not in (None, "file"):
        chat_options["template"] = _text_file(template, "--template FILE")
    if system and system.startswith("@"):
        system = _text_file(system[1:], "--system @FILE").strip()
    form, text = _schema(schema), _prompt(prompt, needed="--json" if as_object else None)
    attached = attachments(files)
    output = Output(quiet=quiet, show_thinking=show_thinking, silent_answer=as_object)
    with (
        tools_of(tools, mcp, allow, output, partial=text is None) as (toolbox, servers),
        _session(session, again) as kept,
        open_model(model or kept.model or "demo", mmproj, wishes, output) as opened,
    ):
        if template == "file":
            chat_options["template"] = opened.own_template()
        chat = opened.chat()
        chat.toolbox, chat.schema = toolbox, form
        _taken_up(kept, chat, output)
        chat.system = chat.system if system is None else system
        chat.options, chat.sampling = updated(chat.options, chat_options), updated(chat.sampling, sampling)
        if not no_save:
            kept.model, chat.keep = _whole(model) or kept.model or "demo", kept.save
        done = None
        if text is None:
            from localgemma.cli.interactive import Interactive

            Interactive(opened, chat, output, attached, servers).run()
        else:
            done = answer(lambda token: chat.send(text, attached, cancel=token), output)
            if as_object:
                click.echo(json.dumps(as_json(done, opened.info.model, opened.plan), ensure_ascii=False, default=str))
            output.finished(done)
        if save_state and not no_save and (size := kept.save_state(chat)):
            output.note(f"What the model has read is saved too: {format_size(size)}")
        if text is None and kept.exists:
            output.note(f"Saved as {kept.name}. Continue with: localgemma chat -c")
    if done is not None and done.finish_reason == "cancelled":
        raise click.Abort


def _remembering(wishes: Wishes) -> Wishes:
    """The wishes, with pictures encoded once and for all."""
    return replace(wishes, base=replace(wishes.base, picture_folder=settings.load().cache_dir / "pictures"))


def _taken_up(kept: Session, chat: Conversation, output: Output) -> None:
    """What was said in an earlier chat, if this one continues it."""
    if kept.exists:
        kept.restore(chat)
        output.note(f"Continuing {kept.name}, {len(chat.history):,} messages.")


def answer(start: Any, output: Output) -> Done:
    """Show a turn while it streams. `start(token)` gives its events; Ctrl-C cancels the token."""
    token = CancelToken()
    done: Done | None = None
    try:
        with interruptible(token, output):
            events: Iterator[Event] = start(token)
            for event in events:
                output.event(event)
                if isinstance(event, Done):
                    done = event
    except (LocalgemmaError, KeyboardInterrupt):
        output.broken()
        raise
    if done is None:
        raise Cancelled("Cancelled.")
    return done


def _session(name: str | None, again: bool) -> Session:
    from localgemma.chat import sessions

    if name is not None and again:
        raise UsageError("--session and -c name two chats.", "Give one of them.")
    return sessions.Session(sessions.newest() if again else name)


def _whole(model: str | None) -> str | None:
    """The model's name as it is still right in another folder."""
    return str(Path(model).expanduser().resolve()) if model and model.lower().endswith(".gguf") else model


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _budget(text: str) -> int | str:
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"--image-tokens cannot be {text!r}.", "Give 70, 140, 280, 560, 1120 or auto.") from None


def _text_file(name: str, how: str) -> str:
    try:
        return Path(name).expanduser().read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound(f"There is no file {name}.", f"Check its name: {how}") from None
    except (OSError, UnicodeDecodeError, ValueError):
        raise UsageError(f"{name} cannot be read as text.", f"Give a UTF-8 text file: {how}") from None


def _schema(name: str | None) -> Any:
    """The JSON schema in a file, refused here if no grammar can be made of it; None without one."""
    from localgemma.gemma4.schema import read_schema

    if name is None:
        return None
    try:
        found = json.loads(_text_file(name, "--schema FILE"))
    except (ValueError, RecursionError):
        raise UsageError(f"{name} is no JSON.", "Give a file with a JSON schema: --schema FILE") from None
    if not isinstance(found, dict):
        raise UsageError(f"{name} holds no JSON schema.", 'Give an object, such as {"type": "object", "properties": {…}}.')
    read_schema(found)
    return found


def _prompt(prompt: str | None, needed: str | None) -> str | None:
    """The prompt with what comes through a pipe before it; None on a terminal without a prompt, unless a flag needs one."""
    if sys.stdin is None or sys.stdin.isatty():
        if prompt is None and needed:
            raise UsageError(f"{needed} needs a prompt.", "Give it as an argument or through a pipe.")
        return prompt
    piped = sys.stdin.buffer.read().decode("utf-8", "replace").strip()
    if prompt is None and not piped:
        raise UsageError("There is no prompt.", 'Give one: localgemma chat "…"')
    return "\n\n".join(part for part in (piped, prompt) if part)


def open_model(model: str, mmproj: str | None, wishes: Wishes, output: Output) -> Model:
    """Load a model as the plan says; Ctrl-C stops the load. What the user's own wishes cost is said."""
    from localgemma import runtime

    token = CancelToken()

    def told(event: Progress) -> bool:
        output.progress(event)
        return not token.cancelled

    with interruptible(token, output):
        opened = runtime.open(model, projector=mmproj, wishes=wishes, progress=told)
    asked = [f"{choice.chosen}: {choice.reason}" for choice in opened.plan.choices if choice.what == "asked"]
    for note in (*opened.info.notes, *opened.plan.notes, *asked):
        output.note(note)
    return opened
