//! The forward pass: dense, or with SPTS, and decoding behind it.

use super::delta::DeltaState;
use super::gemma4::unit;
use super::model::{Layer, Linear, Model, dot, sigmoid};
use super::spts::{Chosen, Kind, SptsPlan, pool_scores, settle, top};

/// Keys and values of one layer: one row for every token that attention computed there.
#[derive(Clone, Debug, Default)]
pub struct LayerCache {
    /// Original positions, ascending.
    pub positions: Vec<usize>,
    pub k: Vec<Vec<f32>>,
    pub v: Vec<Vec<f32>>,
    /// In place of keys and values in a recurrent layer.
    pub recurrent: DeltaState,
}

/// What decoding continues from.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Position of the next token.
    pub n_past: usize,
    /// One for every layer, of different lengths after SPTS.
    pub cache: Vec<LayerCache>,
}

/// What happened in one layer. Tokens are named by their original positions.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerTrace {
    pub candidates: Vec<usize>,
    pub active_attn: Vec<usize>,
    pub active_ffn: Vec<usize>,
    /// Candidates that stay after the layer.
    pub kept: Vec<usize>,
    /// Pooled probe scores S of the candidates, where the layer skips or prunes.
    pub scores: Option<Vec<f32>>,
    /// C of the candidates, where the FFN skips and has a proxy.
    pub proxy_norms: Option<Vec<f32>>,
    /// C * S (or S), where the FFN skips.
    pub ffn_scores: Option<Vec<f32>>,
}

/// Scores of the candidates by the layers so far, for those to come.
#[derive(Default)]
struct Carried {
    /// Sums that layers with attention add to their own, where scores are carried on.
    sums: Option<Vec<f32>>,
    /// What the last layer with attention chose by, for recurrent ones.
    last: Option<Vec<f32>>,
}

/// Result of a prefill.
#[derive(Clone, Debug)]
pub struct Output {
    /// Of the last token.
    pub logits: Vec<f32>,
    /// Tokens that reached the end, by original position.
    pub positions: Vec<usize>,
    /// Their residual stream before the output norm; [`Model::head`] makes logits of a row.
    pub hidden: Vec<Vec<f32>>,
    pub layers: Vec<LayerTrace>,
    pub state: State,
}

impl Output {
    /// Length of every layer's KV cache.
    pub fn kv_lengths(&self) -> Vec<usize> {
        self.state.cache.iter().map(|c| c.positions.len()).collect()
    }
}

impl Model {
    /// The whole prompt, dense or by a plan.
    pub fn forward(&self, tokens: &[u32], plan: Option<&SptsPlan>) -> Output {
        assert!(!tokens.is_empty());
        let mut positions: Vec<usize> = (0..tokens.len()).collect();
        let mut h: Vec<Vec<f32>> = tokens.iter().map(|t| self.embed(*t)).collect();
        // Scores of the candidates by the layers so far, where they are carried on.
        let mut carried = Carried::default();
        let mut out =
            Output { logits: vec![], positions: vec![], hidden: vec![], layers: vec![], state: State::default() };
        for il in 0..self.layers.len() {
            let (trace, cache) = match plan {
                None => self.dense_layer(il, &positions, &mut h, &out.state.cache),
                Some(plan) => self.spts_layer(il, plan, &mut positions, &mut h, &mut carried, &out.state.cache),
            };
            for (h, position) in h.iter_mut().zip(&positions) {
                self.leave(&self.layers[il], h, tokens[*position]);
            }
            out.layers.push(trace);
            out.state.cache.push(cache);
        }
        out.state.n_past = tokens.len();
        out.logits = self.head(h.last().expect("a prompt has a last token"));
        (out.positions, out.hidden) = (positions, h);
        out
    }

    /// One more token behind the caches; its logits.
    pub fn decode(&self, state: &mut State, token: u32) -> Vec<f32> {
        let position = state.n_past;
        let mut h = self.embed(token);
        for (il, layer) in self.layers.iter().enumerate() {
            let x = self.normed(&h, &layer.attn_norm);
            if let Some(delta) = &layer.delta {
                let y = delta.step(&mut state.cache[il].recurrent, &x, self.norm_eps);
                add(&mut h, &y);
            } else {
                if layer.cache == il {
                    let cache = &mut state.cache[il];
                    cache.positions.push(position);
                    cache.k.push(self.key(layer, &x, position));
                    cache.v.push(self.value(layer, &x));
                }
                let q = self.query(layer, &x, position);
                let found = self.attend(layer, &q, position, &state.cache[layer.cache]);
                add(&mut h, &self.attn_output(layer, &x, &found));
            }
            let y = self.feed(layer, &h);
            add(&mut h, &y);
            self.leave(layer, &mut h, token);
        }
        state.n_past += 1;
        self.head(&h)
    }

    /// Logits of one row of the residual stream.
    pub fn head(&self, h: &[f32]) -> Vec<f32> {
        let mut logits = self.output.times(&self.rms_norm(h, &self.output_norm));
        logits.iter_mut().for_each(|x| *x /= self.logit_scale);
        if let Some(cap) = self.final_softcap {
            logits.iter_mut().for_each(|x| *x = (*x / cap).tanh() * cap);
        }
        logits
    }

    fn embed(&self, token: u32) -> Vec<f32> {
        self.token_embd.row(token as usize).iter().map(|x| x * self.embd_scale).collect()
    }

    fn dense_layer(
        &self,
        il: usize,
        positions: &[usize],
        h: &mut [Vec<f32>],
        before: &[LayerCache],
    ) -> (LayerTrace, LayerCache) {
        let layer = &self.layers[il];
        let everyone: Vec<usize> = (0..h.len()).collect();
        let x: Vec<Vec<f32>> = h.iter().map(|h| self.normed(h, &layer.attn_norm)).collect();
        let cache = match &layer.delta {
            None if layer.cache < il => self.shared_attention(layer, h, &x, positions, &before[layer.cache]),
            None => self.attention(layer, h, &x, &self.keys(layer, &x, positions), positions, &everyone),
            Some(_) => self.recurrence(layer, h, &x),
        };
        self.feed_forward(layer, h, &everyone);
        let trace = LayerTrace {
            candidates: positions.to_vec(),
            active_attn: positions.to_vec(),
            active_ffn: positions.to_vec(),
            kept: positions.to_vec(),
            scores: None,
            proxy_norms: None,
            ffn_scores: None,
        };
        (trace, cache)
    }

    /// The pseudo-code's loop body. `positions` and `h` are the candidates; they shrink where a stage ends.
    fn spts_layer(
        &self,
        il: usize,
        plan: &SptsPlan,
        positions: &mut Vec<usize>,
        h: &mut Vec<Vec<f32>>,
        carried: &mut Carried,
        before: &[LayerCache],
    ) -> (LayerTrace, LayerCache) {
        let layer = &self.layers[il];
        let budget = plan.layers[il];
        let n = h.len();
        assert_eq!(budget.candidates, n, "candidates of layer {il}");
        let queries = plan.probe_queries.min(n);
        // A layer with a sliding window never skips: its attention is cheap already, and its cache must hold the window. Nor does one
        // whose keys others read, or that reads others'. A recurrent one goes over all its candidates; its FFN skips by what the last
        // layer with attention said.
        let recurs = layer.delta.is_some();
        let is_local = layer.kind() == Kind::Local;
        let skips_attn = !is_local && !recurs && budget.active_attn < n;
        let skips_ffn = !is_local && budget.active_ffn < n;
        let prunes = budget.prune_to.is_some_and(|m| m < n);
        assert!(!(recurs && prunes), "layer {il} is recurrent and has no scores of its own");

        // PAP
        let x: Vec<Vec<f32>> = h.iter().map(|h| self.normed(h, &layer.attn_norm)).collect();
        let has_keys = !recurs && layer.cache == il;
        let keys = if has_keys { self.keys(layer, &x, positions) } else { Vec::new() };
        let carries = plan.carry > 0.0 && il >= plan.carry_from && !is_local && !recurs;
        if carries {
            let mut sum = self.probe(layer, &x, &keys, positions, queries, plan.best_query);
            if let Some(before) = carried.sums.as_ref() {
                for i in 0..n {
                    sum[i] += plan.carry * before[i];
                }
            }
            carried.sums = Some(sum);
        }
        // A later recurrent layer may ask for the scores of one that skips nothing itself.
        let asked = skips_attn || skips_ffn || prunes || (!recurs && il >= plan.carry_from && !is_local);
        let scores = asked.then(|| match &plan.given_scores {
            _ if recurs => carried.last.clone().expect("scores of a layer before"),
            Some(given) => given[il].clone(),
            None if carries => pool_scores(carried.sums.as_ref().expect("made above"), plan.pool),
            None => pool_scores(&self.probe(layer, &x, &keys, positions, queries, plan.best_query), plan.pool),
        });
        carried.last = scores.clone().or(carried.last.take());
        let pick = |what: &str, skips: bool, scores: &Option<Vec<f32>>, m: usize, theirs: &dyn Fn(usize) -> Theirs| {
            let Some(s) = scores.as_ref().filter(|_| skips) else { return (0..n).collect() };
            // The last tokens go before the first.
            let last = plan.recent.max(plan.probe_queries).min(n);
            let mut s = s.clone();
            s[..plan.sinks.min(n - last)].fill(f32::INFINITY);
            let follow = plan.follow.as_ref().and_then(|f| Some((theirs(il).of(&f.layers)?, f.tie)));
            let Some((theirs, tie)) = follow else { return top(&s, m, last) };
            let indices: Vec<usize> = theirs
                .iter()
                .map(|p| positions.binary_search(p).unwrap_or_else(|_| panic!("layer {il}: {p} is no candidate")))
                .collect();
            settle(&format!("layer {il}, {what}"), &s, m, last, &indices, tie)
        };
        let active_attn = pick("attention", skips_attn, &scores, budget.active_attn, &Theirs::ActiveAttn);
        let cache = match recurs {
            true => self.recurrence(layer, h, &x),
            false if !has_keys => self.shared_attention(layer, h, &x, positions, &before[layer.cache]),
            false => self.attention(layer, h, &x, &keys, positions, &active_attn),
        };

        // LTP
        let proxy = plan.proxies.as_ref().and_then(|p| p[il].as_ref()).filter(|_| skips_ffn);
        let proxy_norms: Option<Vec<f32>> =
            proxy.map(|p| h.iter().map(|h| p.norm(self, &self.normed(h, &layer.ffn_norm))).collect());
        let ffn_scores = scores.as_ref().filter(|_| skips_ffn).map(|s| match &proxy_norms {
            Some(c) => c.iter().zip(s).map(|(c, s)| c * s).collect(),
            None => s.clone(),
        });
        let active_ffn = pick("FFN", skips_ffn, &ffn_scores, budget.active_ffn, &Theirs::ActiveFfn);
        self.feed_forward(layer, h, &active_ffn);

        // MSDP
        let kept = pick("prune", prunes, &scores, budget.prune_to.unwrap_or(n), &Theirs::Kept);
        let named = |set: &[usize]| set.iter().map(|i| positions[*i]).collect::<Vec<usize>>();
        let trace = LayerTrace {
            candidates: positions.clone(),
            active_attn: named(&active_attn),
            active_ffn: named(&active_ffn),
            kept: named(&kept),
            scores: scores.filter(|_| skips_attn || skips_ffn || prunes),
            proxy_norms,
            ffn_scores,
        };
        *positions = trace.kept.clone();
        for scores in [&mut carried.sums, &mut carried.last].into_iter().flatten() {
            *scores = kept.iter().map(|i| scores[*i]).collect();
        }
        *h = kept.iter().map(|i| std::mem::take(&mut h[*i])).collect();
        (trace, cache)
    }

    /// Equation 4: the mean over heads and probing queries of the attention that the last `queries` candidates pay to all
    /// candidates up to themselves. With `best_query` the best of the queries' means over heads.
    fn probe(
        &self,
        layer: &Layer,
        x: &[Vec<f32>],
        keys: &[Vec<f32>],
        positions: &[usize],
        queries: usize,
        best_query: bool,
    ) -> Vec<f32> {
        let n = x.len();
        let mut scores = vec![0f64; n];
        for row in n - queries..n {
            let q = self.query(layer, &x[row], positions[row]);
            let mut mean = vec![0f64; n];
            for head in 0..self.n_head {
                let visible = keys[..=row].iter().map(|k| Some(self.score(layer, &q, k, head)));
                for (mean, p) in mean.iter_mut().zip(softmax(visible, layer.sink(head))) {
                    *mean += p / self.n_head as f64;
                }
            }
            for (score, mean) in scores.iter_mut().zip(mean) {
                *score = if best_query { score.max(mean) } else { *score + mean / queries as f64 };
            }
        }
        scores.iter().map(|s| *s as f32).collect()
    }

    /// Attention among the active rows alone, added to them. Returns their keys and values.
    fn attention(
        &self,
        layer: &Layer,
        h: &mut [Vec<f32>],
        x: &[Vec<f32>],
        keys: &[Vec<f32>],
        positions: &[usize],
        active: &[usize],
    ) -> LayerCache {
        let mut cache = LayerCache::default();
        for row in active.iter().copied() {
            cache.positions.push(positions[row]);
            cache.k.push(keys[row].clone());
            cache.v.push(self.value(layer, &x[row]));
            // Rows come in order of position: the cache so far is what this row may see.
            let q = self.query(layer, &x[row], positions[row]);
            let y = self.attn_output(layer, &x[row], &self.attend(layer, &q, positions[row], &cache));
            add(&mut h[row], &y);
        }
        cache
    }

    /// Attention of all rows to what an earlier layer keeps.
    fn shared_attention(
        &self,
        layer: &Layer,
        h: &mut [Vec<f32>],
        x: &[Vec<f32>],
        positions: &[usize],
        cache: &LayerCache,
    ) -> LayerCache {
        for ((h, x), position) in h.iter_mut().zip(x).zip(positions) {
            let q = self.query(layer, x, *position);
            add(h, &self.attn_output(layer, x, &self.attend(layer, &q, *position, cache)));
        }
        LayerCache::default()
    }

    /// A recurrent layer over all its rows, in order.
    fn recurrence(&self, layer: &Layer, h: &mut [Vec<f32>], x: &[Vec<f32>]) -> LayerCache {
        let delta = layer.delta.as_ref().expect("a recurrent layer");
        let mut cache = LayerCache::default();
        for (h, x) in h.iter_mut().zip(x) {
            let y = delta.step(&mut cache.recurrent, x, self.norm_eps);
            add(h, &y);
        }
        cache
    }

    fn feed_forward(&self, layer: &Layer, h: &mut [Vec<f32>], active: &[usize]) {
        for row in active.iter().copied() {
            let y = self.feed(layer, &h[row]);
            add(&mut h[row], &y);
        }
    }

    /// All heads of one query over what is cached up to its position.
    fn attend(&self, layer: &Layer, q: &[f32], position: usize, cache: &LayerCache) -> Vec<f32> {
        let mut out = Vec::with_capacity(q.len());
        for head in 0..self.n_head {
            let visible = cache.k.iter().zip(&cache.positions).map(|(k, p)| {
                let is_visible = *p <= position && layer.window.is_none_or(|w| position - p < w);
                is_visible.then(|| self.score(layer, q, k, head))
            });
            let weights = softmax(visible, layer.sink(head));
            let first = self.kv_head(layer, head) * layer.head_dim;
            for i in first..first + layer.head_dim {
                let sum: f64 = weights.iter().zip(&cache.v).map(|(w, v)| w * f64::from(v[i])).sum();
                out.push(sum as f32);
            }
        }
        out
    }

    /// q.k of one query head, scaled.
    fn score(&self, layer: &Layer, q: &[f32], k: &[f32], head: usize) -> f64 {
        let (d, kv) = (layer.head_dim, self.kv_head(layer, head));
        dot(&q[head * d..(head + 1) * d], &k[kv * d..(kv + 1) * d]) * f64::from(self.attn_scale)
    }

    /// GQA: neighbouring query heads share a key head.
    fn kv_head(&self, layer: &Layer, head: usize) -> usize {
        head / (self.n_head / layer.n_head_kv)
    }

    fn query(&self, layer: &Layer, x: &[f32], position: usize) -> Vec<f32> {
        let q = self.normed_and_rotated(layer, layer.q.times(x), layer.q_norm.as_deref(), position);
        match self.temperature {
            Some((every, scale)) => {
                let factor = 1.0 + scale * ((position / every) as f32 + 1.0).ln();
                q.iter().map(|x| x * factor).collect()
            }
            None => q,
        }
    }

    fn key(&self, layer: &Layer, x: &[f32], position: usize) -> Vec<f32> {
        self.normed_and_rotated(layer, layer.k.times(x), layer.k_norm.as_deref(), position)
    }

    fn value(&self, layer: &Layer, x: &[f32]) -> Vec<f32> {
        let v = layer.v.times(x);
        match layer.v_norm {
            true => v.chunks(layer.head_dim).flat_map(|head| unit(head, self.norm_eps)).collect(),
            false => v,
        }
    }

    fn keys(&self, layer: &Layer, x: &[Vec<f32>], positions: &[usize]) -> Vec<Vec<f32>> {
        x.iter().zip(positions).map(|(x, p)| self.key(layer, x, *p)).collect()
    }

    fn normed_and_rotated(&self, layer: &Layer, mut y: Vec<f32>, norm: Option<&[f32]>, position: usize) -> Vec<f32> {
        // Of each head, or of all of them together.
        if let Some(norm) = norm {
            y.chunks_mut(norm.len()).for_each(|part| part.copy_from_slice(&self.rms_norm(part, norm)));
        }
        for head in y.chunks_mut(layer.head_dim) {
            layer.rope.rotate(head, position);
        }
        y
    }

    /// What attention adds, of what the heads found (y) and the layer's normalised input (x).
    fn attn_output(&self, layer: &Layer, x: &[f32], y: &[f32]) -> Vec<f32> {
        let y = match &layer.gate {
            Some(gate) => {
                let gated: Vec<f32> = y.iter().zip(gate.times(x)).map(|(y, g)| y * sigmoid(g)).collect();
                layer.attn_output.times(&gated)
            }
            None => layer.attn_output.times(y),
        };
        match &layer.attn_post_norm {
            Some(norm) => self.rms_norm(&y, norm),
            None => y.iter().map(|y| y * self.residual_scale).collect(),
        }
    }

    /// What the FFN adds to a row of the residual stream.
    fn feed(&self, layer: &Layer, h: &[f32]) -> Vec<f32> {
        let y = match &layer.beside {
            None => {
                let x = self.normed(h, &layer.ffn_norm);
                self.ffn(layer, &x, &x)
            }
            Some(beside) => {
                let all = self.gated_ffn(&beside.ffn, &self.normed(h, &layer.ffn_norm));
                let router: Vec<f32> = self.rms_norm(h, &beside.router_norm);
                let router: Vec<f32> = router.iter().map(|x| x / (self.n_embd as f32).sqrt()).collect();
                let chosen = self.ffn(layer, &self.rms_norm(h, &beside.experts_norm), &router);
                let mut y = self.rms_norm(&all, &beside.post_norm);
                add(&mut y, &self.rms_norm(&chosen, &beside.experts_post_norm));
                y
            }
        };
        match &layer.ffn_post_norm {
            Some(norm) => self.rms_norm(&y, norm),
            None => y.iter().map(|y| y * self.residual_scale).collect(),
        }
    }

    /// What a layer does to a row behind its FFN.
    fn leave(&self, layer: &Layer, h: &mut [f32], token: u32) {
        if let Some(features) = &layer.features {
            let x = features.of_token(token, &self.embed(token), self.norm_eps);
            let gate = features.gate.times(h);
            let gated: Vec<f32> = gate.iter().zip(&x).map(|(g, x)| self.gated(*g, *x)).collect();
            add(h, &self.rms_norm(&features.back.times(&gated), &features.post_norm));
        }
        h.iter_mut().for_each(|x| *x *= layer.out_scale);
    }

    fn gated_ffn(&self, (gate, up, down): &(Linear, Linear, Linear), x: &[f32]) -> Vec<f32> {
        let (gate, up) = (gate.times(x), up.times(x));
        let z: Vec<f32> = gate.iter().zip(&up).map(|(g, u)| self.gated(*g, *u)).collect();
        down.times(&z)
    }

    /// The FFN of x, or the experts that the router chooses by `routed`.
    fn ffn(&self, layer: &Layer, x: &[f32], routed: &[f32]) -> Vec<f32> {
        let mut y = match &layer.router {
            None => self.gated_ffn(&layer.ffns[0], x),
            Some((router, n_used)) => {
                let logits = router.times(routed);
                let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let weights: Vec<f32> = logits.iter().map(|l| (l - most).exp()).collect();
                let mut best: Vec<usize> = (0..weights.len()).collect();
                best.sort_by(|a, b| weights[*b].total_cmp(&weights[*a]));
                best.truncate(*n_used);
                let sum: f32 = best.iter().map(|&e| weights[e]).sum();
                let mut y = vec![0.0; x.len()];
                for e in best {
                    let of_expert = self.gated_ffn(&layer.ffns[e], x);
                    let scale = layer.expert_scales.as_ref().map_or(1.0, |scales| scales[e]);
                    y.iter_mut().zip(&of_expert).for_each(|(y, z)| *y += z * scale * weights[e] / sum);
                }
                y
            }
        };
        if let Some((ffn, share)) = &layer.shared {
            let share = sigmoid(share.times(x)[0]);
            y.iter_mut().zip(self.gated_ffn(ffn, x)).for_each(|(y, z)| *y += z * share);
        }
        y
    }

    /// What a sublayer reads of the residual stream.
    fn normed(&self, x: &[f32], norm: &Option<Vec<f32>>) -> Vec<f32> {
        norm.as_ref().map_or_else(|| x.to_vec(), |norm| self.rms_norm(x, norm))
    }

    fn rms_norm(&self, x: &[f32], weight: &[f32]) -> Vec<f32> {
        let mean_square = dot(x, x) / x.len() as f64;
        let scale = 1.0 / (mean_square + f64::from(self.norm_eps)).sqrt();
        x.iter().zip(weight).map(|(x, w)| (f64::from(*x) * scale) as f32 * w).collect()
    }
}

impl Layer {
    fn sink(&self, head: usize) -> Option<f64> {
        self.sinks.as_ref().map(|sinks| f64::from(sinks[head]))
    }
}

/// Which set of a layer is followed.
enum Theirs {
    ActiveAttn(usize),
    ActiveFfn(usize),
    /// The candidates of the next layer; behind the last one nobody sees them.
    Kept(usize),
}

impl Theirs {
    fn of(self, layers: &[Chosen]) -> Option<&Vec<usize>> {
        match self {
            Theirs::ActiveAttn(il) => layers.get(il).map(|l| &l.active_attn),
            Theirs::ActiveFfn(il) => layers.get(il).map(|l| &l.active_ffn),
            Theirs::Kept(il) => layers.get(il + 1).map(|l| &l.candidates),
        }
    }
}

/// Softmax over the visible entries and a sink, if there is one; the others get 0.
fn softmax(scores: impl Iterator<Item = Option<f64>>, sink: Option<f64>) -> Vec<f64> {
    let scores: Vec<Option<f64>> = scores.collect();
    let max = scores.iter().flatten().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
    let exp: Vec<f64> = scores.iter().map(|s| s.map_or(0.0, |s| (s - max).exp())).collect();
    let sum: f64 = exp.iter().sum::<f64>() + sink.map_or(0.0, |s| (s - max).exp());
    exp.iter().map(|e| e / sum).collect()
}

fn add(h: &mut [f32], y: &[f32]) {
    h.iter_mut().zip(y).for_each(|(h, y)| *h += y);
}
