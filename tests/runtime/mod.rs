//! The runtime under test beside the naive reference, on the same tiny model.
//!
//! A test that includes this module also includes `reference` and `support`.
#![allow(dead_code)] // every test binary includes this module and uses a part of it

pub mod files;
pub mod proxies;
pub mod skipping;

use std::ops::ControlFlow;
use std::sync::Arc;

use spts::gguf::Gguf;
use spts::method::spts::schedule::{Budget, Pool, Probe, ProxySize, Schedule, Selection, Stage};
use spts::session::prefill::PrefillReport;
use spts::session::sequence::CacheType;
use spts::{Error, LayerKind, Model, ModelOptions, Session, SessionOptions};

use crate::reference;
use crate::support::tiny::{Arch, Tiny};

/// A tiny model, opened twice.
pub struct Pair {
    pub tiny: Tiny,
    pub reference: reference::Model,
    pub model: Arc<Model>,
    /// Context of both.
    pub n_ctx: usize,
}

impl Pair {
    /// In the context it was "trained" with.
    pub fn new(tiny: Tiny) -> Pair {
        let n_ctx = tiny.n_ctx_train as usize;
        Self::with_context(tiny, n_ctx)
    }

    /// In a context of its own (Phi-3's rope factors depend on it).
    pub fn with_context(tiny: Tiny, n_ctx: usize) -> Pair {
        let file = tiny.build();
        let mut reference = reference::Model::from_file(&file, Some(n_ctx));
        // ggml's CPU backend looks GELU up in a table of f16 values.
        reference.gelu = reference::Gelu::F16Table;
        let gguf = Gguf::from_bytes(file.to_bytes(), tiny.name).expect("a valid file");
        let model = Model::from_gguf(Arc::new(gguf), on_cpu()).expect("a model that opens");
        Pair { tiny, reference, model, n_ctx }
    }

    /// A session with F32 caches, changed by `change`.
    pub fn session(&self, change: impl FnOnce(&mut SessionOptions)) -> Session {
        let mut options = exact(self.n_ctx);
        change(&mut options);
        Session::new(self.model.clone(), options).expect("a session")
    }

    /// How far logits may be from the reference's, relative to the largest: rounding of F32 sums. With GELU, ggml's table
    /// rounds to f16, and a value near the middle of two f16 numbers falls on either side.
    pub fn tolerance(&self) -> f32 {
        match self.tiny.arch {
            Arch::Gemma3 => 1e-3,
            // The reference itself moves by up to 9e-4 (gemma4-small) and 1.3e-3 (gemma4-moe) when half of its embedding moves by two
            // last bits (40 prompts of 60 tokens; gemma3: 3e-4).
            Arch::Gemma4 => 3e-3,
            _ => 1e-5,
        }
    }

    /// Whether its FFNs compute GELU, by ggml's table.
    pub fn looks_up_gelu(&self) -> bool {
        self.reference.gelu_gate
    }

    /// [`Pair::tolerance`], or more, up to ten times that, where random weights of a few features make much of a last bit: how much,
    /// the reference itself says, when half of its embedding moves by two of them. Measured: 1.2e-5 with gpt-oss, 1.5e-5 with a random
    /// shape of three features.
    pub fn tolerance_of_rounding(&self, tokens: &[u32]) -> f32 {
        let mut moved = self.reference.clone();
        moved.token_embd.data.iter_mut().step_by(2).for_each(|x| *x *= 1.0 + 2.0 * f32::EPSILON);
        let [plain, moved] = [&self.reference, &moved].map(|model| model.forward(tokens, None).logits);
        (4.0 * distance(&moved, &plain)).clamp(self.tolerance(), 10.0 * self.tolerance())
    }
}

/// Fails unless a session's caches have so many entries, or, where a window sees fewer, at least those.
#[track_caller]
pub fn assert_lengths(session: &Session, all: &[usize], what: &str) {
    let (shape, lengths) = (session.model().shape(), session.kv_lengths());
    assert_eq!(lengths.len(), all.len(), "{what}");
    for (layer, (&got, &all)) in lengths.iter().zip(all).enumerate() {
        let window = shape.window(layer).filter(|_| shape.layer_kind(layer) == LayerKind::Windowed);
        let fewest = window.map_or(all, |window| window.min(all));
        assert!((fewest..=all).contains(&got), "{what}, layer {layer}: {got} entries of {all}");
    }
}

/// One stage up to the layer before the last, from layer 2 on, of so many tokens, of which `cut` fewer are left behind it. No
/// proxies.
pub fn one_stage(tiny: &Tiny, budget: usize, cut: usize) -> Schedule {
    let probe = Probe { queries: 4, pool: Pool::Max(3), carry: 0.5, ..Probe::PAPER };
    Schedule { skip_from: 2, use_proxy: false, ..schedule(&[(tiny.n_layer - 2, budget, cut)], probe) }
}

/// Skips in attention and FFN from layer 1 on, and prunes; `stages` are their last layers, budgets and cuts in tokens.
pub fn schedule(stages: &[(usize, usize, usize)], probe: Probe) -> Schedule {
    let stage = |&(last_layer, budget, cut): &(usize, usize, usize)| Stage {
        last_layer,
        budget: Budget::Tokens(budget),
        cut: Some(Budget::Tokens(cut)),
    };
    Schedule {
        name: "test".into(),
        skip_from: 1,
        stages: stages.iter().map(stage).collect(),
        ramp: 1.0,
        sinks: 0,
        recent: 0,
        probe,
        proxy: ProxySize { d_low: 8, rank: 4 },
        skip_attn: true,
        skip_ffn: true,
        use_proxy: true,
        prune: true,
        selection: Selection::Probe,
    }
}

/// How far logits may be from those of an F32 cache, relative to the largest, with an F16 cache: keys and values are rounded to
/// 11 bits, and for a single row ggml's kernel also rounds the query and sums the values in f16. Measured: 5e-3.
pub const F16_CACHE: f32 = 1e-2;

/// With a Q8_0 cache: 8 bits for each of the 32 values of a head move q.k of the tiny models (of standard deviation 2.25) by
/// 0.02, a weight of the softmax by 2 %, in every layer. Measured: 6e-2.
pub const Q8_0_CACHE: f32 = 1e-1;

/// The tests of this folder are about the CPU, whatever the build.
pub fn on_cpu() -> ModelOptions {
    ModelOptions { device: Some("CPU".into()), ..ModelOptions::default() }
}

/// F32 caches, one thread: tiny products gain nothing from more.
pub fn exact(n_ctx: usize) -> SessionOptions {
    SessionOptions {
        n_ctx: Some(n_ctx),
        n_threads: Some(1),
        cache_type_k: CacheType::F32,
        cache_type_v: CacheType::F32,
        ..SessionOptions::default()
    }
}

/// A prefill that nobody interrupts.
pub fn prefill(session: &mut Session, tokens: &[u32]) -> Result<PrefillReport, Error> {
    session.prefill(tokens, &mut |_| ControlFlow::Continue(()))
}

/// Logits after one prefill.
pub fn logits(mut session: Session, tokens: &[u32]) -> Vec<f32> {
    prefill(&mut session, tokens).expect("a prefill");
    session.logits().to_vec()
}

/// Largest difference over the largest expected value.
pub fn distance(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    assert!(got.iter().all(|x| x.is_finite()), "not finite: {got:?}");
    let largest = expected.iter().fold(0f32, |m, x| m.max(x.abs()));
    got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest
}

/// Fails if logits are further apart than `tolerance`, relative to the largest.
#[track_caller]
pub fn assert_close(got: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    let d = distance(got, expected);
    assert!(d <= tolerance, "{what}: logits differ by {d:.2e} of the largest, {tolerance:.0e} allowed");
}
