//! The KV cache: per layer its own length, since SPTS keeps fewer entries in later layers.

use crate::ggml::GgmlError;
use crate::ggml::Tensor;
use crate::ggml::arena::{Arena, TensorId};
use crate::ggml::backend::BufferType;
use crate::gguf::GgmlType;
use crate::graph::lower::KV_PAD;

/// Element type of cached keys or values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum CacheType {
    /// Exact; for tests.
    F32,
    /// The default.
    #[default]
    F16,
    /// Half the memory of F16; needs a head dimension divisible by 32.
    Q8_0,
}

impl CacheType {
    /// ggml's type.
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

/// Cache of one layer.
pub struct LayerCache {
    arena: Option<(Arena, TensorId, TensorId)>,
    buft: BufferType,
    width: usize,
    types: (CacheType, CacheType),
    capacity: usize,
    /// Entries.
    pub len: usize,
    /// Original positions of the entries where they have gaps; `None`: 0, 1, 2 ...
    pub positions: Option<Vec<i32>>,
}

impl LayerCache {
    /// An empty cache of `width` = n_head_kv * head_dim elements an entry.
    pub fn new(buft: BufferType, width: usize, types: (CacheType, CacheType)) -> Self {
        Self { arena: None, buft, width, types, capacity: 0, len: 0, positions: None }
    }

    /// Makes room for `rows` entries in all, keeping what is there.
    ///
    /// # Errors
    /// Out of memory.
    pub fn reserve(&mut self, rows: usize) -> Result<(), GgmlError> {
        let rows = rows.next_multiple_of(KV_PAD);
        if rows <= self.capacity {
            return Ok(());
        }
        let mut arena = Arena::new(2);
        let k = arena.declare("cache_k", self.types.0.ggml(), &[self.width, rows]);
        let v = arena.declare("cache_v", self.types.1.ggml(), &[self.width, rows]);
        // Cleared: attention reads padding rows (masked), which must not hold NaN.
        arena.allocate(&[k, v], self.buft, "the KV cache")?;
        if let Some((old, old_k, old_v)) = &self.arena
            && self.len > 0
        {
            for (from, to) in [(*old_k, k), (*old_v, v)] {
                let bytes = old.get(from).nb(1) * self.len;
                arena.set(to, 0, &old.read(from, 0, bytes));
            }
        }
        self.arena = Some((arena, k, v));
        self.capacity = rows;
        Ok(())
    }

    /// Zeroes the rows behind the entries: attention reads some of them (masked), which must not hold NaN of a call that failed.
    pub fn zero_padding(&self) {
        if let Some((arena, k, v)) = &self.arena {
            for id in [*k, *v] {
                let row = arena.get(id).nb(1);
                arena.zero(id, self.len * row, (self.capacity - self.len) * row);
            }
        }
    }

    /// Forgets all entries; the memory stays.
    pub fn clear(&mut self) {
        self.len = 0;
        self.positions = None;
    }

    /// Appends `n` entries whose positions start at `first`.
    pub fn advance(&mut self, n: usize, first: usize) {
        self.len += n;
        if let Some(p) = &mut self.positions {
            p.extend((first..first + n).map(|x| x as i32));
        }
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

    /// Bytes held.
    pub fn n_bytes(&self) -> usize {
        self.arena.as_ref().map_or(0, |(a, _, _)| a.n_bytes())
    }
}
