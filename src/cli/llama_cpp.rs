//! llama.cpp's flags that are not here, each with what to do instead.
//!
//! Clap would read `-fa` as `-f a`, a document called "a". The names are those of llama.cpp's `common/arg.cpp` (in the pinned
//! package that also brings ggml), of its llama-bench, and some that older versions had.

/// What is said about a group of flags, and the flags. A long one that ends with `*` stands for all that begin like it. The first match
/// counts.
const GROUPS: &[(&str, &str)] = &[
    // Always so.
    ("flash attention is always on; leave it out", "-fa --flash-attn"),
    ("the file is mapped unless --no-mmap says otherwise; leave it out", "--mmap"),
    ("CPU weights are repacked unless --no-repack says otherwise; leave it out", "--repack"),
    ("one run answers one prompt; leave it out", "-st --single-turn"),
    ("the chat template is applied unless --no-cnv says otherwise; leave it out", "-cnv --conversation --jinja"),
    ("--no-cnv leaves the chat template out", "--no-jinja"),
    ("the prompt is never printed; leave it out", "--display-prompt --no-display-prompt --verbose-prompt"),
    ("text is taken as it is, without escapes; leave it out", "--no-escape"),
    ("there is no warm-up run; leave it out", "--warmup --no-warmup"),
    ("an answer ends where the context is full; leave it out", "--context-shift --no-context-shift"),
    // Under another name.
    ("-t N is for prompt and answer alike", "-tb --threads-batch"),
    ("-dev NAME takes one device, --list-devices names them", "-mg --main-gpu"),
    (
        "-ngl N splits the layers between one GPU and the CPU, and -ncmoe N keeps experts on the CPU",
        "-sm --split-mode -ts --tensor-split -ot --override-tensor -ncffn --n-cpu-ffn -nopo --op-offload \
         --no-op-offload --no-host",
    ),
    (
        "-ngl N says how many layers go on the GPU, -c N how long the context is, `plan` what they take",
        "-fit -fitp -fitt -fitc --fit*",
    ),
    ("a layer's cache lies where the layer is; -ngl N moves layers", "-nkvo --no-kv-offload -kvo --kv-offload"),
    (
        "--no-mmap and --mlock say how the file is read",
        "-lm --load-mode -lzm --lazy-mode -dio -ndio --direct-io --no-direct-io -mmp",
    ),
    (
        "-v shows all messages",
        "-lv --verbosity --log-verbosity --log-verbose --log-disable --log-file --log-jsonl --no-log-jsonl \
         --log-prompts-dir --log-colors --log-prefix --no-log-prefix --log-timestamps --no-log-timestamps",
    ),
    (
        "messages go to standard error; 2>/dev/null leaves them out",
        "--perf --no-perf --show-timings --no-show-timings --simple-io -co --color",
    ),
    ("standard output holds the answer alone; > FILE keeps it", "-o --output --output-file -oe"),
    ("-sys \"$(cat FILE)\" reads it from a file", "-sysf --system-prompt-file"),
    ("-f FILE reads a UTF-8 text, -f - standard input", "-bf --binary-file --in-file --context-file --stdin"),
    ("the shell can: -p $'two\\nlines'", "-e --escape"),
    (
        "--temp, --top-k, --top-p, --min-p and --repeat-penalty say how tokens are chosen",
        "--samplers --sampler-seq --sampling-seq --top-nsigma --top-n-sigma --xtc-* --typical --typical-p \
         --tfs --presence-penalty --frequency-penalty --dry-* --adaptive-* --dynatemp-* --mirostat* -l \
         --logit-bias -bs --backend-sampling --penalize-nl",
    ),
    ("--logprobs K with --json shows the likely tokens", "-sp --special --n-probs"),
    (
        "`bench` decodes after every prompt by itself; -p and -n give the lengths",
        "-pg -d --n-depth -pps -tgs -npp -ntg -npl",
    ),
    (
        "`eval` measures quality, `bench` speed",
        "--ppl* --no-ppl --perplexity --hellaswag* --winogrande* --multiple-choice* --kl-divergence* \
         --save-all-logits --all-logits --chunks --chunk --from-chunk",
    ),
    ("`info` shows what a file holds", "--check-tensors --show-statistics"),
    ("--help shows all flags", "--usage --completion-bash"),
    // Not at all.
    (
        "nothing is downloaded; -m takes a GGUF file of this machine",
        "-hf -hfr --hf-* -hff -hft -mu --model-url -dr --docker-repo -cl --cache-list --offline --mtp \
         --dflash --eagle3 --fim-* --embd-gemma-default --gpt-oss-* --vision-gemma-*",
    ),
    (
        "the cache is f32, f16 or q8_0, one for each prompt, and its size is that of the context (-c N)",
        "-dt --defrag-thold --swa-full --swa-checkpoints -ctxcp --ctx-checkpoints -cms --checkpoint-min-step \
         -cram --cache-ram -kvu -no-kvu --kv-unified* --no-kv-unified --cache-idle-slots \
         --no-cache-idle-slots",
    ),
    (
        "--prompt-cache FILE keeps what was read of the document -f, and --prompt-cache-ro leaves that file as it is",
        "--prompt-cache-all --cache-prompt --no-cache-prompt --cache-reuse --slot-save-path",
    ),
    (
        "--override-kv sets what the model file says of it (ARCH.rope.scaling.yarn_beta_fast=float:X and the like)",
        "--yarn-ext-factor --yarn-attn-factor --yarn-beta-slow --yarn-beta-fast -gan --grp-attn-n -gaw \
         --grp-attn-w",
    ),
    ("--chat-template takes a file, too", "--chat-template-file"),
    (
        "an answer is printed as the model writes it, from its first token on",
        "--skip-chat-parsing --no-skip-chat-parsing --prefill-assistant --no-prefill-assistant",
    ),
    ("answers cannot be held to a grammar; --json reports on a run", "--grammar* -j --json-schema* -jf"),
    (
        "--no-think has the chat template ask for no thinking; what a model thinks is printed",
        "-rea --reasoning* --no-reasoning*",
    ),
    (
        "-f FILE without -p, at a terminal, is a conversation about the document",
        "-i --interactive -if --interactive-first -mli --multiline-input --in-prefix* --in-suffix --no-bos \
         --spm-infill -ins --instruct -cml --chatml -ptc --print-token-count",
    ),
    (
        "one prompt is computed at a time",
        "-np --parallel -ns --sequences -cb --cont-batching -nocb --no-cont-batching --kv-per-slot",
    ),
    (
        "there is no speculative decoding",
        "--draft* --spec-* --no-spec-* -hfd -hfrd -td -tbd -Cd -Crd -Cbd -Crbd -ctkd -ctvd \
         -otd -cmoed -ncmoed -devd -ngld -cd --threads-draft --threads-batch-draft --cpu-moe-draft \
         --prio-draft --poll-draft --cache-type-k-draft --cache-type-v-draft --override-tensor-draft \
         --device-draft --gpu-layers-draft --n-gpu-layers-draft --n-cpu-moe-draft --prio-batch-draft \
         --poll-batch-draft -lcs -lcd --lookup-cache-* --ctx-size-draft",
    ),
    (
        "the operating system places threads: taskset, nice or numactl before the command; -t N says how many",
        "-C -Cr -Cb -Crb --cpu-mask* --cpu-range* --cpu-strict* --prio --prio-batch --poll --poll-batch \
         --numa",
    ),
    ("every token goes through as many experts as the model says; leave it out", "-ser"),
    ("adapters have to be merged into the model file first", "--lora* --control-vector*"),
    (
        "text only: there are no images and no sound",
        "-mm -mmdev --mmproj* --no-mmproj* -mmu --image* --audio --video* --mtmd-* --media-path --tts-* -mv \
         --model-vocoder",
    ),
    (
        "text is generated, embeddings are not",
        "--embedding --embeddings -embd --embd-* --pooling --rerank --reranking --cls-separator",
    ),
    ("there is no RPC, only devices of this machine", "-rpc --rpc"),
    (
        "there is no server",
        "--host --port --reuse-port --path --cors-* --no-cors-* --api-* --ui* --no-ui* --webui* --no-webui* \
         --tools* --mcp-* -ag --agent -no-ag --no-agent --ssl-* -to --timeout --sse-* --threads-http \
         --metrics --props --slots --no-slots --models-* --no-models-autoload -sps --slot-prompt-similarity \
         -a --alias --tags --sleep-idle-seconds --server-base",
    ),
    (
        "there is no training",
        "-lr -lr-min --learning-rate* -decay-epochs -wd --weight-decay -val-split --val-split -epochs \
         --epochs -opt --optimizer",
    ),
    (
        "there is no such tool",
        "--chunk-size --chunk-separator --junk --pos -ofreq --output-frequency --output-format \
         --save-frequency --process-output --nextn --parse-special --no-parse-special --ids --show-count \
         --positive-file --negative-file --pca-* --diffusion-* --check --save-logits \
         --logits-output-dir --tensor-filter",
    ),
];

/// What to say about a flag, dashes included, if it is one of llama.cpp's that are not here.
pub fn advice(flag: &str) -> Option<&'static str> {
    let named = |pattern: &str| match pattern.strip_suffix('*') {
        Some(beginning) => flag.starts_with(beginning),
        None => flag == pattern,
    };
    GROUPS.iter().find(|(_, flags)| flags.split_whitespace().any(named)).map(|(advice, _)| *advice)
}

/// All names, the beginnings (with their `*`) among them.
#[cfg(test)]
pub fn names() -> impl Iterator<Item = &'static str> {
    GROUPS.iter().flat_map(|(_, flags)| flags.split_whitespace())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    /// llama.cpp's `common/arg.cpp` in the package that brings ggml, where cargo keeps it.
    fn arg_cpp() -> Option<PathBuf> {
        let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
        let home = home.or_else(|| Some(std::env::home_dir()?.join(".cargo")))?;
        let registries = std::fs::read_dir(home.join("registry/src")).ok()?;
        let path = "llama-cpp-sys-2-0.1.161/llama.cpp/common/arg.cpp";
        registries.flatten().map(|registry| registry.path().join(path)).find(|path| path.is_file())
    }

    /// The spellings of all flags in the source of llama.cpp's parser.
    fn spellings(source: &str) -> Vec<String> {
        let mut found = Vec::new();
        for block in source.split("add_opt(common_arg(").skip(1) {
            // Up to the function that takes the value.
            let head = block.split("[](").next().unwrap_or_default();
            let code =
                head.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
            let is_flag = |text: &&str| {
                let letters = text.trim_start_matches('-');
                letters.len() < text.len()
                    && letters.starts_with(|c: char| c.is_ascii_alphabetic())
                    && letters.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            };
            found.extend(code.split('"').skip(1).step_by(2).filter(is_flag).map(str::to_owned));
        }
        found
    }

    /// Every flag of llama.cpp is one of ours, or is refused by its name: none is read as another.
    #[test]
    fn all_of_llama_cpps_flags_are_known() {
        let Some(path) = arg_cpp() else {
            eprintln!("skipped: the package llama-cpp-sys-2 0.1.161 is not here");
            return;
        };
        let all = spellings(&std::fs::read_to_string(path).unwrap());
        assert!(all.len() > 500 && all.contains(&"-mmdev".to_owned()), "{}", all.len());
        let mut unknown = Vec::new();
        for flag in all {
            let argv = ["spts-cli", &flag, "1", "-m", "m", "-p", "x"].map(std::ffi::OsString::from);
            match crate::cli::parse(argv) {
                crate::cli::Parsed::Usage(message)
                    if message.starts_with(&format!("{flag} is a flag of llama.cpp")) => {}
                _ if crate::cli::is_flag(&flag) => {}
                other => unknown.push(format!("{flag}: {other:?}")),
            }
        }
        assert!(unknown.is_empty(), "{unknown:#?}");
    }
}
