//! Prefill and decode by themselves, counted as `llama-bench` counts them, so that both can be compared on one machine:
//! `scripts/compare-llama.sh` runs this and llama-bench in turns.
//!
//! One JSON object a line, with llama-bench's keys: `{"n_prompt", "n_gen", "samples_ts"}`. A prompt is random tokens and
//! ends with its logits on the host; decoding starts behind one token, takes random tokens too, and samples nothing. One
//! run warms up and is not counted.

use std::ops::ControlFlow;
use std::process::ExitCode;
use std::time::Instant;

use spts::{Model, ModelOptions, Session, SessionOptions};

struct Args {
    model: String,
    n_prompt: Vec<usize>,
    n_gen: Vec<usize>,
    repetitions: usize,
    n_threads: Option<usize>,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // Cargo runs every bench with `--bench`; this one needs a model, which the script names.
    let Some(args) = parse(&args) else {
        eprintln!("against_llama -m MODEL.gguf [-p N,...] [-n N,...] [-r REPETITIONS] [-t THREADS]");
        return ExitCode::SUCCESS;
    };
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("against_llama: {e}");
            ExitCode::FAILURE
        }
    }
}

/// `None` if no model is named or an argument is not understood.
fn parse(args: &[String]) -> Option<Args> {
    let numbers = |s: &String| s.split(',').map(|n| n.parse().ok()).collect::<Option<Vec<usize>>>();
    let mut parsed =
        Args { model: String::new(), n_prompt: Vec::new(), n_gen: Vec::new(), repetitions: 5, n_threads: None };
    let mut args = args.iter().filter(|a| *a != "--bench");
    while let Some(flag) = args.next() {
        let value = args.next()?;
        match flag.as_str() {
            "-m" => parsed.model = value.clone(),
            "-p" => parsed.n_prompt = numbers(value)?,
            "-n" => parsed.n_gen = numbers(value)?,
            "-r" => parsed.repetitions = value.parse().ok()?,
            "-t" => parsed.n_threads = Some(value.parse().ok()?),
            _ => return None,
        }
    }
    (!parsed.model.is_empty()).then_some(parsed)
}

fn run(args: &Args) -> spts::Result<()> {
    let model = Model::open(args.model.as_ref(), ModelOptions::default())?;
    let options = SessionOptions { n_threads: args.n_threads, ..SessionOptions::default() };
    let mut session = Session::new(model.clone(), options)?;
    let mut tokens = RandomTokens { state: 1, n_vocab: model.hparams().n_vocab as u64 };
    let tests = args.n_prompt.iter().map(|&n| (n, 0)).chain(args.n_gen.iter().map(|&n| (0, n)));
    for (n_prompt, n_gen) in tests {
        let mut samples = Vec::new();
        for repetition in 0..=args.repetitions {
            session.clear();
            let prompt: Vec<u32> = tokens.by_ref().take(n_prompt.max(1)).collect();
            let mut start = Instant::now();
            session.prefill(&prompt, &mut |_| ControlFlow::Continue(()))?;
            if n_gen > 0 {
                start = Instant::now();
                for token in tokens.by_ref().take(n_gen) {
                    session.decode(token)?;
                }
            }
            if repetition > 0 {
                samples.push((n_prompt + n_gen) as f64 / start.elapsed().as_secs_f64());
            }
        }
        println!("{}", serde_json::json!({ "n_prompt": n_prompt, "n_gen": n_gen, "samples_ts": samples }));
    }
    Ok(())
}

/// Token ids without end, the same in every run (SplitMix64).
struct RandomTokens {
    state: u64,
    n_vocab: u64,
}

impl Iterator for RandomTokens {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Some(((z ^ (z >> 31)) % self.n_vocab) as u32)
    }
}
