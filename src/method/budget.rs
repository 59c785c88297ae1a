//! Budgets: how many tokens each layer of a prompt works on. Every method says so before anything runs; `plan` counts them, and
//! rewrites build them into the graph.

/// How many tokens one layer computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerBudget {
    /// Tokens still in the network at the layer's input.
    pub candidates: usize,
    /// Tokens of its attention, and entries of its KV cache. A recurrent layer goes over all candidates, and has no such entries.
    pub active_attn: usize,
    /// Tokens of its FFN; in a recurrent layer chosen by the scores of the last layer that probes.
    pub active_ffn: usize,
    /// Whether the layer scores its candidates.
    pub probe: bool,
    /// Whether the FFN's tokens are chosen by the layer's low-rank proxy too: it must have one then.
    pub proxy: bool,
    /// Candidates that are left behind the layer, when it prunes; always fewer than `candidates`.
    pub prune_to: Option<usize>,
}

impl LayerBudget {
    /// A layer that computes everything.
    pub fn dense(candidates: usize) -> LayerBudget {
        LayerBudget {
            candidates,
            active_attn: candidates,
            active_ffn: candidates,
            probe: false,
            proxy: false,
            prune_to: None,
        }
    }
}

/// The tokens of a prompt that are always active and never pruned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// So many first ones.
    pub first: usize,
    /// So many last ones, those that probe among them.
    pub last: usize,
}

impl Held {
    /// Number of first and last tokens together.
    pub fn count(self) -> usize {
        self.first + self.last
    }
}

/// The budgets of one prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Budgets {
    /// Length of the prompt.
    pub n_tokens: usize,
    /// One entry per layer of the model.
    pub layers: Vec<LayerBudget>,
    /// The last tokens that probe; at most `n_tokens`.
    pub queries: usize,
    /// Those that are always active and never pruned.
    pub held: Held,
    /// Rows are gathered even where every candidate is active (for tests).
    pub forced: bool,
}

impl Budgets {
    /// Every token in every layer.
    pub fn dense(n_layer: usize, n_tokens: usize) -> Budgets {
        Budgets {
            n_tokens,
            layers: vec![LayerBudget::dense(n_tokens); n_layer],
            queries: 1,
            held: Held { first: 0, last: 1 },
            forced: false,
        }
    }

    /// Every layer computes every token and none is scored: the graph must not be touched.
    pub fn is_dense(&self) -> bool {
        self.layers.iter().all(|l| *l == LayerBudget::dense(self.n_tokens))
    }

    /// Layers before the first one that does not compute every token.
    pub fn dense_layers(&self) -> usize {
        let dense = LayerBudget::dense(self.n_tokens);
        self.layers.iter().take_while(|l| **l == dense).count()
    }

    /// Share of the dense KV cache's entries that are kept, over all layers; 1.0 is dense.
    pub fn cache_kept(&self) -> f64 {
        self.cache_kept_by(&|_| true)
    }

    /// As [`Budgets::cache_kept`], over the layers that have a cache.
    pub fn cache_kept_by(&self, has_cache: &dyn Fn(usize) -> bool) -> f64 {
        let layers = || self.layers.iter().enumerate().filter(|(l, _)| has_cache(*l));
        let kept: f64 = layers().map(|(_, l)| l.active_attn as f64).sum();
        kept / (self.n_tokens as f64 * layers().count() as f64)
    }

    /// Layers that need a low-rank proxy of their FFN.
    pub fn layers_with_proxy(&self) -> impl Iterator<Item = usize> {
        self.layers.iter().enumerate().filter(|(_, l)| l.proxy).map(|(layer, _)| layer)
    }
}
