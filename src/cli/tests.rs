//! Command lines, right and wrong, and what becomes of them.

use std::path::PathBuf;

use super::*;

fn line(args: &str) -> Parsed {
    parse(std::iter::once("spts-cli").chain(args.split_whitespace()).map(OsString::from))
}

fn run(args: &str) -> RunArgs {
    match line(args) {
        Parsed::Command(Command::Run(args)) => *args,
        other => panic!("{args}: {other:?}"),
    }
}

fn usage(args: &str) -> String {
    match line(args) {
        Parsed::Usage(message) => message,
        other => panic!("{args}: {other:?}"),
    }
}

#[test]
fn clap_finds_no_fault() {
    Cli::command().debug_assert();
}

#[test]
fn llama_cpp_flags() {
    let a = run(
        "-m m.gguf -f long.txt -p question -n 5 -c 4096 -t 2 -ngl 99 -b 1024 -ub 256 -s 7 -ctk q8_0 -ctv f32 --no-mmap -sys be-brief --ignore-eos -v",
    );
    assert_eq!((a.model.unwrap(), a.file.unwrap()), ("m.gguf".into(), "long.txt".into()));
    assert_eq!(
        (a.prompt.as_deref(), a.system_prompt.as_deref(), a.predict, a.ctx_size),
        (Some("question"), Some("be-brief"), 5, Some(4096))
    );
    assert_eq!(
        (a.device.threads, a.device.placement.n_gpu_layers, a.memory.n_ubatch()),
        (Some(2), Some(99), Some(256))
    );
    assert_eq!((a.memory.cache_type_k.bytes(), a.memory.cache_type_v.bytes()), (34.0 / 32.0, 4.0));
    assert!(a.device.no_mmap && a.ignore_eos && a.verbose && !a.device.mlock);
    assert_eq!(a.sampling.params(0).seed, 7);
    let a = run(
        "-m m -p x --temp 0 --top-k 1 --top-p 0.5 --min-p 0.1 --repeat-penalty 1.1 --repeat-last-n -1 --seed -1 --n-predict 3 --gpu-layers 0",
    );
    let p = a.sampling.params(99);
    assert_eq!(
        (p.temp, p.top_k, p.top_p, p.min_p, p.repeat_penalty, p.repeat_last_n, p.seed),
        (0.0, 1, 0.5, 0.1, 1.1, -1, 99)
    );
    assert_eq!((a.predict, a.device.placement.n_gpu_layers), (3, Some(0)));
    assert_eq!(a.device.placement.n_cpu_moe(), 0);
    assert_eq!(run("-m m -p x -ncmoe 3").device.placement.n_cpu_moe(), 3);
    assert_eq!(run("-m m -p x -cmoe").device.placement.n_cpu_moe(), usize::MAX);
}

#[test]
fn the_defaults_are_the_librarys() {
    assert_eq!(run("-m m -p x").sampling.params(1), spts::session::sampler::SamplerParams::default());
}

#[test]
fn prompts_may_begin_with_a_dash() {
    assert_eq!(run("-m m -p -ngl").prompt.as_deref(), Some("-ngl"));
    assert_eq!(run("-m m -p x -sys --help").system_prompt.as_deref(), Some("--help"));
}

#[test]
fn usage_errors_name_the_flag_as_typed() {
    for (args, expected) in [
        ("-m m -p x -ngl lots", "'-ngl <N>'"),
        ("-m m -p x -n -2", "'-n <N>'"),
        ("-m m -p x --n-predict=-2", "'--n-predict <N>'"),
        ("-m m -p x --temp -1", "'--temp <T>': expected a number, 0 or above"),
        ("-m m -p x --temp nan", "expected a number, 0 or above"),
        ("-m m -p x --top-p 1.5", "expected a number from 0 to 1"),
        ("-m m -p x --repeat-penalty 0", "expected a number above 0"),
        ("-m m -p x -ub 0", "'-ub <N>'"),
        ("-m m -p x -t 0", "'-t <N>'"),
        ("-m m -p x -ctk q4_0", "[possible values: f32, f16, q8_0]"),
        ("-m m -p x --pool max:2", "'max:2'"),
        ("-m m -p x --keep 0", "'--keep <X>'"),
        ("-m m -p x --logprobs 5", "--json"),
        ("-m m -p x --no-spts --keep 2", "'--no-spts' cannot be used with '--keep <X>'"),
        ("-m m -p x -sys y -no-cnv", "-sys"),
        ("-m m -p x --no-mmap --mlock", "cannot be used with"),
        ("-m m -p x --no-map", "unknown flag --no-map (did you mean --no-mmap?)"),
        ("-m m -p x -ngl", "a value is required for '-ngl <N>'"),
        ("-p x", "missing: -m FILE (a model)"),
        ("-m m", "missing: -p TEXT (a prompt) or -f FILE (a document)"),
        ("", "missing: -m FILE (a model); -p TEXT (a prompt) or -f FILE"),
        ("-m m -p x y", "'y' has no flag before it: a prompt goes behind -p"),
        ("plan -n 5", "missing: -m FILE (a model) or --shape NAME; see plan --help"),
        ("plan --shape gpt-9 -n 5", "llama-3.1-8b"),
        ("plan --shape llama-3.1-8b -n 0", "'-n <N>'"),
        ("plan --shape llama-3.1-8b -n 5 --graph", "--graph"),
        ("info", "missing: FILE"),
        ("quantize -m m -o x --type q9", "'q9'"),
        ("quantize -m m --type q8_0", "missing: -o FILE"),
        ("bench", "missing: -m FILE (a model) or --synthetic SHAPE"),
        ("bench -m m --synthetic llama-3.1-8b", "cannot be used with"),
        ("bench --synthetic llama-3.1-8b --type q3_k", "expected one of mxfp4_moe, q4_0, "),
        ("bench -m m -p 512,0", "'-p <N,...>'"),
        ("bench -m m --write x", "cannot be used with"),
        ("bench --write x", "--synthetic"),
    ] {
        let message = usage(args);
        assert!(message.contains(expected) && !message.contains('\n'), "{args}: {message}");
    }
}

#[test]
fn what_newcomers_get_wrong() {
    for (args, expected) in [
        ("m.gguf", "'m.gguf' has no flag before it: a model goes behind -m"),
        ("-m m -p hello world", "'world' has no flag before it: a prompt goes behind -p, in quotes"),
        ("-m m hello", "'hello' has no flag before it"),
        ("benhc -m m", "there is no command benhc (did you mean bench?)"),
        ("help", "there is no command help (did you mean --help?)"),
        ("chat -m m", "there is no command chat: expected info, plan, "),
        ("-m m plan -n 5", "plan is a command: it comes first"),
        ("-m m -p x --foo", "unknown flag --foo; see --help"),
        ("-m m -p x --ctx 9", "unknown flag --ctx (did you mean --ctx-size?)"),
        ("-m m -p x --temprature 0", "did you mean --temperature?"),
        ("-m m -p x -temp 0", "unknown flag -temp (did you mean --temp?)"),
        ("-model m -p x", "unknown flag -model (did you mean --model?)"),
        ("-m m -p x -nglx 3", "unknown flag -nglx"),
        ("-m m -fabc", "unknown flag -fabc; a value stands behind a blank, as in -f abc"),
        ("-m m -f d -rcp", "unknown flag -rcp"),
        ("-m m -f d -ra", "unknown flag -ra"),
        ("-m m -p x -t4x", "unknown flag -t4x"),
        ("-m m -p x -vv", "unknown flag -vv"),
        ("bench -m m -p512x", "unknown flag -p512x"),
        ("-m m -p x -gpu 3", "unknown flag -gpu"),
        ("-m m -p x --n-tokens 3", "--n-tokens is no flag of a run, only of plan, eval needle"),
        ("plan -m m -n 5 --temp 0", "--temp is no flag of plan, only of a run"),
        ("bench -m m --temp 0", "--temp is no flag of bench, only of a run; see bench --help"),
        ("bench m.gguf", "a model goes behind -m"),
        ("calibrate -m m text.txt", "'text.txt' has no flag before it: a text goes behind -f"),
        ("quantize a.gguf b.gguf q8_0", "a model goes behind -m, a file to write behind -o"),
        ("quantize -m a -o b q8_0", "'q8_0' has no flag before it: a type goes behind --type"),
        ("eval", "eval needs a command behind it: tasks, needle, proxies or kl; see eval --help"),
        ("eval -m m -f x", "eval needs a command behind it"),
        ("eval ppl -m m", "eval needs a command behind it"),
        ("eval needle", "missing: -m FILE (a model); -f FILE; see eval needle --help"),
        ("-m m -p x -n five", "expected a whole number"),
        ("-m m -p x -t 0", "'-t <N>': expected a number from 1 to 512"),
        ("-m m -p x -t -1", "'-t <N>': expected a number from 1 to 512"),
        ("-m m -p x -c -1", "'-c <N>': expected a number from 0 to "),
        ("-m m -p x -ngl -1", "'-ngl <N>'"),
        ("-m m -p x -n -2", "'-n <N>': expected -1 or more"),
        ("-m m -m n -p x", "'-m <FILE>' is there more than once"),
        ("-m m -p x --logprobs 5", "missing: --json, which --logprobs needs"),
    ] {
        let message = usage(args);
        assert!(message.contains(expected) && !message.contains('\n'), "{args}: {message}");
        assert!(!message.contains("tip:") && message.contains("; see "), "{args}: {message}");
    }
}

#[test]
fn flags_of_llama_cpp_that_are_not_here() {
    for (args, expected) in [
        ("-m m -p x -fa", "-fa is a flag of llama.cpp that is not here: flash attention is always on; leave it out"),
        ("-m m -p x -fa on", "flash attention is always on"),
        ("-m m -p x --flash-attn=on", "--flash-attn is a flag of llama.cpp"),
        ("-m m -p x -np 4", "one prompt is computed at a time"),
        ("-m m -p x -ot exps=CPU", "-ncmoe N keeps experts on the CPU"),
        ("-m m -p x -ser 2", "as many experts as the model says"),
        ("-m m -p x -nkvo", "-ngl N moves layers"),
        ("-m m -p x -mmdev CUDA0", "text only: there are no images and no sound"),
        ("-hf user/model -p x", "nothing is downloaded; -m takes a GGUF file"),
        ("-m m -p x --yarn-beta-fast 16", "--override-kv sets what the model file says"),
        ("-m m -p x --grammar x", "cannot be held to a grammar"),
        ("-m m -p x --reasoning-budget 0", "--no-think has the chat template ask for no thinking"),
        ("bench -m m -fa 1", "flash attention is always on"),
        ("bench -m m -pg 512,128", "`bench` decodes after every prompt"),
    ] {
        let message = usage(args);
        assert!(message.contains(expected) && !message.contains('\n'), "{args}: {message}");
    }
    // Every name, wherever it stands; but a value is a value.
    let mut n = 0;
    for name in llama_cpp::names() {
        let flag = name.replace('*', "x");
        for args in [format!("{flag} -m m -p x"), format!("-m m -p x {flag} 1")] {
            assert!(usage(&args).starts_with(&format!("{flag} is a flag of llama.cpp that is not here: ")), "{args}");
        }
        assert_eq!(run(&format!("-m m -p {flag}")).prompt.as_deref(), Some(flag.as_str()));
        n += 1;
    }
    assert!(n > 300, "{n}");
    // Those of ours that are meant here go through.
    assert!(matches!(line("bench -m m -r 3"), Parsed::Command(Command::Bench(a)) if a.repetitions == 3));
    assert!(matches!(line("quantize -m a -o b --type q8_0"), Parsed::Command(Command::Quantize(_))));
    assert_eq!(run("-m m -p x --ctx_size 5 -n5").ctx_size, Some(5));
    let glued = run("-m m -p x -ngl99 -n 5 -t4 -ub64");
    assert_eq!((glued.device.placement.n_gpu_layers, glued.predict, glued.device.threads), (Some(99), 5, Some(4)));
    assert!(
        matches!(line("bench -m m -p512,1024 -n8"), Parsed::Command(Command::Bench(a)) if a.prompts == [512, 1024])
    );
    assert_eq!(run("-m m -p x -r User: --reverse_prompt Q:").reverse_prompt, ["User:", "Q:"]);
}

/// Flags of files that are written, and not read.
const WRITTEN: [&str; 5] = ["dump-selection", "output", "out", "svg", "write"];

/// Every flag that takes a file is among those that no output replaces.
#[test]
fn no_output_replaces_what_a_flag_names() {
    let places: [(&str, &[(&str, &str)]); 7] = [
        ("", &[("model", "m"), ("file", "f")]),
        ("calibrate", &[("model", "m"), ("file", "f")]),
        ("eval tasks", &[("model", "m"), ("data", "d")]),
        ("eval needle", &[("model", "m"), ("file", "f")]),
        ("tune", &[("model", "m"), ("data", "d")]),
        ("bench", &[("model", "m")]),
        ("quantize", &[("model", "m"), ("output", "o"), ("type", "q8_0")]),
    ];
    // No other command writes a file.
    fn count(command: &clap::Command) -> usize {
        let writes = command.get_arguments().any(|a| a.get_long().is_some_and(|long| WRITTEN.contains(&long)));
        usize::from(writes) + command.get_subcommands().map(count).sum::<usize>()
    }
    assert_eq!(count(&built()), places.len());
    let mut n = 0;
    for (place, needed) in places {
        let command = place.split_whitespace().fold(built(), |c, name| c.find_subcommand(name).unwrap().clone());
        for argument in command.get_arguments() {
            let Some(long) = argument.get_long() else { continue };
            let names = argument.get_value_names().unwrap_or_default();
            let may_be_file = ["schedule", "chat-template", "config"].contains(&long);
            if WRITTEN.contains(&long) || !(may_be_file || names.iter().any(|name| name.as_str() == "FILE")) {
                continue;
            }
            let value =
                if long == "config" { "--config=--sidecar read.gguf".into() } else { format!("--{long}=read.gguf") };
            let more = match long {
                "model-draft" => &["--method", "specprefill"][..],
                _ => &[],
            };
            let left_out = |name: &str| {
                name == long || (long == "report" && place == "eval tasks") || (long == "text" && name == "data")
            };
            let mut argv: Vec<String> =
                std::iter::once("spts-cli").chain(place.split_whitespace()).map(str::to_owned).collect();
            for (name, value) in needed.iter().filter(|(name, _)| !left_out(name)) {
                argv.push(format!("--{name}={value}"));
            }
            argv.push(value);
            argv.extend(more.iter().map(|m| (*m).to_owned()));
            let command = match parse(argv.iter().map(OsString::from)) {
                Parsed::Command(command) => command,
                other => panic!("{argv:?}: {other:?}"),
            };
            let files = command.files().unwrap();
            assert!(files.contains(&PathBuf::from("read.gguf")), "{argv:?}: {files:?}");
            n += 1;
        }
    }
    assert!(n >= 22, "{n}");
}

#[test]
fn subcommands() {
    assert!(
        matches!(line("info m.gguf --json"), Parsed::Command(Command::Info(a)) if a.json && a.path().as_os_str() == "m.gguf")
    );
    assert!(matches!(line("info -m m.gguf"), Parsed::Command(Command::Info(a)) if a.path().as_os_str() == "m.gguf"));
    assert!(
        matches!(line("plan --shape llama-3.1-8b -n 32768 --keep 2 -ctk q8_0"), Parsed::Command(Command::Plan(a)) if a.n_tokens == 32768)
    );
    assert!(matches!(line("--list-devices"), Parsed::Command(Command::ListDevices)));
}

#[test]
fn flags_of_a_command_stand_under_no_groups_heading() {
    fn headings(command: &clap::Command, found: &mut Vec<(String, String)>) {
        let flags = command.get_arguments().filter(|a| a.get_help_heading() == Some("Changes of the model's metadata"));
        found.extend(flags.map(|a| (command.get_name().to_owned(), a.get_id().to_string())));
        command.get_subcommands().for_each(|c| headings(c, found));
    }
    let mut found = Vec::new();
    headings(&built(), &mut found);
    let others: Vec<_> = found.iter().filter(|(_, flag)| !options::OVERRIDES.contains(&flag.as_str())).collect();
    assert!(others.is_empty(), "{others:?}");
    // A run, plan, bench, the four of eval, tune and calibrate.
    assert_eq!(found.len(), 9 * options::OVERRIDES.len());
}

#[test]
fn help_fits_a_screen_per_group() {
    let Parsed::Text(help) = line("--help") else { panic!("no help") };
    for flag in [
        "-ngl, --n-gpu-layers <N>",
        "-ncmoe, --n-cpu-moe <N>",
        "-cmoe, --cpu-moe",
        " -ub, --ubatch-size <N>",
        "-ctk, --cache-type-k",
        "-sys, --system-prompt",
        "  -m, --model <FILE>",
    ] {
        assert!(help.contains(flag), "{flag}\n{help}");
    }
    for group in help.split("\n\n") {
        assert!(group.lines().count() <= 24, "{group}");
        assert!(group.lines().all(|l| l.chars().count() <= 110), "{group}");
    }
    assert!(matches!(line("plan --help"), Parsed::Text(t) if t.contains("--shape")));
    assert!(matches!(line("--version"), Parsed::Text(t) if t.starts_with("spts-cli ") && t.contains("ggml ")));
}
