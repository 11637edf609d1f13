"""A guided minute with the demo model: a question, a thought, a picture; then you talk with it yourself."""

from __future__ import annotations

import sys
from pathlib import Path

import localgemma
from localgemma.cli.chat import answer
from localgemma.cli.output import Output
from localgemma.errors import LocalgemmaError
from localgemma.options import LoadOptions

PICTURE = Path(__file__).resolve().parent.parent / "examples" / "picture.png"


def main() -> int:
    """The tour; 0, or the exit code of what went wrong."""
    output = Output()
    say = output.note
    say("localgemma: a minute with the demo model, a toy of 13.6 million parameters. It is not the 31B:")
    say("it knows capitals, sums and simple pictures, and answers noise to anything else.\n")
    options = LoadOptions()
    with localgemma.open("demo", options=options, progress=output.progress) as model:
        say(f"{model.plan}\n")
        tour = (
            ("1. A question", "What is the capital of France?", [], False),
            ("2. A question with thinking shown", "Question: 380 minus 7 is what?", [], True),
            ("3. A question about a picture (examples/picture.png)", "What color is the shape?", [str(PICTURE)], False),
        )
        for title, question, images, thinking in tour:
            say(f"{title}\n> {question}")
            chat = model.chat(thinking=thinking, temperature=0, image_tokens=70)
            output.finished(answer(lambda token, c=chat, q=question, i=images: c.send(q, i, cancel=token), output))
            say("")
        if sys.stdin.isatty() and sys.stdout.isatty():
            from localgemma.cli.interactive import Interactive

            say("Now you: try another capital, a sum with /think on, or /file examples/picture.png")
            Interactive(model, model.chat(temperature=0, image_tokens=70), output, [], []).run()
        else:
            say("On a terminal, the conversation would go on here.")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LocalgemmaError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
