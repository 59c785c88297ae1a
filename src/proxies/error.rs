//! Why proxies cannot be made.

use spts_quant::{ProxyError, SaliencyError};

/// Why there are no proxies.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CalibrationError {
    /// There is too little text.
    #[error("calibration needs at least {needed} tokens of text, found {found}: give more or longer texts")]
    TooShort {
        /// Tokens given.
        found: usize,
        /// Tokens needed.
        needed: usize,
    },
    /// No layer can skip: every one attends through a sliding window, or has keys that several read.
    #[error("every layer of this model has a sliding window or shares its keys, and none can skip: there is nothing to calibrate")]
    NoLayers,
    /// A proxy stands for one FFN, and here a token goes through several of many.
    #[error("the FFNs of this model are mixtures of experts, for which there are no proxies: tokens are scored by attention alone")]
    Experts,
    /// The captured states of a layer are of no use.
    #[error("layer {layer}: {source}")]
    Saliency {
        /// Layer.
        layer: usize,
        /// What is wrong.
        source: SaliencyError,
    },
    /// A layer's weights could not be decomposed.
    #[error("layer {layer}: {source}")]
    Proxy {
        /// Layer.
        layer: usize,
        /// What is wrong.
        source: ProxyError,
    },
    /// The layer's FFN is not the gated one that a proxy stands for.
    #[error("layer {layer}: the model has no tensor '{tensor}'")]
    NoWeight {
        /// Layer.
        layer: usize,
        /// Name.
        tensor: String,
    },
}
