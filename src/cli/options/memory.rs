//! What a session keeps, and how much of it is computed at a time.

use clap::{Args, ValueEnum};
use spts::SessionOptions;
use spts::gguf::GgmlType;
use spts::session::sequence::CacheType;

use super::device::DeviceArgs;

/// Where a document's residual stream waits for questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DocumentMemory {
    /// Memory of the device that reads it
    Device,
    /// Host memory: slower, where the device has too little
    Host,
}

impl DocumentMemory {
    /// The same place by the library's name.
    pub fn library(self) -> spts::DocumentMemory {
        match self {
            DocumentMemory::Device => spts::DocumentMemory::Device,
            DocumentMemory::Host => spts::DocumentMemory::Host,
        }
    }
}

/// Element type of a KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CacheTypeArg {
    /// 4 bytes
    #[value(name = "f32")]
    F32,
    /// 2 bytes
    #[value(name = "f16")]
    F16,
    /// 1 byte and a scale per 32
    #[value(name = "q8_0")]
    Q8_0,
}

impl CacheTypeArg {
    /// Bytes of one element.
    pub fn bytes(self) -> f64 {
        match self {
            CacheTypeArg::F32 => 4.0,
            CacheTypeArg::F16 => 2.0,
            CacheTypeArg::Q8_0 => 34.0 / 32.0,
        }
    }

    /// The library's type.
    pub fn library(self) -> CacheType {
        match self {
            CacheTypeArg::F32 => CacheType::F32,
            CacheTypeArg::F16 => CacheType::F16,
            CacheTypeArg::Q8_0 => CacheType::Q8_0,
        }
    }
}

/// Memory of a session.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Context and memory")]
pub struct MemoryArgs {
    /// Most tokens in a batch: an upper bound of -ub, for llama.cpp's sake
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub batch_size: Option<u32>,
    /// Tokens computed at a time: more is faster and takes more memory [default: 512, on a GPU 10240]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub ubatch_size: Option<u32>,
    /// Type of the cached keys
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    pub cache_type_k: CacheTypeArg,
    /// Type of the cached values
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    pub cache_type_v: CacheTypeArg,
}

impl MemoryArgs {
    /// Tokens of a tile, if it was asked for.
    pub fn n_ubatch(&self) -> Option<usize> {
        [self.ubatch_size, self.batch_size].into_iter().flatten().min().map(|n| n as usize)
    }

    /// Types of cached keys and values.
    pub fn cache_types(&self) -> [GgmlType; 2] {
        [self.cache_type_k, self.cache_type_v].map(|t| t.library().ggml())
    }

    /// What these flags and the threads say of a session; the rest is as it is by default.
    pub fn session_options(&self, device: &DeviceArgs) -> SessionOptions {
        SessionOptions {
            n_ubatch: self.n_ubatch(),
            n_threads: device.threads.map(usize::from),
            cache_type_k: self.cache_type_k.library(),
            cache_type_v: self.cache_type_v.library(),
            ..SessionOptions::default()
        }
    }

    /// The tile, the types of the cache and the threads in words, as files of results hold them: results compare only under the
    /// same.
    pub fn settings(&self, device: &DeviceArgs) -> String {
        let or_default = |n: Option<usize>| n.map_or("default".into(), |n| n.to_string());
        format!(
            "tile {}, cache {:?}/{:?}, threads {}",
            or_default(self.n_ubatch()),
            self.cache_type_k,
            self.cache_type_v,
            or_default(device.threads.map(usize::from))
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_threads_of_a_session() {
        use clap::Parser as _;

        #[derive(clap::Parser)]
        struct Flags {
            #[command(flatten)]
            memory: MemoryArgs,
            #[command(flatten)]
            device: DeviceArgs,
        }
        let of = |flags: &[&str]| {
            let Flags { memory, device } = Flags::parse_from([&["x"], flags].concat());
            (memory.session_options(&device), memory.settings(&device))
        };
        let (options, settings) = of(&["--ubatch-size", "256", "--cache-type-v", "q8_0", "--threads", "3"]);
        assert_eq!((options.n_ubatch, options.n_threads), (Some(256), Some(3)));
        assert_eq!((options.cache_type_k, options.cache_type_v), (CacheType::F16, CacheType::Q8_0));
        assert_eq!(settings, "tile 256, cache F16/Q8_0, threads 3");
        let (options, settings) = of(&[]);
        assert_eq!((options.n_ubatch, options.n_threads), (None, None));
        assert_eq!(settings, "tile default, cache F16/F16, threads default");
    }
}
