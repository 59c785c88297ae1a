//! Experts' weights that lie elsewhere, on the device that computes them for many rows: room for those of one layer.

use std::collections::HashMap;

use crate::ggml::arena::{Arena, BufferId, TensorId};
use crate::ggml::backend::{Backend, BufferType};
use crate::ggml::{GgmlError, Tensor};
use crate::graph::ir::WeightId;
use crate::model::table::Role;
use crate::model::weights::Model;

/// The room on one device, and the experts in it.
#[derive(Default)]
pub struct Fetched {
    room: Option<Room>,
    /// The layer whose weights are there.
    layer: Option<usize>,
}

struct Room {
    arena: Arena,
    buffer: BufferId,
    /// All layers' weights; those of different layers lie in the same place.
    tensors: HashMap<WeightId, (usize, TensorId)>,
}

impl Fetched {
    /// Makes room for the experts of any layer of this device whose experts lie elsewhere.
    ///
    /// # Errors
    /// Out of memory.
    pub fn reserve(&mut self, model: &Model, device: usize, buft: BufferType) -> Result<(), GgmlError> {
        if self.room.is_some() {
            return Ok(());
        }
        let placement = model.placement();
        let (all, mut largest) = (model.file().weights(), 0);
        let mut arena = Arena::new(all.len());
        let mut tensors = HashMap::new();
        let mut places = Vec::new();
        for l in (0..placement.layer.len()).filter(|&l| placement.layer[l] == device && placement.experts[l] != device) {
            let mut end = 0;
            for (i, w) in all.iter().enumerate().filter(|(_, w)| w.layer == Some(l) && w.role == Role::Experts) {
                let t = arena.declare(&w.name, w.ty, &w.ne);
                tensors.insert(WeightId(i as u32), (l, t));
                places.push((t, end));
                end += buft.alloc_size(arena.get(t)).next_multiple_of(buft.alignment());
            }
            largest = largest.max(end);
        }
        let buffer = arena.allocate_raw(buft, largest, "the experts of a layer")?;
        for (t, offset) in places {
            arena.place(t, buffer, offset);
        }
        self.room = Some(Room { arena, buffer, tensors });
        Ok(())
    }

    /// Brings the experts of a layer here, when the device is done with those that are.
    ///
    /// # Panics
    /// If there is no room for them ([`Fetched::reserve`]).
    pub fn fetch(&mut self, model: &Model, layer: usize, backend: &mut Backend) {
        if self.layer == Some(layer) {
            return;
        }
        let room = self.room.as_ref().expect("a program that fetches weights has reserved room for them");
        backend.synchronize();
        // Kernels read behind the last row of a matrix, where no other layer's bytes may be.
        room.arena.clear(room.buffer);
        for (w, (_, t)) in room.tensors.iter().filter(|(_, (of, _))| *of == layer) {
            room.arena.set(*t, 0, model.file().weight_bytes(model.weight(*w)));
        }
        self.layer = Some(layer);
    }

    /// A weight that was brought here.
    pub fn get(&self, w: WeightId) -> Option<Tensor<'_>> {
        let room = self.room.as_ref()?;
        room.tensors.get(&w).map(|(_, t)| room.arena.get(*t))
    }

    /// Bytes held.
    pub fn n_bytes(&self) -> usize {
        self.room.as_ref().map_or(0, |room| room.arena.n_bytes())
    }
}
