//! Groups of flags that several subcommands share. Names and meanings are llama.cpp's where it has the flag.
//!
//! Parsing has no side effects: no file is opened here, no device asked.

mod device;
mod memory;
mod numbers;
mod overrides;
mod sampling;
mod spts;

pub use self::device::{DeviceArgs, PlacementArgs};
pub use self::memory::{DocumentMemory, MemoryArgs};
pub use self::overrides::{OVERRIDES, OverrideArgs};
pub use self::sampling::SamplingArgs;
#[cfg(test)]
pub use self::spts::Queries;
pub use self::spts::SptsArgs;
