//! The keys of models whose layers attend or are recurrent: which is which, and the geometry of their gated delta nets.

use super::{Keys, MAX_LAYERS};
use crate::gguf::{Array, Value};
use crate::graph::ir::DeltaHeads;
use crate::model::shape::Recurrent;
use crate::model::{Arch, ModelError};

impl Keys<'_> {
    /// Layers that are run, and those appended to predict further tokens, which are not.
    pub(super) fn n_layer(&self, arch: Arch) -> Result<(usize, usize), ModelError> {
        const SUFFIX: &str = "nextn_predict_layers";
        let n_all = self.size("block_count", 1, MAX_LAYERS)?;
        let n_predict = if arch.is_hybrid() { self.size_or(SUFFIX, 0, 0, n_all)? } else { 0 };
        match n_all - n_predict {
            0 => Err(self.invalid(SUFFIX, n_predict, format!("fewer than the {n_all} layers of block_count"))),
            n => Ok((n, n_predict)),
        }
    }

    /// Pairs of rotated elements go by the positions of text, rows and columns in turn, which are one and the same in a text. So
    /// rotation is the usual one, if no pair goes by the fourth position, which texts do not have.
    pub(super) fn check_sections(&self, arch: Arch, n_rot: usize) -> Result<(), ModelError> {
        const SUFFIX: &str = "rope.dimension_sections";
        if !matches!(arch, Arch::Qwen35 | Arch::Qwen35Moe) {
            return Ok(());
        }
        let sections = self.gguf.u32_array_or_scalar(&self.key(SUFFIX))?.ok_or_else(|| self.missing(&self.key(SUFFIX)))?;
        let of = |i: usize| sections.get(i).map_or(0, |&n| n as usize);
        let all: usize = (0..4).map(of).sum();
        // As ggml's interleaved sections go: the pair i belongs to section i % 3, as long as that has any left.
        if all > 0 && (0..n_rot / 2).map(|i| i % all).all(|i| i < 3 * of(i % 3)) {
            return Ok(());
        }
        let found = format!("{sections:?}");
        Err(self.invalid(SUFFIX, found, format!("three parts that share {} pairs in turn", n_rot / 2)))
    }

    /// Which layers are gated delta nets, and their geometry.
    pub(super) fn recurrent(&self, arch: Arch, n_layer: usize) -> Result<Option<Recurrent>, ModelError> {
        if !arch.is_hybrid() {
            return Ok(None);
        }
        let layers = self.recurrent_layers(n_layer)?;
        let head_dim = self.size("ssm.state_size", 1, 1024)?;
        let n_head_k = self.size("ssm.group_count", 1, 1 << 12)?;
        let n_head_v = self.size("ssm.time_step_rank", 1, 1 << 12)?;
        if n_head_v % n_head_k != 0 {
            let expected = format!("a multiple of the {n_head_k} key heads");
            return Err(self.invalid("ssm.time_step_rank", n_head_v, expected));
        }
        let inner = self.size("ssm.inner_size", 1, 1 << 22)?;
        if inner != n_head_v * head_dim {
            let expected = format!("{n_head_v} value heads of {head_dim} each: {}", n_head_v * head_dim);
            return Err(self.invalid("ssm.inner_size", inner, expected));
        }
        let d_conv = self.size("ssm.conv_kernel", 2, 64)?;
        let grouped = arch == Arch::Qwen3Next;
        Ok(Some(Recurrent { layers, heads: DeltaHeads { n_head_k, n_head_v, grouped, head_dim, d_conv } }))
    }

    /// As a list says, one entry a layer, or all but every n-th.
    fn recurrent_layers(&self, n_layer: usize) -> Result<Vec<bool>, ModelError> {
        const LIST: &str = "attention.recurrent_layers";
        const INTERVAL: &str = "full_attention_interval";
        let (suffix, layers) = match self.gguf.get(&self.key(LIST)) {
            Some(Value::Array(Array::Bool(layers))) => (LIST, layers.clone()),
            Some(Value::Array(layers)) => {
                let integers = layers.to_integers::<i64>();
                let wrong = || self.invalid(LIST, layers.element_type(), "booleans, or integers".into());
                (LIST, integers.ok_or_else(wrong)?.iter().map(|&x| x != 0).collect())
            }
            Some(_) => return Err(self.invalid(LIST, "no list", format!("a list of {n_layer}, one a layer"))),
            None => {
                let nth = self.size_or(INTERVAL, 4, 1, MAX_LAYERS)?;
                (INTERVAL, (1..=n_layer).map(|l| l % nth != 0).collect())
            }
        };
        let Some(layers) = layers.get(..n_layer) else {
            let found = format!("a list of {}", layers.len());
            return Err(self.invalid(suffix, found, format!("{n_layer}, one a layer")));
        };
        if layers.iter().all(|&recurrent| recurrent) {
            let found = format!("a model of {n_layer} recurrent layers");
            return Err(self.invalid(suffix, found, "at least one layer with attention".into()));
        }
        Ok(layers.to_vec())
    }

    /// Width of the FFN that computes every token beside the experts, which some files leave to be that of a dense one.
    pub(super) fn shared_width(&self, arch: Arch) -> Result<usize, ModelError> {
        if arch == Arch::Gemma4 {
            return self.size("feed_forward_length", 1, 1 << 22);
        }
        if !arch.is_hybrid() {
            return Ok(0);
        }
        match self.optional("expert_shared_feed_forward_length")?.filter(|&n| n > 0) {
            Some(n) => self.in_range("expert_shared_feed_forward_length", n, 1, 1 << 22),
            None => self.size("feed_forward_length", 1, 1 << 22),
        }
    }
}
