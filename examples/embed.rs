//! Embeds the runtime: `cargo run --release --example embed -- model.gguf long.txt "question"`.

use std::io::Write;
use std::ops::ControlFlow;

use spts::method::spts::schedule::Schedule;
use spts::session::generate::GenerateOptions;
use spts::session::sampler::{Sampler, SamplerParams};

use spts::tokenizer::{Message, StreamDecoder};
use spts::{Model, ModelOptions, Session, SessionOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, path, document, question] = &args[..] else { return Err("usage: embed MODEL FILE QUESTION".into()) };
    let model = Model::open(path.as_ref(), ModelOptions::default())?;

    // Half of the prompt's tokens, then ever fewer; scored by attention alone, so that no sidecar is needed.
    let schedule = Schedule { use_proxy: false, ..Schedule::fractional(model.shape(), [0.5, 0.4, 0.3, 0.2], 0.03)? };
    let mut session =
        Session::new(model.clone(), SessionOptions { method: schedule.into(), ..SessionOptions::default() })?;

    let messages = [Message::about(&std::fs::read_to_string(document)?, question)];
    let prompt = model.chat_template().encode(model.tokenizer(), &messages, true)?.tokens;

    let mut sampler = Sampler::new(SamplerParams::greedy())?;
    let mut decoder = StreamDecoder::new(model.tokenizer());
    let answer = session.generate(
        &prompt,
        &mut sampler,
        GenerateOptions { n_predict: 128, ..GenerateOptions::default() },
        &mut |_progress| ControlFlow::Continue(()),
        &mut |token| {
            print!("{}", decoder.push(token));
            let _ = std::io::stdout().flush();
            ControlFlow::Continue(())
        },
    )?;
    println!("{}", decoder.flush());
    println!(
        "{} prompt tokens, first token after {:.2} s, {:.0} % of the cache kept",
        prompt.len(),
        answer.ttft,
        100.0 * answer.prefill.cache_kept
    );
    Ok(())
}
