//! Channel saliency of one FFN layer, streamed (LTP step 2).
//!
//! A channel's score is the mean of the largest `rho` share of `z = |act(W_g x) * (W_u x)|` over
//! all calibration tokens, so `z` of every token counts, yet only `ceil(rho * n_tokens)` values of
//! each channel have to be kept: a min-heap per channel, whose root is the value to beat.
//!
//! Memory is `n_ff * ceil(rho * max_tokens) * size_of::<value>()` bytes, allocated up front. For
//! Llama-3.1-8B (n_ff 14336) with rho 0.2 and 4096 tokens: 47 MB in f32, 23.5 MB in f16. One layer
//! is scored at a time, so that is the whole cost.

use half::f16;
use rayon::prelude::*;
use thiserror::Error;

use crate::activation::Activation;

/// The paper's share of largest values that a channel's score averages over.
pub const PAPER_RHO: f64 = 0.2;

/// Channels that one parallel task owns: a tile is read in runs of this many contiguous values.
const CHANNELS_PER_TASK: usize = 64;

/// How the kept values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Storage {
    /// Four bytes a value, exact.
    #[default]
    F32,
    /// Two bytes a value: relative error up to 2^-11, values above 65504 count as 65504.
    F16,
}

/// Why a saliency could not be computed.
#[derive(Debug, Error, Clone, PartialEq)]
#[non_exhaustive]
pub enum SaliencyError {
    /// A parameter is out of its range.
    #[error("channel saliency: {what} is {found}, expected {expected}")]
    Parameter {
        /// The parameter's name.
        what: &'static str,
        /// Value that was found.
        found: String,
        /// What it has to be.
        expected: &'static str,
    },
    /// A tile's length is no multiple of the number of channels.
    #[error("channel saliency: a tile of {found} values, expected a multiple of n_ff = {n_ff}")]
    Shape {
        /// Length of the tile.
        found: usize,
        /// Channels of the layer.
        n_ff: usize,
    },
    /// Gate and up tiles differ in length.
    #[error("channel saliency: gate has {gate} values and up {up}, expected the same")]
    GateUp {
        /// Length of the gate tile.
        gate: usize,
        /// Length of the up tile.
        up: usize,
    },
    /// More tokens than were announced.
    #[error("channel saliency: {found} calibration tokens, room was made for {max_tokens}")]
    TooManyTokens {
        /// Tokens seen with this tile.
        found: usize,
        /// Tokens announced.
        max_tokens: usize,
    },
    /// The model produced NaN or infinity.
    #[error("channel saliency: channel {channel} is not finite; is the model file damaged?")]
    NotFinite {
        /// Lowest channel of the tile with such a value in the first failing group of channels.
        channel: usize,
    },
    /// No token was pushed.
    #[error("channel saliency: no calibration tokens, expected at least one")]
    Empty,
}

/// Streaming channel scores of one FFN layer.
#[derive(Debug)]
pub struct ChannelSaliency {
    n_ff: usize,
    max_tokens: usize,
    rho: f64,
    keep: usize,
    seen: usize,
    kept: Kept,
}

#[derive(Debug)]
enum Kept {
    F32(Vec<f32>),
    F16(Vec<u16>),
}

impl ChannelSaliency {
    /// Room for `n_ff` channels and at most `max_tokens` calibration tokens.
    ///
    /// # Errors
    /// [`SaliencyError::Parameter`] for a zero size or a `rho` outside (0, 1].
    pub fn new(n_ff: usize, max_tokens: usize, rho: f64, storage: Storage) -> Result<Self, SaliencyError> {
        let parameter = |what, found: String, expected| SaliencyError::Parameter { what, found, expected };
        if n_ff == 0 {
            return Err(parameter("n_ff", "0".into(), "at least 1"));
        }
        if max_tokens == 0 {
            return Err(parameter("max_tokens", "0".into(), "at least 1"));
        }
        if !(rho > 0.0 && rho <= 1.0) {
            return Err(parameter("rho", rho.to_string(), "above 0 and at most 1"));
        }
        let keep = kept_values(rho, max_tokens);
        let Some(len) = n_ff.checked_mul(keep) else {
            return Err(parameter("n_ff * max_tokens", "an overflow".into(), "a size that fits memory"));
        };
        let kept = match storage {
            Storage::F32 => Kept::F32(vec![0.0; len]),
            Storage::F16 => Kept::F16(vec![0; len]),
        };
        Ok(Self { n_ff, max_tokens, rho, keep, seen: 0, kept })
    }

    /// Bytes that a saliency of these sizes holds.
    pub fn memory_bytes(n_ff: usize, max_tokens: usize, rho: f64, storage: Storage) -> usize {
        let value = match storage {
            Storage::F32 => size_of::<f32>(),
            Storage::F16 => size_of::<u16>(),
        };
        n_ff.saturating_mul(kept_values(rho, max_tokens)).saturating_mul(value)
    }

    /// Calibration tokens seen so far.
    pub fn n_tokens(&self) -> usize {
        self.seen
    }

    /// Adds a tile of `z` or of its signed product, shape `[n_ff, n_tile]`: the absolute value is taken.
    ///
    /// # Errors
    /// The length is wrong, there are too many tokens, or a value is not finite.
    /// No scores can be had after an error.
    pub fn push(&mut self, z: &[f32]) -> Result<(), SaliencyError> {
        self.push_with(z.len(), |i| z[i].abs())
    }

    /// Adds a tile from its factors, `z = |act(gate) * up|`, both of shape `[n_ff, n_tile]`.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn push_gate_up(&mut self, gate: &[f32], up: &[f32], act: Activation) -> Result<(), SaliencyError> {
        if gate.len() != up.len() {
            return Err(SaliencyError::GateUp { gate: gate.len(), up: up.len() });
        }
        self.push_with(gate.len(), |i| (act.apply(gate[i]) * up[i]).abs())
    }

    fn push_with(&mut self, len: usize, z: impl Fn(usize) -> f32 + Sync) -> Result<(), SaliencyError> {
        if !len.is_multiple_of(self.n_ff) {
            return Err(SaliencyError::Shape { found: len, n_ff: self.n_ff });
        }
        let n_tile = len / self.n_ff;
        let found = self.seen.saturating_add(n_tile);
        if found > self.max_tokens {
            return Err(SaliencyError::TooManyTokens { found, max_tokens: self.max_tokens });
        }
        let tile = Tile { n_ff: self.n_ff, n_tile, keep: self.keep, seen: self.seen };
        match &mut self.kept {
            Kept::F32(kept) => tile.merge(kept, &z, |v| v),
            // Patterns of non-negative halves are ordered as the values are.
            Kept::F16(kept) => tile.merge(kept, &z, |v| f16::from_f32(v).min(f16::MAX).to_bits()),
        }?;
        self.seen = found;
        Ok(())
    }

    /// Score of each channel, `[n_ff]`: the mean of its `ceil(rho * n_tokens)` largest values.
    ///
    /// If fewer tokens came than were announced, the share is of those that came.
    ///
    /// # Errors
    /// [`SaliencyError::Empty`] before the first token.
    pub fn scores(&self) -> Result<Vec<f32>, SaliencyError> {
        if self.seen == 0 {
            return Err(SaliencyError::Empty);
        }
        let filled = self.keep.min(self.seen);
        let top = kept_values(self.rho, self.seen).min(filled);
        Ok(match &self.kept {
            Kept::F32(kept) => means(kept, self.keep, filled, top, |v| v),
            Kept::F16(kept) => means(kept, self.keep, filled, top, |v| f16::from_bits(v).to_f32()),
        })
    }

    /// The `d_low` channels of the highest score (all of them if there are fewer), ascending by
    /// index; of equal scores the lower index is taken.
    ///
    /// # Errors
    /// As [`scores`](Self::scores).
    pub fn select(&self, d_low: usize) -> Result<Vec<u32>, SaliencyError> {
        Ok(select_channels(&self.scores()?, d_low))
    }
}

/// The indices of the `d_low` largest `scores`, ascending; of equal scores the lower index.
pub fn select_channels(scores: &[f32], d_low: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..scores.len() as u32).collect();
    // The sort is stable, so equal scores keep their order.
    order.sort_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]));
    order.truncate(d_low);
    order.sort_unstable();
    order
}

/// `ceil(rho * n)`, at least 1 and at most `n`; a product that is whole but for rounding stays whole.
fn kept_values(rho: f64, n: usize) -> usize {
    let exact = rho * n as f64;
    ((exact - exact * 1e-12).ceil() as usize).clamp(1, n.max(1))
}

struct Tile {
    n_ff: usize,
    n_tile: usize,
    keep: usize,
    /// Tokens before this tile.
    seen: usize,
}

impl Tile {
    /// Merges the tile into the heaps, `kept` being `[keep, n_ff]`.
    fn merge<T: Copy + PartialOrd + Send>(
        &self,
        kept: &mut [T],
        z: &(impl Fn(usize) -> f32 + Sync),
        store: impl Fn(f32) -> T + Sync,
    ) -> Result<(), SaliencyError> {
        kept.par_chunks_mut(self.keep * CHANNELS_PER_TASK).enumerate().try_for_each(|(task, heaps)| {
            let first = task * CHANNELS_PER_TASK;
            for t in 0..self.n_tile {
                let row = t * self.n_ff + first;
                for (c, heap) in heaps.chunks_exact_mut(self.keep).enumerate() {
                    let value = z(row + c);
                    if !value.is_finite() {
                        return Err(SaliencyError::NotFinite { channel: first + c });
                    }
                    insert(heap, self.seen + t, store(value));
                }
            }
            Ok(())
        })
    }
}

/// Offers `value`, the one numbered `index`, to a list that becomes a min-heap when it is full.
fn insert<T: Copy + PartialOrd>(heap: &mut [T], index: usize, value: T) {
    if index < heap.len() {
        heap[index] = value;
        if index + 1 == heap.len() {
            for root in (0..heap.len() / 2).rev() {
                sift_down(heap, root);
            }
        }
    } else if value > heap[0] {
        heap[0] = value;
        sift_down(heap, 0);
    }
}

fn sift_down<T: Copy + PartialOrd>(heap: &mut [T], mut at: usize) {
    let value = heap[at];
    loop {
        let mut child = 2 * at + 1;
        if child >= heap.len() {
            break;
        }
        if child + 1 < heap.len() && heap[child + 1] < heap[child] {
            child += 1;
        }
        if heap[child] >= value {
            break;
        }
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = value;
}

/// Mean of the `top` largest of the first `filled` values of each heap of `keep`.
fn means<T: Copy + Sync>(
    kept: &[T],
    keep: usize,
    filled: usize,
    top: usize,
    load: impl Fn(T) -> f32 + Sync,
) -> Vec<f32> {
    kept.par_chunks_exact(keep)
        .map(|heap| {
            let mut values: Vec<f32> = heap[..filled].iter().map(|&v| load(v)).collect();
            values.sort_unstable_by(|a, b| b.total_cmp(a));
            let sum: f64 = values[..top].iter().map(|&v| f64::from(v)).sum();
            (sum / top as f64) as f32
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, literally: sort everything.
    fn naive(z: &[f32], n_ff: usize, rho: f64) -> Vec<f32> {
        let n = z.len() / n_ff;
        let top = kept_values(rho, n);
        (0..n_ff)
            .map(|c| {
                let mut v: Vec<f32> = (0..n).map(|t| z[t * n_ff + c].abs()).collect();
                v.sort_by(|a, b| b.total_cmp(a));
                let sum: f64 = v[..top].iter().map(|&x| f64::from(x)).sum();
                (sum / top as f64) as f32
            })
            .collect()
    }

    proptest! {
        #[test]
        fn equals_a_naive_sort_whatever_the_tiles(
            n_ff in 1usize..150,
            n in 1usize..60,
            spare in 0usize..40,
            tile in 1usize..17,
            rho in 0.01f64..=1.0,
            seed in any::<u64>(),
        ) {
            let z = crate::rank::random_scores(n_ff * n, seed)
                .into_iter()
                .map(|v| (v - 0.5) * 8.0)
                .collect::<Vec<_>>();
            let expected = naive(&z, n_ff, rho);
            for storage in [Storage::F32, Storage::F16] {
                let mut s = ChannelSaliency::new(n_ff, n + spare, rho, storage).unwrap();
                for part in z.chunks(tile * n_ff) {
                    s.push(part).unwrap();
                }
                let scores = s.scores().unwrap();
                if storage == Storage::F32 {
                    prop_assert_eq!(&scores, &expected);
                } else {
                    for (a, b) in scores.iter().zip(&expected) {
                        prop_assert!((a - b).abs() <= b / 2048.0 + 1e-6);
                    }
                }
            }
        }
    }

    #[test]
    fn selection_is_ascending_and_ties_go_to_the_lower_index() {
        assert_eq!(select_channels(&[1.0, 3.0, 2.0, 3.0, 2.0], 3), [1, 2, 3]);
        assert_eq!(select_channels(&[1.0, 2.0], 9), [0, 1]);
        assert!(select_channels(&[], 3).is_empty());
    }

    #[test]
    fn a_share_that_is_whole_stays_whole() {
        assert_eq!(kept_values(0.2, 4095), 819);
        assert_eq!(kept_values(0.2, 4096), 820);
        assert_eq!(kept_values(0.1, 30), 3);
        assert_eq!(kept_values(1e-9, 5), 1);
        assert_eq!(kept_values(1.0, 5), 5);
    }

    #[test]
    fn factors_give_the_same_as_their_product() {
        let gate: Vec<f32> = (0..12).map(|i| i as f32 - 6.0).collect();
        let up: Vec<f32> = (0..12).map(|i| 0.5 * i as f32 - 2.0).collect();
        let z: Vec<f32> = gate.iter().zip(&up).map(|(&g, &u)| Activation::Silu.apply(g) * u).collect();
        let mut a = ChannelSaliency::new(3, 4, 0.5, Storage::F32).unwrap();
        a.push(&z).unwrap();
        let mut b = ChannelSaliency::new(3, 4, 0.5, Storage::F32).unwrap();
        b.push_gate_up(&gate, &up, Activation::Silu).unwrap();
        assert_eq!(a.scores().unwrap(), b.scores().unwrap());
    }

    #[test]
    fn errors() {
        assert!(ChannelSaliency::new(0, 4, 0.2, Storage::F32).is_err());
        assert!(ChannelSaliency::new(4, 0, 0.2, Storage::F32).is_err());
        assert!(ChannelSaliency::new(4, 4, f64::NAN, Storage::F32).is_err());
        let mut s = ChannelSaliency::new(2, 2, 0.2, Storage::F16).unwrap();
        assert_eq!(s.scores(), Err(SaliencyError::Empty));
        assert!(matches!(s.push(&[0.0; 3]), Err(SaliencyError::Shape { .. })));
        assert!(matches!(s.push(&[0.0; 6]), Err(SaliencyError::TooManyTokens { .. })));
        assert_eq!(s.push(&[0.0, f32::NAN]), Err(SaliencyError::NotFinite { channel: 1 }));
        // Beyond what f16 holds is the largest half, not infinity.
        s.push(&[1e9, 1.0]).unwrap();
        assert_eq!(s.scores().unwrap(), [65504.0, 1.0]);
    }
}
