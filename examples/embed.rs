//! Embeds the runtime: `cargo run --release --example embed -- model.gguf long.txt "question"`.

use std::io::Write;

use spts::{
    GenerateOptions, Message, Model, ModelOptions, Sampler, SamplerParams, Schedule, Session, SessionOptions,
    StreamDecoder,
};

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
    let options = GenerateOptions { n_predict: 128, ..GenerateOptions::default() };
    let mut answer = session.answer(&prompt, &mut sampler, options)?;
    for token in &mut answer {
        print!("{}", decoder.push(token?));
        std::io::stdout().flush()?;
    }
    println!("{}", decoder.flush());
    println!(
        "{} prompt tokens read in {:.2} s, {:.0} % of the cache kept",
        prompt.len(),
        answer.prefill().seconds,
        100.0 * answer.prefill().cache_kept
    );
    Ok(())
}
