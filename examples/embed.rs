//! Embeds the runtime: `cargo run --release --example embed -- model.gguf long.txt "question" "another question"`.

use std::io::Write;
use std::ops::ControlFlow;

use spts::{
    GenerateOptions, Message, Model, ModelOptions, Sampler, SamplerParams, Schedule, Session, SessionOptions,
    StreamDecoder,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, path, document, questions @ ..] = &args[..] else {
        return Err("usage: embed MODEL FILE QUESTION ...".into());
    };
    let model = Model::open(path.as_ref(), ModelOptions::default())?;

    // Half of the prompt's tokens, then ever fewer.
    let schedule = Schedule::fractional(model.shape(), [0.5, 0.4, 0.3, 0.2], 0.03)?;
    let mut session =
        Session::new(model.clone(), SessionOptions { method: schedule.into(), ..SessionOptions::default() })?;

    let document = std::fs::read_to_string(document)?;
    let encode = |question: &str| {
        let messages = [Message::about(&document, question)];
        model.chat_template().encode(model.tokenizer(), &messages, true).map(|prompt| prompt.tokens)
    };
    // What prompts with different questions have in common is read once.
    let shared = encode("1")?.into_iter().zip(encode("?")?).take_while(|(a, b)| a == b).map(|(a, _)| a);
    let shared: Vec<u32> = shared.collect();
    let read = session.read(&shared, &mut |_| ControlFlow::Continue(()))?;
    println!("{} tokens read in {:.2} s", read.n_tokens, read.seconds);

    let mut sampler = Sampler::new(SamplerParams::greedy())?;
    let options = GenerateOptions { n_predict: 128, ..GenerateOptions::default() };
    for question in questions {
        session.clear();
        let mut decoder = StreamDecoder::new(model.tokenizer());
        let mut answer = session.answer(&encode(question)?, &mut sampler, options.clone())?;
        println!("> {question}");
        for token in &mut answer {
            print!("{}", decoder.push(token?));
            std::io::stdout().flush()?;
        }
        println!("{}", decoder.flush());
        let prefill = answer.prefill();
        println!("{} tokens read anew in {:.2} s", prefill.n_tokens - prefill.n_reused, prefill.seconds);
    }
    Ok(())
}
