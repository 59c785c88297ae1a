//! What compiling has to know of the place where a program will run.

use spts_quant::ProxySize;

use crate::attributes::CACHE_GROWTH;
use crate::ggml::kernels::Kernels;
use crate::gguf::GgmlType;
use crate::graph::ir::{BlockShare, Heads, Node, Op, WeightId};
use crate::model::file::ModelFile;
use crate::model::placement::Placement;

/// Rows of a tile, unless asked otherwise. On a GPU large tiles dequantize weights less often; this size takes the first
/// budget of LLaMA's schedule (9K) in one tile and 32K in four.
const CPU_TILE: usize = 512;
const GPU_TILE: usize = 10 * 1024;

/// Queries from which ggml's attention on the CPU computes in F32, in tiles. Fewer ones' values it adds up in F16, which moved
/// log probabilities behind 900 tokens by 0.05 to 0.09 (Qwen2.5-Coder).
const CPU_TILE_OF_QUERIES: usize = 64;

/// Devices, where the layers lie on them, and the sizes that programs are made for.
pub struct Target<'m> {
    file: &'m ModelFile,
    placement: &'m Placement,
    /// Kernels of the devices that layers are on.
    kernels: Vec<Kernels>,
    n_ubatch: Option<usize>,
    proxy: Option<ProxySize>,
    blocks: Option<BlockShare>,
    /// Kernels of all devices, and types of the cached keys and values.
    of_devices: Vec<Kernels>,
    cache: [GgmlType; 2],
}

impl<'m> Target<'m> {
    /// The devices of a placement, and the kernels of each. `n_ubatch`: rows of a tile, if they were asked for; `proxy`: size of the
    /// FFN proxies at hand.
    pub fn new(
        file: &'m ModelFile,
        placement: &'m Placement,
        kernels: &[Kernels],
        n_ubatch: Option<usize>,
        proxy: Option<ProxySize>,
    ) -> Self {
        // A device that has nothing but experts computes these by ggml's operations alone.
        let has_layers = |device: &usize| placement.layer.contains(device);
        let of_layers = (0..placement.devices.len()).filter(has_layers);
        let of_devices = kernels.to_vec();
        let kernels = of_layers.map(|device| kernels[device]).collect();
        let cache = [GgmlType::F16; 2];
        Self { file, placement, kernels, n_ubatch, proxy, blocks: None, of_devices, cache }
    }

    /// The same with attention of prompts that reads a share of the keys, if it is given, and caches of these types.
    pub fn with_attention(self, blocks: Option<BlockShare>, cache: [GgmlType; 2]) -> Self {
        Self { blocks, cache, ..self }
    }

    /// Whether the device of an attention has kernels that read a part of the keys.
    pub(super) fn reads_blocks(&self, node: &Node, heads: &Heads) -> bool {
        let rows = node.n_rows.min(self.tile());
        self.of_devices[self.device_of(node)].causal_attention(rows, heads, self.cache)
    }

    /// What of the keys the attention of prompts reads, if not all.
    pub(super) fn blocks(&self) -> Option<BlockShare> {
        self.blocks
    }

    /// Rows of a tile: as many as were asked for, or what suits the devices.
    pub fn tile(&self) -> usize {
        self.n_ubatch.unwrap_or(if self.has_gpu() { GPU_TILE } else { CPU_TILE }).max(1)
    }

    /// Whether a device is no CPU.
    pub fn has_gpu(&self) -> bool {
        self.kernels.iter().any(|k| !k.is_cpu())
    }

    /// The fewest queries that attention of any layer computes as precisely as many; the last layer's keeps so many.
    pub fn fewest_queries(&self) -> usize {
        let (hp, n_layer) = (self.file.hparams(), self.file.shape().n_layer);
        let by_ggml = |k: &Kernels| k.is_cpu() && !(0..n_layer).all(|l| k.windowed_attention(&hp.heads(l)));
        if self.kernels.iter().any(by_ggml) { CPU_TILE_OF_QUERIES } else { 1 }
    }

    /// Whether all devices keep rows of the residual stream normalised in 16 bits beside it.
    pub(super) fn normalizes_in_16_bits(&self) -> bool {
        self.kernels.iter().all(|k| k.rows_of(self.file.shape().n_embd))
    }

    /// Whether all devices multiply 16-bit rows in this product, of so many rows in all.
    pub(super) fn multiplies_16_bits(&self, op: &Op, rows: usize) -> bool {
        let rows = rows.min(self.tile());
        let product = |w: &WeightId| self.kernels.iter().all(|k| k.product(rows, self.weight_type(*w)));
        match op {
            Op::Linear { weight, .. } => product(weight),
            Op::GatedFfn { gate, up, down, .. } => [gate, up, down].into_iter().all(product),
            Op::ProxyNorm { act, .. } => {
                self.proxy.is_some_and(|p| self.kernels.iter().all(|k| k.proxy_norm(*act, rows, p.rank, p.d_low)))
            }
            _ => false,
        }
    }

    fn weight_type(&self, w: WeightId) -> GgmlType {
        self.file.weight(w).ty
    }

    /// Whether layer `l` lies on another device than the one before it.
    pub(super) fn changes_device_at(&self, l: usize) -> bool {
        l > 0 && self.placement.layer[l] != self.placement.layer[l - 1]
    }

    /// The device of a node.
    pub fn device_of(&self, node: &Node) -> usize {
        self.placement.of(node)
    }

    /// Whether a node is computed on another device than its layer.
    pub(super) fn is_apart(&self, node: &Node) -> bool {
        self.placement.is_apart(node)
    }

    /// Whether a node's weights are brought to its device before it is computed.
    pub(super) fn fetches(&self, node: &Node) -> bool {
        self.placement.fetches(node)
    }

    /// Bytes of the keys and values of so many tokens that layer `l` forgets, if it has a window and keeps less than half of them.
    pub(super) fn forgotten(&self, l: usize, rows: usize) -> usize {
        let shape = self.file.shape();
        let Some(enough) = shape.window(l).map(|window| window + CACHE_GROWTH).filter(|enough| rows > 2 * enough) else {
            return 0;
        };
        let row = |ty: GgmlType| shape.n_embd_kv(l) / ty.block_size() * ty.type_size();
        (rows - enough) * self.cache.map(row).iter().sum::<usize>()
    }

    /// ggml's name of a device.
    pub fn device_name(&self, device: usize) -> &str {
        &self.placement.devices[device]
    }
}
