//! How many channels a proxy keeps, and at which rank.
//!
//! The paper gives sizes for three models. For others (ours):
//!
//! - `d_low` is half of n_embd, rounded up to a multiple of 64, within 256 to 1024;
//! - `rank` starts at 3/8 of d_low, as in the paper's Llama (512, 192), and shrinks in steps of 32 until
//!   the proxy costs at most [`MAX_COST`] of the FFN, but not below a quarter of d_low, and not below
//!   128 where d_low is larger: rank matters more than d_low (paper), and rank correlation with
//!   the true norms falls fast under 128 (measured on a small Qwen: 0.44 at 64, 0.56 at 128).
//!
//! So the cost stays at or under 3 % from n_embd 2048 on with the usual FFN widths; below that it is up to
//! 8 %: 3.1 % for qwen2.5-coder-0.5b (448, 128), 5.5 % for gemma-3-270m (320, 96), 8 % for SmolLM2-135M
//! (320, 96).

/// Share of the FFN's multiplications that the rule spends on a proxy, floors aside.
pub const MAX_COST: f64 = 0.03;

/// Granularity of the rank, so that halves of the `[2r, n]` intermediate start aligned.
const RANK_STEP: usize = 32;

/// `[n_embd, n_ff, n_layer]` of the paper's models, and its sizes for them.
const PAPER: [([usize; 3], ProxySize); 3] = [
    ([4096, 14336, 32], ProxySize { d_low: 512, rank: 192 }), // LLaMA-3.1-8B
    ([3584, 18944, 28], ProxySize { d_low: 1024, rank: 256 }), // Qwen2.5-7B
    ([1536, 6144, 26], ProxySize { d_low: 1024, rank: 128 }), // openPangu-1B
];

/// Channels and rank of a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProxySize {
    /// FFN channels kept, D_low of the paper.
    pub d_low: usize,
    /// Rank of each of the three truncated matrices.
    pub rank: usize,
}

impl ProxySize {
    /// The paper's sizes for its models, recognized by shape; the rule above for any other.
    pub fn default_for(n_embd: usize, n_ff: usize, n_layer: usize) -> Self {
        let known = PAPER.iter().find(|(shape, _)| *shape == [n_embd, n_ff, n_layer]);
        let size = known.map_or_else(|| Self::by_rule(n_embd, n_ff), |&(_, size)| size);
        size.clamp_to(n_embd, n_ff)
    }

    fn by_rule(n_embd: usize, n_ff: usize) -> Self {
        let d_low = (n_embd / 2).next_multiple_of(64).clamp(256, 1024);
        let floor = (d_low / 4).next_multiple_of(RANK_STEP).min(128);
        let mut size = Self { d_low, rank: (d_low * 3 / 8).next_multiple_of(RANK_STEP) };
        while size.rank > floor && size.cost(n_embd, n_ff) > MAX_COST {
            size.rank -= RANK_STEP;
        }
        size
    }

    /// Clamped to a layer: `1 <= d_low <= n_ff` and `1 <= rank <= min(d_low, n_embd)`.
    pub fn clamp_to(self, n_embd: usize, n_ff: usize) -> Self {
        let d_low = self.d_low.clamp(1, n_ff.max(1));
        let rank = self.rank.clamp(1, d_low.min(n_embd.max(1)));
        Self { d_low, rank }
    }

    /// Multiplications of the proxy per token, as a share of the FFN's `3 * n_embd * n_ff`:
    /// `2 r n_embd` for U_gu, and `r d_low` for each of V_gate, V_up and V_down.
    pub fn cost(self, n_embd: usize, n_ff: usize) -> f64 {
        let (r, d) = (self.rank as f64, self.d_low as f64);
        let proxy = 2.0 * r * n_embd as f64 + 3.0 * r * d;
        proxy / (3.0 * n_embd as f64 * n_ff as f64)
    }

    /// Bytes of one layer's proxy in f16.
    pub fn bytes_f16(self, n_embd: usize) -> usize {
        2 * (2 * self.rank * n_embd + 3 * self.rank * self.d_low)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(n_embd: usize, n_ff: usize, n_layer: usize) -> (usize, usize) {
        let s = ProxySize::default_for(n_embd, n_ff, n_layer);
        (s.d_low, s.rank)
    }

    #[test]
    fn papers_models() {
        assert_eq!(size(4096, 14336, 32), (512, 192));
        assert_eq!(size(3584, 18944, 28), (1024, 256));
        let llama = ProxySize::default_for(4096, 14336, 32);
        assert!((llama.cost(4096, 14336) - 0.0106).abs() < 1e-4);
    }

    #[test]
    fn rule() {
        assert_eq!(size(896, 4864, 24), (448, 128)); // qwen2.5-coder-0.5b
        assert_eq!(size(1536, 8960, 28), (768, 224)); // qwen2.5-coder-1.5b
        assert_eq!(size(640, 2048, 18), (320, 96)); // gemma-3-270m
        assert_eq!(size(576, 1536, 30), (320, 96)); // smollm2-135m
        assert_eq!(size(64, 96, 2), (96, 64)); // a test model
        for (n_embd, n_ff) in [(2048, 8192), (2560, 9728), (4096, 12288), (5120, 27648), (8192, 28672)] {
            let s = ProxySize::default_for(n_embd, n_ff, 1);
            assert!(s.cost(n_embd, n_ff) <= MAX_COST, "{n_embd} {s:?}");
            assert!(s.rank >= 128);
        }
    }

    #[test]
    fn clamps() {
        let s = ProxySize { d_low: 512, rank: 192 };
        assert_eq!(s.clamp_to(64, 100), ProxySize { d_low: 100, rank: 64 });
        assert_eq!(ProxySize { d_low: 0, rank: 0 }.clamp_to(64, 100), ProxySize { d_low: 1, rank: 1 });
    }
}
