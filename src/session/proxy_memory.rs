//! The FFN proxies of a sidecar in a device's memory.

use spts_quant::ProxySize;

use crate::compile::memory::ProxyTensors;
use crate::ggml::GgmlError;
use crate::ggml::arena::{Arena, TensorId};
use crate::ggml::backend::BufferType;
use crate::gguf::GgmlType;
use crate::method::spts::sidecar::{Sidecar, TENSORS, tensor_name};

/// Proxies on a device.
pub struct ProxyMemory {
    arena: Arena,
    by_layer: Vec<Option<[TensorId; 3]>>,
}

impl ProxyMemory {
    /// Copies the proxies into a device's memory: as they are in the file (F16), or in BF16, if that is what its products take.
    ///
    /// # Errors
    /// Out of memory.
    pub fn load(sidecar: &Sidecar, buft: BufferType, bf16: bool) -> Result<Self, GgmlError> {
        let ty = if bf16 { GgmlType::BF16 } else { GgmlType::F16 };
        let ProxySize { d_low, rank } = sidecar.size();
        let mut arena = Arena::new(3 * sidecar.layers().len() + 1);
        let mut by_layer = vec![None; sidecar.layers().iter().max().map_or(0, |l| l + 1)];
        let mut all = Vec::new();
        for &layer in sidecar.layers() {
            let all_of_layer =
                [("u_gu", [sidecar.n_embd(), 2 * rank]), ("v_gu", [rank, 2 * d_low]), ("v_down", [d_low, rank])];
            let ids: [TensorId; 3] =
                all_of_layer.map(|(name, ne)| arena.declare(&tensor_name(layer, &format!("proxy_{name}")), ty, &ne));
            by_layer[layer] = Some(ids);
            all.extend(ids);
        }
        arena.allocate(&all, buft, "FFN proxies")?;
        for &layer in sidecar.layers() {
            let Some([u_gu, v_gu, v_down]) = by_layer[layer] else { continue };
            let behind_gate = rank * d_low * ty.type_size();
            let places = [(u_gu, 0), (v_gu, 0), (v_gu, behind_gate), (v_down, 0)];
            for (name, (id, offset)) in TENSORS.iter().zip(places) {
                if let Some(info) = sidecar.gguf().tensor(&tensor_name(layer, name)) {
                    let data = sidecar.gguf().tensor_data(info);
                    if bf16 { arena.set(id, offset, &bf16_of_f16(data)) } else { arena.set(id, offset, data) }
                }
            }
        }
        Ok(Self { arena, by_layer })
    }

    /// The proxy of a layer.
    ///
    /// # Panics
    /// If the layer has none; sessions check that before they run.
    pub fn get(&self, layer: usize) -> ProxyTensors<'_> {
        let ids = self.by_layer[layer].expect("a layer with a proxy");
        let [u_gu, v_gu, v_down] = ids.map(|id| self.arena.get(id));
        ProxyTensors { u_gu, v_gu, v_down }
    }
}

fn bf16_of_f16(bytes: &[u8]) -> Vec<u8> {
    let values = bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]));
    values.flat_map(|x| half::bf16::from_f32(x.to_f32()).to_le_bytes()).collect()
}
