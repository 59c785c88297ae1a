//! A plan as text.

use std::fmt;

use crate::method::LayerBudget;

use super::{CpuExperts, Plan};

/// A number with commas: 32768 as `32,768`.
pub fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, {} tokens, schedule {}", self.shape, grouped(self.n_tokens), self.schedule)?;
        writeln!(f)?;
        writeln!(f, "{:>9} {:>12} {:>12} {:>12} {:>12}", "layers", "candidates", "attention", "FFN", "KV/layer")?;
        let layers = &self.budgets.layers;
        let mut first = 0;
        while first < layers.len() {
            let head = layers[first];
            // A row ends with a prune, or where the counts change, or the kind of the layers.
            let same = |l: usize| {
                LayerBudget { prune_to: None, ..layers[l] } == LayerBudget { prune_to: None, ..head }
                    && (head.candidates == head.active_ffn || self.has_cache(l) == self.has_cache(first))
            };
            let mut last = first;
            while layers[last].prune_to.is_none() && last + 1 < layers.len() && same(last + 1) {
                last += 1;
            }
            let range = if first == last { first.to_string() } else { format!("{first}-{last}") };
            let [n, a, b] = [head.candidates, head.active_attn, head.active_ffn].map(grouped);
            let kv = match (first..=last).any(|l| self.has_cache(l)) {
                true => a.as_str(),
                false if self.memory.states > 0. => "state",
                false => "shared",
            };
            let then = match layers[last].prune_to {
                Some(m) => format!("  then prune to {}", grouped(m)),
                None if !head.probe && n == b => "  dense".to_owned(),
                None => String::new(),
            };
            writeln!(f, "{range:>9} {n:>12} {a:>12} {b:>12} {kv:>12}{then}")?;
            first = last + 1;
        }
        let with_cache = (0..layers.len()).filter(|&l| self.has_cache(l)).count();
        if self.memory.states > 0. {
            writeln!(f, "{with_cache} of {} layers attend; the others are recurrent: a state in place of entries", layers.len())?;
        } else if with_cache < layers.len() {
            writeln!(
                f,
                "{with_cache} of {} layers have keys of their own; the others read these, and compute the last token alone",
                layers.len()
            )?;
        }
        writeln!(f)?;
        writeln!(f, "{:>9} {:>12} {:>12} {:>12} {:>12}", "TFLOP", "linear", "attention", "probes", "total")?;
        for (name, x) in [("dense", &self.dense), ("SPTS", &self.spts)] {
            let [linear, attention, probes, total] = [x.linear, x.attention, x.probes, x.total()].map(|x| x / 1e12);
            writeln!(f, "{name:>9} {linear:>12.2} {attention:>12.2} {probes:>12.2} {total:>12.2}")?;
        }
        writeln!(f)?;
        writeln!(
            f,
            "predicted speed-up (ceiling) {:.2}x, cache kept {:.1} %",
            self.predicted_speedup,
            100. * self.cache_kept
        )?;
        let m = self.memory;
        let [total, weights, kv, kv_dense, states, hidden, scratch] =
            [m.total(), m.weights, m.kv, m.kv_dense, m.states, m.hidden, m.scratch].map(|x| x / f64::from(1 << 30));
        let states = if m.states > 0. { format!("recurrent states {states:.2}, ") } else { String::new() };
        writeln!(
            f,
            "memory {total:.2} GiB: weights {weights:.2}, KV cache {kv:.2} (dense {kv_dense:.2}), {states}hidden state {hidden:.2}, scratch about {scratch:.2}"
        )?;
        if m.cpu_experts.bytes > 0 {
            let CpuExperts { bytes, of_a_layer } = m.cpu_experts;
            let [gpu, cpu, layer] =
                [m.beside_cpu_experts(), bytes as f64, of_a_layer as f64].map(|x| x / f64::from(1 << 30));
            writeln!(
                f,
                "of these {cpu:.2} GiB are experts on the CPU; on the GPU {gpu:.2} GiB with room for those of one layer, {layer:.2}"
            )?;
        }
        match self.budgets.dense_layers() {
            0 => writeln!(f, "nothing of a document stays for later questions: the first layer skips"),
            l => writeln!(
                f,
                "as a document it keeps {:.2} GiB for later questions, of {l} layers{}",
                m.document / f64::from(1 << 30),
                if l < self.layers.len() { " and the residual stream behind them" } else { "" }
            ),
        }?;
        if let Some(c) = self.cliff {
            let [at, above] = [c.first_budget, c.first_budget + 1].map(grouped);
            let (kept, speedup) = (100. * c.cache_kept_above, c.speedup_above);
            match c.in_full_from - c.first_budget {
                1 => writeln!(
                    f,
                    "up to {at} tokens the prompt stays dense; at {above} the cache falls to {kept:.1} % at once ({speedup:.2}x)"
                ),
                _ => writeln!(
                    f,
                    "up to {at} tokens the prompt stays dense; at {above} {kept:.1} % of the cache are kept ({speedup:.2}x), and the schedule acts in full from {} on",
                    grouped(c.in_full_from)
                ),
            }?;
        }
        Ok(())
    }
}
