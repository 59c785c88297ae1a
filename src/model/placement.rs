//! Which device computes which layers.

use crate::ggml::GgmlError;
use crate::ggml::backend;

/// Where layers and weights live.
#[derive(Clone, Debug, PartialEq)]
pub struct Placement {
    /// ggml's names of the devices in use.
    pub devices: Vec<String>,
    /// Device of every layer, an index into `devices`.
    pub layer: Vec<usize>,
    /// Device of the embedding.
    pub input: usize,
    /// Device of the output head.
    pub output: usize,
}

impl Placement {
    /// The last `n_gpu_layers` layers (`None`: all) on `device` (`None`: the first GPU, or the CPU); the others stay on the CPU.
    ///
    /// # Errors
    /// No such device.
    pub fn choose(n_layer: usize, device: Option<&str>, n_gpu_layers: Option<usize>) -> Result<Placement, GgmlError> {
        let chosen = match device {
            Some(name) => backend::device_named(name)?,
            None => backend::devices().into_iter().find(|d| d.is_gpu).map_or("CPU".to_string(), |d| d.name),
        };
        let on_device = n_gpu_layers.unwrap_or(n_layer).min(n_layer);
        if chosen == "CPU" || on_device == 0 {
            return Ok(Placement { devices: vec!["CPU".into()], layer: vec![0; n_layer], input: 0, output: 0 });
        }
        if on_device == n_layer {
            return Ok(Placement { devices: vec![chosen], layer: vec![0; n_layer], input: 0, output: 0 });
        }
        let layer = (0..n_layer).map(|l| usize::from(l >= n_layer - on_device)).collect();
        Ok(Placement { devices: vec!["CPU".into(), chosen], layer, input: 0, output: 1 })
    }

    /// Device of a graph node's layer; nodes without one are the embedding or the head.
    pub fn of(&self, layer: Option<usize>, is_input: bool) -> usize {
        match layer {
            Some(l) => self.layer[l],
            None if is_input => self.input,
            None => self.output,
        }
    }
}
