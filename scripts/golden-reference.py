#!/usr/bin/env python3
"""Makes tests/data/golden/NAME-avx512vnni-SUFFIX.json: what llama.cpp says on this processor to prompts of NAME.json.

    scripts/golden-reference.py --program golden-reference --says "llama.cpp of llama-cpp-sys-2 0.1.161 (ggml 0.26.0)" \\
        [--ubatch N] [--steps N] MODEL.gguf tests/data/golden/NAME.json OUT.json CASE ...

The program is compiled against a llama.cpp built with CMake (Release, GGML_NATIVE) in $BUILD from $TREE:

    c++ -O2 -I$TREE/include -I$TREE/ggml/include scripts/golden-reference.cpp -o golden-reference \\
        -L$BUILD/bin -lllama -lggml -lggml-base -Wl,-rpath,$BUILD/bin
"""

import argparse
import json
import subprocess


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", required=True)
    parser.add_argument("--says", required=True, help="which llama.cpp it is")
    parser.add_argument("--ubatch", type=int, default=512)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("model")
    parser.add_argument("prompts")
    parser.add_argument("out")
    parser.add_argument("cases", nargs="+")
    args = parser.parse_args()

    with open(args.prompts, encoding="utf-8") as file:
        prompts = json.load(file)
    cases = []
    for case in (c for c in prompts["greedy"] if c["name"] in args.cases):
        command = [args.program, args.model, str(args.ubatch), str(args.steps), str(args.threads)]
        ids = " ".join(map(str, case["prompt_ids"]))
        steps = json.loads(subprocess.run(command, input=ids, capture_output=True, text=True, check=True).stdout)
        cases.append({"name": case["name"], "prompt_ids": case["prompt_ids"], "steps": steps})
    reference = (
        f"{args.says}, CPU with AVX-512 VNNI, flash attention, no extra buffer types (weights as the file has them), "
        f"n_ubatch {args.ubatch}, {args.threads} threads, temperature 0"
    )
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    head = json.dumps({"model": prompts["model"], "reference": reference, "n_ubatch": args.ubatch}, separators=(",", ":"))
    with open(args.out, "w", encoding="utf-8") as file:
        file.write(f'{head[:-1]},"greedy":[\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
