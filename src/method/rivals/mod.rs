//! Rivals: methods of other papers, and controls, run by the same engine, so that a comparison measures the choice of tokens and
//! nothing else. Each file names its source and says where it differs.
//!
//! A rival is written `NAME[:SHARE[@LAYER]]` ([`Rival::parse`]): the share of the prompt's tokens that are left when it is done
//! choosing, and the layer where it chooses, for those that choose at one. None of them has budgets in tokens: a prompt of any
//! length is read with fewer tokens.

mod controls;
pub mod error;
mod fastkv;
mod gemfilter;
mod pruning;
mod sliminfer;
mod specprefill;
mod uniprefill;

use std::str::FromStr;
use std::sync::Arc;

use super::{Budgets, LayerBudget, Method, Prompt};
use crate::model::shape::Shape;

pub use error::{RIVAL_NAMES, RivalError};

/// What a rival leaves, and where it chooses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rival {
    name: &'static str,
    /// Share of the prompt's tokens that is left; in (0, 1].
    share: f64,
    /// The layer that was asked for.
    layer: Option<usize>,
}

impl Rival {
    /// Reads `NAME[:SHARE[@LAYER]]`.
    ///
    /// # Errors
    /// No such method, a share outside (0, 1], a layer for a method that has none.
    pub fn parse(text: &str) -> Result<Rival, RivalError> {
        let (method, settings) = text.split_once(':').map_or((text, None), |(m, s)| (m, Some(s)));
        let name = RIVAL_NAMES.into_iter().find(|name| *name == method);
        let name = name.ok_or_else(|| RivalError::Unknown(method.to_owned()))?;
        let (share, layer) = match settings {
            None => (None, None),
            Some(s) => s.split_once('@').map_or((Some(s), None), |(share, layer)| (Some(share), Some(layer))),
        };
        let bad_share = |share: &str| RivalError::Share { method: name.to_owned(), share: share.to_owned() };
        let share = match share {
            None => usual_share(name),
            Some(text) => f64::from_str(text).ok().filter(|x| *x > 0.0 && *x <= 1.0).ok_or_else(|| bad_share(text))?,
        };
        let bad_layer = |layer: &str| RivalError::Layer { method: name.to_owned(), layer: layer.to_owned() };
        let layer = layer.map(|text| text.parse().map_err(|_| bad_layer(text))).transpose()?;
        match layer {
            Some(layer) if !["fastkv", "gemfilter"].contains(&name) => Err(RivalError::NoLayer { method: name, layer }),
            _ => Ok(Rival { name, share, layer }),
        }
    }

    /// The [`Method`] that reads prompts this way.
    pub fn method(self) -> Arc<dyn Method> {
        match self.name {
            "fastkv" => Arc::new(fastkv::FastKv(self)),
            "gemfilter" => Arc::new(gemfilter::GemFilter(self)),
            "uniprefill" => Arc::new(uniprefill::UniPrefill(self)),
            "sliminfer" => Arc::new(sliminfer::SlimInfer(self)),
            "specprefill" => Arc::new(specprefill::SpecPrefill(self)),
            "random" => Arc::new(controls::Random(self)),
            _ => Arc::new(controls::Last(self)),
        }
    }

    /// Whether the method needs a draft model.
    pub fn needs_draft(self) -> bool {
        self.name == "specprefill"
    }

    /// The tokens that are left of a prompt, at least `least` of them, and no more than there are.
    fn left(self, n_tokens: usize, least: usize) -> usize {
        ((self.share * n_tokens as f64) as usize).max(least).min(n_tokens)
    }

    /// The layer where it chooses, which attends and is not the last one: as asked for, or `of_32` in 32 layers.
    fn layer(self, shape: &Shape, of_32: usize) -> Result<usize, RivalError> {
        let n_layer = shape.n_layer;
        let layer = self.layer.unwrap_or_else(|| attending(shape, of_32 * n_layer / 32));
        if layer + 1 >= n_layer {
            return Err(RivalError::LayerOutOfRange { method: self.name, layer, n_layer });
        }
        match attending(shape, layer) {
            other if other != layer => Err(RivalError::Recurrent { method: self.name, layer, other }),
            _ => Ok(layer),
        }
    }

    /// Refuses what no rival reads.
    fn check(self, shape: &Shape, prompt: Prompt) -> Result<(), RivalError> {
        if shape.swa.is_some() {
            return Err(RivalError::Windows { method: self.name });
        }
        if prompt.n_tokens == 0 {
            return Err(RivalError::EmptyPrompt { method: self.name });
        }
        Ok(())
    }

    /// Budgets of a prompt of which `left` tokens enter, and all of these go through every layer.
    fn budgets_of_entry(self, shape: &Shape, prompt: Prompt, left: usize) -> Result<Budgets, RivalError> {
        self.check(shape, prompt)?;
        let dense = Budgets::dense(shape.n_layer, prompt.n_tokens);
        Ok(Budgets { layers: vec![LayerBudget::dense(left); shape.n_layer], ..dense })
    }
}

/// A layer that attends: this one, or else the last one before it, or the first of all. (Recurrent layers score no tokens.)
fn attending(shape: &Shape, layer: usize) -> usize {
    let attends = |l: &usize| shape.recurrence(*l).is_none();
    (0..=layer).rev().find(attends).or_else(|| (layer..shape.n_layer).find(attends)).unwrap_or(layer)
}

/// The share that a method leaves unless told otherwise: its paper's, or a third for a control.
fn usual_share(name: &str) -> f64 {
    match name {
        "fastkv" | "specprefill" => 0.2,
        "gemfilter" | "uniprefill" => 0.1,
        "sliminfer" => 0.0625,
        _ => 0.33,
    }
}

#[cfg(test)]
#[path = "rivals_tests.rs"]
mod tests;
