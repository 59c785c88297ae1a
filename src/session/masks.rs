//! The attention masks of a device: one matrix for all causal tiles, one for all windowed ones, where kernels read any.

use crate::compile::mask_buffer::{MaskBuffer, MaskSize};
use crate::ggml::GgmlError;
use crate::ggml::arena::{Arena, TensorId};
use crate::ggml::backend::BufferType;
use crate::gguf::GgmlType;

/// A mask matrix of one window.
struct Mask {
    /// Of attention that is not causal alone.
    window: Option<usize>,
    size: MaskSize,
    arena: Arena,
    id: TensorId,
}

/// The mask matrices of one device.
#[derive(Default)]
pub struct Masks {
    all: Vec<Mask>,
    generation: u64,
}

impl Masks {
    /// Makes the masks that a program needs ([`crate::compile::lower::masks_needed`]) and that are not there yet.
    ///
    /// # Errors
    /// Out of memory.
    pub fn prepare(&mut self, needs: &[(Option<usize>, MaskSize)], buft: BufferType) -> Result<(), GgmlError> {
        for &(window, size) in needs {
            if self.all.iter().any(|m| m.window == window && m.size.covers(&size)) {
                continue;
            }
            // A smaller one goes first: two would take twice the memory.
            self.all.retain(|m| m.window != window);
            self.all.push(make(window, size, buft)?);
            self.generation += 1;
        }
        Ok(())
    }

    /// The mask of full attention or of a window.
    ///
    /// # Panics
    /// If a program looks into a mask that it did not need.
    pub fn get(&self, window: Option<usize>) -> MaskBuffer<'_> {
        let mask = self.all.iter().find(|m| m.window == window).expect("prepared masks");
        MaskBuffer { tensor: mask.arena.get(mask.id), corner: mask.size.corner }
    }

    /// Number of the memory: the same as before only if it is the same memory.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Bytes that the masks hold.
    pub fn n_bytes(&self) -> usize {
        self.all.iter().map(|m| m.arena.n_bytes()).sum()
    }
}

fn make(window: Option<usize>, size: MaskSize, buft: BufferType) -> Result<Mask, GgmlError> {
    let mut arena = Arena::new(1);
    let id = arena.declare("mask", GgmlType::F16, &[size.width(), size.rows()]);
    arena.allocate(&[id], buft, "attention masks")?;
    arena.set(id, 0, &size.bytes(window));
    Ok(Mask { window, size, arena, id })
}
