//! Which blocks of keys attention reads, by plain loops in f64, and whether a list is one that the rule allows.

use super::prng::Prng;

const BLOCK: usize = 128;
const STRIDE: usize = 16;
const SQUARES: usize = BLOCK / STRIDE;
const BEHIND: usize = 3;

/// Queries over a cache: `q [d n_head, n_q]`, `k` and `v [d n_head_kv, first + n_q]`.
pub struct Scene {
    pub n_head: usize,
    pub n_head_kv: usize,
    pub d: usize,
    pub n_q: usize,
    /// Row of the first query's own key.
    pub first: usize,
    /// Queries from this one on read all.
    pub whole_from: usize,
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
}

/// What the chosen blocks make up together.
#[derive(Clone, Copy, Debug)]
pub enum Share {
    Mass(f64),
    Density(f64),
}

impl Scene {
    /// Random values that F16 holds nearly. Some blocks of keys are larger, so that they matter more.
    pub fn random(
        random: &mut Prng,
        [n_head, n_head_kv, d]: [usize; 3],
        n_q: usize,
        first: usize,
        whole_from: usize,
    ) -> Scene {
        let mut values = |n: usize, size: f32| -> Vec<f32> {
            (0..n).map(|_| (size * random.signed() * 256.0).round() / 256.0).collect()
        };
        let width = d * n_head_kv;
        let q = values(d * n_head * n_q, 2.0);
        let [mut k, v] = [0; 2].map(|_| values(width * (first + n_q), 1.0));
        for (row, values) in k.chunks_mut(width).enumerate() {
            let size = [4.0, 1.0, 1.0, 2.0, 1.0][row / BLOCK % 5];
            values.iter_mut().for_each(|x| *x *= size);
        }
        Scene { n_head, n_head_kv, d, n_q, first, whole_from, q, k, v }
    }

    pub fn scale(&self) -> f32 {
        (self.d as f32).sqrt().recip()
    }

    pub fn n_tiles(&self) -> usize {
        self.n_q.div_ceil(BLOCK)
    }

    /// Blocks that the last query of a block of them sees.
    pub fn n_blocks(&self, tile: usize) -> usize {
        (self.first + self.n_q.min((tile + 1) * BLOCK) - 1) / BLOCK + 1
    }

    /// The score of a query and a key.
    pub fn score(&self, head: usize, query: usize, key: usize) -> f64 {
        let q = &self.q[(query * self.n_head + head) * self.d..][..self.d];
        let k = &self.k[(key * self.n_head_kv + head * self.n_head_kv / self.n_head) * self.d..][..self.d];
        q.iter().zip(k).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() * f64::from(self.scale())
    }

    /// Each block's share of the samples' weight; `None` if all blocks are read.
    fn shares(&self, tile: usize, head: usize) -> Option<Vec<f64>> {
        let (start, end) = (tile * BLOCK, self.n_q.min((tile + 1) * BLOCK));
        let n_squares = (end - start) / STRIDE;
        if end > self.whole_from || n_squares == 0 || self.n_blocks(tile) <= BEHIND + 1 {
            return None;
        }
        let mut shares = vec![0.0; self.n_blocks(tile)];
        for square in 0..n_squares {
            let query = start + square * STRIDE;
            let n_seen = (self.first + query + 1) / STRIDE;
            let sample = |group: usize| -> f64 {
                let pair = |i: usize| self.score(head, query + STRIDE - 1 - i, group * STRIDE + i);
                (0..STRIDE).map(pair).sum::<f64>() / STRIDE as f64
            };
            let scores: Vec<f64> = (0..n_seen).map(sample).collect();
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|s| (s - most).exp()).sum();
            for (group, score) in scores.iter().enumerate() {
                shares[group / SQUARES] += (score - most).exp() / total;
            }
        }
        Some(shares)
    }

    /// Checks lists `[1 + most blocks, n_tiles, n_head]`: the blocks that are always read, and the best of the others, no more and no
    /// fewer than make up the share; `tolerance` of a block's share, and of the whole, is for rounding. Returns how many blocks are
    /// read of how many.
    pub fn check(&self, lists: &[i32], share: Share, tolerance: f64) -> (usize, usize) {
        let width = 1 + self.n_blocks(self.n_tiles() - 1);
        assert_eq!(lists.len(), width * self.n_tiles() * self.n_head);
        let (mut n_read, mut n_all) = (0, 0);
        for (index, list) in lists.chunks(width).enumerate() {
            let (tile, head) = (index % self.n_tiles(), index / self.n_tiles());
            let n_blocks = self.n_blocks(tile);
            let list: Vec<usize> = list[1..=list[0] as usize].iter().map(|b| *b as usize).collect();
            let what = format!("block {tile} of queries, head {head}, {share:?}: {list:?} of {n_blocks}");
            assert!(list.is_sorted_by(|a, b| a < b) && list.last() == Some(&(n_blocks - 1)), "{what}");
            (n_read, n_all) = (n_read + list.len(), n_all + n_blocks);
            let Some(shares) = self.shares(tile, head) else {
                assert_eq!(list.len(), n_blocks, "{what}");
                continue;
            };
            let is_judged = |block: &usize| *block > 0 && *block + BEHIND < n_blocks;
            assert!((0..n_blocks).filter(|b| !is_judged(b)).all(|b| list.contains(&b)), "{what}");
            let weight = |block: usize| if let Share::Mass(_) = share { shares[block] } else { 1.0 };
            let all: f64 = (0..n_blocks).map(weight).sum();
            let wanted = match share {
                Share::Mass(x) => x * all,
                Share::Density(x) => (x * all).ceil(),
            };
            let slack = if let Share::Mass(_) = share { tolerance * all } else { 0.0 };
            let have: f64 = list.iter().map(|b| weight(*b)).sum();
            let judged = || list.iter().copied().filter(is_judged);
            let least = judged().map(|b| shares[b]).fold(f64::INFINITY, f64::min);
            let best_left =
                (0..n_blocks).filter(|b| is_judged(b) && !list.contains(b)).map(|b| shares[b]).fold(0.0, f64::max);
            assert!(have >= wanted - slack, "{what}: {have} of {wanted}");
            if let Some(worst) = judged().min_by(|a, b| shares[*a].total_cmp(&shares[*b])) {
                assert!(have - weight(worst) < wanted + slack, "{what}: without {worst} still {have} of {wanted}");
            }
            assert!(best_left <= least * (1.0 + tolerance) + 1e-9, "{what}: {best_left} is left, {least} is not");
        }
        (n_read, n_all)
    }

    /// The naive result `[d n_head, n_q]` of attention over the blocks of such lists.
    pub fn attended(&self, lists: &[i32]) -> Vec<f64> {
        let width = 1 + self.n_blocks(self.n_tiles() - 1);
        let mut out = Vec::new();
        for query in 0..self.n_q {
            for head in 0..self.n_head {
                let list = &lists[(head * self.n_tiles() + query / BLOCK) * width..][..width];
                let blocks = list[1..=list[0] as usize].iter().map(|b| *b as usize * BLOCK);
                let keys: Vec<usize> =
                    blocks.flat_map(|b| b..b + BLOCK).filter(|key| *key <= self.first + query).collect();
                let scores: Vec<f64> = keys.iter().map(|key| self.score(head, query, *key)).collect();
                let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
                let sum: f64 = weights.iter().sum();
                let v = |key: usize| &self.v[(key * self.n_head_kv + head * self.n_head_kv / self.n_head) * self.d..];
                out.extend(
                    (0..self.d).map(|x| {
                        keys.iter().zip(&weights).map(|(key, w)| w / sum * f64::from(v(*key)[x])).sum::<f64>()
                    }),
                );
            }
        }
        out
    }
}

/// Scenes of every kind: head sizes, groups, odd lengths, behind a cache that ends anywhere, queries that read all.
pub fn scenes(random: &mut Prng, head_dims: &[usize]) -> Vec<Scene> {
    let mut scenes = Vec::new();
    for &d in head_dims {
        for ([n_head, n_head_kv], n_q, first, whole_from) in [
            ([4, 2], 256, 0, usize::MAX),
            ([2, 1], 1100, 0, usize::MAX),
            ([9, 1], 300, 905, 200),
            ([8, 1], 140, 1300, usize::MAX),
            ([3, 3], 77, 1024, usize::MAX),
            ([2, 2], 9, 2000, usize::MAX),
            ([2, 1], 512, 640, 256),
        ] {
            scenes.push(Scene::random(random, [n_head, n_head_kv, d], n_q, first, whole_from));
        }
    }
    scenes
}
