//! The committed tiny models: made here, and checked to be what is made here.

mod support;

use std::path::Path;
use std::process::Command;

use support::tiny::{NAMES, Tiny};

/// Length of the prompts of the fixtures: beyond the tiny models' sliding window and YaRN's original context.
const N_PROMPT: usize = 48;
const POSITIONS: [usize; 5] = [0, 1, 17, 33, N_PROMPT - 1];

/// Writes `tests/data/tiny`. With `SPTS_LLAMA_LOGITS`, the path of the built `llama_logits.cpp`, also the expected logits.
#[test]
#[ignore = "writes the fixtures"]
fn generate() {
    let dir = support::tiny_dir();
    let program = std::env::var_os("SPTS_LLAMA_LOGITS");
    for name in NAMES {
        let tiny = Tiny::named(name);
        let path = dir.join(format!("{name}.gguf"));
        tiny.build().write(&path);
        let Some(program) = &program else { continue };
        logits(Path::new(program), &tiny, &path, 256, &dir.join(format!("{name}.json")));
        if name == "phi3-longrope" {
            logits(Path::new(program), &tiny, &path, 512, &dir.join(format!("{name}-long.json")));
        }
    }
}

fn logits(program: &Path, tiny: &Tiny, model: &Path, n_ctx: usize, to: &Path) {
    let list = |items: &[String]| items.join(",");
    let tokens: Vec<String> = tiny.prompt(N_PROMPT).iter().map(u32::to_string).collect();
    let positions: Vec<String> = POSITIONS.iter().map(usize::to_string).collect();
    let run = Command::new(program)
        .arg(model)
        .args([n_ctx.to_string(), list(&positions), list(&tokens)])
        .output()
        .unwrap_or_else(|e| panic!("{}: {e}", program.display()));
    assert!(run.status.success(), "{}: {}", model.display(), String::from_utf8_lossy(&run.stderr));
    std::fs::write(to, run.stdout).unwrap();
}

#[test]
fn committed_models_are_what_the_generator_makes() {
    for name in NAMES {
        let path = support::tiny_dir().join(format!("{name}.gguf"));
        let committed = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let made = Tiny::named(name).build();
        assert!(committed == made.to_bytes(), "{name}.gguf differs from the generator's");
        assert!(committed.len() < 150_000, "{name}.gguf has {} bytes", committed.len());
        assert!(support::gguf::File::from_bytes(&committed) == made, "{name}.gguf does not read back");
    }
}
