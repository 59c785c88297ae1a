//! The residual stream of a document's tokens between two layers, on the device of the layer that reads it, or in host memory.

use crate::ggml::arena::{Arena, TensorId};
use crate::ggml::backend::BufferType;
use crate::ggml::{GgmlError, Tensor};
use crate::gguf::GgmlType;

/// Rows `[n_embd, n]`, F32.
pub struct Residual {
    arena: Option<(Arena, TensorId)>,
    buft: BufferType,
    n_embd: usize,
    capacity: usize,
}

impl Residual {
    /// Makes a residual stream without rows.
    pub fn new(buft: BufferType, n_embd: usize) -> Self {
        Self { arena: None, buft, n_embd, capacity: 0 }
    }

    /// Makes room for `rows` in all; the first `keep` stay.
    ///
    /// # Errors
    /// Out of memory.
    pub fn reserve(&mut self, rows: usize, keep: usize) -> Result<(), GgmlError> {
        if rows <= self.capacity {
            return Ok(());
        }
        if keep == 0 {
            // Let go first.
            (self.arena, self.capacity) = (None, 0);
        }
        let mut arena = Arena::new(1);
        let id = arena.declare("residual", GgmlType::F32, &[self.n_embd, rows]);
        arena.allocate(&[id], self.buft, "the document's residual stream")?;
        if let Some((old, old_id)) = &self.arena {
            arena.copy_rows(id, 0, old.get(*old_id), keep);
        }
        (self.arena, self.capacity) = (Some((arena, id)), rows);
        Ok(())
    }

    /// Takes `n` rows over from `from`, to stand from row `first` on.
    ///
    /// # Panics
    /// Without room for them.
    pub fn store(&self, first: usize, from: Tensor<'_>, n: usize) {
        let (arena, id) = self.arena.as_ref().expect("room for the rows");
        arena.copy_rows(*id, first, from, n);
    }

    /// The rows, and room behind them.
    ///
    /// # Panics
    /// Before the first [`Residual::reserve`].
    pub fn rows(&self) -> Tensor<'_> {
        let (arena, id) = self.arena.as_ref().expect("reserved rows");
        arena.get(*id)
    }

    /// Writes bytes of whole rows from row `first` on.
    ///
    /// # Panics
    /// Without room for them.
    pub fn write(&self, first: usize, bytes: &[u8]) {
        let (arena, id) = self.arena.as_ref().expect("room for the rows");
        arena.set(*id, first * self.n_embd * 4, bytes);
    }

    /// Rows that there is room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes that the rows hold.
    pub fn n_bytes(&self) -> usize {
        self.arena.as_ref().map_or(0, |(arena, _)| arena.n_bytes())
    }
}
