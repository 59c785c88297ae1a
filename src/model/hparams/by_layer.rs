//! Sizes of layers, which are the same in all of them, or differ by the kind of a layer (Gemma 4); and what goes with that: which
//! layers share keys, and what each has of every token.

use super::Keys;
use crate::gguf::Value;
use crate::model::shape::{Experts, LayerSizes, SlidingWindow};
use crate::model::{Arch, ModelError};

const MAX_HEAD: usize = 1024;

impl Keys<'_> {
    /// Sizes that all layers have.
    pub(super) fn sizes(&self, n_embd: usize, n_head: usize, experts: Option<Experts>) -> Result<LayerSizes, ModelError> {
        let n_head_kv = self.size_or("attention.head_count_kv", n_head, 1, n_head)?;
        self.check_groups(n_head, n_head_kv)?;
        let head_dim = self.size_or("attention.key_length", n_embd / n_head, 1, MAX_HEAD)?;
        let value_dim = self.size_or("attention.value_length", head_dim, 1, MAX_HEAD)?;
        self.check_values("attention.value_length", head_dim, value_dim)?;
        let n_ff = match experts {
            Some(experts) => self.expert_width(experts)?,
            None => self.size("feed_forward_length", 1, 1 << 22)?,
        };
        Ok(LayerSizes { n_head_kv, head_dim, n_ff })
    }

    /// Sizes of each layer: `is_windowed` says which ones have a window, and with it heads of another size.
    pub(super) fn sizes_by_layer(
        &self,
        n_head: usize,
        is_windowed: &[bool],
        experts: Option<Experts>,
    ) -> Result<Vec<LayerSizes>, ModelError> {
        let n_layer = is_windowed.len();
        let head_dim = self.size("attention.key_length", 1, MAX_HEAD)?;
        self.check_values("attention.value_length", head_dim, self.size("attention.value_length", 1, MAX_HEAD)?)?;
        let windowed_dim = self.size("attention.key_length_swa", 1, MAX_HEAD)?;
        let value_dim = self.size("attention.value_length_swa", 1, MAX_HEAD)?;
        self.check_values("attention.value_length_swa", windowed_dim, value_dim)?;
        let n_head_kv = self.each_layer("attention.head_count_kv", n_layer, n_head)?;
        n_head_kv.iter().try_for_each(|&n| self.check_groups(n_head, n))?;
        let n_ff = match experts {
            Some(experts) => vec![self.expert_width(experts)?; n_layer],
            None => self.each_layer("feed_forward_length", n_layer, 1 << 22)?,
        };
        let sizes = |l: usize| LayerSizes {
            n_head_kv: n_head_kv[l],
            head_dim: if is_windowed[l] { windowed_dim } else { head_dim },
            n_ff: n_ff[l],
        };
        Ok((0..n_layer).map(sizes).collect())
    }

    /// Whether each layer has a window.
    pub(super) fn windowed(&self, swa: &Option<SlidingWindow>, n_layer: usize) -> Vec<bool> {
        swa.as_ref().map_or_else(|| vec![false; n_layer], |swa| swa.layers.clone())
    }

    /// One number for each layer, from 1 to `max`: a list, or one for all.
    fn each_layer(&self, suffix: &str, n_layer: usize, max: usize) -> Result<Vec<usize>, ModelError> {
        let all = self.gguf.u32_array_or_scalar(&self.key(suffix))?.ok_or_else(|| self.missing(&self.key(suffix)))?;
        let is_list = self.gguf.get(&self.key(suffix)).is_some_and(|v| matches!(v, Value::Array(_)));
        let all = if is_list { all } else { vec![all[0]; n_layer] };
        let Some(all) = all.get(..n_layer) else {
            return Err(self.invalid(suffix, format!("a list of {}", all.len()), format!("{n_layer}, one a layer")));
        };
        all.iter().map(|&n| self.in_range(suffix, n as usize, 1, max)).collect()
    }

    fn check_groups(&self, n_head: usize, n_head_kv: usize) -> Result<(), ModelError> {
        if n_head.is_multiple_of(n_head_kv) {
            return Ok(());
        }
        Err(self.invalid("attention.head_count_kv", n_head_kv, format!("a divisor of the {n_head} query heads")))
    }

    fn check_values(&self, suffix: &str, key_dim: usize, value_dim: usize) -> Result<(), ModelError> {
        match value_dim == key_dim {
            true => Ok(()),
            false => Err(self.invalid(suffix, value_dim, format!("{key_dim}, the key length"))),
        }
    }

    /// Rotated dimensions in layers with a window, of as many as they have.
    pub(super) fn n_rot_swa(&self, arch: Arch, n_rot: usize) -> Result<usize, ModelError> {
        const SUFFIX: &str = "rope.dimension_count_swa";
        if arch != Arch::Gemma4 {
            return Ok(n_rot);
        }
        let n_rot_swa = self.size_or(SUFFIX, n_rot, 2, self.size("attention.key_length_swa", 1, MAX_HEAD)?)?;
        match n_rot_swa % 2 {
            0 => Ok(n_rot_swa),
            _ => Err(self.invalid(SUFFIX, n_rot_swa, "an even number".into())),
        }
    }

    /// Last layers without keys and values of their own. Each reads those of the last layer of its kind before: one with a window,
    /// and then one without, as in all files there are.
    pub(super) fn shared_kv(
        &self,
        arch: Arch,
        n_layer: usize,
        swa: Option<&SlidingWindow>,
    ) -> Result<usize, ModelError> {
        const SUFFIX: &str = "attention.shared_kv_layers";
        let n = if arch == Arch::Gemma4 { self.size_or(SUFFIX, 0, 0, n_layer)? } else { 0 };
        if n == 0 {
            return Ok(0);
        }
        let is_windowed = |l: usize| swa.is_some_and(|swa| swa.layers[l]);
        let n_own = n_layer - n;
        match n_own >= 2 && is_windowed(n_own - 2) && !is_windowed(n_own - 1) {
            true => Ok(n),
            false => {
                let expected = "so few that the last two of the others are one with a window and one without".to_owned();
                Err(self.invalid(SUFFIX, n, expected))
            }
        }
    }

    /// Features that each layer has of every token.
    pub(super) fn embedding_per_layer(&self, arch: Arch) -> Result<usize, ModelError> {
        match arch {
            Arch::Gemma4 => self.size("embedding_length_per_layer_input", 0, 1 << 16),
            _ => Ok(0),
        }
    }

    /// What logits stay within.
    pub(super) fn softcap(&self, arch: Arch) -> Result<Option<f32>, ModelError> {
        const OF_LOGITS: &str = "final_logit_softcapping";
        const OF_SCORES: &str = "attn_logit_softcapping";
        let not_supported = |suffix: &str| self.invalid(suffix, "set", "no softcapping: it is not supported".into());
        if self.float_or(OF_SCORES, 0.0)? != 0.0 {
            return Err(not_supported(OF_SCORES));
        }
        match self.float_or(OF_LOGITS, 0.0)? {
            0.0 => Ok(None),
            _ if arch == Arch::Gemma4 => self.positive(OF_LOGITS, None).map(Some),
            _ => Err(not_supported(OF_LOGITS)),
        }
    }
}
