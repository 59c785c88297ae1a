//! Models: [`file`](mod@file) (header, hyperparameters, tokenizer, chat template, the table of weights), [`weights`] (where these
//! are placed), [`overrides`] of what a file says, and one file per architecture that builds its dense graph.

pub mod attention;
pub mod ffn;
pub mod file;
mod gemma3;
mod gemma4;
mod glm4;
mod gpt_oss;
pub mod hparams;
pub mod named_shapes;
mod llama;
mod olmo2;
pub mod overrides;
mod phi3;
pub mod placement;
mod qwen2;
mod qwen3;
mod qwen35;
pub mod shape;
pub mod stack;
pub mod table;
pub mod weights;

use hparams::HParams;
use stack::Architecture;
use table::WeightTable;

/// Architectures that can be run, by their GGUF names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// `llama`
    Llama,
    /// `qwen2`
    Qwen2,
    /// `qwen3`
    Qwen3,
    /// `gemma3`
    Gemma3,
    /// `gemma4`
    Gemma4,
    /// `phi3`
    Phi3,
    /// `granite`
    Granite,
    /// `mistral3`
    Mistral3,
    /// `qwen3moe`
    Qwen3Moe,
    /// `gpt-oss`
    GptOss,
    /// `olmo2`, also OLMo 3
    Olmo2,
    /// `glm4`
    Glm4,
    /// `qwen3next`
    Qwen3Next,
    /// `qwen35`
    Qwen35,
    /// `qwen35moe`
    Qwen35Moe,
}

impl Arch {
    /// All architectures that can be run.
    pub const ALL: [Arch; 15] = [
        Arch::Llama,
        Arch::Qwen2,
        Arch::Qwen3,
        Arch::Gemma3,
        Arch::Gemma4,
        Arch::Phi3,
        Arch::Granite,
        Arch::Mistral3,
        Arch::Qwen3Moe,
        Arch::GptOss,
        Arch::Olmo2,
        Arch::Glm4,
        Arch::Qwen3Next,
        Arch::Qwen35,
        Arch::Qwen35Moe,
    ];

    /// The architecture's name in GGUF files.
    pub fn name(self) -> &'static str {
        match self {
            Arch::Llama => "llama",
            Arch::Qwen2 => "qwen2",
            Arch::Qwen3 => "qwen3",
            Arch::Gemma3 => "gemma3",
            Arch::Gemma4 => "gemma4",
            Arch::Phi3 => "phi3",
            Arch::Granite => "granite",
            Arch::Mistral3 => "mistral3",
            Arch::Qwen3Moe => "qwen3moe",
            Arch::GptOss => "gpt-oss",
            Arch::Olmo2 => "olmo2",
            Arch::Glm4 => "glm4",
            Arch::Qwen3Next => "qwen3next",
            Arch::Qwen35 => "qwen35",
            Arch::Qwen35Moe => "qwen35moe",
        }
    }

    /// Whether it is Llama's graph with numbers of its own: factors on the residual stream, say.
    fn is_like_llama(self) -> bool {
        matches!(self, Arch::Llama | Arch::Granite | Arch::Mistral3)
    }

    /// Whether neighbouring elements of a head rotate together.
    fn rotates_neighbours(self) -> bool {
        self.is_like_llama() || self == Arch::Glm4
    }

    /// Whether its FFNs are mixtures of experts, or may be.
    fn has_experts(self) -> bool {
        matches!(self, Arch::Qwen3Moe | Arch::GptOss | Arch::Qwen3Next | Arch::Qwen35Moe | Arch::Gemma4)
    }

    /// Whether some of its layers are recurrent.
    fn is_hybrid(self) -> bool {
        matches!(self, Arch::Qwen3Next | Arch::Qwen35 | Arch::Qwen35Moe)
    }

    /// The architecture of this GGUF name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|a| a.name() == name)
    }

    /// Looks up the weights of a model.
    pub fn load(self, hp: &HParams, table: &mut WeightTable) -> Result<Box<dyn Architecture>, ModelError> {
        Ok(match self {
            Arch::Llama | Arch::Granite | Arch::Mistral3 => Box::new(llama::Llama::load(hp, table)?),
            Arch::Qwen2 => Box::new(qwen2::Qwen2::load(hp, table)?),
            Arch::Qwen3 | Arch::Qwen3Moe => Box::new(qwen3::Qwen3::load(hp, table)?),
            Arch::Gemma3 => Box::new(gemma3::Gemma3::load(hp, table)?),
            Arch::Gemma4 => Box::new(gemma4::Gemma4::load(hp, table)?),
            Arch::GptOss => Box::new(gpt_oss::GptOss::load(hp, table)?),
            Arch::Olmo2 => Box::new(olmo2::Olmo2::load(hp, table)?),
            Arch::Glm4 => Box::new(glm4::Glm4::load(hp, table)?),
            Arch::Phi3 => Box::new(phi3::Phi3::load(hp, table)?),
            Arch::Qwen3Next | Arch::Qwen35 | Arch::Qwen35Moe => Box::new(qwen35::Qwen35::load(hp, table)?),
        })
    }
}

/// Why a file that is valid GGUF is no model that can be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The file is no GGUF, or cannot be read.
    #[error(transparent)]
    Gguf(#[from] crate::gguf::GgufError),
    /// An architecture that is not supported.
    #[error("{file}: architecture '{arch}' is not supported; supported are {}", Arch::ALL.map(Arch::name).join(", "))]
    UnsupportedArch {
        /// File.
        file: String,
        /// As the file says.
        arch: String,
    },
    /// A key that the architecture needs.
    #[error("{file}: metadata key '{key}' is missing")]
    MissingKey {
        /// File.
        file: String,
        /// Key.
        key: String,
    },
    /// A key with a value that can't be.
    #[error("{file}: metadata key '{key}' is {found}, expected {expected}")]
    InvalidValue {
        /// File.
        file: String,
        /// Key.
        key: String,
        /// Value.
        found: String,
        /// What would do.
        expected: String,
    },
    /// A tensor that the architecture needs.
    #[error("{file}: tensor '{tensor}' is missing")]
    MissingTensor {
        /// File.
        file: String,
        /// Tensor.
        tensor: String,
    },
    /// A tensor that the architecture does not have.
    #[error(
        "{file}: architecture '{arch}' has no tensor '{tensor}'{}; without it the model would answer something else",
        and_more(*.n_more)
    )]
    UnknownTensor {
        /// File.
        file: String,
        /// GGUF's name of the architecture.
        arch: &'static str,
        /// The first such tensor.
        tensor: String,
        /// How many more there are.
        n_more: usize,
    },
    /// A tensor of another shape than the hyperparameters imply.
    #[error("{file}: tensor '{tensor}' has shape {found:?}, expected {expected:?}")]
    WrongShape {
        /// File.
        file: String,
        /// Tensor.
        tensor: String,
        /// In the file.
        found: Vec<u64>,
        /// Implied.
        expected: Vec<usize>,
    },
    /// A tensor of a type that can't be used there.
    #[error("{file}: tensor '{tensor}' has type {found}, expected {expected}")]
    WrongType {
        /// File.
        file: String,
        /// Tensor.
        tensor: String,
        /// In the file.
        found: String,
        /// What would do.
        expected: String,
    },
}

fn and_more(n: usize) -> String {
    if n == 0 { String::new() } else { format!(" (nor {n} more of the file's)") }
}
