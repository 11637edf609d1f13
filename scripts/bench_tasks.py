"""Right answers by task of several files, beside each other: the demo model's held-out questions, or any questions.

    python scripts/bench_tasks.py FILE.gguf… [--data FILE.jsonl | --set NAME] [--projector FILE] [--threads N] [--work FILE]

The first file is the reference of the paired tests. With --work, verdicts are kept in a file and not asked for again. Prints a
table, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from localgemma.compare import corpus, tasks
from localgemma.compare.records import Question, TaskScore
from localgemma.llamacpp.engine import open_engine
from localgemma.options import LoadOptions

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Ask and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "demo-model" / "eval.jsonl")
    parser.add_argument("--set", choices=sorted(corpus.SETS))
    parser.add_argument("--projector", type=Path, default=ROOT / "localgemma" / "assets" / "demo" / "mmproj.gguf")
    parser.add_argument("--image-tokens", type=int, default=70, help="of a picture of --data")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--work", type=Path)
    given = parser.parse_args()
    image_tokens: Any = given.image_tokens
    read = corpus.load_set(given.set) if given.set else corpus.from_data([str(given.data)], image_tokens=image_tokens)
    found = {file.stem: _scores(file, read.questions, given) for file in given.files}
    base = found[given.files[0].stem]
    print(f"{'task':20}" + "".join(f"{name:>10}" for name in found))
    for task in base:
        print(f"{task:20}" + "".join(f"{scores[task].right / scores[task].n:10.2f}" for scores in found.values()))
    print(f"{'all':20}" + "".join(f"{tasks.total(scores).right:6}/{tasks.total(scores).n}" for scores in found.values()))
    report: dict[str, Any] = {"set": read.name, "questions": len(read.questions), "files": {}}
    for name, scores in found.items():
        test = tasks.against({"all": tasks.total(scores)}, {"all": tasks.total(base)})["all"].against
        report["files"][name] = {task: [score.right, score.n] for task, score in scores.items()}
        report["files"][name] |= {"flips": tasks.flips(scores, base)[0], "p": None if test is None else round(test.p, 4)}
    print(json.dumps(report))


def _scores(file: Path, questions: tuple[Question, ...], given: argparse.Namespace) -> dict[str, TaskScore]:
    """Right answers of one file by task."""
    kept: Path | None = given.work and given.work.with_name(f"{given.work.name}.{file.stem}.jsonl")
    lines = kept.read_text(encoding="utf-8").splitlines() if kept is not None and kept.exists() else ()
    done = {verdict.id: verdict for verdict in (tasks.Verdict(**json.loads(line)) for line in lines)}

    def keep(verdict: tasks.Verdict) -> None:
        if kept is not None:
            with kept.open("a", encoding="utf-8") as out:
                out.write(json.dumps(asdict(verdict), ensure_ascii=False) + "\n")

    load = LoadOptions(image_tokens=140, threads=given.threads, threads_batch=given.threads)
    engine = open_engine(file, given.projector, load)
    try:
        return tasks.scores(questions, tasks.run(engine, questions, done=done, keep=keep))
    finally:
        engine.close()


if __name__ == "__main__":
    main()
