//! The state of a sequence: what every layer remembers of the tokens read so far. Two sequences over one model are two of these.
//!
//! Each layer's KV cache has its own length, since skipping and pruning keep fewer entries in later layers. A recurrent layer has a
//! state of fixed size instead.

use crate::attributes::CACHE_GROWTH;
use crate::ggml::GgmlError;
use crate::{Error, Result};

pub use super::layer_cache::{CacheType, Kept, LayerCache};
use super::recurrent::RecurrentState;
use super::turns::Staged;

/// What a layer remembers.
pub enum LayerMemory {
    /// Keys and values.
    Cache(LayerCache),
    /// The state of a recurrence.
    Recurrent(RecurrentState),
    /// Nothing of its own: it reads an earlier layer's cache.
    Shared,
}

impl LayerMemory {
    fn cache(&self) -> Option<&LayerCache> {
        match self {
            LayerMemory::Cache(cache) => Some(cache),
            LayerMemory::Recurrent(_) | LayerMemory::Shared => None,
        }
    }

    /// As [`LayerMemory::append`] in layer `l`, which may have read the tokens in memory shared with others.
    pub(super) fn append_in(&mut self, staged: &Staged, l: usize, kept: Kept, first: usize, n: usize) {
        match self {
            LayerMemory::Cache(cache) if staged.memory_of(l).is_some() => cache.append_staged(kept, first, n),
            memory => memory.append(kept, first, n),
        }
    }

    fn append(&mut self, kept: Kept, first: usize, n: usize) {
        match self {
            LayerMemory::Cache(cache) => cache.append(kept, first, n),
            LayerMemory::Recurrent(state) => state.advance(n),
            LayerMemory::Shared => {}
        }
    }

    /// Entries that stay of a document of `n` tokens, where a layer has any.
    pub(super) fn n_of_document(&self, n: usize) -> usize {
        self.cache().map_or(0, |cache| cache.that_stay(n))
    }

    fn clear(&mut self) {
        match self {
            LayerMemory::Cache(cache) => cache.clear(),
            LayerMemory::Recurrent(state) => state.clear(),
            LayerMemory::Shared => {}
        }
    }

    fn n_bytes(&self) -> usize {
        match self {
            LayerMemory::Cache(cache) => cache.n_bytes(),
            LayerMemory::Recurrent(state) => state.n_bytes(),
            LayerMemory::Shared => 0,
        }
    }
}

/// All layers' memories, and how many tokens they stand for.
pub struct Sequence {
    layers: Vec<LayerMemory>,
    n_past: usize,
    /// Memory that layers with a window take turns in (windows.rs).
    shared: Vec<LayerCache>,
}

impl Sequence {
    /// Nothing read yet: an empty memory for each layer.
    pub fn new(layers: Vec<LayerMemory>) -> Self {
        Self { layers, n_past: 0, shared: Vec::new() }
    }

    pub(super) fn shared(&self) -> &[LayerCache] {
        &self.shared
    }

    pub(super) fn layers_and_shared(&mut self) -> (&mut [LayerMemory], &mut Vec<LayerCache>) {
        (&mut self.layers, &mut self.shared)
    }

    /// So many more tokens are read.
    pub(super) fn count(&mut self, n: usize) {
        self.n_past += n;
    }

    /// The layers' memories.
    pub fn layers(&self) -> &[LayerMemory] {
        &self.layers
    }

    /// The cache of a layer that has one.
    ///
    /// # Panics
    /// If it is recurrent, or reads another's.
    pub fn cache(&self, layer: usize) -> &LayerCache {
        self.layers[layer].cache().expect("a layer with a cache")
    }

    /// The caches of the layers that have one.
    pub fn caches(&self) -> impl Iterator<Item = &LayerCache> {
        self.layers.iter().filter_map(LayerMemory::cache)
    }

    /// The state of a recurrent layer.
    ///
    /// # Panics
    /// If it is one that attends.
    pub fn recurrent(&self, layer: usize) -> &RecurrentState {
        match &self.layers[layer] {
            LayerMemory::Recurrent(state) => state,
            LayerMemory::Cache(_) | LayerMemory::Shared => panic!("a recurrent layer"),
        }
    }

    /// The states of the recurrent layers.
    pub fn states(&self) -> impl Iterator<Item = &RecurrentState> {
        self.states_before(self.layers.len())
    }

    /// Tokens read so far: the next one's position.
    pub fn n_past(&self) -> usize {
        self.n_past
    }

    /// Entries in each layer's cache; 0 where a layer has none.
    pub fn lengths(&self) -> Vec<usize> {
        self.layers.iter().map(|layer| layer.cache().map_or(0, LayerCache::len)).collect()
    }

    /// Bytes held.
    pub fn n_bytes(&self) -> usize {
        let layers: usize = self.layers.iter().map(LayerMemory::n_bytes).sum();
        layers + self.shared.iter().map(LayerCache::n_bytes).sum::<usize>()
    }

    /// Makes room for so many more entries in each layer from `first` on that has any to come, and `spare` more. Layers that read
    /// them in turns get room for what they keep.
    ///
    /// # Errors
    /// Out of memory.
    pub fn reserve(
        &mut self,
        first: usize,
        entries: &[usize],
        spare: usize,
        staged: &Staged,
    ) -> std::result::Result<(), GgmlError> {
        let layers = self.layers[first..].iter_mut().zip(entries).enumerate();
        layers.map(|(i, of)| (first + i, of)).try_for_each(|(l, (layer, n))| match layer {
            LayerMemory::Cache(cache) if staged.memory_of(l).is_some() => {
                let enough = cache.enough().unwrap_or(0);
                cache.reserve(enough.max(cache.len + cache.that_stay(cache.len + n)))
            }
            LayerMemory::Cache(cache) => cache.reserve(cache.len + n + spare),
            LayerMemory::Recurrent(state) => state.reserve(),
            LayerMemory::Shared => Ok(()),
        })
    }

    /// Makes room for one token, and where a cache has none, for as many as it takes before memory is touched again: up to
    /// `most` tokens in all. Layers with a window make it by forgetting what no later token sees.
    ///
    /// # Errors
    /// Out of memory. What was read is still there.
    pub fn reserve_token(&mut self, most: usize) -> std::result::Result<(), GgmlError> {
        let spare = CACHE_GROWTH.min(most.saturating_sub(self.n_past)).max(1);
        for layer in &mut self.layers {
            let cache = match layer {
                LayerMemory::Cache(cache) if cache.len == cache.capacity => cache,
                _ => continue,
            };
            cache.forget();
            if cache.len < cache.capacity {
                continue;
            }
            // With little memory left a single block more is better than none.
            let whole = cache.reserve(cache.len + spare);
            whole.or_else(|_| cache.reserve(cache.len + 1))?;
        }
        Ok(())
    }

    /// `n` tokens were read; layer l has kept the entries at `kept[l]`, and all layers all of them without it.
    pub fn advance(&mut self, n: usize, kept: Option<Vec<Kept>>) {
        let first = self.n_past;
        self.n_past += n;
        match kept {
            Some(kept) => {
                for (layer, kept) in self.layers.iter_mut().zip(kept) {
                    layer.append(kept, first, n);
                }
            }
            None => self.layers.iter_mut().for_each(|layer| layer.append(Kept::Count(n), first, n)),
        }
    }

    /// The layers before `cut` have kept `n` more tokens; none counts as read by it.
    pub fn extend(&mut self, cut: usize, n: usize, staged: &Staged) {
        for (l, layer) in self.layers[..cut].iter_mut().enumerate() {
            let first = layer.cache().map_or(0, LayerCache::end);
            layer.append_in(staged, l, Kept::Count(n), first, n);
        }
    }

    /// Of a sequence of `n` tokens the layers before `cut` have kept all, and those from `cut` on, empty before, the entries at
    /// `kept`: all of them are read.
    pub fn complete(&mut self, cut: usize, n: usize, kept: Vec<Kept>, staged: &Staged) {
        for (l, (layer, kept)) in (cut..).zip(self.layers[cut..].iter_mut().zip(kept)) {
            layer.append_in(staged, l, kept, 0, n);
        }
        self.n_past = n;
    }

    /// What was written to the layers before `cut` are the entries and states of a document of `n` tokens; none counts as read by it.
    pub(super) fn count_document(&mut self, cut: usize, n: usize) {
        for layer in &mut self.layers[..cut] {
            match layer {
                LayerMemory::Cache(cache) => cache.count_document(n),
                LayerMemory::Recurrent(state) => state.advance(n),
                LayerMemory::Shared => {}
            }
        }
    }

    /// Begins again: the layers before `cut` stay as they are behind the first `n` tokens, of which they have kept all; the others
    /// forget everything. No token counts as read.
    ///
    /// # Panics
    /// If a layer before `cut` has fewer entries, or the state of so many tokens is not there ([`Sequence::known`]).
    pub fn rewind(&mut self, cut: usize, n: usize) {
        let (before, behind) = self.layers.split_at_mut(cut);
        for layer in before {
            match layer {
                LayerMemory::Cache(cache) => cache.rewind(n),
                LayerMemory::Recurrent(state) => state.rewind(n),
                LayerMemory::Shared => {}
            }
        }
        behind.iter_mut().for_each(LayerMemory::clear);
        self.n_past = 0;
    }

    /// The most tokens, at most `n`, behind which the layers before `cut` can begin again: all of the `n` unless a layer is recurrent
    /// or has forgotten entries, else the most of which the states, or the entries that the next token sees, are there.
    pub fn known(&self, cut: usize, n: usize) -> usize {
        let Some(first) = self.states_before(cut).next() else {
            let kept = self.caches_before(cut).find_map(LayerCache::kept_end).unwrap_or(0);
            let can_begin = |n: &usize| self.caches_before(cut).all(|cache| cache.can_begin_at(*n));
            return [n, kept].into_iter().filter(|&m| m <= n).find(can_begin).unwrap_or(0);
        };
        let (read, kept) = (first.len(), first.kept_len().unwrap_or(0));
        let is_current = read <= n && self.states_before(cut).all(|state| state.len() == read);
        let is_kept = kept <= n && self.has_kept(cut, kept);
        (if is_current { read } else { 0 }).max(if is_kept { kept } else { 0 })
    }

    /// The states of the recurrent layers before `cut`.
    fn states_before(&self, cut: usize) -> impl Iterator<Item = &RecurrentState> {
        self.layers[..cut].iter().filter_map(|layer| match layer {
            LayerMemory::Recurrent(state) => Some(state),
            LayerMemory::Cache(_) | LayerMemory::Shared => None,
        })
    }

    fn caches_before(&self, cut: usize) -> impl Iterator<Item = &LayerCache> {
        self.layers[..cut].iter().filter_map(LayerMemory::cache)
    }

    /// Whether any of the layers before `cut` is recurrent: then these cannot begin again anywhere.
    pub fn has_states(&self, cut: usize) -> bool {
        self.states_before(cut).next().is_some()
    }

    /// Keeps the states of the layers before `cut` as they are, and what the next token sees in layers with a window.
    ///
    /// # Errors
    /// Out of memory: then none is kept.
    pub fn keep_states(&mut self, cut: usize) -> std::result::Result<(), GgmlError> {
        let kept = self.layers[..cut].iter_mut().try_for_each(|layer| match layer {
            LayerMemory::Recurrent(state) => state.keep(),
            LayerMemory::Cache(cache) => cache.keep(),
            LayerMemory::Shared => Ok(()),
        });
        if kept.is_err() {
            for layer in &mut self.layers {
                match layer {
                    LayerMemory::Recurrent(state) => state.forget_kept(),
                    LayerMemory::Cache(cache) => cache.forget_kept(),
                    LayerMemory::Shared => {}
                }
            }
        }
        kept
    }

    /// Whether what stays of a document of the first `n` tokens is there in the layers before `cut`: states that were kept, and
    /// entries.
    pub fn has_kept(&self, cut: usize, n: usize) -> bool {
        self.states_before(cut).all(|state| state.kept_len() == Some(n))
            && self.caches_before(cut).all(|cache| cache.of_document(n).is_some())
    }

    /// The fewest tokens that [`Sequence::truncate`] can leave: which entry a token has in a layer that left some out is known
    /// only behind the prompt whose tokens were left out, and a layer with a window may have forgotten what fewer ones see.
    pub fn least(&self) -> usize {
        self.caches().map(|c| c.least).max().unwrap_or(0)
    }

    /// What was read so far is no prefix of the caller's tokens any more: only whole can it be kept.
    pub fn seal(&mut self) {
        let least = self.n_past;
        for layer in &mut self.layers {
            if let LayerMemory::Cache(cache) = layer {
                cache.least = least;
            }
        }
    }

    /// Forgets all tokens but the first `n`.
    ///
    /// # Errors
    /// [`Error::Truncate`] below [`Sequence::least`], except for 0; [`Error::TruncateState`] with recurrent layers.
    pub fn truncate(&mut self, n: usize) -> Result<()> {
        if n == 0 {
            self.clear();
            return Ok(());
        }
        if n >= self.n_past {
            return Ok(());
        }
        if self.has_states(self.layers.len()) {
            return Err(Error::TruncateState { n, read: self.n_past });
        }
        if n < self.least() {
            return Err(Error::Truncate { n, least: self.least() });
        }
        for layer in &mut self.layers {
            let LayerMemory::Cache(cache) = layer else { continue };
            // Entries behind the prompt are a run, one for each token.
            cache.len -= self.n_past - n;
            cache.forget_kept_behind(n);
            if let Some(positions) = &mut cache.positions {
                positions.truncate(cache.len);
            }
        }
        self.n_past = n;
        Ok(())
    }

    /// Zeroes the rows behind the entries: attention reads some of them (masked), which must not hold NaN of a call that failed.
    pub fn zero_padding(&self) {
        self.caches().chain(&self.shared).for_each(LayerCache::zero_padding);
    }

    /// Forgets all tokens; the memory stays.
    pub fn clear(&mut self) {
        self.layers.iter_mut().for_each(LayerMemory::clear);
        self.n_past = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::lower::KV_PAD;
    use crate::ggml::arena::read_bytes;
    use crate::ggml::backend;

    fn sequence(n_layer: usize) -> Sequence {
        let buft = backend::buffer_type("CPU").expect("a CPU");
        let cache = |_| LayerMemory::Cache(LayerCache::new(buft, 32, (CacheType::F16, CacheType::Q8_0)));
        Sequence::new((0..n_layer).map(cache).collect())
    }

    #[test]
    fn a_dense_sequence_can_be_cut_anywhere() {
        let mut s = sequence(2);
        s.reserve(0, &[10, 10], 0, &Staged::default()).expect("memory");
        s.advance(10, None);
        s.advance(1, None);
        s.truncate(4).expect("a dense sequence");
        assert_eq!((s.n_past(), s.lengths()), (4, vec![4, 4]));
        s.truncate(7).expect("nothing to forget");
        assert_eq!(s.n_past(), 4);
        s.truncate(0).expect("everything forgotten");
        assert_eq!((s.n_past(), s.lengths()), (0, vec![0, 0]));
    }

    #[test]
    fn behind_a_prompt_that_left_tokens_out_answers_can_be_cut() {
        let mut s = sequence(2);
        s.advance(100, Some(vec![Kept::Count(100), Kept::At(vec![3, 50, 99])]));
        s.advance(5, None);
        assert_eq!((s.n_past(), s.lengths(), s.least()), (105, vec![105, 8], 100));
        assert_eq!(s.cache(1).positions(), Some(&[3, 50, 99, 100, 101, 102, 103, 104][..]));
        s.truncate(102).expect("behind the prompt");
        assert_eq!((s.lengths(), s.cache(1).positions()), (vec![102, 5], Some(&[3, 50, 99, 100, 101][..])));
        assert!(matches!(s.truncate(99), Err(Error::Truncate { n: 99, least: 100 })));
        assert_eq!(s.n_past(), 102);
        s.clear();
        assert_eq!((s.least(), s.cache(1).positions()), (0, None));
    }

    #[test]
    fn a_sequence_begins_again_behind_a_document() {
        let mut s = sequence(3);
        s.reserve(0, &[100, 100], 0, &Staged::default()).expect("memory");
        s.extend(2, 100, &Staged::default());
        assert_eq!((s.n_past(), s.lengths()), (0, vec![100, 100, 0]));
        s.complete(2, 100, vec![Kept::At(vec![3, 99])], &Staged::default());
        s.advance(5, None);
        assert_eq!((s.n_past(), s.lengths(), s.least()), (105, vec![105, 105, 7], 100));
        s.rewind(2, 90);
        assert_eq!((s.n_past(), s.lengths(), s.least()), (0, vec![90, 90, 0], 0));
        assert_eq!(s.cache(2).positions(), None);
        s.extend(2, 4, &Staged::default());
        s.complete(2, 94, vec![Kept::Count(9)], &Staged::default());
        assert_eq!((s.n_past(), s.lengths()), (94, vec![94, 94, 9]));
    }

    #[test]
    fn growing_keeps_entries_and_changes_the_generation() {
        let mut s = sequence(1);
        s.reserve(0, &[3], 0, &Staged::default()).expect("memory");
        let before = s.cache(0).generation();
        let row: Vec<u8> = (0..64).collect();
        s.cache(0).write(&row, &[]);
        s.advance(KV_PAD, None);
        s.reserve_token(10_000).expect("memory");
        let cache = &s.cache(0);
        assert_eq!(cache.capacity(), (KV_PAD + CACHE_GROWTH).next_multiple_of(KV_PAD));
        assert_ne!(cache.generation(), before);
        assert_eq!(read_bytes(cache.k(), 0, 64), row);
        // The context bounds how far it grows.
        let mut s = sequence(1);
        s.reserve(0, &[1], 0, &Staged::default()).expect("memory");
        s.advance(KV_PAD, None);
        s.reserve_token(KV_PAD + 1).expect("memory");
        assert_eq!(s.cache(0).capacity(), 2 * KV_PAD);
    }
}
