//! What can be wrong with a rival.

/// Names that [`super::Rival::parse`] knows, for messages and help texts.
pub const RIVAL_NAMES: [&str; 7] = ["fastkv", "gemfilter", "uniprefill", "sliminfer", "specprefill", "random", "last"];

/// What is wrong with a rival, or with a rival for this model.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs)] // the fields are what the messages name
#[non_exhaustive]
pub enum RivalError {
    /// No such method.
    #[error("method '{0}': no such method; expected one of {names}", names = RIVAL_NAMES.join(", "))]
    Unknown(String),
    /// The share is no share.
    #[error("method '{method}': share '{share}'; expected a number above 0, at most 1, as in {method}:0.2")]
    Share { method: String, share: String },
    /// The layer is no number.
    #[error("method '{method}': layer '{layer}'; expected a number, as in {method}:0.2@12")]
    Layer { method: String, layer: String },
    /// The method has no one layer where it chooses.
    #[error("method '{method}' does not choose at a layer of its own; leave @{layer} out")]
    NoLayer { method: &'static str, layer: usize },
    /// A layer behind which nothing is left to compute.
    #[error("method '{method}': layer {layer}; expected 0 to {last}, so that a layer of the model's {n_layer} comes after it", last = n_layer.saturating_sub(2))]
    LayerOutOfRange { method: &'static str, layer: usize, n_layer: usize },
    /// A recurrent layer has no attention to search.
    #[error("method '{method}': layer {layer} is recurrent and scores no tokens; expected one that attends, as layer {other} does")]
    Recurrent { method: &'static str, layer: usize, other: usize },
    /// Layers that attend through a sliding window cannot be searched for tokens, nor miss some.
    #[error("method '{method}' does not run models with sliding windows; the schedules of spts do")]
    Windows { method: &'static str },
    /// A prompt without tokens.
    #[error("method '{method}': the prompt is empty; expected at least 1 token")]
    EmptyPrompt { method: &'static str },
}
