//! What is changed of a model's metadata before it is read.

use clap::{Args, ValueEnum};
use spts::{MetadataOverride, ModelOverrides, RopeScaling};

use super::numbers::above_zero_f32;

/// How the position encoding's frequencies are scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RopeScalingArg {
    /// Not at all
    None,
    /// All alike
    Linear,
    /// The low ones
    Yarn,
}

/// Names of the flags of [`OverrideArgs`].
pub const OVERRIDES: [&str; 6] =
    ["override_kv", "rope_freq_base", "rope_scaling", "rope_scale", "rope_freq_scale", "yarn_orig_ctx"];

/// What is changed of a model's metadata before it is read.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Changes of the model's metadata")]
pub struct OverrideArgs {
    /// Put a value in the place of the file's: KEY=TYPE:VALUE with int, float, bool or str; may be given several times
    #[arg(long, value_name = "KEY=TYPE:VALUE", value_parser = metadata_override)]
    pub override_kv: Vec<MetadataOverride>,
    /// Base frequency of the position encoding (RoPE)
    #[arg(long, value_name = "X", value_parser = above_zero_f32)]
    pub rope_freq_base: Option<f32>,
    /// How its frequencies are scaled: none, linear or yarn
    #[arg(long, value_name = "HOW", hide_possible_values = true)]
    pub rope_scaling: Option<RopeScalingArg>,
    /// Grow the context by X: its frequencies are divided by it, unless --rope-scaling is none
    #[arg(long, value_name = "X", value_parser = above_zero_f32)]
    pub rope_scale: Option<f32>,
    /// The same as its inverse: multiply the frequencies by X
    #[arg(long, value_name = "X", value_parser = above_zero_f32, conflicts_with = "rope_scale")]
    pub rope_freq_scale: Option<f32>,
    /// Tokens of the context that the model was trained with, for yarn
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 30))]
    pub yarn_orig_ctx: Option<u32>,
}

impl OverrideArgs {
    /// The same for the library.
    pub fn library(&self) -> ModelOverrides {
        ModelOverrides {
            metadata: self.override_kv.clone(),
            rope_freq_base: self.rope_freq_base,
            rope_scaling: self.rope_scaling.map(|how| match how {
                RopeScalingArg::None => RopeScaling::None,
                RopeScalingArg::Linear => RopeScaling::Linear,
                RopeScalingArg::Yarn => RopeScaling::Yarn,
            }),
            rope_scale: self.rope_scale.or(self.rope_freq_scale.map(f32::recip)),
            rope_original_context: self.yarn_orig_ctx,
        }
    }

    /// The changes in words, as files of results hold them; empty if there are none.
    pub fn settings(&self) -> String {
        let changes = self.library();
        if changes == ModelOverrides::default() { String::new() } else { format!("; {changes:?}") }
    }
}

fn metadata_override(text: &str) -> Result<MetadataOverride, String> {
    MetadataOverride::parse(text).map_err(|e| e.to_string())
}
