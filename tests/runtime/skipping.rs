//! A prefill by the runtime and by the method's pseudo-code in the naive reference: the same tokens in every layer, the same logits,
//! the same caches.

use spts::Session;
use spts::SessionOptions;
use spts::method::spts::schedule::{Join, Pool, Probe, Schedule, Selection};
use spts::session::prefill::PrefillReport;
use spts::session::select::random_scores;
use spts::session::sequence::CacheType;

use super::proxies::Proxies;
use super::{F16_CACHE, Pair, Q8_0_CACHE, assert_close, assert_lengths, prefill};
use crate::reference::{self, Chosen, Follow, Layout, Output, SptsPlan};
use crate::support::tiny::Tiny;

/// One prefill to be compared.
#[derive(Clone, Debug)]
pub struct Run {
    pub layout: Layout,
    pub join: Join,
    pub pool: Pool,
    pub carry: f32,
    pub use_proxy: bool,
    pub selection: Selection,
    pub n_ubatch: usize,
    pub cache: CacheType,
}

impl Run {
    pub fn queries(mut self, queries: usize) -> Run {
        self.layout.queries = queries;
        self
    }

    pub fn schedule(&self) -> Schedule {
        let probe = Probe {
            queries: self.layout.queries,
            by_question: false,
            join: self.join,
            pool: self.pool,
            carry: self.carry,
        };
        let mut stages = super::schedule(&self.layout.stages, probe).stages;
        self.layout.keeping.iter().for_each(|&number| stages[number].cut = None);
        Schedule {
            skip_from: self.layout.skip_from,
            stages,
            ramp: self.layout.ramp,
            sinks: self.layout.sinks,
            recent: self.layout.recent,
            skip_attn: self.layout.skip_attn,
            skip_ffn: self.layout.skip_ffn,
            use_proxy: self.use_proxy,
            prune: self.layout.prune,
            selection: self.selection,
            ..super::schedule(&self.layout.stages, probe)
        }
    }

    /// Session options that make the runtime do this.
    pub fn apply(&self, o: &mut SessionOptions, proxies: Option<&Proxies>) {
        o.method = self.schedule().into();
        o.n_ubatch = Some(self.n_ubatch);
        o.record_selection = true;
        o.sidecar = proxies.map(|p| p.sidecar.clone());
        (o.cache_type_k, o.cache_type_v) = (self.cache, self.cache);
    }

    /// The reference's plan for n tokens.
    pub fn plan(&self, pair: &Pair, n: usize, proxies: Option<&Proxies>) -> SptsPlan {
        let layers = self.layout.budgets(pair.tiny.n_layer, n, |l| pair.reference.layers[l].kind());
        let given = |seed| layers.iter().enumerate().map(|(l, b)| random_scores(seed, l, b.candidates)).collect();
        SptsPlan {
            probe_queries: self.layout.queries,
            sinks: self.layout.sinks,
            recent: self.layout.recent,
            best_query: self.join == Join::Max,
            pool: match self.pool {
                Pool::None => reference::Pool::None,
                Pool::Avg(w) => reference::Pool::Avg(w),
                Pool::Max(w) => reference::Pool::Max(w),
                Pool::Chunks(w) => reference::Pool::Chunks(w),
                other => panic!("the reference has no pool {other}"),
            },
            carry: self.carry,
            carry_from: self.layout.skip_from,
            proxies: proxies.filter(|_| self.use_proxy).map(|p| p.reference.clone()),
            given_scores: match self.selection {
                Selection::Probe => None,
                Selection::Random { seed } => Some(given(seed)),
                other => panic!("the reference has no selection {other:?}"),
            },
            ..SptsPlan::new(layers)
        }
    }

    /// Scores this close, relatively, are equal but for rounding: of F32 sums; of the F16 inputs of a proxy's products, or of
    /// ggml's GELU table, where a value near the middle of two f16 numbers falls on either side; of F16 keys.
    pub fn tie(&self, pair: &Pair) -> f32 {
        match (self.cache, self.use_proxy || pair.looks_up_gelu()) {
            (CacheType::F32, false) => 2e-5,
            (CacheType::F32, true) => 2e-3,
            _ => 2e-2,
        }
    }

    pub fn tolerance(&self, pair: &Pair) -> f32 {
        match self.cache {
            CacheType::F32 => pair.tolerance(),
            CacheType::F16 => F16_CACHE,
            CacheType::Q8_0 => Q8_0_CACHE,
            other => panic!("no tolerance is known for a cache of {other:?}"),
        }
    }

    /// Runs both and compares everything a prefill leaves behind.
    pub fn compare(&self, pair: &Pair, tokens: &[u32], proxies: Option<&Proxies>) -> Compared {
        let mut session = pair.session(|o| self.apply(o, proxies));
        let report = prefill(&mut session, tokens).expect("a prefill");
        let what = format!("{}, {} tokens, {self:?}", pair.tiny.name, tokens.len());

        let chosen = chosen(&report);
        let mut plan = self.plan(pair, tokens.len(), proxies);
        plan.follow = Some(Follow { layers: chosen.clone(), tie: self.tie(pair) });
        let expected = pair.reference.forward(tokens, Some(&plan));
        let mut kept = 0;
        for (il, (got, want)) in chosen.iter().zip(&expected.layers).enumerate() {
            let want = Chosen {
                candidates: want.candidates.clone(),
                active_attn: want.active_attn.clone(),
                active_ffn: want.active_ffn.clone(),
            };
            assert_eq!(*got, want, "layer {il} of {what}");
            let (budget, wanted) = (report.layers[il], plan.layers[il]);
            assert_eq!(
                (budget.candidates, budget.active_attn, budget.active_ffn, budget.prune_to),
                (wanted.candidates, wanted.active_attn, wanted.active_ffn, wanted.prune_to),
                "budget of layer {il} of {what}"
            );
            if pair.reference.layers[il].has_cache(il) {
                kept += want.active_attn.len();
            }
        }
        assert_eq!(chosen.len(), pair.tiny.n_layer);
        let with_cache = pair.reference.layers.iter().enumerate().filter(|(il, l)| l.has_cache(*il)).count();
        assert_lengths(&session, &expected.kv_lengths(), &what);
        assert_eq!(session.n_past(), tokens.len());
        assert_eq!(report.cache_kept, kept as f64 / (tokens.len() * with_cache) as f64, "{what}");
        assert_close(session.logits(), &expected.logits, self.tolerance(pair), &what);
        Compared { session, expected }
    }

    /// As [`Run::compare`]; then a few tokens are decoded, and read in one call by another session.
    pub fn compare_with_decoding(&self, pair: &Pair, tokens: &[u32], proxies: Option<&Proxies>) {
        let what = format!("{}, {} tokens, {self:?}", pair.tiny.name, tokens.len());
        let next: Vec<u32> = pair.tiny.prompt(tokens.len() + 5)[tokens.len()..].to_vec();
        let Compared { mut session, mut expected } = self.compare(pair, tokens, proxies);
        // Each token reads what the ones before it wrote, rounding included.
        let decoding = 3.0 * self.tolerance(pair);
        let mut last = Vec::new();
        for (i, token) in next.iter().enumerate() {
            session.decode(*token).expect("decode");
            last = pair.reference.decode(&mut expected.state, *token);
            assert_close(session.logits(), &last, decoding, &format!("decoded token {i} behind {what}"));
        }
        assert_lengths(&session, &expected.kv_lengths(), &format!("decoding behind {what}"));

        let mut session = self.compare(pair, tokens, proxies).session;
        prefill(&mut session, &next).expect("a second prefill");
        assert_close(session.logits(), &last, decoding, &format!("second prefill behind {what}"));
        assert_lengths(&session, &expected.kv_lengths(), &format!("second prefill behind {what}"));
        session.decode(7).expect("decode");
        let then = pair.reference.decode(&mut expected.state, 7);
        assert_close(session.logits(), &then, decoding, &format!("decode behind both prefills, {what}"));
    }
}

/// Two stages, one probing query, no pooling, no proxies.
pub fn run(skip_from: usize, stages: &[(usize, usize, usize)]) -> Run {
    Run {
        layout: Layout {
            skip_from,
            stages: stages.to_vec(),
            ramp: 1.0,
            keeping: vec![],
            queries: 1,
            sinks: 0,
            recent: 0,
            skip_attn: true,
            skip_ffn: true,
            prune: true,
        },
        join: Join::Mean,
        pool: Pool::None,
        carry: 0.0,
        use_proxy: false,
        selection: Selection::Probe,
        n_ubatch: 512,
        cache: CacheType::F32,
    }
}

pub struct Compared {
    pub session: Session,
    pub expected: Output,
}

pub fn chosen(report: &PrefillReport) -> Vec<Chosen> {
    let set = |s: &[i32]| s.iter().map(|p| *p as usize).collect();
    report
        .selection
        .iter()
        .enumerate()
        .map(|(i, s)| {
            assert_eq!(s.il, i);
            Chosen { candidates: set(&s.candidates), active_attn: set(&s.active_attn), active_ffn: set(&s.active_ffn) }
        })
        .collect()
}

/// Gemma 3 with two global layers, 5 and 11, so that stages lie between layers with windows.
pub fn two_globals() -> Tiny {
    Tiny { n_layer: 14, ..Tiny::named("gemma3") }
}

/// Stages that suit each of the tiny models.
pub fn stages(tiny: &Tiny) -> Run {
    match tiny.n_layer {
        14 => run(3, &[(7, 24, 4), (12, 14, 2)]),
        7 => run(2, &[(5, 22, 5)]),
        n => run(1, &[(n - 3, 24, 4), (n - 2, 14, 3)]),
    }
}
