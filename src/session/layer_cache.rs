//! The KV cache of one layer that attends: as many entries as its attention has computed, or as its window needs.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::attributes::CACHE_GROWTH;
use crate::compile::lower::KV_PAD;
use crate::ggml::GgmlError;
use crate::ggml::Tensor;
use crate::ggml::arena::{Arena, TensorId};
use crate::ggml::backend::BufferType;
use crate::gguf::GgmlType;

/// Element type of cached keys or values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum CacheType {
    /// Exact; for tests.
    F32,
    /// Half precision, the default.
    #[default]
    F16,
    /// Half the memory of F16; needs a head dimension divisible by 32.
    Q8_0,
}

impl CacheType {
    /// The type as ggml names it.
    pub fn ggml(self) -> GgmlType {
        match self {
            CacheType::F32 => GgmlType::F32,
            CacheType::F16 => GgmlType::F16,
            CacheType::Q8_0 => GgmlType::Q8_0,
        }
    }

    /// Type of candidates' keys between their scoring and the choice among them: never quantized. A probing layer whose
    /// attention stays whole keeps no such copy: its scores come from the cached keys, in the cache's type.
    pub fn probe(self) -> GgmlType {
        if self == CacheType::F32 { GgmlType::F32 } else { GgmlType::F16 }
    }
}

/// Which of a call's tokens a layer has kept.
pub enum Kept {
    /// The number of tokens; which ones they are does not matter.
    Count(usize),
    /// Those at these positions, ascending, where a sliding window masks by them.
    At(Vec<i32>),
}

/// The keys and values of one layer.
pub struct LayerCache {
    arena: Option<(Arena, TensorId, TensorId)>,
    buft: BufferType,
    width: usize,
    types: (CacheType, CacheType),
    pub(super) capacity: usize,
    /// Of the memory: another number for every allocation of the process.
    generation: u64,
    pub(super) len: usize,
    /// Tokens up to which entries are no run of tokens.
    pub(super) least: usize,
    /// Original positions of the entries where they have gaps that matter; `None`: 0, 1, 2 ...
    pub(super) positions: Option<Vec<i32>>,
    /// Sliding window, beyond which entries may be forgotten.
    window: Option<usize>,
    /// Entries that were forgotten: those before the first row.
    forgotten: usize,
}

static GENERATION: AtomicU64 = AtomicU64::new(1);

impl LayerCache {
    /// An empty cache of `width` = n_head_kv * head_dim elements an entry.
    pub fn new(buft: BufferType, width: usize, types: (CacheType, CacheType)) -> Self {
        Self {
            arena: None,
            buft,
            width,
            types,
            capacity: 0,
            generation: 0,
            len: 0,
            least: 0,
            positions: None,
            window: None,
            forgotten: 0,
        }
    }

    /// The same for a layer that sees no further than `window` tokens back.
    pub fn with_window(self, window: Option<usize>) -> Self {
        Self { window, ..self }
    }

    /// An empty one of the same kind, without a window.
    pub(super) fn another(&self) -> Self {
        Self::new(self.buft, self.width, self.types)
    }

    /// Whether another has entries of the same width in the same memory.
    pub(super) fn is_like(&self, other: &LayerCache) -> bool {
        self.buft == other.buft && self.width == other.width && self.types == other.types
    }

    /// Entries of a prompt that a layer with a window needs behind it; `None` where it needs all.
    pub(super) fn needed(&self) -> Option<usize> {
        self.window
    }

    /// Entries that are enough for a layer with a window, however many tokens are read; `None` without one.
    pub fn enough(&self) -> Option<usize> {
        self.window.map(|window| window + CACHE_GROWTH)
    }

    /// Forgets entries that no later token sees, if there are more of them than are worth the work.
    pub(super) fn forget(&mut self) {
        let Some(window) = self.window.filter(|window| self.len >= window + CACHE_GROWTH) else { return };
        self.keep_rows(self.len - window, window);
    }

    /// Of the rows, whose entries all count, those from `first` on stay, and become the first.
    fn keep_rows(&mut self, first: usize, n: usize) {
        if let Some((arena, k, v)) = &self.arena {
            arena.shift_rows(*k, first, n);
            arena.shift_rows(*v, first, n);
        }
        self.count_forgotten(first, n);
    }

    fn count_forgotten(&mut self, first: usize, n: usize) {
        self.forgotten += first;
        self.len = n;
        if let Some(positions) = &mut self.positions {
            positions.drain(..first);
        }
        let oldest = self.positions.as_ref().and_then(|p| p.first().copied()).map_or(self.forgotten, |p| p as usize);
        // The first token that sees nothing of what is gone.
        self.least = self.least.max(oldest + self.window.unwrap_or(0).saturating_sub(1));
    }

    /// Copies the entries to the first rows of `staging`.
    pub(super) fn copy_to(&self, staging: &LayerCache) {
        let (Some((from, k, v)), Some((to, to_k, to_v))) = (&self.arena, &staging.arena) else { return };
        to.copy_rows(*to_k, 0, from.get(*k), self.len);
        to.copy_rows(*to_v, 0, from.get(*v), self.len);
    }

    /// Copies the last of the `n` rows of `staging`, as many as the window needs, behind the entries. They count when
    /// [`LayerCache::append_staged`] says so.
    ///
    /// # Panics
    /// Without a window, or without room for them.
    pub(super) fn copy_last_from(&self, staging: &LayerCache, n: usize) {
        let window = self.window.expect("a layer with a window");
        let (Some((to, k, v)), Some((from, from_k, from_v))) = (&self.arena, &staging.arena) else { return };
        to.copy_rows_from(*k, self.len, from.get(*from_k), n - window, window);
        to.copy_rows_from(*v, self.len, from.get(*from_v), n - window, window);
    }

    /// As [`LayerCache::append`], of entries of which the last lie behind those there were: these stay alone.
    pub(super) fn append_staged(&mut self, kept: Kept, first: usize, n: usize) {
        let (before, window) = (self.len, self.window.expect("a layer with a window"));
        self.append(kept, first, n);
        if let Some((arena, k, v)) = &self.arena {
            arena.shift_rows(*k, before, window);
            arena.shift_rows(*v, before, window);
        }
        self.count_forgotten(self.len - window, window);
    }

    /// Makes room for `rows` entries in all, keeping what is there.
    ///
    /// # Errors
    /// Out of memory.
    pub fn reserve(&mut self, rows: usize) -> std::result::Result<(), GgmlError> {
        let rows = rows.next_multiple_of(KV_PAD);
        if rows <= self.capacity {
            return Ok(());
        }
        if self.len == 0 {
            // Nothing to keep: let go first.
            self.arena = None;
            self.capacity = 0;
        }
        let mut arena = Arena::new(2);
        let k = arena.declare("cache_k", self.types.0.ggml(), &[self.width, rows]);
        let v = arena.declare("cache_v", self.types.1.ggml(), &[self.width, rows]);
        // Cleared: attention reads padding rows (masked), which must not hold NaN.
        arena.allocate(&[k, v], self.buft, "the KV cache")?;
        if let Some((old, old_k, old_v)) = &self.arena {
            arena.copy_rows(k, 0, old.get(*old_k), self.len);
            arena.copy_rows(v, 0, old.get(*old_v), self.len);
        }
        self.arena = Some((arena, k, v));
        self.capacity = rows;
        self.generation = GENERATION.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn zero_padding(&self) {
        if let Some((arena, k, v)) = &self.arena {
            for id in [*k, *v] {
                let row = arena.get(id).nb(1);
                arena.zero(id, self.len * row, (self.capacity - self.len) * row);
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.len = 0;
        self.least = 0;
        self.positions = None;
        self.forgotten = 0;
    }

    pub(super) fn append(&mut self, kept: Kept, first: usize, n: usize) {
        let positions_of_all = || (first..first + n).map(|x| x as i32);
        match kept {
            Kept::Count(count) => {
                if let Some(p) = &mut self.positions {
                    p.extend(positions_of_all());
                }
                self.len += count;
                if count < n {
                    self.least = first + n;
                }
            }
            Kept::At(positions) => {
                if positions.len() < n {
                    self.least = first + n;
                }
                self.len += positions.len();
                self.positions.get_or_insert_with(|| (0..first).map(|x| x as i32).collect()).extend(positions);
            }
        }
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Entries that there is room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Number of the memory: the same as before only if it is the same memory.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Original positions of the entries, where they have gaps that matter; `None`: 0, 1, 2 ...
    pub fn positions(&self) -> Option<&[i32]> {
        self.positions.as_deref()
    }

    /// Keys `[width, capacity]`.
    ///
    /// # Panics
    /// Before the first [`LayerCache::reserve`].
    pub fn k(&self) -> Tensor<'_> {
        let (arena, k, _) = self.arena.as_ref().expect("a reserved cache");
        arena.get(*k)
    }

    /// Values `[width, capacity]`.
    ///
    /// # Panics
    /// Before the first [`LayerCache::reserve`].
    pub fn v(&self) -> Tensor<'_> {
        let (arena, _, v) = self.arena.as_ref().expect("a reserved cache");
        arena.get(*v)
    }

    /// Writes entries from the first on: whole rows of keys and of values, as they lie in memory.
    ///
    /// # Panics
    /// Without room for them.
    pub fn write(&self, k: &[u8], v: &[u8]) {
        let (arena, k_id, v_id) = self.arena.as_ref().expect("a reserved cache");
        arena.set(*k_id, 0, k);
        arena.set(*v_id, 0, v);
    }

    /// Bytes that the cache holds.
    pub fn n_bytes(&self) -> usize {
        self.arena.as_ref().map_or(0, |(a, _, _)| a.n_bytes())
    }
}
