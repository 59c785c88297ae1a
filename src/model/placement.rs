//! Which device computes which layers.

use crate::ggml::GgmlError;
use crate::ggml::backend;
use crate::graph::ir::{Node, Op};

use super::shape::{LayerKind, Shape};

/// Rows from which experts are computed where their layer is, even if their weights lie elsewhere: these are then brought there,
/// which takes as long as multiplying some dozens of rows (llama.cpp's number).
const ROWS_THAT_FETCH: usize = 32;

/// Where layers and weights live.
#[derive(Clone, Debug, PartialEq)]
pub struct Placement {
    /// ggml's names of the devices in use.
    pub devices: Vec<String>,
    /// Device of every layer, an index into `devices`.
    pub layer: Vec<usize>,
    /// Device where the weights of every layer's experts lie.
    pub experts: Vec<usize>,
    /// Device of the embedding.
    pub input: usize,
    /// Device of the output head.
    pub output: usize,
}

impl Placement {
    /// The last `n_gpu_layers` layers (`None`: all) on `device` (`None`: the first GPU, or the CPU); the others stay on the CPU,
    /// and so do the experts of the first `n_cpu_moe` layers.
    ///
    /// # Errors
    /// No such device.
    pub fn choose(
        n_layer: usize,
        device: Option<&str>,
        n_gpu_layers: Option<usize>,
        n_cpu_moe: usize,
    ) -> Result<Placement, GgmlError> {
        let chosen = match device {
            Some(name) => backend::device_named(name)?,
            None => backend::devices().into_iter().find(|d| d.is_gpu).map_or("CPU".to_string(), |d| d.name),
        };
        let on_device = if chosen == "CPU" { 0 } else { n_gpu_layers.unwrap_or(n_layer).min(n_layer) };
        Ok(Self::split(chosen, n_layer, on_device, n_cpu_moe))
    }

    /// The last `on_device` layers on `device`, the others on the CPU, with the experts of the first `n_cpu_moe`.
    pub fn split(device: String, n_layer: usize, on_device: usize, n_cpu_moe: usize) -> Placement {
        let all = vec![0; n_layer];
        if on_device == 0 {
            return Placement { devices: vec!["CPU".into()], experts: all.clone(), layer: all, input: 0, output: 0 };
        }
        if on_device == n_layer && n_cpu_moe == 0 {
            return Placement { devices: vec![device], experts: all.clone(), layer: all, input: 0, output: 0 };
        }
        let layer: Vec<usize> = (0..n_layer).map(|l| usize::from(l >= n_layer - on_device)).collect();
        let experts = layer.iter().enumerate().map(|(l, &device)| if l < n_cpu_moe { 0 } else { device }).collect();
        let input = usize::from(on_device == n_layer);
        Placement { devices: vec!["CPU".into(), device], layer, experts, input, output: 1 }
    }

    /// The first layer that a model's last ones share keys with, if any of these lie on another device than it: attention reads
    /// the keys where its layer is.
    pub(super) fn parts_shared_keys(&self, shape: &Shape) -> Option<usize> {
        let first = (0..shape.n_layer).find(|&l| shape.layer_kind(l) == LayerKind::Shared)?;
        self.layer[first..].iter().any(|device| *device != self.layer[first]).then_some(first)
    }

    /// Device of a graph node.
    pub fn of(&self, node: &Node) -> usize {
        match node.layer {
            Some(l) if self.is_apart(node) => self.experts[l],
            Some(l) => self.layer[l],
            None if matches!(node.op, Op::Embed { .. }) => self.input,
            None => self.output,
        }
    }

    /// Whether a node is computed on another device than its layer, where its weights lie.
    pub fn is_apart(&self, node: &Node) -> bool {
        self.has_experts_elsewhere(node) && node.n_rows < ROWS_THAT_FETCH
    }

    /// Whether a node's weights lie on another device than it is computed on: they are brought there.
    pub fn fetches(&self, node: &Node) -> bool {
        self.has_experts_elsewhere(node) && node.n_rows >= ROWS_THAT_FETCH
    }

    fn has_experts_elsewhere(&self, node: &Node) -> bool {
        matches!(node.op, Op::Experts { .. }) && node.layer.is_some_and(|l| self.experts[l] != self.layer[l])
    }
}
