//! How the next token is chosen.

use clap::Args;
use spts::session::sampler::SamplerParams;

use super::numbers::{above_zero_f32, at_least_zero, probability};

/// How the next token is chosen.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Temperature; 0 takes the most likely token
    #[arg(long, alias = "temperature", value_name = "T", default_value_t = 0.8, value_parser = at_least_zero)]
    pub temp: f32,
    /// Only the K most likely tokens; 0 is all
    #[arg(long, value_name = "K", default_value_t = 40)]
    pub top_k: u32,
    /// The most likely tokens that together reach this probability; 1 is off
    #[arg(long, value_name = "P", default_value_t = 0.95, value_parser = probability)]
    pub top_p: f32,
    /// Only tokens this likely relative to the most likely one; 0 is off
    #[arg(long, value_name = "P", default_value_t = 0.05, value_parser = probability)]
    pub min_p: f32,
    /// Penalty on tokens that were there before; 1 is off
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = above_zero_f32)]
    pub repeat_penalty: f32,
    /// Tokens back that the penalty looks; 0 is off, -1 all
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(i64).range(-1..))]
    pub repeat_last_n: i64,
    /// Seed of the random numbers; -1 takes another one each time
    #[arg(short, long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(i64).range(-1..))]
    pub seed: i64,
}

impl SamplingArgs {
    /// The library's parameters. `fresh_seed` is used for a seed of -1.
    pub fn params(&self, fresh_seed: u64) -> SamplerParams {
        SamplerParams {
            temp: self.temp,
            top_k: self.top_k as usize,
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            repeat_last_n: self.repeat_last_n,
            seed: u64::try_from(self.seed).unwrap_or(fresh_seed),
        }
    }
}
