//! What one run of a program reads besides the devices.

use crate::compile::Compiled;
use crate::compile::memory::{CacheMode, ProxyTensors};
use crate::model::weights::Model;

use super::proxy_memory::ProxyMemory;
use super::sequence::Sequence;
use super::slots::SlotMemory;
use super::turns::Staged;

/// A compiled program with the memory that it works on.
pub struct Run<'r> {
    /// The model.
    pub model: &'r Model,
    /// The program.
    pub compiled: &'r Compiled,
    /// What was read before.
    pub sequence: &'r Sequence,
    /// Proxies by device, where the graph has any.
    pub proxies: &'r [Option<ProxyMemory>],
    /// Stored values by device.
    pub slots: &'r [SlotMemory],
    /// Layers that read the prompt in shared memory.
    pub staged: &'r Staged,
    /// How the caches are addressed.
    pub mode: CacheMode,
}

impl Run<'_> {
    /// The proxy of a layer in a device's memory.
    pub(super) fn proxy(&self, device: usize, layer: usize) -> ProxyTensors<'_> {
        self.proxies[device].as_ref().expect("a graph with proxies runs with them loaded").get(layer)
    }
}
