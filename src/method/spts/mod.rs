//! SPTS, self-predictive token skipping (arXiv 2601.13155), as rewrites of the graph.
//!
//! [`schedule`] says how many tokens each layer works on (MSDP), [`preset`] which schedule a model gets, [`schedule_file`] how one
//! is written. The passes, in their order ([`passes`]): [`attention_probe`] (PAP), [`ffn_proxy`] (LTP), [`prune`]. [`sidecar`] is
//! the file of low-rank proxies; [`capture`] is the rewrite that calibration and evaluation run on.
//!
//! Three words are kept apart: a token that is not active in a module is *skipped* there and may be active later; a
//! *pruned* token is gone for good; a *gather* is the graph operation that picks rows.

pub mod attention_probe;
pub mod capture;
pub mod ffn_proxy;
pub mod passes;
pub mod preset;
pub mod prune;
pub mod schedule;
pub mod schedule_file;
pub mod sidecar;

use std::sync::Arc;

use super::{Budgets, Method, MethodError, Prompt};
use crate::graph::Graph;
use crate::graph::verify::VerifyError;
use crate::model::shape::Shape;
use attention_probe::ProbeSettings;
use schedule::{Reach, Schedule};

/// Skips and prunes tokens after a schedule.
#[derive(Clone, Debug, PartialEq)]
pub struct Spts {
    /// How many tokens, and how they are chosen.
    pub schedule: Schedule,
    /// Which prompts it acts on.
    pub reach: Reach,
}

impl Spts {
    /// A schedule for prompts longer than its first budget.
    pub fn new(schedule: Schedule) -> Spts {
        Spts { schedule, reach: Reach::default() }
    }
}

impl Method for Spts {
    fn name(&self) -> &str {
        &self.schedule.name
    }

    fn budgets(&self, shape: &Shape, prompt: Prompt) -> Result<Budgets, MethodError> {
        let schedule = self.schedule.for_question(prompt.n_tokens, prompt.question_start);
        Ok(schedule.resolve(shape.n_layer, prompt.n_tokens, &|l| shape.layer_kind(l), self.reach)?)
    }

    fn rewrite(&self, dense: &Graph, budgets: &Budgets) -> Result<Graph, VerifyError> {
        passes::skip_and_prune(dense, budgets, &ProbeSettings::of(&self.schedule, budgets))
    }
}

impl From<Schedule> for Arc<dyn Method> {
    fn from(schedule: Schedule) -> Self {
        Arc::new(Spts::new(schedule))
    }
}
