//! Where the model's layers are computed, and how its file is read.

use clap::Args;
use spts::gguf::OpenOptions;
use spts::model::weights::LoadProgress;
use spts::{ModelOptions, runtime};

/// Which device computes which layers.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Model and device")]
pub struct PlacementArgs {
    /// Layers on the GPU, counted from the last; 0 is none [default: all]
    #[arg(long, alias = "gpu-layers", value_name = "N")]
    pub n_gpu_layers: Option<u32>,
    /// Keep the experts of the first N layers on the CPU; prompts of 32 tokens or more bring them to the GPU, a layer at a time
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub n_cpu_moe: u32,
    /// Keep the experts of all layers on the CPU
    #[arg(long, conflicts_with = "n_cpu_moe")]
    pub cpu_moe: bool,
    /// Device for the layers, as --list-devices names it [default: the first GPU, else CPU]
    #[arg(long, value_name = "NAME", value_parser = device)]
    pub device: Option<String>,
}

impl PlacementArgs {
    /// Layers whose experts lie on the CPU.
    pub fn n_cpu_moe(&self) -> usize {
        if self.cpu_moe { usize::MAX } else { self.n_cpu_moe as usize }
    }
}

/// Where and how the model runs.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Model and device")]
pub struct DeviceArgs {
    #[command(flatten)]
    pub placement: PlacementArgs,
    /// Threads on the CPU [default: one per physical core]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=512))]
    pub threads: Option<u16>,
    /// Read the file into memory instead of mapping it
    #[arg(long)]
    pub no_mmap: bool,
    /// Lock the mapped file in memory
    #[arg(long, conflicts_with = "no_mmap")]
    pub mlock: bool,
    /// Use CPU weights as they lie in the file: starts at once and takes no second copy, but is slower
    #[arg(long)]
    pub no_repack: bool,
    /// Rows up to which a GPU multiplies quantized weights in integers; more rows go to cuBLAS in 16 bits [default: 256 on
    /// data-centre GPUs, else all]
    #[arg(long, value_name = "N")]
    pub integer_rows: Option<u32>,
}

impl DeviceArgs {
    /// How the file is opened.
    pub fn open_options(&self) -> OpenOptions {
        OpenOptions { mmap: !self.no_mmap, mlock: self.mlock }
    }

    /// Sets what holds for the whole process.
    pub fn set_up_process(&self) {
        if let Some(rows) = self.integer_rows {
            runtime::set_integer_rows(rows as usize);
        }
        // A process runs one model.
        runtime::overlap_launches();
    }

    /// The library's options; `progress` sees the share of the weights that is in place.
    pub fn model_options(&self, progress: Option<LoadProgress>) -> ModelOptions {
        ModelOptions {
            mmap: !self.no_mmap,
            mlock: self.mlock,
            repack: !self.no_repack,
            device: self.placement.device.clone(),
            n_gpu_layers: self.placement.n_gpu_layers.map(|n| n as usize),
            n_cpu_moe: self.placement.n_cpu_moe(),
            progress,
        }
    }
}

fn device(text: &str) -> Result<String, String> {
    match text {
        "" => Err("expected a name".into()),
        "none" => Ok("CPU".into()),
        name => Ok(name.to_owned()),
    }
}
