//! The attention masks of a device: one matrix for all causal tiles, one for all windowed ones.

use crate::compile::lower::{KV_PAD, MaskBuffer};
use crate::ggml::GgmlError;
use crate::ggml::arena::{Arena, TensorId};
use crate::ggml::backend::BufferType;
use crate::gguf::GgmlType;

/// Query rows that share one view of a mask. Attention over more is cut into parts (512 is ggml's best on GPUs, measured).
pub const MASK_HEIGHT: usize = 512;

/// One mask matrix.
struct Mask {
    arena: Arena,
    id: TensorId,
    corner: usize,
}

/// Masks of one device.
#[derive(Default)]
pub struct Masks {
    causal: Option<Mask>,
    window: Option<(usize, Mask)>,
    generation: u64,
}

impl Masks {
    /// Makes masks for queries up to row `max_rows` of a cache, and for a sliding window.
    ///
    /// # Errors
    /// Out of memory.
    pub fn prepare(&mut self, max_rows: usize, window: Option<usize>, buft: BufferType) -> Result<(), GgmlError> {
        let corner = max_rows.next_multiple_of(KV_PAD);
        if self.causal.as_ref().is_none_or(|m| m.corner < corner) {
            self.causal = Some(make(corner, None, buft)?);
            self.generation += 1;
        }
        if let Some(w) = window
            && self.window.as_ref().is_none_or(|(have, _)| *have != w)
        {
            self.window = Some((w, make((w + KV_PAD).next_multiple_of(KV_PAD), Some(w), buft)?));
            self.generation += 1;
        }
        Ok(())
    }

    /// The mask of full attention or of the window.
    ///
    /// # Panics
    /// Before [`Masks::prepare`].
    pub fn get(&self, window: Option<usize>) -> MaskBuffer<'_> {
        let mask = match window {
            None => self.causal.as_ref(),
            Some(_) => self.window.as_ref().map(|(_, m)| m),
        }
        .expect("prepared masks");
        MaskBuffer { tensor: mask.arena.get(mask.id), corner: mask.corner, height: MASK_HEIGHT }
    }

    /// Number of the memory: the same as before only if it is the same memory.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Bytes held.
    pub fn n_bytes(&self) -> usize {
        self.causal.iter().chain(self.window.iter().map(|(_, m)| m)).map(|m| m.arena.n_bytes()).sum()
    }
}

fn make(corner: usize, window: Option<usize>, buft: BufferType) -> Result<Mask, GgmlError> {
    let mut arena = Arena::new(1);
    let id =
        arena.declare("mask", GgmlType::F16, &[MaskBuffer::width(corner, MASK_HEIGHT), MaskBuffer::rows(MASK_HEIGHT)]);
    arena.allocate(&[id], buft, "attention masks")?;
    arena.set(id, 0, &MaskBuffer::bytes(corner, MASK_HEIGHT, window));
    Ok(Mask { arena, id, corner })
}
