//! What has to hold for any bytes: an error of one line, or a model that reads a short prompt and decodes, whatever comes out.

use std::ops::ControlFlow;
use std::sync::Arc;

use spts::gguf::Gguf;
use spts::method::spts::schedule::{Budget, Pool, Probe, Schedule, Stage};
use spts::{Error, Model, ModelOptions, Session, SessionOptions};

/// How far a file came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// Refused when it was opened.
    Refused,
    /// A model, but no answer.
    Opened,
    /// Two tokens behind a prompt.
    Decoded,
}

/// Opens the bytes as a model and, where that works, runs it; with `skips`, tokens are skipped and pruned.
pub fn exercise(bytes: Vec<u8>, skips: bool) -> Reached {
    match open(bytes) {
        Err(e) => {
            check(&e);
            Reached::Refused
        }
        Ok(model) => match run(&model, skips) {
            Err(e) => {
                check(&e);
                Reached::Opened
            }
            Ok(()) => Reached::Decoded,
        },
    }
}

fn check(error: &Error) {
    let message = error.to_string();
    assert!(!message.contains('\n'), "{message:?}");
    assert!(!message.starts_with("internal"), "{message:?}");
}

fn open(bytes: Vec<u8>) -> Result<Arc<Model>, Error> {
    let gguf = Gguf::from_bytes(bytes, "hostile.gguf")?;
    let options = ModelOptions { device: Some("CPU".into()), ..ModelOptions::default() };
    Model::from_gguf(Arc::new(gguf), options)
}

fn run(model: &Arc<Model>, skips: bool) -> Result<(), Error> {
    let _ = model.tokenizer().encode("the rain in <|im_end|> here", true, true);
    let n_vocab = model.shape().n_vocab as u32;
    let prompt: Vec<u32> = (0..40u32).map(|i| i * 7 % n_vocab).collect();
    let stage =
        |last_layer, budget, cut| Stage { last_layer, budget: Budget::Tokens(budget), cut: Some(Budget::Tokens(cut)) };
    let mut options = SessionOptions { n_ctx: Some(64), n_threads: Some(1), ..SessionOptions::default() };
    if skips {
        let paper = Schedule::paper_for(model.shape())?;
        let schedule = Schedule {
            skip_from: 1,
            stages: vec![stage(1, 30, 25), stage(2, 20, 15)],
            probe: Probe { queries: 4, pool: Pool::Avg(3), ..paper.probe },
            use_proxy: false,
            ..paper
        };
        options.method = schedule.into();
    }
    let mut session = Session::new(model.clone(), options)?;
    session.prefill(&prompt, &mut |_| ControlFlow::Continue(()))?;
    assert_eq!(session.logits().len(), model.shape().n_vocab);
    for token in [0, n_vocab - 1] {
        session.decode(token)?;
        assert_eq!(session.logits().len(), model.shape().n_vocab);
    }
    Ok(())
}
