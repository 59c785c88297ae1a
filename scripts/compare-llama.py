"""Runs spts-cli and llama.cpp in turns on the CPU and prints medians and ratios; see compare-llama.sh.

Prefill and decode are measured inside the programs (`spts-cli bench`, `llama-bench`), after a warm-up run of their own, with
random tokens and without sampling. Start is measured from outside: from exec to the first generated token on standard
output, with a prompt of about 16 tokens. Memory is the largest resident set of a process that prefills once and again.
Who begins changes from round to round; a ratio is the median of the rounds' ratios, above 1 where spts-cli is better.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

PROMPT = "The quick brown fox jumps over the lazy dog and then runs far away"


def main():
    args = arguments()
    ours, theirs = Ours(args), Theirs(args)
    print("| model | test | llama.cpp | spts-cli | ratio |")
    print("|---|---|---|---|---|")
    for model in args.models:
        name = pathlib.Path(model).stem
        for n in args.prompts:
            pairs = in_turns(args.rounds, lambda: ours.prefill(model, n), lambda: theirs.prefill(model, n))
            row(name, f"prefill {n}, tokens/s", [(a[0], b[0]) for a, b in pairs], more_is_better=True)
            if n == max(args.prompts):
                pairs = [(a[1] / 2**20, b[1] / 2**20) for a, b in pairs]
                row(name, f"peak memory, prefill {n}, MiB", pairs, more_is_better=False)
        if args.gen:
            pairs = in_turns(args.rounds, lambda: ours.decode(model, args.gen), lambda: theirs.decode(model, args.gen))
            row(name, f"decode {args.gen}, tokens/s", pairs, more_is_better=True)
        if args.starts:
            pairs = in_turns(args.starts + 1, lambda: ours.start(model), lambda: theirs.start(model))
            pairs = [(1000 * a, 1000 * b) for a, b in pairs[1:]]  # the first ones read the file into memory
            row(name, "exec to first token, ms", pairs, more_is_better=False)


def arguments():
    parser = argparse.ArgumentParser(description="Dense spts-cli against llama.cpp on the CPU, in turns.")
    parser.add_argument("--llama-bench", required=True, help="llama.cpp's llama-bench")
    parser.add_argument("--llama-simple", required=True, help="llama.cpp's examples/simple")
    parser.add_argument("--spts-cli", default="target/release/spts-cli")
    parser.add_argument("-t", "--threads", type=int, default=os.cpu_count())
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("-p", "--prompts", type=lambda s: [int(n) for n in s.split(",") if n], default=[512, 2048])
    parser.add_argument("-n", "--gen", type=int, default=64, help="tokens to decode; 0: no decoding")
    parser.add_argument("--starts", type=int, default=10, help="rounds of the start; 0: none")
    parser.add_argument("models", nargs="+")
    return parser.parse_args()


def in_turns(rounds, ours, theirs):
    pairs = []
    for i in range(rounds):
        if i % 2 == 0:
            a = ours()
            b = theirs()
        else:
            b = theirs()
            a = ours()
        pairs.append((a, b))
    return pairs


def row(model, test, pairs, more_is_better):
    ours, theirs = zip(*pairs)
    ratio = statistics.median(a / b if more_is_better else b / a for a, b in pairs)
    print(f"| {model} | {test} | {summary(theirs)} | {summary(ours)} | {ratio:.2f} |", flush=True)


def summary(values):
    return f"{statistics.median(values):.1f} ({min(values):.1f} - {max(values):.1f})"


class Ours:
    def __init__(self, args):
        self.program, self.threads = args.spts_cli, args.threads

    def bench(self, model, n_prompt, n_gen):
        command = [self.program, "bench", "-m", model, "-p", n_prompt, "-n", n_gen, "-r", 1, "-t", self.threads]
        text, peak = run([*command, "--device", "CPU", "--no-spts", "--json"])
        return json.loads(text), peak

    def prefill(self, model, n):
        report, peak = self.bench(model, n, 0)
        return report["prompts"][0]["dense"]["prefill_tps"]["median"], peak

    def decode(self, model, n):
        report, _ = self.bench(model, 1, n)
        return report["decode_empty_tps"]["median"]

    def start(self, model):
        command = [self.program, "-m", model, "-p", PROMPT, "-n", 1, "-t", self.threads]
        return first_token([*command, "--device", "CPU", "--no-spts", "--no-cnv", "--temp", 0], self.threads)


class Theirs:
    def __init__(self, args):
        self.bench, self.simple, self.threads = args.llama_bench, args.llama_simple, args.threads

    def run(self, model, n_prompt, n_gen):
        command = [self.bench, "-m", model, "-p", n_prompt, "-n", n_gen, "-r", 1, "-t", self.threads]
        text, peak = run([*command, "-ngl", 0, "-o", "jsonl"])
        return json.loads(text.splitlines()[-1])["avg_ts"], peak

    def prefill(self, model, n):
        return self.run(model, n, 0)

    def decode(self, model, n):
        return self.run(model, 0, n)[0]

    def start(self, model):
        # It has no flag for threads and takes four: the limit below gives it as many as we have.
        return first_token([self.simple, "-m", model, "-ngl", 0, "-n", 1, PROMPT], self.threads, behind=PROMPT)


def run(command):
    """Standard output of a command, and its peak resident set in bytes."""
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    text = process.stdout.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: exit code {process.returncode}")
    return text, usage.ru_maxrss * 1024


def first_token(command, threads, behind=""):
    """Seconds from exec until something follows the echoed prompt on standard output."""
    environment = {**os.environ, "OMP_THREAD_LIMIT": str(threads)}
    begin = time.perf_counter()
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )
    text, seconds = "", None
    while chunk := os.read(process.stdout.fileno(), 65536):
        text += chunk.decode(errors="replace")
        generated = text.partition(behind)[2] if behind else text
        if seconds is None and generated:
            seconds = time.perf_counter() - begin
    if process.wait() != 0 or seconds is None:
        sys.exit(f"{' '.join(map(str, command))}: no token, exit code {process.returncode}")
    return seconds


if __name__ == "__main__":
    main()
