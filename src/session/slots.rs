//! Memory of the values that outlive their phase (hidden states, candidates' keys, scores, indices) on one device.

use std::collections::HashMap;

use crate::compile::phases::{Contents, Phase, Program, Storage};
use crate::ggml::GgmlError;
use crate::ggml::Tensor;
use crate::ggml::arena::{Arena, TensorId};
use crate::ggml::backend::BufferType;
use crate::gguf::GgmlType;
use crate::graph::ir::{DType, Graph, NodeId, Op};

/// All stored values of a program.
pub struct SlotMemory {
    arena: Arena,
    tensors: HashMap<NodeId, TensorId>,
}

/// Offsets of a program's slots, and the bytes of all, with keys of `key` type. `elements`: how many each of them has to hold.
fn layout(program: &Program, elements: &[usize], key: GgmlType, align: usize) -> (Vec<usize>, usize) {
    let mut offsets = Vec::with_capacity(program.slots.len());
    let mut size = 0;
    for (slot, elements) in program.slots.iter().zip(elements) {
        offsets.push(size);
        let bytes = elements
            * match slot.contents {
                Contents::Words => 4,
                Contents::Keys => key.type_size(),
                Contents::Normalized => 2,
            };
        size = (size + bytes).next_multiple_of(align);
    }
    (offsets, size)
}

impl SlotMemory {
    /// Allocates the slots and a tensor for every value in them that one of the phases `runs` makes or reads, and for token ids and
    /// positions.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(
        graph: &Graph,
        program: &Program,
        runs: &dyn Fn(&Phase) -> bool,
        key: GgmlType,
        buft: BufferType,
    ) -> Result<Self, GgmlError> {
        let mut is_here: Vec<bool> =
            graph.nodes.iter().map(|node| matches!(node.op, Op::Tokens | Op::Positions)).collect();
        for id in program.phases.iter().filter(|phase| runs(phase)).flat_map(|phase| &phase.nodes) {
            graph.node(*id).src.iter().chain([id]).for_each(|s| is_here[s.index()] = true);
        }
        let mut elements = vec![0; program.slots.len()];
        let stored: Vec<(NodeId, usize)> = program
            .storage
            .iter()
            .enumerate()
            .filter_map(|(i, s)| match s {
                Storage::Slot(slot) if is_here[i] => Some((NodeId(i as u32), *slot)),
                _ => None,
            })
            .collect();
        for (id, slot) in &stored {
            let node = graph.node(*id);
            elements[*slot] = (node.n_feat * node.n_rows).max(elements[*slot]);
        }
        let (offsets, size) = layout(program, &elements, key, buft.alignment().max(64));
        let mut arena = Arena::new(stored.len() + 1);
        let buffer = arena.allocate_raw(buft, size, "hidden states")?;
        let mut tensors = HashMap::new();
        for (id, slot) in stored {
            let node = graph.node(id);
            let ty = match node.dtype {
                DType::I32 => GgmlType::I32,
                DType::Bf16 => GgmlType::BF16,
                DType::F32 if program.slots[slot].contents == Contents::Keys => key,
                DType::F32 => GgmlType::F32,
            };
            let t = arena.declare(node.name, ty, &[node.n_feat, node.n_rows]);
            arena.place(t, buffer, offsets[slot]);
            tensors.insert(id, t);
        }
        Ok(Self { arena, tensors })
    }

    /// A stored value `[n_feat, n_rows]`.
    pub fn get(&self, id: NodeId) -> Tensor<'_> {
        self.arena.get(self.tensors[&id])
    }

    /// True if the value is stored.
    pub fn has(&self, id: NodeId) -> bool {
        self.tensors.contains_key(&id)
    }

    /// Writes a whole value.
    pub fn set(&self, id: NodeId, bytes: &[u8]) {
        self.arena.set(self.tensors[&id], 0, bytes);
    }

    /// Copies the first `n_rows` rows of `from` into a stored value.
    pub fn copy_rows(&self, id: NodeId, from: Tensor<'_>, n_rows: usize) {
        self.arena.copy_rows(self.tensors[&id], 0, from, n_rows);
    }

    /// Bytes that the slots hold.
    pub fn n_bytes(&self) -> usize {
        self.arena.n_bytes()
    }
}
