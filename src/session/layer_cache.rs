//! The KV cache of one layer that attends: as many entries as its attention has computed, or as its window needs.

mod window;

use std::sync::atomic::{AtomicU64, Ordering};

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
    /// Entries as they were behind a document.
    kept: Option<Box<LayerCache>>,
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
            kept: None,
        }
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
        self.kept = None;
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
                let there = (self.forgotten..self.end()).map(|x| x as i32);
                self.len += positions.len();
                self.positions.get_or_insert_with(|| there.collect()).extend(positions);
            }
        }
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Entries there have been, those that were forgotten among them.
    pub(super) fn end(&self) -> usize {
        self.forgotten + self.len
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
        let kept = self.kept.as_ref().map_or(0, |kept| kept.n_bytes());
        self.arena.as_ref().map_or(0, |(a, _, _)| a.n_bytes()) + kept
    }
}
