//! Search: which of a prompt's tokens enter, where a method has them scored by a program that runs before.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::graph::ir::Tap;
use crate::method::entry::{Entry, Positions, Reader, Search};
use crate::method::spts::capture::Capture;
use crate::method::{Method, Prompt};
use crate::model::weights::Model;
use crate::{Error, Result};

use super::prefill::PrefillProgress;
use super::select::top_k;
use super::{Session, SessionOptions};

/// Rows of a prompt, and where they stand.
pub(super) type Entering = (Vec<usize>, Positions);

impl Session {
    /// The rows of a prompt that enter, ascending; `None`: all of them.
    pub(super) fn entering(
        &mut self,
        method: &dyn Method,
        tokens: &[u32],
        prompt: Prompt,
        progress: &mut dyn FnMut(PrefillProgress) -> ControlFlow<()>,
    ) -> Result<Option<Entering>> {
        let search = match method.entry(self.model.shape(), prompt)? {
            Entry::All => return Ok(None),
            Entry::At(rows) => return Ok(Some((rows, Positions::Own))),
            Entry::Best(search) => search,
        };
        let scores = match search.reader {
            Reader::Layer(layer) => self.scores(tokens, &search, &[layer], progress)?,
            Reader::Draft => {
                let interrupt = self.interrupt.clone();
                let draft = self.draft(method)?;
                // Recurrent ones score nothing.
                let shape = draft.model.shape();
                let layers: Vec<usize> = (0..shape.n_layer).filter(|&l| shape.has_cache(l)).collect();
                // The draft's session has a flag of its own, which nobody knows.
                draft.scores(tokens, &search, &layers, &mut |p| match interrupt.load(Ordering::Relaxed) {
                    true => ControlFlow::Break(()),
                    false => progress(p),
                })?
            }
        };
        Ok(Some((best(&search, &scores), search.positions)))
    }

    /// Scores by these layers, joined by their maximum, one for each token.
    fn scores(
        &mut self,
        tokens: &[u32],
        search: &Search,
        layers: &[usize],
        progress: &mut dyn FnMut(PrefillProgress) -> ControlFlow<()>,
    ) -> Result<Vec<f32>> {
        let mut scores = vec![0.0_f32; tokens.len()];
        let mut are_numbers = true;
        let capture = Capture { layers, taps: &[Tap::ProbeScores], probe: search.probe };
        self.run_captures(tokens, &capture, progress, &mut |captured| {
            are_numbers &= captured.values.iter().all(|score| score.is_finite());
            for (score, &of_layer) in scores[captured.rows].iter_mut().zip(captured.values) {
                *score = score.max(of_layer);
            }
        })?;
        // They would choose the first tokens, in silence.
        if are_numbers { Ok(scores) } else { Err(Error::NoScores { model: self.model.shape().name.clone() }) }
    }

    /// The session that reads prompts with the draft, on the devices where the draft lies.
    fn draft(&mut self, method: &dyn Method) -> Result<&mut Session> {
        let model = self.options.draft.clone();
        let model = model.ok_or_else(|| Error::DraftMissing { method: method.name().to_owned() })?;
        if self.draft.is_none() {
            check_vocabulary(&self.model, &model)?;
            let options = SessionOptions {
                n_ctx: Some(self.n_ctx()),
                n_ubatch: self.options.n_ubatch,
                n_threads: self.options.n_threads,
                ..SessionOptions::default()
            };
            let mut session = Session::new(model, options)?;
            // It answers nothing.
            session.plan_answer(0);
            self.draft = Some(Box::new(session));
        }
        let Some(draft) = self.draft.as_deref_mut() else { unreachable!("made above") };
        Ok(draft)
    }
}

/// Checks that both models give every id the same text.
fn check_vocabulary(model: &Arc<Model>, draft: &Arc<Model>) -> Result<()> {
    let (a, b) = (model.tokenizer(), draft.tokenizer());
    let n = a.n_vocab();
    if n != b.n_vocab() || (0..n as u32).any(|id| a.token_bytes(id) != b.token_bytes(id)) {
        return Err(Error::DraftVocabulary { draft: draft.shape().name.clone() });
    }
    Ok(())
}

/// The rows that score best, the last ones, which probe, among them.
fn best(search: &Search, scores: &[f32]) -> Vec<usize> {
    let chunk = search.chunk.max(1);
    let mean = |chunk: &[f32]| chunk.iter().sum::<f32>() / chunk.len() as f32;
    let by_chunk: Vec<f32> = scores.chunks(chunk).flat_map(|c| std::iter::repeat_n(mean(c), c.len())).collect();
    let last = search.probe.queries.min(scores.len());
    let keep = search.keep.clamp(last, scores.len());
    top_k(&by_chunk, keep, [0, last]).into_iter().map(|row| row as usize).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::spts::schedule::Probe;

    fn search(keep: usize, chunk: usize) -> Search {
        Search { reader: Reader::Draft, probe: Probe::PAPER, keep, chunk, positions: Positions::Own }
    }

    #[test]
    fn tokens_are_chosen_by_their_scores_and_the_last_one_always() {
        assert_eq!(best(&search(3, 1), &[0.1, 0.9, 0.5, 0.7, 0.0]), [1, 3, 4]);
        assert_eq!(best(&search(9, 1), &[0.1, 0.2]), [0, 1]);
    }

    #[test]
    fn chunks_are_chosen_by_their_means_and_the_last_one_that_fits_in_part() {
        // Means 0.4, 0.5, 0.3.
        let scores = [0.0, 0.8, 0.5, 0.5, 0.6, 0.0, 0.0];
        assert_eq!(best(&search(3, 2), &scores), [2, 3, 6]);
        assert_eq!(best(&search(4, 2), &scores), [0, 2, 3, 6]);
    }
}
